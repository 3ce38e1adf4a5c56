"""What is right for a query: relevant items, sparse.

Legend: Q queries, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastfill_ray.types import F32, I64, Bools

RELEVANT_DEPTH = 10  # relevance `new_model`: the full new model's own top 10


@dataclass(frozen=True)
class RelevantItems:
    """Relevant items per query, sparse: `items[starts[q]:starts[q + 1]]` are those of query q, ascending."""

    items: I64
    starts: I64

    @classmethod
    def of(cls, relevant: Bools) -> RelevantItems:
        """From a dense (Q, N) matrix."""
        queries, items = np.nonzero(relevant)
        return cls(items.astype(np.int64), np.searchsorted(queries, np.arange(len(relevant) + 1)).astype(np.int64))

    @classmethod
    def top(cls, scores: F32, depth: int = RELEVANT_DEPTH) -> RelevantItems:
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
    def counts(self) -> I64:
        """Relevant items per query (Q,)."""
        return np.diff(self.starts)

    def take(self, queries: I64) -> RelevantItems:
        """The truth of some queries, renumbered."""
        parts = [self.items[self.starts[q] : self.starts[q + 1]] for q in queries.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return RelevantItems(np.concatenate(parts) if parts else self.items[:0], starts)
