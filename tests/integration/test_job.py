"""The job as a cluster runs it: a head started by `ray start`, the driver by `ray job submit`."""

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
from pathlib import Path

import pytest
import yaml

from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.log import read_state
from tests import synthetic

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

# With a token, as a cluster should be (and as Ray starts one by default since 2.60).
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """A head of our own on free ports; `--block` keeps it one process group, which is what we end."""
    dashboard = free_port()
    # Ray puts unix sockets under its temp dir; their paths may have 107 bytes.
    temp = Path("/tmp") / f"ray-{os.getpid()}"
    log = (tmp_path / "head.txt").open("wb")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--temp-dir={temp}",
         f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
         f"--runtime-env-agent-port={free_port()}", f"--metrics-export-port={free_port()}"],
        stdout=log, stderr=log, start_new_session=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (tmp_path / "head.txt").read_text()
            assert time.monotonic() < deadline, (tmp_path / "head.txt").read_text()
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


def test_a_submitted_job_ends_succeeded(head: str, tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(synthetic.config(tmp_path, alignment={"method": "ridge"})))
    # The working directory is what the job needs and no more: uploads are limited to 100 MiB.
    work = tmp_path / "work"
    for name in ("fastfill_ray", "jobs", "tests"):
        shutil.copytree(REPOSITORY / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    submitted = subprocess.run(
        [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--",
         sys.executable, "jobs/backfill.py", "--config", str(config)],
        cwd=work, env=ENVIRONMENT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    state = read_state(open_files(str(tmp_path / "out")))
    assert state.finished
    assert state.versions[-1].new_rows == 600
