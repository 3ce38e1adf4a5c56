"""What is right for a query: relevant items and their grades, sparse.

Legend: Q queries, N items, K hits per query, J judged pairs, P relevant pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import numpy as np

from fastfill_ray.types import F32, F64, I64, Bools, Objects

RELEVANT_DEPTH = 10  # relevance `new_model`: the full new model's own top 10
GRADED_DEPTH = 10  # nDCG@10: the highest grades that its ideal ranking holds


class Judgement(NamedTuple):
    """An item that was judged for a query (its row). It is relevant where its grade is above 0; more is better."""

    query: int
    item: int | str
    grade: float = 1.0


@dataclass(frozen=True)
class RelevantItems:
    """Relevant items per query, sparse: `items[starts[q]:starts[q + 1]]` are those of query q, ascending.

    grades: (P,) above 0, one per item; None where all are equally relevant.
    """

    items: I64
    starts: I64
    grades: F64 | None = None

    @classmethod
    def of(cls, relevant: Bools) -> RelevantItems:
        """From a dense (Q, N) matrix."""
        queries, items = np.nonzero(relevant)
        return cls(items.astype(np.int64), np.searchsorted(queries, np.arange(len(relevant) + 1)).astype(np.int64))

    @classmethod
    def of_judged(cls, judged: I64, grades: F64, num_queries: int) -> RelevantItems:
        """Relevance `qrels`: from ``judged_rows``."""
        starts = np.searchsorted(judged[:, 0], np.arange(num_queries + 1)).astype(np.int64)
        return cls(judged[:, 1], starts, grades)

    @classmethod
    def joined(cls, parts: Sequence[RelevantItems]) -> RelevantItems:
        """The graded items of several parts, of the same queries, those of the first part first."""
        owner = np.concatenate([part.owner for part in parts])
        order = np.argsort(owner, kind="stable")
        grades = [np.ones(len(part.items)) if part.grades is None else part.grades for part in parts]
        ends = np.cumsum(np.sum([part.counts for part in parts], axis=0))
        items = np.concatenate([part.items for part in parts])
        return cls(items[order], np.concatenate([[0], ends]).astype(np.int64), np.concatenate(grades)[order])

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

    @cached_property
    def counts(self) -> I64:
        """Relevant items per query (Q,)."""
        return np.diff(self.starts)

    @cached_property
    def owner(self) -> I64:
        """The query of each item (P,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def best_grades(self) -> F64 | None:
        """The ten highest grades of each query (Q, 10), descending, 0 where it has fewer; None without grades."""
        if self.grades is None:
            return None
        owner = self.owner
        descending = self.grades[np.lexsort((-self.grades, owner))]
        place = np.arange(len(owner)) - self.starts[owner]
        among = place < GRADED_DEPTH
        best = np.zeros((len(self.counts), GRADED_DEPTH))
        best[owner[among], place[among]] = descending[among]
        return best

    def where(self, chosen: Bools) -> RelevantItems:
        """Those of the items (P,) that are chosen."""
        before = np.concatenate([[0], np.cumsum(chosen)]).astype(np.int64)
        return RelevantItems(
            self.items[chosen], before[self.starts], None if self.grades is None else self.grades[chosen]
        )

    def take(self, queries: I64) -> RelevantItems:
        """The relevant of some queries, renumbered."""
        counts = self.counts[queries]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        chosen = np.repeat(self.starts[queries] - starts[:-1], counts) + np.arange(starts[-1])
        return RelevantItems(self.items[chosen], starts, None if self.grades is None else self.grades[chosen])


def are_lists(labels: Objects) -> bool:
    """Whether a label is a list of labels, which means any of these: a tuple of its members."""
    return tuple in set(map(type, labels.tolist()))


def label_matches(queries: Objects, items: Objects) -> Iterator[tuple[I64, I64]]:
    """Relevance `label`: each distinct label of the queries that items share, one after the other.

    Two labels match where they are equal; a tuple means any of its members. None is no label. Memory: O(N + Q).

    Args:
        queries: (Q,) labels. items: (N,) labels.

    Yields:
        (q,) the queries that have this label, and (n,) the items that share it, n >= 1; both ascending.
    """
    asking: dict[object, list[int]] = {}
    for row, label in enumerate(queries.tolist()):
        if label is not None:
            asking.setdefault(label, []).append(row)
    # Numbers compare faster than objects, millions of times.
    number = {value: i for i, value in enumerate(dict.fromkeys(v for label in asking for v in _members(label)))}
    owners, numbers = _numbered(items, number)
    order = np.argsort(numbers.astype(np.min_scalar_type(len(number))), kind="stable")
    owners, ends = owners[order], np.cumsum(np.bincount(numbers, minlength=len(number)))
    for label, rows in asking.items():
        having = [owners[ends[i - 1] if i else 0 : ends[i]] for i in (number[value] for value in _members(label))]
        sharing = having[0] if len(having) == 1 else np.unique(np.concatenate(having))
        if len(sharing):
            yield np.array(rows, np.int64), sharing


def _members(label: object) -> tuple[object, ...]:
    return label if isinstance(label, tuple) else (label,)


def _numbered(items: Objects, number: Mapping[object, int]) -> tuple[I64, I64]:
    """(item, number) of every label, or member of one, that has a number; items ascending."""
    labels = items.tolist()
    if not are_lists(items):
        found = np.fromiter(map(number.get, labels, repeat(-1)), np.int64, len(labels))
        owners = np.flatnonzero(found >= 0)
        return owners, found[owners]
    pairs = [(row, number[value]) for row, label in enumerate(labels) for value in _members(label) if value in number]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def same_label(queries: Objects, items: Objects) -> Bools:
    """Relevance `label` (Q, N) of labels (Q,) and (N,), see ``label_matches``."""
    same, shares = np.zeros((len(queries), len(items)), bool), np.zeros(len(items), bool)
    for asking, sharing in label_matches(queries, items):
        shares[sharing] = True
        same[asking] = shares
        shares[sharing] = False
    return same


def hits_with_label(queries: Objects, items: Objects, rows: I64, own: I64) -> tuple[Bools, I64]:
    """Relevance `label` of hits, without the (Q, N) of ``same_label``.

    Args:
        queries: (Q,) labels. items: (N,) labels. rows: (Q, K) items, -1 where missing.
        own: (Q,) the item that each query itself is, -1 for none.

    Returns:
        (Q, K) whether each hit is relevant, by its label alone; (Q,) the number of items that are, found or not,
        without the query's own.
    """
    relevant, counts = np.zeros(rows.shape, bool), np.zeros(len(queries), np.int64)
    shares = np.zeros(len(items) + 1, bool)  # the last one is what -1 points to
    for asking, sharing in label_matches(queries, items):
        shares[sharing] = True
        for query in asking.tolist():
            np.take(shares, rows[query], out=relevant[query], mode="wrap")
        counts[asking] = len(sharing) - shares[own[asking]]
        shares[sharing] = False
    return relevant, counts


def judged_rows(judged: Iterable[Judgement], row_of: Mapping[object, int]) -> tuple[I64, F64]:
    """The relevant among the judged items that are here.

    Args:
        row_of: the row of each item that is here.

    Returns:
        (query, row) (J, 2), each once, ascending, and their grades (J,) above 0: of a pair judged twice the highest.
    """
    grades: dict[tuple[int, int], float] = {}
    for query, item, grade in judged:
        row = row_of.get(item)
        if row is not None and grade > 0:
            grades[query, row] = max(grade, grades.get((query, row), 0.0))
    places = sorted(grades)
    return np.array(places, np.int64).reshape(-1, 2), np.array([grades[place] for place in places], np.float64)
