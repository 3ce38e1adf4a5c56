"""Backfilling curves on held-out pairs: every state between all stale and all new, ranked and measured.

Pairs have both vectors, so any mixture can be scored without re-embedding anything.

Legend: Q queries, N items of the split, F fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.experiment.shadow import KEPT_IN_ORDER, Measured, Shadow
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.retrieval.calibration import Form, MixedScores, OrderCalibration, fit_calibration
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.retrieval.metrics import METRICS, metrics_of
from fastfill_ray.retrieval.mixed_ranks import MixedRanks, Mixture, RelevantScores, SortedScores
from fastfill_ray.types import F32, F64, I64, U64, Bools, Relevance

POINTS = 22  # of the published curve: FastFill evaluates after floor(i N / 21) items, i = 0..21
# Calibrations are fitted at these fractions; in between the parameters are interpolated.
KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
# Scores of a state that are held at a time.
_BLOCK_SCORES = 1 << 20


def backfill_order(priority: F32, id_hash: U64) -> I64:
    """Items (N,), the first to be re-embedded first: by ``ordering.waves.order_key``, as the real waves are cut."""
    return np.argsort(~order_key(priority, id_hash), kind="stable")


def published_cutoffs(size: int, points: int = POINTS) -> list[int]:
    """floor(i N / (points - 1)) for i = 0..points - 1 (FastFill's evaluation code)."""
    return [size * i // (points - 1) for i in range(points)]


def stand_for_pairs(id_hash: U64, share: float, seed: int) -> Bools:
    """Items (N,) of a shadow gallery that count as new from the start, as the pairs do in a real index."""
    return random_priority(id_hash, seed + HashSeed.STAND_FOR_PAIRS) < share


def stand_for_first(items: PairedItems, share: float, carried: float, seed: int) -> Bools:
    """Items (N,) of a shadow gallery that count as new from the start, as this share of a real index does: those that
    stand for what is carried, and of the others as many as are needed beside, by chance.

    Args:
        carried: the share that is ``PairedItems.carried`` of all pairs, of which the items are a part.
    """
    if items.carried is None:
        return stand_for_pairs(items.id_hash, share, seed)
    if share < carried:  # of what was embedded some is gone
        return items.carried & stand_for_pairs(items.id_hash, share / carried, seed)
    return items.carried | stand_for_pairs(items.id_hash, (share - carried) / max(1 - carried, 1e-9), seed)


def places_of(order: I64, counted: Bools | None = None) -> I64:
    """How many counted items stand before each item (N,) in an order (N,); of what stands behind all, one less."""
    in_order = np.ones(len(order), np.int64) if counted is None else counted[order].astype(np.int64)
    before = np.cumsum(in_order) - in_order
    places = np.empty(len(order), np.int64)
    places[order] = np.minimum(before, max(int(in_order.sum()) - 1, 0))
    return places


def cutoffs_at(order: I64, sampled: Bools, fractions: Sequence[float]) -> list[int]:
    """How many items of an order (N,) are to be new so that these shares of all are; `sampled` (N,) are anyway.

    Args:
        sampled: by row, of more rows than are in the order where some are not counted.
    """
    size, anyway = len(order), sampled[order]
    new_after = np.concatenate([[0], np.cumsum(~anyway)]) + anyway.sum()  # new after each cutoff
    return [min(int(np.searchsorted(new_after, round(fraction * size))), size) for fraction in fractions]


@dataclass(frozen=True)
class FittedCalibrations:
    """The calibration at each of some fractions, and between them; the identity where none is fitted."""

    knots: tuple[float, ...] = ()
    calibrations: tuple[OrderCalibration, ...] = ()

    def at(self, fraction: float) -> OrderCalibration:
        """The parameters at a share of new items, linearly between the knots and constant beyond them."""
        if not self.knots:
            return OrderCalibration()
        later = int(np.searchsorted(self.knots, fraction))
        if later == 0 or later == len(self.knots):
            return self.calibrations[min(later, len(self.knots) - 1)]
        low, high = self.knots[later - 1], self.knots[later]
        return self.calibrations[later - 1].between(self.calibrations[later], (fraction - low) / (high - low))


@dataclass(frozen=True)
class Curve:
    """Relevances and metrics along a backfill.

    fractions: (F,) share of the items that is new. values: {(relevance, metric): (F, Q)}, NaN without an answer.
    """

    fractions: F64
    values: Measured

    def mean(self, objective: Objective) -> F64:
        """The curve (F,)."""
        values = self.values[objective.relevance, objective.metric]
        answered = ~np.isnan(values).all(axis=0)
        curve: F64 = values[:, answered].mean(axis=1) if answered.any() else np.full(len(values), np.nan)
        return curve

    def area_per_query(self, objective: Objective) -> F64:
        """Mean over the fractions per query (Q,): over 22 even ones it is FastFill's M~."""
        area: F64 = self.values[objective.relevance, objective.metric].mean(axis=0)
        return area

    def area(self, objective: Objective, *, seed: int = 0) -> Interval:
        """M~, the mean quality on the way, with its 95 % bootstrap interval over the queries."""
        return mean_interval(self.area_per_query(objective), seed=seed)


@dataclass(frozen=True, eq=False)
class Backfill:
    """One candidate on one split, as some queries see it: everything that its states follow from.

    stale: (Q, N) scores with the stale vectors, as they are before calibration. order: (N,) items, first one first.
    counted: (N,) which of them are counted when a share of the items is new; None for all. The others, which were added
    to the split, become new with the counted items that they stand among.
    """

    shadow: Shadow
    stale: F32
    order: I64
    counted: Bools | None = None

    @cached_property
    def sample(self) -> I64:
        """The counted items in their order."""
        return self.order if self.counted is None else self.order[self.counted[self.order]]

    @property
    def size(self) -> int:
        """How many items are counted."""
        return len(self.sample)

    @cached_property
    def _places(self) -> I64:
        return places_of(self.order, self.counted)

    @cached_property
    def positions(self) -> F32:
        """Place (N,) of each item in the order, 0 <= u < 1."""
        return self._places.astype(np.float32) / np.float32(self.size)

    def first(self, count: int) -> Backfill:
        """The same as its first queries see it."""
        return self if len(self.stale) <= count else self.some(0, count)

    def some(self, first: int, end: int) -> Backfill:
        """The same as some of the queries see it, in views."""
        part = replace(self, shadow=self.shadow.some(first, end), stale=self.stale[first:end])
        if self.stale.size <= KEPT_IN_ORDER:
            part.__dict__["sorted_stale"] = self.sorted_stale.some(slice(first, end))
        return part

    def ordered(self, order: I64) -> Backfill:
        """The same scores in another order of the items."""
        other = replace(self, order=order)
        if self.stale.size <= KEPT_IN_ORDER:
            other.__dict__["sorted_stale"] = self.sorted_stale  # once for all orders
        return other

    @cached_property
    def sorted_stale(self) -> SortedScores:
        """The scores with stale vectors, sorted for every state."""
        return SortedScores.of(self.stale)

    def state(self, is_new: Bools) -> MixedScores:
        """The state in which some of the items (N,) are new."""
        return MixedScores(self.stale, self.shadow.new, is_new, self.positions)

    def served(self, fitted: FittedCalibrations, cutoff: int) -> F32:
        """Scores (Q, N) when the first `cutoff` items of the order are new."""
        return self.state(self._places < cutoff).under(fitted.at(cutoff / self.size))

    def _measure(
        self, fitted: FittedCalibrations, cutoffs: Sequence[int], metrics: Sequence[str], sampled: Bools | None
    ) -> list[Measured]:
        """``Shadow.measure`` of the scores served at each cutoff, from sorted ones."""
        stale, new = self.sorted_stale, self.shadow.sorted_new
        scores = {name: RelevantScores.of(stale, new, relevant) for name, relevant in self.shadow.relevant.items()}
        turns = self._places + 1
        if sampled is not None:
            turns[sampled] = 0
        mixture = Mixture(stale, new, turns, self.positions)
        states: list[Measured] = []
        for cutoff in cutoffs:
            state, calibration = mixture.state(cutoff + 1), fitted.at(cutoff / self.size)
            served = state.served(calibration.apply, in_order=calibration.slope == 0)
            states.append(
                {
                    (relevance, metric): values
                    for relevance, of_relevant in scores.items()
                    for metric, values in metrics_of(
                        of_relevant.relevant, MixedRanks(state, of_relevant).ranks(served), metrics
                    ).items()
                }
            )
        return states

    def fit(self, objective: Objective, form: Form, knots: Sequence[float] = KNOTS) -> FittedCalibrations:
        """The calibration at each knot, for the objective, under this very order; each starts from the one before."""
        fitted: list[OrderCalibration] = []
        in_order = self.sorted_stale, self.shadow.sorted_new
        relevant = self.shadow.relevant[objective.relevance]
        for knot in knots:
            state = self.state(self.positions < knot)
            fitted.append(fit_calibration(state, relevant, objective.metric, form, fitted[-1:], in_order))
        return FittedCalibrations(tuple(knots), tuple(fitted))

    def trace(
        self,
        fitted: FittedCalibrations,
        cutoffs: Iterable[int],
        *,
        relevances: Sequence[Relevance] | None = None,
        metrics: Sequence[str] = METRICS,
        sampled: Bools | None = None,
    ) -> Curve:
        """The curve under calibrations that were fitted elsewhere.

        Args:
            cutoffs: how many items of the order are new at each point.
            relevances: those to measure; None for all. metrics: likewise.
            sampled: (N,) items that are new from the start, as the pairs are in a real index.
        """
        points = list(cutoffs)
        measured = self if relevances is None else replace(self, shadow=self.shadow.only(relevances))
        step = max(1, _BLOCK_SCORES // max(len(self.order), 1))
        blocks: list[Measured] = []
        for first in range(0, max(len(self.stale), 1), step):
            block = measured.some(first, first + step)
            states = block._measure(fitted, points, metrics, sampled)
            blocks.append({key: np.stack([state[key] for state in states]) for key in states[0]})
        values = {key: np.concatenate([block[key] for block in blocks], axis=1) for key in blocks[0]}
        return Curve(np.array(points) / self.size, values)


def last_crossing(fractions: F64, curve: F64, level: float) -> float:
    """The least fraction from which on the curve never falls below `level` again, between points linearly."""
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return float(fractions[0])
    last = int(below[-1])
    if last == len(curve) - 1:
        return float(fractions[-1])
    share = (level - curve[last]) / (curve[last + 1] - curve[last])
    return float(fractions[last] + share * (fractions[last + 1] - fractions[last]))
