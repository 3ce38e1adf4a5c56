"""The engine that users get."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from fastfill_ray import process
from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import dataset, session, tasks, trainer
from fastfill_ray.engine.drain import DrainablePool
from fastfill_ray.engine.interface import Checkpoints, Pool, PoolWork, TrainSetup
from fastfill_ray.engine.pool import RayPool
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

T = TypeVar("T")
R = TypeVar("R")
U = TypeVar("U", bound=Model)


class RayEngine:
    """See ``engine.interface.Engine``."""

    def session(self) -> AbstractContextManager[None]:
        return session.connected()

    def run_tasks(
        self, function: Callable[[T], R], items: Iterable[T], *, name: str, ordered: bool = False
    ) -> Iterator[tuple[T, R]]:
        return tasks.run_tasks(function, items, name=name, ordered=ordered)

    def exchange(
        self,
        cut: Callable[[T], Sequence[Any]],
        join: Callable[..., R],
        items: Sequence[T],
        parts: int,
        on_cut: Callable[[T], None],
    ) -> list[R]:
        return tasks.exchange(cut, join, items, parts, on_cut)

    def run_units(self, function: Callable[[U], Receipt], units: Sequence[U]) -> Iterator[Receipt]:
        return dataset.run_units(function, units)

    def run_pool(
        self, work: PoolWork[U], units: Sequence[U], resources: ResourcesConfig, *, may_stop: bool = False
    ) -> Pool[U]:
        return DrainablePool(RayPool(work, units, resources, may_stop=may_stop or process.is_command()))

    def train(self, loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
        trainer.train(loop, data, setup)
