"""The shadow gallery as the versions of a run show it.

An item is new in version k iff the order puts it in a wave <= k, or it stands for what is new from version 0 on: the
pairs, and what was new before the plan, by the order that has made it so where that is known. So as large a share of
the items is new as in the index that users search.

Legend: Q queries, N shadow items, W waves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.retrieval.calibration import (
    Fates,
    Form,
    MixedScores,
    OrderCalibration,
    expected_values,
    fit_calibration,
    fit_queries,
)
from fastfill_ray.retrieval.mixed_ranks import SortedScores
from fastfill_ray.retrieval.relevance import RelevantItems, judged_rows
from fastfill_ray.types import F32, F64, I64, Bools

# By so many standard errors a calibration for what users took must be better than none. With two, versions of docstring
# galleries lost up to 0.10 of MRR, since good ones were refused; with none, galleries of 600 items lost.
_STANDARD_ERRORS = 1.0


@dataclass(frozen=True, eq=False)
class ShadowVersions:
    """Every state of a plan on one held-out split.

    stale: (Q, N) scores with the stale vectors. waves: (N,) int16 the wave that the order alone gives each item.
    middles: (W + 2,) the place in the order, 0 to 1, of each wave's middle, ``ordering.waves.wave_middles``.
    sampled: (N,) items that stand for those that are new from version 0 on. sought_share: with
    what probability an item that users took is so, ``sought_share``.
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

        The identity where no query has one; for what users took also where it is not surely better than that: a few
        items have much of the traffic, and what suits them may harm all others.
        """
        rows = np.flatnonzero(self.shadow.answered(objective.relevance))[: fit_queries(objective.metric)]
        if len(rows) == 0:
            return OrderCalibration()
        state, relevant = self.state(wave), self.shadow.relevant[objective.relevance].take(rows)
        of_answered = MixedScores(state.stale[rows], state.new[rows], state.is_new, state.position)
        fates = self._fates(wave, objective, relevant)
        in_order = SortedScores.of(of_answered.stale), SortedScores.of(of_answered.new)
        fitted = fit_calibration(of_answered, relevant, objective.metric, form, (), in_order, fates)
        if objective.relevance != "log":
            return fitted
        found, plain = (
            expected_values(of_answered, relevant, objective.metric, calibration, in_order, fates)
            for calibration in (fitted, OrderCalibration())
        )
        is_better = _is_surely_above(found - plain, relevant.items[relevant.starts[:-1]])
        return fitted if is_better else OrderCalibration()

    def _fates(self, wave: int, objective: Objective, relevant: RelevantItems) -> Fates:
        """Whether what users took is new to its own queries.

        A few items have much of the traffic. Were it left to chance which of them stand for pairs, the fit would be one
        to that chance: so it is one to both cases. What the order has made new is new anyway.
        """
        if objective.relevance != "log":
            return [(1.0, None)]
        by_order = (self.waves <= wave)[relevant.items]
        share = self.sought_share
        return [(share, np.ones(len(by_order), bool)), (1 - share, by_order)]


def sought_share(
    queries: Queries, pairs: PairedItems, per_added: float | None, first_share: float, carried_share: float = 0.0
) -> float:
    """With what probability an item that users took is new in version 0: by the traffic, where that is known.

    A few items may have much of it. Whether these are pairs is known, and no matter of how many items pairs are.

    Args:
        per_added: see ``Evidence.answers_per_added``. first_share: of the gallery that is new in version 0.
        carried_share: of it that an earlier plan has made new: it tells of the items that were added, where it is not
            known which of them these are.
    """
    if queries.judged is None or queries.judged_as != "log" or per_added is None:
        return first_share
    rows = judged_rows(queries.judged, pairs.row_of)[0][:, 1]
    counted = pairs.counted[rows]
    if not len(counted):
        return first_share
    weights = np.where(counted, 1.0, per_added)
    if pairs.carried is not None:
        return float(weights[counted | pairs.carried[rows]].sum() / weights.sum())
    are_pairs = float(counted.sum() / weights.sum())
    return are_pairs + (1 - are_pairs) * carried_share


def _is_surely_above(gains: F64, sought: I64) -> bool:
    """Whether the mean of some gains (Q,) is above 0 by more than chance.

    Args:
        sought: (Q,) which item each query seeks: those of one item share what becomes of it, and are one draw.
    """
    group = np.unique(sought, return_inverse=True)[1]
    groups = int(group.max()) + 1
    if groups == 1:
        return False
    errors = np.bincount(group, gains - gains.mean())
    variance = groups / (groups - 1) * np.square(errors).sum() / len(gains) ** 2
    return bool(gains.mean() > _STANDARD_ERRORS * np.sqrt(variance))
