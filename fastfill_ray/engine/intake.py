"""Whether the pool may begin another unit: lets a run stop without losing what is being embedded."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Intake:
    """The driver's side. Actors of the pool ask ``admit`` before they begin a unit."""

    def __init__(self) -> None:
        # It must outlive every spot node, and nothing else can use it: it lives and dies with the driver.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Intake).options(num_cpus=0, scheduling_strategy=here)
        self.handle = actor.remote()
        self._seen: set[int] = set()
        self._begun: set[int] | None = None  # once it is closed

    def close(self) -> None:
        """From here on no unit begins."""
        self._begun = set(ray.get(self.handle.close.remote()))

    def seen(self, unit: int) -> None:
        """A unit, by its number, came back from the pool, done or not begun."""
        self._seen.add(unit)

    @property
    def drained(self) -> bool:
        """It is closed, and every unit that had begun came back."""
        return self._begun is not None and self._begun <= self._seen


def admit(handle: Any, unit: int) -> bool:
    """In a worker: whether `unit` may begin."""
    return bool(ray.get(handle.begin.remote(unit)))


class _Intake:
    def __init__(self) -> None:
        self._open = True
        self._begun: set[int] = set()

    def begin(self, unit: int) -> bool:
        if self._open:
            self._begun.add(unit)
        return self._open

    def close(self) -> set[int]:
        self._open = False
        return self._begun
