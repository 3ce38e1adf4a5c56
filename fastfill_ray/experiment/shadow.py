"""The shadow gallery: held-out items with both vectors, searched by queries in every state between all old and all new.

Nothing is re-embedded for it: an item's score is known with either vector, so any mixture can be ranked.

Legend: Q queries, N items of the split, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.retrieval.mixed_ranks import SortedScores
from fastfill_ray.retrieval.relevance import RelevantItems, judged_rows, same_label
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, F64, I64, Bools, Metric, Objects, Relevance

# More scores than these are sorted anew, part by part, by who needs them sorted: they would not be worth their memory.
KEPT_IN_ORDER = 1 << 23

Measured = Mapping[tuple[Relevance, str], F64]
"""{(relevance, metric): (Q,) float64, NaN where a query has no relevant item}."""


@dataclass(frozen=True, eq=False)
class Shadow:
    """The items of a split as some queries see them; -inf excludes an item from a query (its own).

    new, old: (Q, N) scores with both vectors new, both old; old is None where queries have no old vectors.
    relevant: by relevance, `new_model` always among them. groups: (Q,) of the queries.
    """

    new: F32
    old: F32 | None
    relevant: Mapping[Relevance, RelevantItems]
    groups: Objects | None = None

    def only(self, relevances: Sequence[Relevance]) -> Shadow:
        """The same with some of the relevances: the others need not be measured."""
        part = replace(self, relevant={name: self.relevant[name] for name in relevances})
        if "sorted_new" in self.__dict__:
            part.__dict__["sorted_new"] = self.sorted_new
        return part

    def some(self, first: int, end: int) -> Shadow:
        """The same items as some of the queries see them, in views."""
        rows = slice(first, end)
        queries = np.arange(*rows.indices(len(self.new)))
        part = Shadow(
            self.new[rows],
            None if self.old is None else self.old[rows],
            {name: relevant.take(queries) for name, relevant in self.relevant.items()},
            None if self.groups is None else self.groups[rows],
        )
        if self.new.size <= KEPT_IN_ORDER:
            part.__dict__["sorted_new"] = self.sorted_new.some(rows)  # once for all parts
        return part

    @cached_property
    def sorted_new(self) -> SortedScores:
        """The scores with new vectors, sorted for every state of every backfill."""
        return SortedScores.of(self.new)

    def answered(self, relevance: Relevance) -> Bools:
        """(Q,): which queries have a relevant item."""
        if relevance not in self.relevant:
            return np.zeros(len(self.new), bool)
        has_answer: Bools = self.relevant[relevance].counts > 0
        return has_answer

    def measure(self, scores: F32) -> Measured:
        """Every relevance and metric of one state's scores (Q, N)."""
        return {
            (relevance, metric): values
            for relevance, metrics in measure(scores, self.relevant).items()
            for metric, values in metrics.items()
        }

    def arms(self) -> dict[str, Measured]:
        """{"old/old" where it is known, "new/new"}: the states without stale and new side by side."""
        states = {"old/old": self.old, "new/new": self.new}
        return {name: self.measure(scores) for name, scores in states.items() if scores is not None}


def make_shadow(items: PairedItems, queries: Queries, metric: Metric) -> Shadow:
    """Scores and relevances of one split; float64 vectors give float64 scores."""
    unseen = Unseen.of(items, queries)
    new = scores_of(queries.new, items.new, metric, unseen)
    old = None if queries.old is None else scores_of(queries.old, items.old, metric, unseen)
    relevant: dict[Relevance, RelevantItems] = {"new_model": RelevantItems.top(unseen.without_added(new))}
    if queries.labels is not None and items.labels is not None:
        relevant["label"] = RelevantItems.of(same_label(queries.labels, items.labels) & np.isfinite(new))
    if queries.judged is not None:
        judged, grades = judged_rows(queries.judged, items.row_of)
        others = np.isfinite(new[judged[:, 0], judged[:, 1]])
        relevant[queries.judged_as] = RelevantItems.of_judged(judged[others], grades[others], len(new))
    return Shadow(new, old, relevant, queries.groups)


@dataclass(frozen=True, eq=False)
class Unseen:
    """What queries do not meet in a shadow gallery: themselves, and items that were added as others' answers.

    own: (Q,) the row of the item that each query itself is, -1 for none. added: (A,) columns of the added items.
    answers: (J, 2) query and column, those of them that answer it.
    """

    own: I64
    added: I64
    answers: I64

    @classmethod
    def of(cls, items: PairedItems, queries: Queries) -> Unseen:
        own = queries.own_rows(items.row_of)
        none = np.empty((0, 2), np.int64)
        if items.added is None:
            return cls(own, none[:, 0], none)
        answers = none if queries.judged is None else judged_rows(queries.judged, items.row_of)[0]
        return cls(own, np.flatnonzero(items.added), answers[items.added[answers[:, 1]]])

    def hide(self, scores: F32) -> F32:
        """The same scores (Q, N), -inf for what is not met; changed in place."""
        rows = np.flatnonzero(self.own >= 0)
        scores[rows, self.own[rows]] = -np.inf
        if len(self.added):
            query, column = self.answers.T
            kept = scores[query, column]
            scores[:, self.added] = -np.inf
            scores[query, column] = kept
        return scores

    def without_added(self, scores: F32) -> F32:
        """Scores (Q, N) in which no query meets an added item, not even its answer."""
        if not len(self.added):
            return scores
        scores = scores.copy()
        scores[:, self.added] = -np.inf
        return scores


def scores_of(queries: F32, items: F32, metric: Metric, unseen: Unseen) -> F32:
    """Scores (Q, N), -inf where a query does not meet an item."""
    return unseen.hide(similarity(queries, items, metric))
