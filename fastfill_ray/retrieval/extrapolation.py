"""A mean metric at the size of a gallery, from what is measured on samples of it that are smaller.

Among few items the right one is easily found: recall falls as a gallery grows, and the nearest item becomes more often
one of the same class. Measured on galleries of 400 to 20,000 items (docs/quality.md), the log-odds of a mean move
about linearly with the logarithm of the number of items.

Legend: Q queries, L sizes, S disjoint parts of one size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastfill_ray.retrieval.intervals import Interval, resampling
from fastfill_ray.types import F64, I64

# A sample is halved so often; of its smaller parts fewer queries have an answer.
HALVINGS = 2
# A part of fewer items than this says nothing of how metrics change with the size.
_MIN_PART = 16
# How far off the line is, in log-odds: a share of the step that it leads to, and per square root of a doubling. Chosen
# so that nine of ten measured values lie inside (benchmarks/predictions.py).
_SLOPE_ERROR, _DOUBLING_ERROR = 0.3, 0.1


def disjoint_parts(size: int) -> list[list[I64]]:
    """Rows of a sample that is in random order, halved again and again: [[all], [half, half], [quarter, ...]]."""
    halvings = [j for j in range(HALVINGS + 1) if j == 0 or size >> j >= _MIN_PART]
    return [[np.arange(first, size, 1 << j) for first in range(1 << j)] for j in halvings]


def extrapolate(levels: Sequence[F64], doublings: float, damping: float = 1.0, *, seed: int = 0) -> Interval:
    """The mean of a metric with values in [0, 1] when a sample has been doubled so many times.

    A line is fitted to the log-odds of the means over the halvings, and followed from the largest size on; with a
    damping below 1 each further doubling moves it by so much less than the one before. The 95 % interval holds the draw
    of the queries, by bootstrap, and the error of the line, which grows with the distance.

    Args:
        levels: per number of halvings, from 0 on, the values (S, Q), NaN where a query has none in a part. A mean is
            one over all parts and queries.
        doublings: log2 of the wanted size over that of the sample; at least 0.

    Returns:
        NaN throughout, of no queries, where no query has a value in the whole sample.
    """
    answered = ~np.isnan(levels[0]).all(axis=0)
    count = int(answered.sum())
    if count == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    draws = np.concatenate([np.ones((1, count)), resampling(count, seed)])  # (1 + resamples, count); first: as it is
    odds = []
    for values in levels:
        of_answered = values[:, answered]
        there = ~np.isnan(of_answered)
        number = draws @ there.sum(axis=0)
        if not number.all():  # a draw without any answer: from this size on too few have one
            break
        odds.append(_log_odds(draws @ np.where(there, of_answered, 0.0).sum(axis=0) / number, count))
    slopes = _slopes(np.stack(odds))
    steps = doublings if damping == 1 else damping * (1 - damping**doublings) / (1 - damping)
    ends = odds[0] + slopes * steps
    off_line = _SLOPE_ERROR * abs(slopes[0]) * doublings + _DOUBLING_ERROR * np.sqrt(doublings)
    below, above = np.hypot(np.quantile(ends[1:], [0.025, 0.975]) - ends[0], off_line)
    value, low, high = (_mean_of(ends[0] + shift, count) for shift in (0.0, -below, above))
    return Interval(value, low, high, count)


def _slopes(odds: F64) -> F64:
    """What one doubling adds, per column of the means (L, ...) at sizes that are halved: by least squares."""
    place = -np.arange(len(odds), dtype=np.float64)
    place -= place.mean()
    if len(odds) == 1:
        return np.zeros(odds.shape[1])
    slopes: F64 = place @ odds / (place @ place)
    return slopes


def _log_odds(mean: F64, count: int) -> F64:
    """Of means over `count` queries, half a query away from 0 and 1."""
    share = (mean * count + 0.5) / (count + 1)
    odds: F64 = np.log(share / (1 - share))
    return odds


def _mean_of(odds: float, count: int) -> float:
    """The inverse of ``_log_odds``."""
    share = 1 / (1 + np.exp(-odds))
    return float(np.clip((share * (count + 1) - 0.5) / count, 0, 1))
