"""A row that eats all memory, on a Ray whose memory monitor ends processes early: `pytest -m slow` with this file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.test_deaths import make_work, pool_of

pytestmark = pytest.mark.slow

_ALLOWED_BYTES = 6 << 30  # what else runs on the machine must not reach the limit


def memory() -> tuple[int, int]:
    """Total bytes and used ones."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return total, total - available


@pytest.fixture(scope="module")
def tight_ray() -> Iterator[None]:
    assert not ray.is_initialized(), "run this file alone"
    total, used = memory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_usage_threshold", str((used + _ALLOWED_BYTES) / total))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False
        )
        yield
        ray.shutdown()


def test_the_row_that_eats_all_memory_stands_alone(tight_ray: None, tmp_path: Path) -> None:
    job, units = make_work(tmp_path, ["0", "1", "2", "3", "4", "memory", "6", "7"], 4)
    with pool_of(job, units) as pool:
        receipts = {unit.unit: receipt for unit, receipt in pool}
    bad = {fault.row: fault.reason for receipt in receipts.values() for fault in receipt.quarantined}
    assert list(bad) == [5]
    assert bad[5].startswith("killed the process: out of memory")
