"""Which threads search the blocks of a version: FAISS' own for a batch of queries, one per block for few queries.

FAISS shares the queries of a batch among OpenMP threads: a single query would keep one core busy, the others idle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import faiss

T = TypeVar("T")
# Below this many bytes to scan, to hand the work out takes longer than the work.
_LEAST_BYTES = 1 << 22


def run_searches(searches: Sequence[Callable[[], T]], num_queries: int, scanned_bytes: Callable[[], int]) -> list[T]:
    """What each search returns, in their order.

    Threads are those that FAISS would take in the calling thread: OMP_NUM_THREADS, or ``faiss.omp_set_num_threads``.

    Args:
        searches: of a block each, all for the same queries.
        scanned_bytes: says about how many one query reads, over all of them.
    """
    threads = min(faiss.omp_get_max_threads(), len(searches))
    if threads <= num_queries or scanned_bytes() * num_queries < _LEAST_BYTES:
        return [search() for search in searches]
    return list(_pool(os.getpid(), threads).map(lambda search: search(), searches))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: a fork has none of the threads of the one it came from."""
    return ThreadPoolExecutor(threads, "search", faiss.omp_set_num_threads, (1,))
