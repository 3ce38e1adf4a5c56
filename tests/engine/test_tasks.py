"""What tasks ask for: a CPU each, or, beside a pool that may hold them all, memory."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import tasks
from fastfill_ray.engine.interface import TASK_BYTES
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.engine.tasks import ALONE, BESIDE_A_POOL
from tests.engine.workers import asked, asked_in_parts, list_of, pairs_of, work


def test_more_tasks_wait_than_run_so_that_an_autoscaler_sees_them() -> None:
    assert ALONE.limit(0) == 2, "on a head without CPUs the first tasks ask for the first node"
    assert ALONE.limit(16) * ALONE.num_cpus == 2 * 16


def test_tasks_beside_a_pool_are_no_more_than_the_cluster_has_cpus() -> None:
    assert BESIDE_A_POOL.num_cpus == 0
    assert (BESIDE_A_POOL.limit(1), BESIDE_A_POOL.limit(16)) == (2, 16)


def test_an_exchange_beside_a_pool_has_no_more_tasks_in_flight_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight: list[Any] = []
    most: list[int] = []

    def submit(item: int) -> list[Any]:
        in_flight.append(item)
        most.append(len(in_flight))
        return [item]

    def ended(references: list[Any]) -> list[Any]:
        in_flight.remove(references[0])
        return references

    monkeypatch.setattr(tasks, "_ended", ended)
    assert list(tasks._done(submit, range(7), lambda: 3)) == [[item] for item in range(7)]
    assert max(most) == 3


def test_a_task_asks_for_a_cpu_and_beside_a_pool_that_holds_them_all_for_memory(
    ray_session: None, tmp_path: Path
) -> None:
    engine = RayEngine()

    def of_a_task() -> dict[str, float]:
        ((_, resources),) = engine.run_tasks(asked, [0], name="asked", memory_bytes=1 << 28)
        return resources

    with engine.session(print):
        assert of_a_task() == {"CPU": 1, "memory": 1 << 28}
        every_cpu = ResourcesConfig(embed_actors=(2, 2))
        with closing(engine.run_pool(work(tmp_path), [pairs_of(8)], every_cpu)) as pool:
            assert of_a_task() == {"CPU": 1, "memory": 1 << 28}, "a pool that has not begun holds nothing"
            next(pool)
            assert of_a_task() == {"memory": 1 << 28}
            assert engine.exchange(asked_in_parts, list_of, [0], 2, lambda _: None) == 2 * [[{"memory": TASK_BYTES}]]
            assert len(list(pool)) == 7
            assert of_a_task() == {"CPU": 1, "memory": 1 << 28}, "a pool that has nothing left to do holds nothing"
        assert of_a_task() == {"CPU": 1, "memory": 1 << 28}
