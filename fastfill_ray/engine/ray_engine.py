"""The engine that users get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import dataset, session, tasks, trainer
from fastfill_ray.engine.drain import DrainablePool
from fastfill_ray.engine.interface import TASK_BYTES, Attempt, Blocks, Checkpoints, Groups, Pool, PoolWork, TrainSetup
from fastfill_ray.engine.pool import RayPool
from fastfill_ray.engine.preparing import num_preparers
from fastfill_ray.engine.resources import at_most_a_node, nodes_and_growth, num_that_fit, require
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

T = TypeVar("T")
R = TypeVar("R")
U = TypeVar("U", bound=Model)

_ONE_CPU, _ADD_A_CPU = {"CPU": 1.0}, "Add a node with a CPU, or start Ray with num_cpus=1."


class RayEngine:
    """See ``engine.interface.Engine``."""

    def __init__(self) -> None:
        self._pools: list[RayPool[Any]] = []

    def session(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        return session.connected(say)

    def run_tasks(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        name: str,
        ordered: bool = False,
        memory_bytes: int = TASK_BYTES,
    ) -> Iterator[tuple[T, R]]:
        share = self._share()
        memory_bytes = at_most_a_node(memory_bytes)
        return tasks.run_tasks(function, items, name=name, share=share, memory_bytes=memory_bytes, ordered=ordered)

    def _share(self) -> tasks.Share:
        """What a task asks for now; some node has it, and ``TASK_BYTES`` of memory."""
        self._pools = [pool for pool in self._pools if not pool.has_ended]
        share = tasks.BESIDE_A_POOL if any(pool.has_begun for pool in self._pools) else tasks.ALONE
        # No more than any task asks for: what the largest node has is not known before there is one.
        require({"CPU": share.num_cpus, "memory": float(at_most_a_node(TASK_BYTES))}, _ADD_A_CPU)
        return share

    def exchange(
        self,
        cut: Callable[[T], Sequence[Any]],
        join: Callable[..., R],
        items: Sequence[T],
        parts: int,
        on_cut: Callable[[T], None],
    ) -> list[R]:
        share = self._share()
        memory_bytes = at_most_a_node(TASK_BYTES)
        return tasks.exchange(cut, join, items, parts, on_cut, share=share, memory_bytes=memory_bytes)

    def run_once(self, function: Callable[[Attempt], R], resources: ResourcesConfig) -> R | None:
        require(*_an_actor(resources))
        return tasks.run_once(function, resources)

    def run_units(self, function: Callable[[Sequence[U]], Iterator[Receipt]], groups: Groups[U]) -> Iterator[Receipt]:
        if groups:
            require(_ONE_CPU, _ADD_A_CPU)
        return dataset.run_units(function, groups)

    def num_actors(self, resources: ResourcesConfig) -> int:
        low, high = resources.embed_actors
        return max(low, min(high, num_that_fit(_an_actor(resources)[0])))

    def run_pool(self, work: PoolWork[U], groups: Blocks[U], resources: ResourcesConfig) -> Pool[U]:
        preparers = 0
        if groups:
            require(*_an_actor(resources))
            if work.prepare is not None:
                nodes, grows = nodes_and_growth()
                preparers = num_preparers(resources, nodes, grows=grows)
        pool = RayPool(work, groups, resources, preparers)
        self._pools.append(pool)
        return DrainablePool(pool)

    def train(self, loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
        require(
            {**_ONE_CPU, "GPU": float(setup.use_gpu)},
            "Training takes a GPU if resources.gpus_per_actor is above 0. Set it to 0, or add such a node.",
        )
        trainer.train(loop, data, setup)


def _an_actor(resources: ResourcesConfig) -> tuple[Mapping[str, float], str]:
    """What one actor of the pool asks for, and what to do where no node has it."""
    return (
        {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor},
        "Lower resources.cpus_per_actor or resources.gpus_per_actor, or add a node of that size.",
    )
