"""Writes that wait for a disk or a network while the next piece of work is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")

# A write syncs a file and a folder, or is a round trip to S3: so many at a time hide it behind milliseconds of work.
_AHEAD = 4


def write_behind(writes: Iterable[Callable[[], R]]) -> Iterator[R]:
    """What each write returns, in their order: a few run in threads while the next ones are made ready.

    An error comes out at its place; writes that have begun by then end first, as they do where the caller gives up.

    Args:
        writes: each makes one thing durable, and does nothing to another.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for write in writes:
            waiting.append(pool.submit(write))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
