"""What tasks beside a full pool cost it, and how soon they are through: a version is built while the pool embeds.

python -m benchmarks.cluster [--units 80] [--tasks 20] [--cpus 2]

A local Ray, a pool of one actor per CPU whose units sleep, and tasks that sleep, so that nothing competes for the
machine and what is timed is the scheduling. Asserted first: every unit and every task comes back once, and nothing was
spilled. Printed: the pool's seconds with tasks beside it as a share of those without, and those of a pool that begins
with one actor and grows; the tasks' seconds beside the pool, and the same where each asks for a CPU, as tasks do when
no pool is at work: they wait until it has ended. It takes about a minute; each pool says its seconds on stderr.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from benchmarks.results import markdown
from benchmarks.texts import start_ray
from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import tasks
from fastfill_ray.engine.interface import TASK_BYTES, Attempt, Finish, PoolWork
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.engine.session import shutdown
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

UNIT_S, TASK_S, PAYLOAD = 0.25, 0.2, pa.table({"x": [bytes(1 << 20)]})


class Nap(Model):
    """A unit of work that sleeps."""

    number: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=80)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--cpus", type=int, default=2, help="that Ray is told of: actors of the pool")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}; Ray {ray.__version__}, Python "
        f"{platform.python_version()}; {options.cpus} actors, {options.units} units of {UNIT_S} s, {options.tasks} "
        f"tasks of {TASK_S} s\n",
        flush=True,
    )
    start_ray(options.cpus)
    engine = RayEngine()
    with engine.session(print):
        whole = options.cpus, options.cpus
        run_pool(engine, options.units, whole, 0, tasks.BESIDE_A_POOL)  # workers start, modules are imported
        alone_s, _ = run_pool(engine, options.units, whole, 0, tasks.BESIDE_A_POOL)
        growing_s, _ = run_pool(engine, options.units, (1, options.cpus), 0, tasks.BESIDE_A_POOL)
        beside_s, tasks_s = run_pool(engine, options.units, whole, options.tasks, tasks.BESIDE_A_POOL)
        _, starved_s = run_pool(engine, options.units, whole, options.tasks, tasks.ALONE)
        assert "Spilled" not in memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    shutdown()
    rows = [
        ("pool that begins with one actor / with all", f"{growing_s / alone_s:.2f}"),
        ("pool, with tasks beside it / without", f"{beside_s / alone_s:.2f}"),
        ("tasks beside the pool / their sleep on as many CPUs", f"{tasks_s / ideal_s(options):.2f}"),
        ("the same, each asking for a CPU", f"{starved_s / ideal_s(options):.2f}"),
    ]
    print(markdown(("seconds", "ratio"), rows))


def ideal_s(options: argparse.Namespace) -> float:
    """Seconds of the tasks on `cpus` CPUs that do nothing else."""
    return float(options.tasks * TASK_S / options.cpus)


def run_pool(
    engine: RayEngine, units: int, actors: tuple[int, int], num_tasks: int, share: tasks.Share
) -> tuple[float, float]:
    """Seconds from the first unit of a pool to its last, and of the tasks that begin with the first unit."""
    groups = [[[Nap(number=number)]] for number in range(units)]
    work = PoolWork(payloads, Napper)
    resources = ResourcesConfig(embed_actors=actors)
    tasks_s = 0.0
    with closing(engine.run_pool(work, groups, resources)) as pool:
        numbers = [next(pool)[0].number]
        began = time.monotonic()
        if num_tasks:
            done = tasks.run_tasks(nap, range(num_tasks), name="nap", share=share, memory_bytes=TASK_BYTES)
            assert sorted(item for item, _ in done) == list(range(num_tasks))
            tasks_s = time.monotonic() - began
        numbers += [unit.number for unit, _ in pool]
        assert sorted(numbers) == list(range(units))
        pool_s = time.monotonic() - began
    print(f"a pool: {pool_s:.1f} s, with {num_tasks} tasks beside it: {tasks_s:.1f} s", file=sys.stderr, flush=True)
    return pool_s, tasks_s


def payloads(units: Sequence[Nap]) -> Iterator[pa.Table]:
    for _ in units:
        yield PAYLOAD


class Napper:
    def __call__(self, units: Sequence[Nap], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        time.sleep(UNIT_S * len(units))
        receipts = [
            Receipt(unit=f"c{unit.number:08d}", rows=table.num_rows) for unit, table in zip(units, tables, strict=True)
        ]
        return lambda: receipts


def nap(_: int) -> None:
    time.sleep(TASK_S)


if __name__ == "__main__":
    main()
