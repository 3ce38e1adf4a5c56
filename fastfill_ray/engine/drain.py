"""A pool that the end of the process can drain, whatever the run does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fastfill_ray import process
from fastfill_ray.engine.pool import RayPool
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

R = TypeVar("R")
U = TypeVar("U", bound=Model)


class DrainablePool(Generic[U]):
    """`pool`, which two threads use: the run's own, and the one that drains it when the process is to end."""

    def __init__(self, pool: RayPool[U]) -> None:
        self._pool, self._turn, self._ending = pool, threading.Lock(), False
        process.begin(self)

    def __iter__(self) -> Iterator[tuple[U, Receipt]]:
        return self

    def __next__(self) -> tuple[U, Receipt]:
        return self._in_turn(lambda: next(self._pool))

    def stop(self) -> None:
        self._pool.stop()

    def close(self) -> None:
        self._in_turn(self._pool.close)
        process.end(self)

    def drain(self) -> None:
        """See ``process.Drainable``. Workers write the receipts; nobody asks for the results any more."""
        self._ending = True
        self._pool.stop()
        if not self._pool.drained:  # else the run may sit in its turn until an actor is there
            with self._turn:
                for _ in self._pool:
                    pass

    def _in_turn(self, act: Callable[[], R]) -> R:
        """What the run asks of the pool. Once the process is to end, it waits for that: it must neither see that the
        pool has ended early nor begin what would come next.
        """
        try:
            with self._turn:
                return act()
        finally:
            if self._ending:
                threading.Event().wait()
