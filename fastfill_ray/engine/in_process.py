"""The engine for tests that are not about Ray: everything in this process, one thing after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import (
    TASK_BYTES,
    Attempt,
    Blocks,
    Checkpoints,
    Groups,
    Pool,
    PoolWork,
    Prepare,
    TrainSetup,
)
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

T = TypeVar("T")
R = TypeVar("R")
U = TypeVar("U", bound=Model)


class InProcessEngine:
    """See ``engine.interface.Engine``. Results come in the order of their items; training keeps no checkpoints."""

    def session(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def run_tasks(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        name: str,
        ordered: bool = False,
        memory_bytes: int = TASK_BYTES,
    ) -> Iterator[tuple[T, R]]:
        return ((item, function(item)) for item in items)

    def exchange(
        self,
        cut: Callable[[T], Sequence[Any]],
        join: Callable[..., R],
        items: Sequence[T],
        parts: int,
        on_cut: Callable[[T], None],
    ) -> list[R]:
        pieces = []
        for item in items:
            pieces.append(cut(item))
            on_cut(item)
        return [join(*part) for part in zip(*pieces, strict=True)]

    def run_once(self, function: Callable[[Attempt], R], resources: ResourcesConfig) -> R | None:
        return function(Attempt())

    def run_units(self, function: Callable[[Sequence[U]], Iterator[Receipt]], groups: Groups[U]) -> Iterator[Receipt]:
        return itertools.chain.from_iterable(map(function, groups))

    def num_actors(self, resources: ResourcesConfig) -> int:
        return 1

    def run_pool(self, work: PoolWork[U], groups: Blocks[U], resources: ResourcesConfig) -> Pool[U]:
        prepares = work.prepare is not None and resources.prepare_workers != 0 and groups
        return _InProcessPool(work, groups, work.prepare if prepares else None)

    def train(self, loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
        loop(data, _NoCheckpoints())


class _InProcessPool(Generic[U]):
    """A pool of one actor, which begins a unit when its receipt is asked for."""

    def __init__(self, work: PoolWork[U], groups: Blocks[U], prepare: Callable[[], Prepare[U] | None] | None) -> None:
        self._stopped = False
        self._stream = self._run(work, groups, prepare)

    def _run(
        self, work: PoolWork[U], groups: Blocks[U], build: Callable[[], Prepare[U] | None] | None
    ) -> Generator[tuple[U, Receipt]]:
        worker, prepare = None, None if build is None else build()
        for blocks in groups:
            units = [unit for block in blocks for unit in block]
            for unit, payload in zip(units, work.read(units), strict=True):
                if self._stopped:
                    return
                worker = worker or work.worker()
                payloads = [payload] if prepare is None else prepare([unit], [payload], None)
                for receipt in worker([unit], payloads, Attempt())():
                    yield unit, receipt

    def __iter__(self) -> Iterator[tuple[U, Receipt]]:
        return self

    def __next__(self) -> tuple[U, Receipt]:
        return next(self._stream)

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._stream.close()


class _NoCheckpoints:
    def latest(self, name: str) -> bytes | None:
        return None

    def save(self, name: str, data: bytes, metrics: Mapping[str, Any]) -> None:
        """What is trained in this process ends with it."""
