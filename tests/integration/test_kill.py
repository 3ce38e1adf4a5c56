"""kill -9 of the driver in the middle of a wave, then the same command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

from fastfill_ray.index.verify import verify
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.log import read_state
from tests.integration.conftest import Workshop

REPOSITORY = Path(__file__).parents[2]


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """The job as a user starts it, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "jobs/backfill.py", "--config", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(REPOSITORY)},
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
    )


def receipts(root: Path) -> set[Path]:
    return set((root / "vectors").rglob("*.receipt.json"))


def test_a_killed_driver_resumes_and_embeds_no_receipted_chunk_again(
    planned: Path, workshop: Workshop, tmp_path: Path
) -> None:
    root, journal, log = tmp_path / "root", tmp_path / "journal", tmp_path / "log.txt"
    shutil.copytree(planned, root)
    journal.mkdir()
    workshop.control(journal=str(journal), sleep_s=0.3)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(workshop.config(root)))

    driver = start(config, log)
    deadline = time.monotonic() + 300  # a guard against hanging, on a machine that may be busy
    while len(receipts(root)) < 15:  # 12 chunks in wave 1: the kill falls into wave 2
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # what the driver started dies with it: nothing may write any more
    durable = receipts(root)
    at_kill = Counter(workshop.journal(journal))
    assert not read_state(open_files(str(root))).finished

    workshop.control(journal=str(journal))
    again = start(config, log)
    assert again.wait(timeout=180) == 0, log.read_text()
    workshop.control()

    assert receipts(root) >= durable
    embedded = Counter(workshop.journal(journal))
    assert len(embedded) == 600 - 120
    # One actor with two units in flight: what was embedded twice is at most what had no receipt when the driver died.
    twice = {item for item, times in embedded.items() if times > 1}
    assert twice <= set(at_kill)
    receipted = _markers(durable, workshop)
    assert not twice & receipted, "a chunk with a receipt was embedded again"
    versions = read_state(open_files(str(root))).versions
    assert [v.new_rows for v in versions] == [120, 180, 360, 600]
    assert len(verify(open_files(str(root)))) == 4


def _markers(durable: set[Path], workshop: Workshop) -> set[str]:
    """Markers of the items whose vectors the receipts vouch for."""
    import pyarrow.parquet as pq

    from fastfill_ray.core.records import Receipt
    from tests.synthetic import marker

    row_of = {item: row for row, item in enumerate(workshop.ids.tolist())}
    found = set()
    for path in durable:
        for output in Receipt.model_validate_json(path.read_bytes()).outputs:
            ids = pq.read_table(path.parent / Path(output.path).name).column("id").to_pylist()
            found |= {marker(workshop.x[row_of[item], 0]) for item in ids}
    return found
