"""Items with both vectors, and the queries that ask for them.

Legend: Q queries, N items, D old dim, E new dim, S side dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from fastfill_ray.ordering.ids import hash_ids, seeded_hash
from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.retrieval.relevance import Judgement, are_lists
from fastfill_ray.types import F32, I64, U64, Bools, Objects, Relevance, Split

# Queries that one measured state looks at: more move no mean, only the clock.
MAX_QUERIES = 1000
# Below this many queries with an answer, choosing and fitting by that relevance would be choosing by chance.
MIN_QUERIES = 60
# Fewer queries than a held-out split has items at least decide nothing by any relevance: cut into folds, and with
# groups of them left out, nothing is left. The items of the split are more.
LEAST_ASKING = 16


@dataclass(frozen=True, eq=False)
class _Rows:
    """Columns of one length; None where there is no such column. ids: (N,)."""

    ids: Objects

    def take(self, rows: I64) -> Self:
        """Some of the rows, in the order given."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[rows] for name, value in columns.items() if isinstance(value, np.ndarray)})

    @cached_property
    def id_hash(self) -> U64:
        """``hash_ids`` of the ids (N,)."""
        return hash_ids(self.ids)

    @cached_property
    def row_of(self) -> dict[object, int]:
        """{id: its row}."""
        return {value: row for row, value in enumerate(self.ids.tolist())}

    def shuffled(self, seed: int) -> Self:
        """The same rows in the order of a seeded hash of their ids: the first n are a uniform sample of any size."""
        return self.take(self._shuffle(seed))

    def first(self, count: int) -> Self:
        """At most so many of the rows, from the beginning."""
        return self if len(self.ids) <= count else self.take(np.arange(count))

    def sample(self, count: int, seed: int) -> Self:
        """At most `count` of the rows, uniformly, in the order of ``shuffled``."""
        return self.take(self._shuffle(seed)[:count])

    def _shuffle(self, seed: int) -> I64:
        """The rows (N,) in the order of ``shuffled``."""
        return np.argsort(seeded_hash(self.id_hash, seed + HashSeed.SHUFFLE), kind="stable")


@dataclass(frozen=True, eq=False)
class PairedItems(_Rows):
    """Items with both vectors: the pairs, or one split of them.

    ids: (N,) ints or strings. old: (N, D), new: (N, E) float32. split: (N,) of ``types.SPLITS``. labels, groups: (N,)
    of any type, None where unknown; a label that is a tuple means any of its members. weights: (N,), side: (N, S)
    float32. priority: (N,) the user's own, NaN where unknown. added: (N,) those that are no part of the uniform sample,
    but were added since users took them: a query meets no other of them than its answers, so that they count for no
    more of the gallery than they are. carried: (N,) those that an earlier plan has made new, or would have if they
    were no pairs; None where there is none, and where that is not known. fingerprint: names what they were made from.
    """

    old: F32
    new: F32
    split: Objects
    labels: Objects | None = None
    groups: Objects | None = None
    weights: F32 | None = None
    side: F32 | None = None
    priority: F32 | None = None
    added: Bools | None = None
    carried: Bools | None = None
    fingerprint: str = ""

    @property
    def counted(self) -> Bools:
        """Which items (N,) are the uniform sample of the gallery."""
        return np.ones(len(self.ids), bool) if self.added is None else ~self.added

    @property
    def size(self) -> int:
        """Items of the uniform sample."""
        return int(self.counted.sum())

    @property
    def carried_part(self) -> float:
        """The share of the uniform sample that is `carried`."""
        return 0.0 if self.carried is None else float(self.carried[self.counted].mean())

    def sampled(self) -> PairedItems:
        """The items of the uniform sample."""
        return self if self.added is None else replace(self.take(np.flatnonzero(~self.added)), added=None)

    def with_added(self, items: PairedItems) -> PairedItems:
        """These items and behind them others, which are `added`; columns that either lacks are left out."""
        both: dict[str, Any] = {}
        for name in (field.name for field in fields(self) if field.name not in ("added", "fingerprint")):
            columns = [getattr(self, name), getattr(items, name)]
            both[name] = None if any(column is None for column in columns) else np.concatenate(columns)
        added = np.concatenate([~self.counted, np.ones(len(items.ids), bool)])
        return replace(self, **both, added=added)

    def part(self, split: Split) -> PairedItems:
        """The items of one split."""
        return self.take(np.flatnonzero(self.split == split))

    def by_hash(self) -> PairedItems:
        """The same items in the order of their ids' hashes: it depends on no file, and on no sample's order."""
        return self.take(np.argsort(self.id_hash, kind="stable"))

    @cached_property
    def classes(self) -> Objects | None:
        """The labels (N,) where each item has one at most: what can be learnt from. None where they are lists."""
        return None if self.labels is None or are_lists(self.labels) else self.labels

    @property
    def has_label_lists(self) -> bool:
        """Whether there are labels, and they are lists."""
        return self.labels is not None and self.classes is None

    def labelled(self) -> PairedItems:
        """The items whose class is known; all of them, without labels, if those are too few to learn from."""
        if self.labels is None:
            return self
        if self.has_label_lists:
            return replace(self, labels=None)
        known = np.flatnonzero([label is not None for label in self.labels.tolist()])
        return self.take(known) if len(known) >= MIN_SPLIT["train"] else replace(self, labels=None)

    def as_queries(self) -> Queries:
        """Every item as a query that never finds itself: what is used where no queries are given."""
        return Queries(self.ids, self.new, self.old, self.labels, self.groups, are_items=True)


@dataclass(frozen=True, eq=False)
class Queries(_Rows):
    """Queries with everything that measuring needs.

    ids: (Q,) strings, or gallery ids where the queries are items. new: (Q, E), old: (Q, D) float32. labels, groups:
    (Q,), as of the items. judged: None without judgements. judged_as: the relevance that these are. are_items: each
    query is the gallery item of its id, which its own ranking leaves out. fingerprint: names the queries and their
    gallery.
    """

    new: F32
    old: F32 | None = None
    labels: Objects | None = None
    groups: Objects | None = None
    judged: tuple[Judgement, ...] | None = None
    judged_as: Relevance = "qrels"
    are_items: bool = False
    fingerprint: str = ""

    def take(self, rows: I64) -> Queries:
        """Some of the queries, in the order given; judgements go with them."""
        chosen = super().take(rows)
        if self.judged is None:
            return chosen
        place = {row: i for i, row in enumerate(rows.tolist())}
        judged = tuple(one._replace(query=place[one.query]) for one in self.judged if one.query in place)
        return replace(chosen, judged=judged)

    @property
    def name_items(self) -> bool:
        """Whether they name items of the gallery: they are some, or some are judged for them."""
        return self.are_items or self.judged is not None

    def own_rows(self, row_of: Mapping[object, int]) -> I64:
        """(Q,): the row of the item that each query itself is, -1 for none; row_of: {id: row} of the items."""
        own = np.full(len(self.ids), -1, np.int64)
        if self.are_items:
            own[:] = [row_of.get(value, -1) for value in self.ids.tolist()]
        return own


def asking(queries: Queries | None, items: PairedItems) -> Queries:
    """Who asks a split when something is chosen or fitted on it: the users' queries, or its own items where there are
    none of these, or fewer than LEAST_ASKING.

    Items have no old vectors then where the users' queries have none: what needs these cannot be served.
    """
    if queries is not None and len(queries.ids) >= LEAST_ASKING:
        return queries
    own = items.sampled().as_queries()
    return own if queries is None or queries.old is not None else replace(own, old=None)
