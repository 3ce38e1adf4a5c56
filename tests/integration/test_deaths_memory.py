"""A row that eats all memory, on a Ray of its own whose memory monitor ends processes early."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastfill_ray.embedders.memory import Memory
from tests.integration.cluster import REPOSITORY
from tests.integration.test_deaths import make_work, pool_of

_ALLOWED_BYTES = 6 << 30  # what else runs on the machine must not reach the limit


def embed(folder: Path) -> dict[int, str]:
    """{row: reason} of the quarantined rows."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    job, units = make_work(folder, ["0", "1", "2", "3", "4", "memory", "6", "7"], 4)
    with pool_of(job, units) as pool:
        receipts = {unit.unit: receipt for unit, receipt in pool}
    return {fault.row: fault.reason for receipt in receipts.values() for fault in receipt.quarantined}


@pytest.mark.slow
def test_the_row_that_eats_all_memory_stands_alone(tmp_path: Path) -> None:
    memory = Memory()
    threshold = memory.used_share() + _ALLOWED_BYTES / memory.total_bytes
    if threshold > 0.9:
        pytest.skip(f"needs {_ALLOWED_BYTES >> 30} GiB of free memory")
    script = (
        "import json, pathlib; from tests.integration.test_deaths_memory import embed\n"
        f"path = pathlib.Path({str(tmp_path)!r}); (path / 'bad.json').write_text(json.dumps(embed(path)))"
    )
    # Ray reads its limit when it starts, so it starts in a process of its own.
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "RAY_memory_usage_threshold": str(threshold)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    bad = json.loads((tmp_path / "bad.json").read_text())
    assert list(bad) == ["5"]
    assert bad["5"].startswith("killed the process: out of memory")
