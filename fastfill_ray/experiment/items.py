"""Items with both vectors, and the queries that ask for them.

Legend: Q queries, N items, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import dataclass

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
