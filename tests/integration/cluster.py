"""A cluster as users have it: a head started by `ray start`, jobs by `ray job submit`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

# With a token, as a cluster should be (and as Ray starts one by default since 2.60).
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}


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
