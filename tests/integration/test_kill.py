"""kill -9 of a submitted job's driver in the middle of a wave, then the same command on the same cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fastfill_ray.index.verify import verify
from fastfill_ray.stages.embed import vectors_file
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests.integration.cluster import ENVIRONMENT, RAY, REPOSITORY, head, submit
from tests.integration.conftest import Workshop

JOB = "backfill-to-be-killed"


def drivers(config: Path) -> list[int]:
    """Pids of the processes that run the job, the driver and the shells around it."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if b"jobs/backfill.py" in words and str(config).encode() in words and b"submit" not in words:
                found.append(int(process.name))
    return found


def receipts(root: Path) -> set[Path]:
    return set((root / "vectors").rglob("*.receipt.json"))


@pytest.mark.slow  # a cluster of its own; tests/integration/test_signals.py kills a command in the default suite
@pytest.mark.parametrize("run", ["in_process"], indirect=True)  # what is planned, the submitted jobs go on with
def test_a_killed_driver_resumes_and_embeds_no_receipted_chunk_again(
    planned: Path, workshop: Workshop, tmp_path: Path
) -> None:
    root, journal = tmp_path / "root", tmp_path / "journal"
    shutil.copytree(planned, root)
    journal.mkdir()
    workshop.control(journal=str(journal), sleep_s=0.3)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(workshop.config(root)))

    def job_says() -> str:
        told = subprocess.run(
            [RAY, "job", "logs", "--address", address, JOB], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
        )
        return told.stdout + told.stderr

    # Nothing is uploaded, so the job needs no runtime environment, and workers that Ray has ready serve it.
    with head(tmp_path, PYTHONPATH=str(REPOSITORY)) as address:
        first = submit(address, config, "--no-wait", "--submission-id", JOB)
        assert first.returncode == 0, first.stdout + first.stderr
        deadline = time.monotonic() + 300  # a guard against hanging, on a machine that may be busy
        while len(receipts(root)) < 15:  # 12 chunks in wave 1: the kill falls into wave 2
            assert time.monotonic() < deadline, job_says()
            time.sleep(0.02)
        assert drivers(config), job_says()
        for pid in drivers(config):
            os.kill(pid, signal.SIGKILL)
        time.sleep(3)  # the cluster lives on, but what the driver started ends: nothing may write any more
        durable = receipts(root)
        at_kill = Counter(workshop.journal(journal))
        assert not read_state(open_files(str(root))).finished

        workshop.control(journal=str(journal))
        again = submit(address, config)
        workshop.control()
        assert again.returncode == 0, again.stdout + again.stderr
        assert "succeeded" in again.stdout

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

    from tests.synthetic import marker, receipt_at

    row_of = {item: row for row, item in enumerate(workshop.ids.tolist())}
    found = set()
    for path in durable:
        if (vectors := vectors_file(receipt_at(path))) is not None:
            ids = pq.read_table(path.parent / Path(vectors.path).name).column("id").to_pylist()
            found |= {marker(workshop.x[row_of[item], 0]) for item in ids}
    return found
