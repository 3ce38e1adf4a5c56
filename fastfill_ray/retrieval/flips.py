"""Flips: which queries a change of the index helps and which it hurts, where the mean shows only the difference.

Legend: Q queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.types import F64, Bools


class Flips(NamedTuple):
    """Shares of the queries that got worse (nfr) and better (pfr), and by how much those did on average.

    nfr, pfr: with 95 % bootstrap intervals, over the queries that have a value both now and before; NaN over none.
    mean_gain, mean_loss: at least 0, in the metric's unit; 0 where no query got better (worse).
    """

    nfr: Interval
    pfr: Interval
    mean_gain: float
    mean_loss: float


def flips(now: F64, before: F64, *, weights: F64 | None = None, seed: int = 0) -> Flips:
    """Negative and positive flips of one metric.

    With d = now - before: NFR = mean[d < 0], PFR = mean[d > 0], the mean gain is sum(d+) / count(d > 0), the mean loss
    sum(|d-|) / count(d < 0) (Echterhoff et al., MUSCLE, EMNLP 2024). Of a metric that is 0 or 1 these are
    mean[before = 1, now = 0] and mean[before = 0, now = 1] (Yan et al., Positive-congruent training, CVPR 2021).

    Args:
        now: (Q,) the metric per query, NaN where a query has none.
        before: (Q,) the same for what it is compared with.
        weights: (Q,) see ``mean_interval``.
    """
    difference = now - before
    there = ~np.isnan(difference)
    difference, weights = difference[there], None if weights is None else weights[there]
    better, worse = difference > 0, difference < 0

    def mean_of(chosen: Bools) -> float:
        if not chosen.any():
            return 0.0
        return float(np.average(np.abs(difference[chosen]), weights=None if weights is None else weights[chosen]))

    return Flips(
        nfr=mean_interval(worse.astype(np.float64), weights=weights, seed=seed),
        pfr=mean_interval(better.astype(np.float64), weights=weights, seed=seed),
        mean_gain=mean_of(better),
        mean_loss=mean_of(worse),
    )
