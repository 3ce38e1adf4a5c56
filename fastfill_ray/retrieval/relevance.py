"""What is right for a query: relevant items, sparse.

Legend: Q queries, N items, J judged pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastfill_ray.types import F32, I64, Bools, Objects

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
        """The relevant of some queries, renumbered."""
        parts = [self.items[self.starts[q] : self.starts[q + 1]] for q in queries.tolist()]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return RelevantItems(np.concatenate(parts) if parts else self.items[:0], starts)


def number_labels(labels: Objects) -> dict[object, int]:
    """A number for each label of the queries, from 0: numbers compare faster than objects, millions of times."""
    known = (label for label in dict.fromkeys(labels.tolist()) if label is not None)
    return {label: number for number, label in enumerate(known)}


def label_codes(labels: Objects, numbers: Mapping[object, int]) -> I64:
    """The number of each label (N,); -1 where there is no label, or one that no query has."""
    return np.array([numbers.get(label, -1) for label in labels.tolist()], np.int64)


def same_label(queries: I64, items: I64) -> Bools:
    """Relevance `label` (Q, N): the same label, and one that is known.

    Args:
        queries: (Q,) of ``label_codes``.
        items: (N,) of ``label_codes``, or (Q, K) where each query has items of its own.
    """
    same: Bools = (queries[:, None] == items) & (queries >= 0)[:, None]
    return same


def judged_rows(judged: Iterable[tuple[int, object]], row_of: Mapping[object, int]) -> I64:
    """Judgements as (query, row) (J, 2), each once, ascending; those of items that are not here are left out.

    Args:
        judged: number of the query, id of a relevant item.
        row_of: the row of each item that is here.
    """
    found = sorted({(query, row_of[item]) for query, item in judged if item in row_of})
    return np.array(found, np.int64).reshape(-1, 2)


def judged_relevant(judged: I64, num_queries: int, num_items: int) -> Bools:
    """Relevance `qrels` (Q, N) of judgements (J, 2) by query and row."""
    relevant = np.zeros((num_queries, num_items), bool)
    relevant[judged[:, 0], judged[:, 1]] = True
    return relevant
