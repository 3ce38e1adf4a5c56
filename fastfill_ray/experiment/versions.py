"""The shadow gallery as the versions of a run show it.

An item is new in version k iff the order puts it in a wave <= k, or it stands for what is new from version 0 on: the
pairs, and what was new before the plan. So as large a share of the items is new as in the index that users search.

Legend: Q queries, N shadow items, W waves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.retrieval.calibration import Form, MixedScores, OrderCalibration, fit_expected, fit_queries
from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.ranking import ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, Bools, Relevance

# Relevances that name items: their queries seek known ones.
_KNOWN_ITEMS: frozenset[Relevance] = frozenset({"qrels", "log"})
# By so many standard errors a calibration for known items must be better than none. With two, versions of docstring
# galleries lost up to 0.10 of MRR, since good ones were refused; with none, galleries of 600 items lost.
_STANDARD_ERRORS = 1.0


@dataclass(frozen=True, eq=False)
class ShadowVersions:
    """Every state of a plan on one held-out split.

    stale: (Q, N) scores with the stale vectors. waves: (N,) int16 the wave that the order alone gives each item.
    middles: (W + 2,) the place in the order, 0 to 1, of each wave's middle, ``ordering.waves.wave_middles``.
    sampled: (N,) items that stand for those that are new from version 0 on. sought_share: of
    known items that queries seek, ``ordering.demand.share_sought_new``: with this probability one is new from then on.
    """

    shadow: Shadow
    stale: F32
    waves: NDArray[np.int16]
    middles: F32
    sampled: Bools
    sought_share: float = 0.0

    def state(self, wave: int) -> MixedScores:
        """The state in which waves <= `wave` are new.

        An item stands at the middle of its wave, as its segment does.
        """
        position: F32 = self.middles[self.waves]
        return MixedScores(self.stale, self.shadow.new, (self.waves <= wave) | self.sampled, position)

    def fit(self, wave: int, objective: Objective, form: Form) -> OrderCalibration:
        """The calibration of that state for an objective, on the first queries that have an answer.

        The identity where no query has one; for known items also where it is not surely better than that: a few of
        these have much of the traffic, and what suits them may harm all others.
        """
        rows = np.flatnonzero(self.shadow.answered(objective.relevance))[: fit_queries(objective.metric)]
        if len(rows) == 0:
            return OrderCalibration()
        state, relevant = self.state(wave), self.shadow.relevant[objective.relevance].take(rows)
        of_answered = MixedScores(state.stale[rows], state.new[rows], state.is_new, state.position)
        states = self._states(wave, objective, relevant)
        fitted = fit_expected(of_answered, states, relevant, objective.metric, form)
        if objective.relevance not in _KNOWN_ITEMS:
            return fitted
        is_better = _is_surely_better(of_answered, states, relevant, objective.metric, fitted)
        return fitted if is_better else OrderCalibration()

    def _states(self, wave: int, objective: Objective, relevant: RelevantItems) -> list[tuple[float, Bools]]:
        """The states, each with its probability, that a calibration is fitted to.

        Where queries seek known items, a few of these may have much of the traffic. Were it left to chance which of
        them stand for pairs, the fit would be one to that chance: so all of them do, or none. What the order has made
        new is new anyway.
        """
        by_order = self.waves <= wave
        if objective.relevance not in _KNOWN_ITEMS:
            return [(1.0, by_order | self.sampled)]
        sought = np.zeros(len(by_order), bool)
        sought[relevant.items] = True
        share = self.sought_share
        return [(share, by_order | self.sampled | sought), (1 - share, by_order | (self.sampled & ~sought))]


def _is_surely_better(
    scores: MixedScores,
    states: list[tuple[float, Bools]],
    relevant: RelevantItems,
    metric: str,
    fitted: OrderCalibration,
) -> bool:
    """Whether queries find known items better under a calibration than without, by more than chance.

    Queries that seek the same item share what becomes of it: they count as one draw.
    """
    gains = np.zeros(len(scores.stale))
    for probability, is_new in states:
        state = replace(scores, is_new=is_new)
        found, plain = (
            metrics_of(relevant, ranks_of(state.under(each), {"": relevant})[""], [metric])[metric]
            for each in (fitted, OrderCalibration())
        )
        gains += probability * (found - plain)
    sought = np.unique(relevant.items[relevant.starts[:-1]], return_inverse=True)[1]
    errors = np.bincount(sought, gains - gains.mean())
    return bool(gains.mean() > _STANDARD_ERRORS * np.sqrt(np.square(errors).sum()) / len(gains))
