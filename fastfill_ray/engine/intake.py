"""Whether and how the pool may begin a unit: lets a run stop without losing what is being embedded, and knows which
units and calls were begun by processes that are no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fastfill_ray.errors import EmbedderError

# An innocent unit dies with a node that is taken away, or beside a guilty one; it should not pay for two models then.
_PLAIN_ATTEMPTS = 2
# In a process of its own a unit can still end the actor, by all the memory of a node: 1 + log2 of a batch's rows times
# and a few. This many mean that it comes to no end.
_MAX_ATTEMPTS = 50


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

    def seen(self, units: Iterable[int]) -> None:
        """Units, by their numbers, came back from the pool, done or not begun."""
        self._seen.update(units)

    @property
    def drained(self) -> bool:
        """It is closed, and every unit that had begun came back."""
        return self._begun is not None and self._begun <= self._seen


class Withdrawn(EmbedderError):
    """The run has stopped while the unit was embedded call by call: it comes back undone."""


def admit(handle: Any, units: Sequence[int]) -> int:
    """In a worker: which attempt at `units` may begin, from 1; 0 if none may.

    Units that no process has begun begin together. Of several, of which one may have ended a process, none has begun
    when the answer is above 1: ask again for each of them alone, so that the guilty one stands alone when it is begun.
    """
    return int(_ask(handle.begin.remote(list(units))))


def _ask(answer: ray.ObjectRef) -> Any:
    try:
        return ray.get(answer)
    except RayActorError as error:
        raise EmbedderError(
            "the process that knows what the pool has begun was ended: the driver's node is out of memory, or lost "
            f"({type(error).__name__}). Give it more memory, or keep actors away from it; then run again."
        ) from error


def way_of(attempt: int) -> Literal["plain", "isolated", "hopeless"]:
    """How the `attempt`-th attempt at a unit, from 1, is made; the ones before ended their processes."""
    if attempt <= _PLAIN_ATTEMPTS:
        return "plain"
    return "isolated" if attempt <= _MAX_ATTEMPTS else "hopeless"


class Journal:
    """In a worker: the ``CallJournal`` that outlives it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def begin(self, call: str) -> int:
        """See ``CallJournal``. Raises Withdrawn when the intake is closed."""
        before: int | None = _ask(self._handle.begin_call.remote(call))
        if before is None:
            raise Withdrawn("the run has stopped")
        return before

    def end(self, call: str) -> None:
        self._handle.end_call.remote(call)


class _Intake:
    def __init__(self) -> None:
        self._open = True
        self._attempts: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()

    def begin(self, units: Sequence[int]) -> int:
        if not self._open:
            return 0
        if len(units) > 1 and not self._attempts.keys().isdisjoint(units):
            return 2
        self._attempts.update(units)
        return self._attempts[units[0]]

    def begin_call(self, call: str) -> int | None:
        self._calls[call] += 1
        return self._calls[call] - 1 if self._open else None

    def end_call(self, call: str) -> None:
        del self._calls[call]

    def close(self) -> set[int]:
        self._open = False
        return set(self._attempts)
