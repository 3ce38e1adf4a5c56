"""A held-out split under every map: aligned vectors and priorities, from which shadows of any queries follow.

Legend: Q queries, N items of the split, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, MapView, views_of
from fastfill_ray.experiment.curves import Backfill, backfill_order
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Shadow, Unseen, make_shadow, scores_of
from fastfill_ray.ordering import demand
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.demand import Demand, LoggedQueries
from fastfill_ray.ordering.policies import CLASSIFIED, LOGGED, ItemColumns, Policy, Reference, priority_of
from fastfill_ray.ordering.proxies import make_proxies, with_thresholds
from fastfill_ray.retrieval.intervals import JACKKNIFE_GROUPS
from fastfill_ray.retrieval.relevance import judged_rows, label_matches
from fastfill_ray.retrieval.similarity import match_norms, similarity
from fastfill_ray.types import F32, I64, Metric, Relevance, Split

MAX_PROXIES = 1000
# Queries whose scores tell the spread of old and of new ones.
_SPREAD_QUERIES = 250


class TrainedMap(Protocol):
    """An alignment: (old (N, D), side (N, S) or None) -> (aligned (N, E) as the map gives them, log-variance (N,))."""

    def __call__(self, old: F32, side: F32 | None = None) -> tuple[F32, F32]: ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an experiment looks at: the same for `simulate` and for a run.

    pairs: all three splits. queries: the users', None where a split's own items ask it. maps: by method, the cheapest
    to apply first. classifier: the new model's own or one fitted on the train pairs, None where neither is to be had.
    logged: None without a query log. metric_looked_at: of the objective: orders by demand look as deep as it does.
    answers_per_added: for how many items that queries seek, and that are no pairs, each one that was added to the pairs
    stands; None where what they seek was not looked for in the gallery. carried_share: of the gallery, what an earlier
    plan has made new and is no pair.
    """

    pairs: PairedItems
    queries: Queries | None
    metric: Metric
    maps: Mapping[str, TrainedMap]
    classifier: Classifier | None
    seed: int
    logged: LoggedQueries | None = None
    metric_looked_at: str = ""
    answers_per_added: float | None = None
    carried_share: float = 0.0

    @property
    def views(self) -> list[MapView]:
        return [view for method in self.maps for view in views_of(method, self.metric)]

    def pairs_share(self, first_share: float) -> float:
        """The pairs' share of a gallery of which `first_share` is new in version 0: the pairs and what is carried."""
        return first_share - self.carried_share

    @cached_property
    def train(self) -> PairedItems:
        """The train pairs."""
        return self.pairs.part("train")

    @cached_property
    def new_norm(self) -> float:
        """The mean norm of the train pairs' new vectors: what aligned vectors are brought to."""
        return float(np.linalg.norm(self.train.new, axis=1).mean())

    def as_indexed(self, view: MapView, aligned: F32) -> F32:
        """Aligned vectors (N, E) as an index would hold them under a view of their map."""
        return aligned if view.norms_kept else match_norms(aligned, self.metric, self.new_norm)

    def reference(self, view: MapView, policies: Sequence[Policy]) -> Reference:
        """What these policies know of pairs and query log, under one view of a map; without thresholds.

        The proxy queries are train pairs or from the fit part of the log, so no query that measures is ever one of
        them; the spread of their evidence is measured on items that the map has not seen.
        """
        train = self.train
        by_pairs, logged = "expected_gain" in policies, self.logged
        by_log = logged is not None and bool(LOGGED & set(policies))
        proxies, demanded = None, None
        if by_pairs or by_log:
            unseen = self.pairs.part("calibration").sampled()
            aligned = self.as_indexed(view, self.maps[view.method](unseen.old, unseen.side)[0])
            measured_on = {"items_new": unseen.new, "items_old": unseen.old, "items_aligned": aligned}
            if by_pairs:
                chosen = train.sample(MAX_PROXIES, self.seed)
                proxies = make_proxies(chosen.new, chosen.old, self.metric, **measured_on)
            if by_log and logged is not None:
                demanded = Demand(make_proxies(logged.new, logged.old, self.metric, **measured_on), logged.traffic)
        by_class = "class_margin" in policies
        return Reference(
            new=train.new if by_class else None,
            labels=train.classes if by_class else None,
            classifier=self.classifier if CLASSIFIED & set(policies) else None,
            proxies=proxies,
            demand=demanded,
            taken=None if logged is None else logged.taken,
        )

    def measured(self, reference: Reference, old: F32, aligned: F32, share: float) -> Reference:
        """The reference with the thresholds of a gallery, from items that are this share of it: old (N, D), aligned
        (N, E) as indexed.
        """
        if reference.proxies is not None:
            reference = replace(reference, proxies=with_thresholds(reference.proxies, old, aligned, share))
        if reference.demand is not None:
            found = demand.with_thresholds(reference.demand, old, aligned, self.metric_looked_at, share)
            reference = replace(reference, demand=found)
        return reference

    def old_scale(self) -> float:
        """Spread of new scores over spread of old ones; 1 for cosine. One number for every split and for the index."""
        if self.metric == "cosine":
            return 1.0
        items = self.pairs.part("calibration")
        some = items.sample(_SPREAD_QUERIES, self.seed)
        old = similarity(some.old, items.old, self.metric)
        new = similarity(some.new, items.new, self.metric)
        return float(new.std()) / float(old.std()) if old.std() > 0 else 1.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One split, ready to be searched by its queries under every view of the maps.

    queries: in a shuffled order, so that the first n are a uniform sample. aligned: {view: (N, E) as indexed}.
    priorities: {view: {policy: (N,)}}, `random` always among them.
    """

    items: PairedItems
    queries: Queries
    metric: Metric
    old_scale: float
    aligned: Mapping[MapView, F32]
    priorities: Mapping[MapView, Mapping[Policy, F32]]

    def without(self, group: int) -> HeldOut:
        """The split without one of JACKKNIFE_GROUPS groups of its items and queries, cut by the hash of their ids."""
        items, queries = (
            np.flatnonzero(rows.id_hash % np.uint64(JACKKNIFE_GROUPS) != group) for rows in (self.items, self.queries)
        )
        return replace(
            self,
            items=self.items.take(items),
            queries=self.queries.take(queries),
            aligned={view: vectors[items] for view, vectors in self.aligned.items()},
            priorities={
                view: {policy: values[items] for policy, values in by_policy.items()}
                for view, by_policy in self.priorities.items()
            },
        )

    def answered(self, relevance: Relevance) -> Queries:
        """The queries that have a relevant item in this split, in their order."""
        return answered(self.queries, self.items, relevance)

    def shadow(self, queries: Queries) -> Shadow:
        """The split as some queries see it."""
        return make_shadow(self.items, queries, self.metric)

    def stale_scores(self, queries: Queries, shadow: Shadow, view: MapView, weight: float) -> F32:
        """Scores (Q, N) of stale vectors before calibration: weight * aligned + (1 - weight) * old_scale * old.

        Raises:
            ValueError: a weight below 1, and the queries have no old vectors.
        """
        if weight < 1 and shadow.old is None:
            raise ValueError("the queries have no old vectors: only weight 1 can be served")
        old = None if weight == 1 or shadow.old is None else np.float32((1 - weight) * self.old_scale) * shadow.old
        if weight == 0 and old is not None:
            return old
        stale = scores_of(queries.new, self.aligned[view], self.metric, Unseen.of(self.items, queries))
        return stale if old is None else np.float32(weight) * stale + old

    def order(self, candidate: Candidate) -> I64:
        """Items (N,) in the candidate's order."""
        return backfill_order(self.priorities[candidate.view][candidate.policy], self.items.id_hash)

    def backfill(self, candidate: Candidate, queries: Queries, shadow: Shadow) -> Backfill:
        """A candidate's backfill of the split, as some queries see it."""
        stale = self.stale_scores(queries, shadow, candidate.view, candidate.weight)
        counted = None if self.items.added is None else self.items.counted
        return Backfill(shadow, stale, self.order(candidate), counted)


def answered(queries: Queries, items: PairedItems, relevance: Relevance) -> Queries:
    """The queries that have a relevant item among the items, in their order."""
    if relevance == "new_model":
        return queries
    has_answer = np.zeros(len(queries.ids), bool)
    if relevance == queries.judged_as and queries.judged is not None:
        has_answer[judged_rows(queries.judged, items.row_of)[0][:, 0]] = True
    elif relevance == "label" and queries.labels is not None and items.labels is not None:
        least = 2 if queries.are_items else 1  # an item is no answer to itself
        for asking, sharing in label_matches(queries.labels, items.labels):
            has_answer[asking] = len(sharing) >= least
    return queries.take(np.flatnonzero(has_answer))


def item_columns(items: PairedItems, aligned: F32, log_variance: F32) -> ItemColumns:
    """What policies read of items with both vectors; aligned: (N, E) as indexed, log_variance: (N,)."""
    return ItemColumns(items.id_hash, items.old, aligned, log_variance, items.classes, items.weights, items.priority)


def hold_out(evidence: Evidence, split: Split, policies: Sequence[Policy], share: float = 1.0) -> HeldOut:
    """One split under every view of the maps, with the priorities of `policies` and of `random`.

    Args:
        share: of the gallery that the items are: they are ordered as in it. By default they are a gallery of their own.
    """
    items = evidence.pairs.part(split)
    queries = items.as_queries() if evidence.queries is None else evidence.queries
    wanted: tuple[Policy, ...] = tuple(dict.fromkeys((*policies, "random")))
    aligned, priorities = {}, {}
    for method, trained in evidence.maps.items():
        as_mapped, log_variance = trained(items.old, items.side)
        for view in views_of(method, evidence.metric):
            aligned[view] = evidence.as_indexed(view, as_mapped)
            counted = items.counted
            reference = evidence.measured(
                evidence.reference(view, wanted), items.old[counted], aligned[view][counted], share
            )
            columns = item_columns(items, aligned[view], log_variance)
            priorities[view] = {p: priority_of(p, columns, reference, seed=evidence.seed) for p in wanted}
    return HeldOut(items, queries.shuffled(evidence.seed), evidence.metric, evidence.old_scale(), aligned, priorities)
