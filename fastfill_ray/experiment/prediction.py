"""What a plan promises of its versions on the index that users search: the winner's curve at the gallery's size.

A small gallery is not a large one: a known item is found more easily in it, and a class has fewer near neighbours. So
the curve is traced on all pairs, the largest part of the gallery whose both vectors are known, and on random halves and
quarters of them, and extrapolated from there (``retrieval.extrapolation``).

Legend: Q queries, N pairs, E new dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, Objective
from fastfill_ray.experiment.curves import (
    FittedCalibrations,
    backfill_order,
    cutoffs_at,
    places_of,
    stand_for_pairs,
)
from fastfill_ray.experiment.heldout import Evidence, HeldOut, item_columns
from fastfill_ray.experiment.items import MAX_QUERIES, PairedItems
from fastfill_ray.ordering.policies import priority_of
from fastfill_ray.retrieval.extrapolation import disjoint_parts, extrapolate
from fastfill_ray.retrieval.intervals import Interval
from fastfill_ray.retrieval.metrics import ideal_gain, metrics_of
from fastfill_ray.retrieval.ranking import complete_depth, ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, F64, I64, Bools

# More pairs than these cost memory and time, and move the extrapolation by little.
MAX_PAIRS = 10_000
# The rank of an item that is not looked at: worth nothing under any metric.
_BELOW_DEPTH = 1 << 40
# Of the first relevant item: 0, and not unknown, for a query whose class a part of the pairs lacks. Else small parts
# would be asked by the frequent classes alone, which find their like more often.
_OF_THE_FIRST = ("cmc@1", "cmc@5", "mrr", "ndcg@10")
# Maps that learn from labels, too: where these are what is right, the items that they were fitted to are served better
# than any others. On the ranks of all relevant items that weighs more than the larger number of items: of mAP under
# this map 100 % of the measured values lie inside without them, 75 % with them; of CMC@1 68 % and 93 %.
_TAUGHT_LABELS = ("fastfill",)
# Mean average precision of classes has a limit, since a larger gallery has more of each class, too: every doubling
# moves it by this share of the one before. Everything else goes on almost as before. Over 44 backfills of galleries
# that were cut from the benchmark sets the error of mAP was 0.012, and 0.020 with the damping of the others.
_MAP_DAMPING, _DAMPING = 0.6, 0.95


def as_unseen(aligned: F32, new: F32, seen: Bools) -> F32:
    """Aligned vectors (N, E) as if the map had seen none of the items.

    A map errs less on the items that it was fitted to. Their errors are brought to the size of the others', direction
    kept: for linear and kernel ridge the error of a fit without the item has the same direction.

    Args:
        aligned, new: (N, E). seen: (N,) whether the map was fitted to each.
    """
    errors = aligned - new
    squares = np.square(errors, dtype=np.float64).sum(axis=1)
    if not squares[seen].any() or seen.all():
        return aligned
    factor = np.sqrt(squares[~seen].mean() / squares[seen].mean())
    return np.where(seen[:, None], new + np.float32(factor) * errors, aligned)


def all_pairs(evidence: Evidence, candidate: Candidate, objective: Objective, rows: int) -> HeldOut:
    """The pairs as one shadow gallery, for one candidate; asked by the users, or by the audit items.

    All splits, but for the items that have taught the map the very labels that it is measured by.

    Args:
        rows: items of the gallery in whose order they are.
    """
    view, policy = candidate.view, candidate.policy
    pairs = evidence.pairs
    if view.method in _TAUGHT_LABELS and objective.relevance == "label" and objective.metric not in _OF_THE_FIRST:
        pairs = pairs.take(np.flatnonzero(pairs.split != "train"))
    items = _bounded(pairs, evidence.seed)
    seen: Bools = items.split == "train"
    as_mapped, log_variance = evidence.maps[view.method](items.old, items.side)
    aligned = evidence.as_indexed(view, as_unseen(evidence.as_indexed(view, as_mapped), items.new, seen))
    counted = items.counted
    # The proxy queries are train items: they would find themselves.
    searched = counted & ~seen
    reference = evidence.measured(
        evidence.reference(view, [policy]), items.old[searched], aligned[searched], int(searched.sum()) / rows
    )
    priority = priority_of(policy, item_columns(items, aligned, log_variance), reference, seed=evidence.seed)
    place = np.empty(len(items.ids), np.float32)
    for part in (seen, ~seen):  # what was learnt from an item says less of it: each part has its own order
        own = np.flatnonzero(part)
        order = backfill_order(priority[own], items.id_hash[own])
        place[own] = places_of(order, counted[own]) / max(int(counted[own].sum()), 1)
    queries = evidence.pairs.part("audit").as_queries() if evidence.queries is None else evidence.queries
    asking = queries.shuffled(evidence.seed).first(MAX_QUERIES)
    return HeldOut(items, asking, evidence.metric, evidence.old_scale(), {view: aligned}, {view: {policy: -place}})


def _bounded(pairs: PairedItems, seed: int) -> PairedItems:
    """The pairs in random order, not more of the sample than are looked at, with all that were added."""
    shuffled = pairs.shuffled(seed)
    within = np.cumsum(shuffled.counted) <= MAX_PAIRS
    return shuffled.take(np.flatnonzero(within | ~shuffled.counted))


def predict_gallery(
    evidence: Evidence,
    candidate: Candidate,
    fitted: FittedCalibrations,
    objective: Objective,
    fractions: Sequence[float],
) -> tuple[Interval, ...]:
    """The objective at the fractions of a run's versions, as it will be measured on the published index.

    Args:
        fitted: the candidate's calibrations.
        fractions: shares of the gallery that are new, the pairs included; the first, above 0, is the pairs' share, from
            which the size of the gallery follows.

    Returns:
        One interval per fraction; its `queries` are those that have an answer among the pairs, 0 for none.
    """
    rows = round(evidence.pairs.size / fractions[0])
    split = all_pairs(evidence, candidate, objective, rows)
    asking = split.answered(objective.relevance)
    shadow = split.shadow(asking)
    if not shadow.answered(objective.relevance).any():
        return (Interval(np.nan, np.nan, np.nan, 0),) * len(fractions)
    backfill = split.backfill(candidate, asking, shadow)
    sampled = stand_for_pairs(split.items.id_hash, fractions[0], evidence.seed)
    growth = max(1.0, rows / split.items.size)
    depth = complete_depth(rows, len(split.queries.ids)) / rows
    by_part = _ByPart(shadow.relevant[objective.relevance], objective, growth, depth, split.items.counted)
    doublings = float(np.log2(growth))
    damping = _MAP_DAMPING if objective == Objective("label", "map") else _DAMPING
    predicted = []
    for cutoff in cutoffs_at(backfill.sample, sampled, fractions):
        levels = by_part.levels(backfill.served(fitted, cutoff, sampled))
        predicted.append(extrapolate(levels, doublings, damping, seed=evidence.seed))
    return tuple(predicted)


@dataclass(frozen=True)
class _ByPart:
    """How a state of the pairs is measured on parts of them.

    relevant: among all pairs, of the Q queries. growth: items of the gallery per pair. depth: share of a ranking that
    is judged, as in the gallery. counted: which of the pairs (N,) are the sample: the others are in every part.
    """

    relevant: RelevantItems
    objective: Objective
    growth: float
    depth: float
    counted: Bools

    def levels(self, scores: F32) -> list[F64]:
        """Per number of halvings the values (S, Q) on its disjoint parts; scores: (Q, N)."""
        rows, others = np.flatnonzero(self.counted), np.flatnonzero(~self.counted)
        parts = [[np.concatenate([rows[part], others]) for part in of_size] for of_size in disjoint_parts(len(rows))]
        return [
            np.stack([self._values(scores[:, part], part, scores.shape[1]) for part in of_size]) for of_size in parts
        ]

    def _values(self, scores: F32, part: I64, size: int) -> F64:
        """(Q,) on one part; NaN for queries that have no answer in it."""
        place = np.full(size, -1)
        place[part] = np.arange(len(part))
        kept = self.relevant.where(place[self.relevant.items] >= 0)
        relevant = replace(kept, items=place[kept.items])
        ranks = ranks_of(scores, {"": relevant})[""]
        looked_at = self.depth * int(self.counted[part].sum())
        ranks = np.where(ranks > looked_at, _BELOW_DEPTH, ranks)
        values = metrics_of(relevant, ranks)[self.objective.metric]
        if self.objective.relevance != "label" or self.objective.metric not in _OF_THE_FIRST:
            return values
        if self.objective.metric == "ndcg@10":  # against the best that is possible in the gallery, with more of a class
            in_gallery = np.rint(self.relevant.counts * self.growth).astype(np.int64)
            values = values * ideal_gain(relevant.counts) / ideal_gain(in_gallery)
        return np.nan_to_num(values)
