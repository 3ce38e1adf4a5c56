"""Ray tasks: a bounded fan-out, an exchange by partition, and one call in the place of an actor."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import Attempt
from fastfill_ray.engine.units import original_errors
from fastfill_ray.ordering.partition import items_per_task

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_CHANCES = 2  # of a task that may end its process by itself
_LOOK_EVERY_S = 2.0  # a cluster does not grow faster


@dataclass(frozen=True)
class Share:
    """What a task asks for, and how many are in flight per CPU of the cluster."""

    num_cpus: float
    tasks_per_cpu: int

    def limit(self, cpus: float) -> int:
        """Tasks in flight on a cluster of so many CPUs."""
        return max(2, int(cpus * self.tasks_per_cpu))


# Twice the tasks that run: those that wait are what an autoscaler sees, so a cluster doubles until it is large enough.
ALONE = Share(num_cpus=1, tasks_per_cpu=2)
# A pool may hold every CPU until it ends, so a task that asked for one would wait as long. It asks for memory alone.
BESIDE_A_POOL = Share(num_cpus=0, tasks_per_cpu=1)


class _Limit:
    """Tasks in flight on the cluster as it is, which may grow meanwhile."""

    def __init__(self, share: Share) -> None:
        self._share, self._limit, self._looked = share, 0, -math.inf

    def __call__(self) -> int:
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._limit, self._looked = self._share.limit(ray.cluster_resources().get("CPU", 0)), time.monotonic()
        return self._limit


def _call(function: Callable[..., R], *items: Any) -> R:
    return function(*items)


def run_tasks(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    name: str,
    share: Share,
    memory_bytes: int,
    ordered: bool = False,
) -> Iterator[tuple[T, R]]:
    """(item, function(item)) as they finish, as Ray tasks with bounded concurrency; `function` must be idempotent.

    With `ordered` they come in the items' order. Either way no more results exist at a time than tasks in flight.

    Process death is retried by Ray, an exception is not: it comes out as it was raised.

    Args:
        memory_bytes: that a task asks for.
    """
    task: Any = ray.remote(_call).options(
        num_cpus=share.num_cpus, memory=memory_bytes, max_retries=3, scheduling_strategy="SPREAD", name=name
    )
    shared = ray.put(function)  # with everything it is bound to: serialised once, not once per task
    limit = _Limit(share)
    waiting: dict[ray.ObjectRef, T] = {}
    source = iter(items)
    exhausted = False
    # What is in flight when the caller gives up, runs to its end: to cancel it would interrupt it wherever it is, and a
    # worker that is interrupted while it imports fails in every later task.
    with original_errors():
        while True:
            while not exhausted and len(waiting) < limit():
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                    break
                waiting[task.remote(shared, item)] = item
            if not waiting:
                return
            first = next(iter(waiting))
            done = [first] if ordered else ray.wait(list(waiting), num_returns=1)[0]
            for reference in done:
                yield waiting.pop(reference), ray.get(reference)


def _cut_all(cut: Callable[[T], Sequence[Any]], items: Sequence[T]) -> list[tuple[Any, ...]]:
    """Of each part the pieces of all items."""
    return list(zip(*map(cut, items), strict=True))


def _join_all(join: Callable[..., R], *pieces: Sequence[Any]) -> R:
    return join(*itertools.chain.from_iterable(pieces))


def exchange(
    cut: Callable[[T], Sequence[Any]],
    join: Callable[..., R],
    items: Sequence[T],
    parts: int,
    on_cut: Callable[[T], None],
    *,
    share: Share,
    memory_bytes: int,
) -> list[R]:
    """See ``Engine.exchange``.

    Args:
        memory_bytes: that a task asks for.
    """
    with original_errors():
        asks: dict[str, Any] = {"num_cpus": share.num_cpus, "memory": memory_bytes}
        cutting: Any = ray.remote(_cut_all).options(**asks, num_returns=parts, name="exchange: cut")
        joining: Any = ray.remote(_join_all).options(**asks, name="exchange: join")
        shared, shared_join = ray.put(cut), ray.put(join)
        step = items_per_task(len(items), parts)
        groups = [items[i : i + step] for i in range(0, len(items), step)]
        # Those that ask for a CPU are bounded by Ray: a window of our own costs 0.5 ms a task.
        limit: Callable[[], float] = (lambda: math.inf) if share.num_cpus else _Limit(share)
        pieces = []
        for group, references in zip(groups, _done(partial(cutting.remote, shared), groups, limit), strict=True):
            pieces.append(references)
            for item in group:
                on_cut(item)
        of_parts = zip(*pieces, strict=True)
        wholes = _done(lambda part: [joining.remote(shared_join, *part)], of_parts, limit)
        joined: list[R] = ray.get([reference for (reference,) in wholes])
    return joined


def _done(
    submit: Callable[[T], list[ray.ObjectRef]], items: Iterable[T], limit: Callable[[], float]
) -> Iterator[list[ray.ObjectRef]]:
    """The references that `submit` gives for each item, in order, once the task has ended that they are of.

    Args:
        limit: tasks in flight at a time.
    """
    waiting = deque[list[ray.ObjectRef]]()
    for item in items:
        if len(waiting) >= limit():
            yield _ended(waiting.popleft())
        waiting.append(submit(item))
    yield from map(_ended, waiting)


def _ended(references: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    ray.wait(references, num_returns=len(references), fetch_local=False)
    return references


def run_once(function: Callable[[Attempt], R], resources: ResourcesConfig) -> R | None:
    """See ``Engine.run_once``. A process that ends, as a spot node's does, gets one more chance."""
    # The process ends with the call: what it has loaded would stay in memory beside the actors, which get their own.
    task: Any = ray.remote(max_calls=1)(_call).options(
        num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_retries=0, name="run once"
    )
    result: R | None = result_of(lambda: task.remote(function, Attempt(resources.call_timeout_s)))
    return result


def result_of(submit: Callable[[], ray.ObjectRef]) -> Any | None:
    """What the task gives that `submit` begins; None if it ended its process twice.

    Args:
        submit: of a task with ``max_retries=0``. Ray itself repeats without end what it has ended for want of memory.
    """
    with original_errors():
        for _ in range(_CHANCES):
            try:
                return ray.get(submit())
            except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
                logger.info("%s", error)
    return None
