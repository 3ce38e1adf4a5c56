"""Reads and writes that wait for a disk or a network side by side, and while the next piece of work is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")

# A write syncs a file and a folder, or is a round trip to S3: so many at a time hide it behind milliseconds of work.
_WRITES = 4
# A read of a small object is a round trip and next to no work.
READS = 16


def overlapped(calls: Iterable[Callable[[], R]], at_a_time: int = _WRITES) -> Iterator[R]:
    """What each call returns, in their order: a few run in threads while the next ones are made ready.

    An error comes out at its place; calls that have begun by then end first, as they do where the caller gives up.

    Args:
        calls: each reads one thing, or makes one thing durable, and does nothing to another.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(at_a_time) as pool:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) == at_a_time:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
