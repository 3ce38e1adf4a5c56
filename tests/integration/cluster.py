"""A cluster as users have it: a head started by `ray start`, jobs by `ray job submit`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

# With a token, as a cluster should be (and as Ray starts one by default since 2.60).
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}

FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
FAKE_PROVIDER = "tests.integration.fake_nodes.FakeNodes"
NOTHING = {"CPU": 0, "memory": 0}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def head(folder: Path, **more: str) -> Iterator[str]:
    """A head of our own on free ports; `--block` keeps it one process group, which is what we end.

    Args:
        more: environment variables of all that runs on it.
    """
    dashboard = free_port()
    # Ray puts unix sockets under its temp dir; their paths may have 107 bytes.
    temp = Path("/tmp") / f"ray-{os.getpid()}"
    log = (folder / "head.txt").open("wb")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--temp-dir={temp}",
         f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
         f"--runtime-env-agent-port={free_port()}", f"--metrics-export-port={free_port()}"],
        stdout=log, stderr=log, start_new_session=True, env={**ENVIRONMENT, **more},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (folder / "head.txt").read_text()
            assert time.monotonic() < deadline, (folder / "head.txt").read_text()
            try:
                socket.create_connection(("127.0.0.1", dashboard), timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def autoscaling_head(folder: Path, workers: Mapping[str, Mapping[str, object]], idle_minutes: float) -> Iterator[str]:
    """The address of a head that offers nothing, as cluster.yaml has it; its autoscaler starts raylets on this machine.

    Args:
        workers: available_node_types but the head.
    """
    port, temp = free_port(), Path("/tmp") / f"ray-fake-{os.getpid()}"
    address = f"127.0.0.1:{port}"
    config = folder / "autoscaler.json"
    head_type = {"resources": NOTHING, "node_config": {}, "max_workers": 0}
    config.write_text(json.dumps({
        "cluster_name": "fake_multinode", "max_workers": 8, "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 1.0, "auth": {}, "docker": {}, "setup_commands": [], "initialization_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously":
        False, "rsync_exclude": [], "rsync_filter": [], "head_node_type": "ray.head.default",
        "provider": {"type": "external", "module": FAKE_PROVIDER, "gcs_address": address, "launch_multiple": True,
                     "head_node_id": FAKE_HEAD, "disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": {"ray.head.default": head_type, **workers},
    }))  # fmt: skip
    environment = {
        **ENVIRONMENT, "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD, "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_NODE_TYPE_NAME": "ray.head.default", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    log = (folder / "head.txt").open("wb")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={temp}", f"--port={port}",
         "--include-dashboard=false", f"--autoscaling-config={config}", f"--ray-client-server-port={free_port()}",
         f"--dashboard-agent-listen-port={free_port()}", f"--runtime-env-agent-port={free_port()}",
         f"--metrics-export-port={free_port()}", "--object-store-memory=100000000",
         "--num-cpus=0", "--memory=0"],  # not by RAY_OVERRIDE_RESOURCES, which the nodes would inherit
        stdout=log, stderr=log, start_new_session=True, env=environment,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (folder / "head.txt").read_text():
            assert process.poll() is None, (folder / "head.txt").read_text()
            assert time.monotonic() < deadline, (folder / "head.txt").read_text()
            time.sleep(0.5)
        time.sleep(2)
        assert process.poll() is None, (folder / "head.txt").read_text()
        yield address
    finally:
        end_session(process)
        shutil.rmtree(temp, ignore_errors=True)


def end_session(leader: subprocess.Popen[Any]) -> None:
    """End all that has come of a process that was started with `start_new_session`: Ray's agents name themselves anew,
    and would look for the rest of a cluster for a minute.
    """
    while pids := _of_session(leader.pid):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.poll()
        time.sleep(0.1)
    leader.wait(timeout=10)


def _of_session(session: int) -> list[int]:
    """Processes of it that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of_session, *_ = path.read_text().rpartition(")")[2].split()
            if int(of_session) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def work_folder(folder: Path) -> Path:
    """What a job needs and no more: uploads of a working directory are limited to 100 MiB."""
    for name in ("fastfill_ray", "jobs", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(address: str, config: Path, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of jobs/backfill.py; without `--no-wait` it returns when the job has ended.

    Args:
        options: of `ray job submit`.
        cwd: where the script is taken from; None for the repository itself.
    """
    script = "jobs/backfill.py" if cwd is not None else str(REPOSITORY / "jobs" / "backfill.py")
    return subprocess.run(
        [RAY, "job", "submit", "--address", address, *options, "--", sys.executable, script, "--config", str(config)],
        cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
