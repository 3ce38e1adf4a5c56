"""The shadow gallery as the versions of a run show it.

An item is new in version k iff the order puts it in a wave <= k, or it stands for what is new from version 0 on: the
pairs, and what was new before the plan. So as large a share of the items is new as in the index that users search.

Legend: Q queries, N shadow items, W waves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.retrieval.calibration import Form, MixedScores, OrderCalibration, fit_calibration, fit_queries
from fastfill_ray.types import F32, Bools


@dataclass(frozen=True, eq=False)
class ShadowVersions:
    """Every state of a plan on one held-out split.

    stale: (Q, N) scores with the stale vectors. waves: (N,) int16 the wave that the order alone gives each item.
    middles: (W + 2,) the place in the order, 0 to 1, of each wave's middle, ``ordering.waves.wave_middles``.
    sampled: (N,) items that stand for those that are new from version 0 on.
    """

    shadow: Shadow
    stale: F32
    waves: NDArray[np.int16]
    middles: F32
    sampled: Bools

    def state(self, wave: int) -> MixedScores:
        """The state in which waves <= `wave` are new.

        An item stands at the middle of its wave, as its segment does.
        """
        position: F32 = self.middles[self.waves]
        return MixedScores(self.stale, self.shadow.new, (self.waves <= wave) | self.sampled, position)

    def fit(self, wave: int, objective: Objective, form: Form) -> OrderCalibration:
        """The calibration of that state for an objective, on the first queries that have an answer.

        The identity where no query has one.
        """
        rows = np.flatnonzero(self.shadow.answered(objective.relevance))[: fit_queries(objective.metric)]
        if len(rows) == 0:
            return OrderCalibration()
        state = self.state(wave)
        of_answered = MixedScores(state.stale[rows], state.new[rows], state.is_new, state.position)
        return fit_calibration(
            of_answered, self.shadow.relevant[objective.relevance].take(rows), objective.metric, form
        )
