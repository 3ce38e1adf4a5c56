"""Items with both vectors, and the queries that ask for them.

Legend: Q queries, N items, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.types import F32, I64, U64, Objects


@dataclass(frozen=True)
class Items:
    """The items of a split. old: (N, D), new: (N, E); id_hash, labels, groups, weights: (N,) where known."""

    id_hash: U64
    old: F32
    new: F32
    labels: Objects | None = None
    groups: Objects | None = None
    weights: F32 | None = None


@dataclass(frozen=True)
class Asked:
    """The queries. new: (Q, E), old: (Q, D) or None; labels, groups: (Q,).

    own: (Q,) row of the item that a query itself is, -1 for none: it never finds itself. judged: (pairs, 2) int64 of
    query and item row, the relevance `qrels`; None where nothing is judged.
    """

    new: F32
    old: F32 | None = None
    labels: Objects | None = None
    groups: Objects | None = None
    own: I64 | None = None
    judged: I64 | None = None


def items_as_queries(items: Items, rows: I64) -> Asked:
    """Some of the items as queries, as where no queries are given."""
    return Asked(
        new=items.new[rows],
        old=items.old[rows],
        labels=None if items.labels is None else items.labels[rows],
        groups=None if items.groups is None else items.groups[rows],
        own=rows,
    )


@dataclass(frozen=True)
class PairedItems:
    """P items with both vectors: ids (P,), old (P, D), new (P, E), labels (P,) or None, split (P,) of SPLITS.

    side (P, S), groups (P,), weights (P,) float32: where the gallery has such columns.
    """

    fingerprint: str
    ids: np.ndarray
    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray | None
    split: np.ndarray
    side: np.ndarray | None = None
    groups: np.ndarray | None = None
    weights: np.ndarray | None = None

    def part(self, name: str) -> PairedItems:
        """The pairs of one split."""
        return self._chosen(self.split == name)

    def labelled(self) -> PairedItems:
        """The pairs whose label is known; all of them, without labels, if those are too few to learn from."""
        if self.labels is None:
            return self
        known = np.array([label is not None for label in self.labels.tolist()], dtype=bool)
        return self._chosen(known) if known.sum() >= MIN_SPLIT["train"] else replace(self, labels=None)

    def _chosen(self, rows: np.ndarray) -> PairedItems:
        def of(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        return PairedItems(
            self.fingerprint,
            self.ids[rows],
            self.old[rows],
            self.new[rows],
            of(self.labels),
            self.split[rows],
            of(self.side),
            of(self.groups),
            of(self.weights),
        )


@dataclass(frozen=True)
class Queries:
    """Q queries with everything that evaluation needs.

    ids: (Q,) object array, strings from a query file or gallery ids where audit items are the queries.
    new: (Q, E) float32. old: (Q, D) float32 or None. labels: (Q,) object array or None.
    judged: (query index, item id) pairs, None without qrels. are_items: whether a query is its own gallery item.
    groups: (Q,) object array or None.
    """

    fingerprint: str
    ids: np.ndarray
    new: np.ndarray
    old: np.ndarray | None
    labels: np.ndarray | None
    judged: list[tuple[int, int | str]] | None
    are_items: bool
    groups: np.ndarray | None = None
