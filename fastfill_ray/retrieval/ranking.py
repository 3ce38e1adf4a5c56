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
from fastfill_ray.types import F32, I64, Bools

Name = TypeVar("Name", bound=str)

# A ranking of a gallery is complete up to this many scores; beyond, it is judged by its first _DEPTH ranks.
_COMPLETE_SCORES = 1 << 25
_DEPTH = 1000


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
    ordered = _ordered(scores) if scores.dtype == np.float32 else _dense(scores)
    size = scores.shape[1]
    ascending = np.sort(ordered, axis=1)
    # One sorted array for all queries: the query's number in the high bits keeps their rows apart.
    line = np.arange(len(scores), dtype=np.uint64) << np.uint64(32)
    keys = (ascending.astype(np.uint64) | line[:, None]).ravel()
    found: dict[Name, I64] = {}
    for name, relevant in relevances.items():
        owner = np.repeat(np.arange(len(scores)), relevant.counts)
        own = ordered[owner, relevant.items].astype(np.uint64) | line[owner]
        after = keys.searchsorted(own, side="right")
        ranks = (owner + 1) * size - after + 1
        # The last key that is not larger is its own; the one before it equals it where others score as much.
        tied = np.flatnonzero((after > 1) & (keys[np.maximum(after - 2, 0)] == own))
        for pair in tied.tolist():
            query, item = owner[pair], relevant.items[pair]
            ranks[pair] += int((ordered[query, :item] == ordered[query, item]).sum())
        found[name] = ranks.astype(np.int64)
    return found


def _ordered(scores: F32) -> NDArray[np.uint32]:
    """float32 as integers (Q, N) in the same order; -0.0 and 0.0 are one number."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _dense(scores: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Each row's distinct values numbered in ascending order (Q, N): for scores that 32 bits cannot hold."""
    return np.stack([np.unique(row, return_inverse=True)[1] for row in scores]).astype(np.uint32)
