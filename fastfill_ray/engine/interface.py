"""What a run asks of the engine under it: tasks, an exchange, a pass over units, a pool of actors, training.

Two implementations: ``RayEngine`` is what users get; ``InProcessEngine`` does the same in this process, for tests that
are not about Ray. Everything that is handed over is a plain callable that can be pickled and called again with the
same outcome. Results are the same on both; only their order and the time they take differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.embedders.isolated import CallJournal
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

T = TypeVar("T")
R = TypeVar("R")
U = TypeVar("U", bound=Model)
U_co = TypeVar("U_co", bound=Model, covariant=True)

# Memory of a task that says nothing else: its libraries, and a few chunks at a time.
TASK_BYTES = 512 << 20

# Units in order; those of one group are read by one task, in one pass.
Groups: TypeAlias = Sequence[Sequence[U]]
# The same, each group cut into blocks: units that travel together, and that one actor works on together.
Blocks: TypeAlias = Sequence[Sequence[Sequence[U]]]


@dataclass(frozen=True)
class Attempt:
    """One attempt at units.

    call_timeout_s: end the process if one call of a model takes longer; None where the process must not end.
    journal: given where the unit has ended processes before; then models must run in a process of their own.
    again: whether another process has begun the units, and may have finished some, before it ended.
    """

    call_timeout_s: float | None = None
    journal: CallJournal | None = None
    again: bool = False


Finish: TypeAlias = Callable[[], Sequence[Receipt]]
"""The second half of work on units: writes what the first half has computed, and gives their receipts in order."""


Prepare: TypeAlias = Callable[[Sequence[U], Sequence[pa.Table], float | None], Sequence[pa.Table]]


@dataclass(frozen=True)
class PoolWork(Generic[U]):
    """What a pool does with units.

    read: the payloads of a group, one after the other, done ahead of the actors. worker: builds what an actor calls
    with (units, their payloads, attempt); it is called once per actor, so that a model loads once. It and its calls run
    in one thread; what a call returns runs in another one, beside the next call. prepare: builds what makes payloads
    of a block ready, where the engine has processes beside the actors for that; None where there is nothing to do. It
    is called with (units, their payloads, most seconds of a step); the actors take what it gives, and payloads as well.
    embedder_of: what a unit's payload is prepared for, as messages name it.
    """

    read: Callable[[Sequence[U]], Iterator[pa.Table]]
    worker: Callable[[], Callable[[Sequence[U], Sequence[pa.Table], Attempt], Finish]]
    prepare: Callable[[], Prepare[U] | None] | None = None
    embedder_of: Callable[[U], str] = str


class Pool(Protocol[U_co]):
    """(unit, its receipt) as they come back. Nothing runs before the first is asked for; ``close`` stops the pool."""

    def __iter__(self) -> Iterator[tuple[U_co, Receipt]]: ...

    def __next__(self) -> tuple[U_co, Receipt]: ...

    def stop(self) -> None:
        """Begin no more units: the iterator ends once those that have begun have come back."""
        ...

    def close(self) -> None:
        """Stop at once; units in flight may or may not have had their effect."""
        ...


@dataclass(frozen=True)
class TrainSetup:
    """Where training keeps its checkpoints, and on what it runs. place: a folder, as `store` takes it."""

    place: str
    store: InputStore
    use_gpu: bool


class Checkpoints(Protocol):
    """What a training loop keeps, so that a killed one goes on."""

    def latest(self, name: str) -> bytes | None:
        """What was kept last, if it was kept under this name."""
        ...

    def save(self, name: str, data: bytes, metrics: Mapping[str, Any]) -> None: ...


class Engine(Protocol):
    """Errors of ours come out of every method as they were raised, wherever that was."""

    def session(self, say: Callable[[str], None]) -> AbstractContextManager[None]:
        """What everything else happens in.

        Args:
            say: takes a line for people: what is waited for.
        """
        ...

    def run_tasks(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        *,
        name: str,
        ordered: bool = False,
        memory_bytes: int = TASK_BYTES,
    ) -> Iterator[tuple[T, R]]:
        """(item, function(item)) as they finish, or in the items' order; never many results at a time.

        Args:
            memory_bytes: of one call. A node runs no more calls at a time than it has memory for.
        """
        ...

    def exchange(
        self,
        cut: Callable[[T], Sequence[Any]],
        join: Callable[..., R],
        items: Sequence[T],
        parts: int,
        on_cut: Callable[[T], None],
    ) -> list[R]:
        """join(part p of every item) for every p; no process holds all parts.

        Args:
            cut: an item's `parts` parts (at least 2).
            on_cut: called here, as each item is cut.
        """
        ...

    def run_once(self, function: Callable[[Attempt], R], resources: ResourcesConfig) -> R | None:
        """function(attempt) in one process that has what an actor of the pool has. None if it ended the process."""
        ...

    def run_units(self, function: Callable[[Sequence[U]], Iterator[Receipt]], groups: Groups[U]) -> Iterator[Receipt]:
        """One streaming pass over units: the receipts as they come; `function` gives those of one group."""
        ...

    def num_actors(self, resources: ResourcesConfig) -> int:
        """Actors of a pool that the nodes there are now have room for: within ``embed_actors``."""
        ...

    def run_pool(self, work: PoolWork[U], groups: Blocks[U], resources: ResourcesConfig) -> Pool[U]:
        """Units through a pool of actors, begun in their order as far as their payloads come in it."""
        ...

    def train(self, loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
        """loop(data, checkpoints) in one worker; when that dies, in another one."""
        ...
