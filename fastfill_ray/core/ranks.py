"""Metrics from the ranks of the relevant items alone: what makes a whole backfilling curve affordable.

A state of the gallery is judged by where its relevant items stand, so scores are sorted as values (a tenth of the time
of an argsort) and each relevant item's rank is looked up among them. Same figures as ``core.metrics.per_query`` on the
full ranking, ties included.

Legend: Q queries, N items, P relevant (query, item) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.core.metrics import Floats

TRUTH_DEPTH = 10  # relevance `new_model`: the full new model's own top 10


@dataclass(frozen=True)
class Truth:
    """Relevant items per query, sparse: `items[starts[q]:starts[q + 1]]` are those of query q, ascending."""

    items: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, relevant: NDArray[np.bool_]) -> Truth:
        """From a dense (Q, N) matrix."""
        queries, items = np.nonzero(relevant)
        return cls(items.astype(np.int64), np.searchsorted(queries, np.arange(len(relevant) + 1)).astype(np.int64))

    @classmethod
    def top(cls, scores: NDArray[np.float32], depth: int = TRUTH_DEPTH) -> Truth:
        """Relevance `new_model`: the best `depth` items of each query by `scores` (Q, N); of equal ones the first."""
        count = min(depth, scores.shape[1])
        border = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]
        # A tie at the border must go by column, as in every ranking here: few rows have one.
        chosen = scores >= border
        for row in np.flatnonzero(chosen.sum(axis=1) > count):
            best = np.argsort(-scores[row], kind="stable")[:count]
            chosen[row] = False
            chosen[row, best] = True
        return cls.of(chosen & np.isfinite(scores))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Relevant items per query (Q,)."""
        return np.diff(self.starts)

    def take(self, queries: NDArray[np.int64]) -> Truth:
        """The truth of some queries, renumbered."""
        parts = [self.items[self.starts[q] : self.starts[q + 1]] for q in queries.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return Truth(np.concatenate(parts) if parts else self.items[:0], starts)


def ranks_of(scores: NDArray[np.float32], truths: Mapping[str, Truth]) -> dict[str, NDArray[np.int64]]:
    """The rank, from 1, of every relevant item.

    Args:
        scores: (Q, N), larger is better; -inf excludes an item from a query.
        truths: relevances by name, Q queries each.

    Returns:
        (P,) per relevance, in the order of `Truth.items`; equal scores are ranked by column.
    """
    ordered = _ordered(scores) if scores.dtype == np.float32 else _dense(scores)
    size = scores.shape[1]
    ascending = np.sort(ordered, axis=1)
    # One sorted array for all queries: the query's number in the high bits keeps their rows apart.
    line = np.arange(len(scores), dtype=np.uint64) << np.uint64(32)
    keys = (ascending.astype(np.uint64) | line[:, None]).ravel()
    found = {}
    for name, truth in truths.items():
        owner = np.repeat(np.arange(len(scores)), truth.counts)
        own = ordered[owner, truth.items].astype(np.uint64) | line[owner]
        after = keys.searchsorted(own, side="right")
        ranks = (owner + 1) * size - after + 1
        tied = np.flatnonzero(after - keys.searchsorted(own, side="left") > 1)
        for pair in tied.tolist():
            query, item = owner[pair], truth.items[pair]
            ranks[pair] += int((ordered[query, :item] == ordered[query, item]).sum())
        found[name] = ranks.astype(np.int64)
    return found


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 as integers (Q, N) in the same order; -0.0 and 0.0 are one number."""
    bits = (scores + np.float32(0)).view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _dense(scores: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Each row's distinct values numbered in ascending order (Q, N): for scores that 32 bits cannot hold."""
    return np.stack([np.unique(row, return_inverse=True)[1] for row in scores]).astype(np.uint32)


def metrics_of(truth: Truth, ranks: NDArray[np.int64]) -> dict[str, Floats]:
    """Every metric of ``core.metrics.METRICS`` per query (Q,); NaN where a query has no relevant item.

    Args:
        ranks: (P,) of ``ranks_of``.
    """
    counts = truth.counts
    count = len(counts)
    some = counts > 0
    owner = np.repeat(np.arange(count), counts)
    ordered = ranks[np.lexsort((ranks, owner))]
    position = np.arange(len(ranks)) - np.repeat(truth.starts[:-1], counts) + 1
    relevant = np.where(some, counts, np.nan).astype(np.float64)

    def total(values: Floats) -> Floats:
        sums = np.bincount(owner, weights=values, minlength=count).astype(np.float64)
        return np.where(some, sums, np.nan)

    first = np.full(count, np.nan)
    first[some] = ordered[truth.starts[:-1][some]]
    ideal = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, 12)))])[np.minimum(counts, 10)]

    def cmc(depth: int) -> Floats:
        return np.where(some, (first <= depth).astype(np.float64), np.nan)

    return {
        "cmc@1": cmc(1),
        "cmc@5": cmc(5),
        "map": total(position / ordered) / relevant,
        "recall@1": total((ordered <= 1).astype(np.float64)) / relevant,
        "recall@10": total((ordered <= 10).astype(np.float64)) / relevant,
        "mrr": 1 / first,
        "ndcg@10": total(np.where(ordered <= 10, 1 / np.log2(ordered + 1), 0.0)) / ideal,
    }


def measure(scores: NDArray[np.float32], truths: Mapping[str, Truth]) -> dict[str, dict[str, Floats]]:
    """{relevance: {metric: (Q,)}} of one state's scores (Q, N)."""
    ranks = ranks_of(scores, truths)
    return {name: metrics_of(truth, ranks[name]) for name, truth in truths.items()}
