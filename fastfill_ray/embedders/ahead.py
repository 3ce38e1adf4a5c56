"""Work for the processor done in a thread, a little ahead of the device that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], *, depth: int = 2, threads: int = 1) -> Iterator[R]:
    """function(item) in the order of the items, at most `depth` of them begun before they are asked for.

    It pays where the function lets go of Python's lock: tokenisers, image decoders and copies do. What it raises comes
    out in its place, and nothing further begins.
    """
    pending: deque[Future[R]] = deque()
    rest = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            while True:
                for item in rest:
                    pending.append(pool.submit(function, item))
                    if len(pending) > depth:
                        break
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
