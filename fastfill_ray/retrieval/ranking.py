"""Metrics from the ranks of the relevant items alone: what makes a whole backfilling curve affordable.

A state of the gallery is judged by where its relevant items stand, so scores are sorted as values (a tenth of the time
of an argsort) and each relevant item's rank is looked up among them. Same figures as ``retrieval.metrics.per_query`` on
the full ranking, ties included.

Legend: Q queries, N items, P relevant (query, item) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, I64, U64, Bools

Name = TypeVar("Name", bound=str)

# A ranking of a gallery is complete up to this many scores; beyond, it is judged by its first _DEPTH ranks.
_COMPLETE_SCORES = 1 << 25
_DEPTH = 1000
# Scores that are sorted at a time: so many stay in the processor's cache.
_BLOCK_SCORES = 1 << 18


def complete_depth(rows: int, num_queries: int) -> int:
    """Ranks of a gallery that are judged: all, while the scores of a version fit into memory; else the first ones."""
    return rows if rows * num_queries <= _COMPLETE_SCORES else min(rows, _DEPTH)


def rank(scores: NDArray[np.floating]) -> I64:
    """Columns (Q, N) of each query's scores, best first; equal scores keep the order of their columns."""
    return np.argsort(-scores, axis=1, kind="stable")


def rank_hits(scores: NDArray[np.floating], relevant: Bools) -> Bools:
    """`relevant` (Q, N) reordered best score first; entries that score -inf are never hits."""
    return np.take_along_axis(relevant & np.isfinite(scores), rank(scores), axis=1)


def ranks_of(scores: F32, relevances: Mapping[Name, RelevantItems]) -> dict[Name, I64]:
    """The rank, from 1, of every relevant item.

    Args:
        scores: (Q, N), larger is better; -inf excludes an item from a query.
        relevances: relevances by name, Q queries each.

    Returns:
        (P,) per relevance, in the order of `RelevantItems.items`; equal scores are ranked by column.
    """
    count, size = scores.shape
    found = {name: np.empty(len(relevant.items), np.int64) for name, relevant in relevances.items()}
    step = max(1, _BLOCK_SCORES // max(size, 1))
    for start in range(0, count, step):
        end = min(start + step, count)
        block = scores[start:end]
        ordered = _ordered(block) if scores.dtype == np.float32 else _dense(block)
        # One sorted array for all queries: the query's number in the high bits keeps their rows apart.
        line = np.arange(end - start, dtype=np.uint64) << np.uint64(32)
        keys = (np.sort(ordered, axis=1).astype(np.uint64) | line[:, None]).ravel()
        for name, relevant in relevances.items():
            pairs = slice(relevant.starts[start], relevant.starts[end])
            owner = np.repeat(np.arange(end - start), relevant.counts[start:end])
            found[name][pairs] = _ranks(ordered, keys, line, owner, relevant.items[pairs])
    return found


def _ranks(ordered: NDArray[np.uint32], keys: U64, line: U64, owner: I64, items: I64) -> I64:
    """The ranks (P,) of the pairs of some queries.

    Args:
        ordered: (Q, N) scores as integers. keys: (Q N,) the same, ascending, the query's `line` (Q,) in the high bits.
        owner, items: (P,).
    """
    own = ordered[owner, items].astype(np.uint64) | line[owner]
    after = keys.searchsorted(own, side="right")
    ranks: I64 = (owner + 1) * ordered.shape[1] - after + 1
    # The last key that is not larger is its own; the one before it equals it where others score as much.
    tied = np.flatnonzero((after > 1) & (keys[np.maximum(after - 2, 0)] == own))
    for pair in tied.tolist():
        query, item = owner[pair], items[pair]
        ranks[pair] += int((ordered[query, :item] == ordered[query, item]).sum())
    return ranks


def _ordered(scores: F32) -> NDArray[np.uint32]:
    """float32 as integers (Q, N) in the same order; -0.0 and 0.0 are one number."""
    bits = (scores + np.float32(0)).view(np.uint32)
    # Of a negative number all bits turn, of another the first: without a branch that is a tenth of the time.
    bits ^= (bits.view(np.int32) >> np.int32(31)).view(np.uint32) | np.uint32(1 << 31)
    return bits


def _dense(scores: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Each row's distinct values numbered in ascending order (Q, N): for scores that 32 bits cannot hold."""
    return np.stack([np.unique(row, return_inverse=True)[1] for row in scores]).astype(np.uint32)
