"""What a plan promises of its versions on the index that users search: the winner's curve at the gallery's size.

A small gallery is not a large one: a known item is found more easily in it, and a class has fewer near neighbours. So
the curve is traced on all pairs, the largest part of the gallery whose both vectors are known, and on random halves and
quarters of them, and extrapolated from there (``retrieval.extrapolation``).

Where users seek items that are known, it is known, too, which of these are pairs, so new from version 0 on, and which
were added to the pairs and wait for their wave. A few of them may have much of the traffic: what is known of their
state is not left to chance.

A plan over a gallery of which an earlier plan has made some new begins with that beside its pairs. So as large a share
of the items is new from version 0 on, those first that the earlier order has put first, and waves are cut in what is
left, as they are of the gallery. Where that order does not tell, as with other pairs, chance does: then it stands for a
sample of the gallery, as the pairs do. Which of the added items are carried is known of each.

Legend: Q queries, N pairs, E new dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, Objective
from fastfill_ray.experiment.curves import Backfill, FittedCalibrations, backfill_order
from fastfill_ray.experiment.heldout import Evidence, HeldOut, item_columns
from fastfill_ray.experiment.items import MAX_QUERIES, PairedItems, Queries
from fastfill_ray.ordering.policies import priority_of, random_priority
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.ordering.waves import shares_of_order, wave_middles
from fastfill_ray.retrieval.calibration import MixedScores
from fastfill_ray.retrieval.extrapolation import disjoint_parts, extrapolate
from fastfill_ray.retrieval.intervals import Interval
from fastfill_ray.retrieval.metrics import ideal_gain, metrics_of
from fastfill_ray.retrieval.ranking import complete_depth, ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems, judged_rows
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
    queries = evidence.pairs.part("audit").as_queries() if evidence.queries is None else evidence.queries
    asking = queries.shuffled(evidence.seed).first(MAX_QUERIES)
    sought = _sought(evidence, items, asking)
    for part in (seen, ~seen):  # what was learnt from an item says less of it: each part has its own order
        own = np.flatnonzero(part)
        order = backfill_order(priority[own], items.id_hash[own])
        # Beside what was added, a pair that is sought stands for itself: the two are all that is sought.
        alone = sought[own] & counted[own] & (not counted[own].all())
        in_gallery = stand_for(counted[own], rows, evidence.answers_per_added or 1.0, alone)
        place[own] = shares_before(order, in_gallery)
    return HeldOut(items, asking, evidence.metric, evidence.old_scale(), {view: aligned}, {view: {policy: -place}})


def _sought(evidence: Evidence, items: PairedItems, asking: Queries) -> Bools:
    """Which items (N,) are known to be sought, by queries whose answers were looked for in the gallery."""
    sought = np.zeros(len(items.ids), bool)
    if evidence.answers_per_added is not None and asking.judged is not None:
        sought[judged_rows(asking.judged, items.row_of)[0][:, 1]] = True
    return sought


def _bounded(pairs: PairedItems, seed: int) -> PairedItems:
    """The pairs in random order, not more of the sample than are looked at, with all that were added."""
    shuffled = pairs.shuffled(seed)
    within = np.cumsum(shuffled.counted) <= MAX_PAIRS
    return shuffled.take(np.flatnonzero(within | ~shuffled.counted))


def stand_for(counted: Bools, rows: float, per_added: float, alone: Bools | None = None) -> F64:
    """Rows of a gallery that each item (N,) stands for.

    Args:
        counted: (N,) the sample; the others were added, and stand for `per_added` rows each. rows: for which all stand
            together. alone: (N,) items of the sample that stand for one row each; None for none. The others of it
            stand for what is left.
    """
    alone = np.zeros(len(counted), bool) if alone is None else alone
    others = counted & ~alone
    left = max(rows - int(alone.sum()) - per_added * int((~counted).sum()), 0)
    return np.where(others, left / max(int(others.sum()), 1), np.where(counted, 1.0, per_added))


def shares_before(order: I64, rows: F64) -> F64:
    """The share of a gallery that stands before each item (N,) in an order (N,); rows: (N,) of ``stand_for``."""
    in_order = rows[order]
    shares = np.empty(len(order))
    shares[order] = (np.cumsum(in_order) - in_order) / max(float(in_order.sum()), 1e-9)
    return shares


def new_at_first(items: PairedItems, sought: Bools, share: float, seed: int) -> Bools:
    """Which items (N,) stand for those that are new in version 0: of what was added what is carried, and of the sample
    this share, or all that is sought if that is more; what else is carried comes before what chance draws.

    Args:
        sought: (N,) which items are known to be sought: those of the sample are pairs, so they are new.
    """
    sure = items.counted & sought
    chance = random_priority(items.id_hash, seed + HashSeed.STAND_FOR_PAIRS).astype(np.float64)
    carried = np.zeros(len(chance), bool) if items.carried is None else items.carried
    chance[carried] -= 1
    chance[sure], chance[~items.counted] = -2, np.inf
    is_new = np.zeros(len(chance), bool)
    is_new[np.argsort(chance, kind="stable")[: max(round(share * items.size), int(sure.sum()))]] = True
    return is_new | (carried & ~items.counted)


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
        fractions: shares of the gallery that are new; the first, above 0, is that of the pairs and of what is carried
            (``Evidence.carried_share``). The size of the gallery follows from the pairs' share.

    Returns:
        One interval per fraction; its `queries` are those that have an answer among the pairs, 0 for none.
    """
    rows = round(evidence.pairs.size / evidence.pairs_share(fractions[0]))
    split = all_pairs(evidence, candidate, objective, rows)
    asking = split.answered(objective.relevance)
    shadow = split.shadow(asking)
    if not shadow.answered(objective.relevance).any():
        return (Interval(np.nan, np.nan, np.nan, 0),) * len(fractions)
    relevant, counted = shadow.relevant[objective.relevance], split.items.counted
    sought, weights, together = _sought(evidence, split.items, asking), None, None
    if evidence.answers_per_added is not None:
        # What becomes of an item, all who seek it see. A query whose answer is hidden from it has no value anyway.
        together = relevant.items[np.minimum(relevant.starts[:-1], len(relevant.items) - 1)]
        pairs_per_counted = evidence.pairs.size / split.items.size
        weights = np.where(counted[together], pairs_per_counted, evidence.answers_per_added)
    at_first = new_at_first(split.items, sought, fractions[0], evidence.seed)
    in_order = np.zeros(len(counted))
    waiting = round((1 - fractions[0]) * rows)
    in_order[~at_first] = stand_for(counted[~at_first], waiting, evidence.answers_per_added or 1.0)
    states = _States(split.backfill(candidate, asking, shadow), fitted, at_first, in_order, fractions)
    growth = max(1.0, rows / split.items.size)
    depth = complete_depth(rows, len(split.queries.ids)) / rows
    by_part = _ByPart(relevant, objective, growth, depth, counted)
    doublings = float(np.log2(growth))
    damping = _MAP_DAMPING if objective == Objective("label", "map") else _DAMPING
    predicted = []
    for fraction in fractions:
        levels = by_part.levels(states.served(fraction))
        predicted.append(extrapolate(levels, doublings, damping, weights, together, seed=evidence.seed))
    return tuple(predicted)


class _States:
    """The pairs as the versions of a gallery show them."""

    def __init__(
        self, backfill: Backfill, fitted: FittedCalibrations, at_first: Bools, rows: F64, fractions: Sequence[float]
    ) -> None:
        """
        Args:
            at_first: (N,) which items are new in version 0. rows: (N,) of the gallery's order, for which the others
                stand. fractions: shares of the gallery that are new in the versions.
        """
        self._backfill, self._fitted, self._at_first, self._first = backfill, fitted, at_first, fractions[0]
        self._place = shares_before(backfill.order, rows)
        ends = shares_of_order(fractions[1:], self._first)
        wave = 1 + np.searchsorted(ends, self._place, side="right")
        self._position = wave_middles(fractions[1:], self._first)[wave]  # as segments are served

    def served(self, fraction: float) -> F32:
        """Scores (Q, N) when this share of the gallery is new."""
        [share] = shares_of_order([fraction], self._first).tolist()
        is_new: Bools = self._at_first | (self._place < share) | (fraction >= 1)
        state = MixedScores(self._backfill.stale, self._backfill.shadow.new, is_new, self._position)
        return state.under(self._fitted.at(share))


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
