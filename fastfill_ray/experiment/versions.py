"""The shadow gallery as the versions of a run show it.

An item is new in version k iff the order puts it in a wave <= k. (The real index always serves a pair's new vector.)

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
    sampled: (N,) items that stand for the pairs when a calibration is fitted.
    carried: (N,) items that stand for those that were new before the plan was made; None where nothing was.
    """

    shadow: Shadow
    stale: F32
    waves: NDArray[np.int16]
    middles: F32
    sampled: Bools
    carried: Bools | None = None

    def state(self, wave: int, *, with_pairs: bool = False) -> MixedScores:
        """The state in which waves <= `wave` are new; `with_pairs`: so are the items that stand for the pairs.

        An item stands at the middle of its wave, as its segment does.
        """
        is_new = self.waves <= wave
        if self.carried is not None:
            is_new = is_new | self.carried
        position: F32 = self.middles[self.waves]
        return MixedScores(self.stale, self.shadow.new, is_new | self.sampled if with_pairs else is_new, position)

    def fit(self, wave: int, objective: Objective, form: Form) -> OrderCalibration:
        """The calibration of that state for an objective, on the first queries that have an answer.

        In the real index the pairs are new as well, whatever their priority. So that it is fitted at the version's own
        fraction, as large a share of the shadow items counts as new here. The identity where no query has an answer.
        """
        rows = np.flatnonzero(self.shadow.answered(objective.relevance))[: fit_queries(objective.metric)]
        if len(rows) == 0:
            return OrderCalibration()
        state = self.state(wave, with_pairs=True)
        of_answered = MixedScores(state.stale[rows], state.new[rows], state.is_new, state.position)
        return fit_calibration(
            of_answered, self.shadow.relevant[objective.relevance].take(rows), objective.metric, form
        )
