"""Whether and how the pool may begin a unit: lets a run stop without losing what is being embedded, and knows which
units, calls and preparations were begun by processes that are no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
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
# Of processes that end while they prepare, one may be a bad payload's and one the memory's. So many, and more than one
# for ten blocks that are prepared, are the preparer's: a hang takes as long as many blocks, and actors may wait for it.
# More seldom, it still saves more than it costs.
MAX_PREPARING_DEATHS, _PREPARED_PER_DEATH = 3, 10


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


@dataclass(frozen=True)
class Turn:
    """Whether a block is prepared in this process.

    ended: 0; or this process is told first that another one ended while it prepared the block, and so many did so far
    whose node is there. gives_up: that one was one too many, and no block is prepared any more.
    """

    begins: bool
    ended: int = 0
    gives_up: bool = False


def begin_preparing(handle: Any, block: int) -> Turn:
    """In a worker: whether to prepare a block, which goes by the number of its first unit. No block is begun twice."""
    turn: Turn = _ask(handle.begin_preparing.remote(block, ray.get_runtime_context().get_node_id()))
    return turn


def end_preparing(handle: Any, block: int) -> None:
    """In a worker: it has come through the block that it has begun."""
    handle.end_preparing.remote(block)


class Preparing:
    """Which processes that prepare blocks have ended, and whether it is time to give up.

    Args:
        nodes: gives the nodes that are there. A process that ended on another one is not held against the preparer.
    """

    def __init__(self, nodes: Callable[[], Collection[str]]) -> None:
        self._nodes = nodes
        self._begun: dict[int, str] = {}  # node of each block that a process has begun, and not come through
        self._ended: dict[int, str] = {}  # of each block whose process has ended
        self._num_prepared = 0
        self._has_given_up = False

    def begin(self, block: int, node: str) -> Turn:
        """See ``begin_preparing``. node: of the process that asks."""
        is_news = block in self._begun and not self._has_given_up
        if block in self._begun:
            self._ended[block] = self._begun.pop(block)
        guilty = self._guilty()
        # Judged anew each time: that a node is lost may be known later than that its processes have ended.
        gives_up = guilty >= MAX_PREPARING_DEATHS and guilty * _PREPARED_PER_DEATH > self._num_prepared
        if is_news:
            self._has_given_up = gives_up
            return Turn(False, guilty, gives_up)
        if gives_up or block in self._ended:
            return Turn(False)
        self._begun[block] = node
        return Turn(True)

    def end(self, block: int) -> None:
        """See ``end_preparing``."""
        if self._begun.pop(block, None) is not None:
            self._num_prepared += not self._has_given_up

    def _guilty(self) -> int:
        """Processes that ended and whose node did not; below the limit all of them, and nobody asks for nodes."""
        if len(self._ended) < MAX_PREPARING_DEATHS:
            return len(self._ended)
        there = self._nodes()
        return sum(node in there for node in self._ended.values())


def _nodes_there() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class _Intake:
    def __init__(self) -> None:
        self._open = True
        self._attempts: Counter[int] = Counter()
        self._calls: Counter[str] = Counter()
        self._preparing = Preparing(_nodes_there)

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

    def begin_preparing(self, block: int, node: str) -> Turn:
        return self._preparing.begin(block, node) if self._open else Turn(False)

    def end_preparing(self, block: int) -> None:
        self._preparing.end(block)

    def close(self) -> set[int]:
        self._open = False
        return set(self._attempts)
