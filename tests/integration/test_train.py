"""Training under Ray Train: a killed run goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import synthetic
from tests.synthetic import receipt_at

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_training_goes_on_from_the_last_checkpoint_after_a_kill(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=9000)
    values = synthetic.config(
        tmp_path, pairs={"count": 8000}, waves=[0.95, 1.0], resources={"chunk_rows": 1000}, alignment={"method": "fct"}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "jobs/backfill.py", "--config", str(tmp_path / "config.yaml"), "--until", "plan"],
            cwd=REPOSITORY,
            env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(REPOSITORY)},
            stdout=(tmp_path / "log.txt").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def log() -> str:
        return (tmp_path / "log.txt").read_text()

    driver = start()
    deadline = time.monotonic() + 240
    while not list((tmp_path / "out" / "alignment").rglob("checkpoint_*/*")):
        assert driver.poll() is None, log()
        assert time.monotonic() < deadline, log()
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not list((tmp_path / "out" / "alignment").rglob("receipt.json")), "training was over before the kill"
    time.sleep(3)
    assert start().wait(timeout=300) == 0, log()
    [path] = (tmp_path / "out" / "alignment").rglob("receipt.json")
    details = receipt_at(path).details
    assert details["resumed_from"] > 0, details
    assert details["epochs"] == 24
