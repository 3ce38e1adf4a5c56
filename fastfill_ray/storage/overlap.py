"""Reads and writes that wait for a disk or a network side by side, and while the next piece of work is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# A write syncs a file and a folder, or is a round trip to S3: so many at a time hide it behind milliseconds of work.
_WRITES = 4
# A read of a small object is a round trip and next to no work.
_READS = 16


def overlapped(writes: Iterable[Callable[[], R]]) -> Iterator[R]:
    """What each write returns, in their order: a few run in threads while the next ones are made ready.

    An error comes out at its place; writes that have begun by then end first, as they do where the caller gives up.

    Args:
        writes: each makes one thing durable, and does nothing to another.
    """
    return _in_order(iter(writes), _WRITES, must_end=True)


def read_ahead(read: Callable[[T], R], items: Iterable[T], at_a_time: int = _READS) -> Iterator[R]:
    """read(item) in the order of the items, some read at a time.

    An error comes out at its place. Nobody waits for reads that have begun by then, nor where the caller gives up.
    """
    return _in_order((partial(read, item) for item in items), at_a_time, must_end=False)


def _in_order(calls: Iterator[Callable[[], R]], at_a_time: int, *, must_end: bool) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    pool, fault = ThreadPoolExecutor(at_a_time), None
    try:
        while True:
            try:
                waiting.append(pool.submit(next(calls)))
            except StopIteration:
                break
            except Exception as error:  # of what makes the calls: it is raised behind those that had begun before it
                fault = error
                break
            if len(waiting) == at_a_time:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if fault is not None:
            raise fault
    finally:
        pool.shutdown(wait=must_end, cancel_futures=not must_end)
