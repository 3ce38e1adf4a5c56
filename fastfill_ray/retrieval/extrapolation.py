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


def extrapolate(
    levels: Sequence[F64],
    doublings: float,
    damping: float = 1.0,
    weights: F64 | None = None,
    together: I64 | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The mean of a metric with values in [0, 1] when a sample has been doubled so many times.

    A line is fitted to the log-odds of the means over the halvings, and followed from the largest size on; with a
    damping below 1 each further doubling moves it by so much less than the one before. The 95 % interval holds the draw
    of the queries, by bootstrap, and the error of the line, which grows with the distance.

    Args:
        levels: per number of halvings, from 0 on, the values (S, Q), NaN where a query has none in a part. A mean is
            one over queries, each with its mean over the parts.
        doublings: log2 of the wanted size over that of the sample; at least 0.
        weights: (Q,) above 0, how much each query counts; None: all alike.
        together: (Q,) number of the group of each query: those of a group share what a sample makes of them, so they
            are drawn together. None: each for itself.

    Returns:
        NaN throughout, of no queries, where no query has a value in the whole sample.
    """
    answered = ~np.isnan(levels[0]).all(axis=0)
    queries = int(answered.sum())
    if queries == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    weight = np.ones(queries) if weights is None else weights[answered]
    group = np.arange(queries) if together is None else np.unique(together[answered], return_inverse=True)[1]
    of_groups = np.bincount(group, weight)
    count = float(of_groups.sum() ** 2 / np.square(of_groups).sum())  # as many of one size tell as much (Kish, 1965)
    if together is not None:
        # Where the few groups all do well, a bootstrap finds no other. Two halves of one more, of which the first does
        # as badly and the second as well as can be, stand for what was not seen.
        levels = [np.hstack([values, np.tile([0.0, 1.0], (len(values), 1))]) for values in levels]
        answered = np.append(answered, [True, True])
        group = np.append(group, len(of_groups) + np.arange(2))
        weight = np.append(weight, np.full(2, of_groups.sum() / count / 2))
    as_it_is = np.arange(int(group.max()) + 1) < len(of_groups)
    draws = np.concatenate([as_it_is[None, :], resampling(len(as_it_is), seed)])[:, group] * weight
    odds = []
    for values in levels:
        of_answered = values[:, answered]
        there = ~np.isnan(of_answered)
        of_queries = np.where(there, of_answered, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        number = draws @ there.any(axis=0)
        if not number.all():  # a draw without any answer: from this size on too few have one
            break
        odds.append(_log_odds(draws @ of_queries / number, count))
    slopes = _slopes(np.stack(odds))
    steps = doublings if damping == 1 else damping * (1 - damping**doublings) / (1 - damping)
    ends = odds[0] + slopes * steps
    off_line = _SLOPE_ERROR * abs(slopes[0]) * doublings + _DOUBLING_ERROR * np.sqrt(doublings)
    below, above = np.hypot(np.quantile(ends[1:], [0.025, 0.975]) - ends[0], off_line)
    value, low, high = (_mean_of(ends[0] + shift, count) for shift in (0.0, -below, above))
    return Interval(value, low, high, queries)


def _slopes(odds: F64) -> F64:
    """What one doubling adds, per column of the means (L, ...) at sizes that are halved: by least squares."""
    place = -np.arange(len(odds), dtype=np.float64)
    place -= place.mean()
    if len(odds) == 1:
        return np.zeros(odds.shape[1])
    slopes: F64 = place @ odds / (place @ place)
    return slopes


def _log_odds(mean: F64, count: float) -> F64:
    """Of means over `count` queries, half a query away from 0 and 1."""
    share = (mean * count + 0.5) / (count + 1)
    odds: F64 = np.log(share / (1 - share))
    return odds


def _mean_of(odds: float, count: float) -> float:
    """The inverse of ``_log_odds``."""
    share = 1 / (1 + np.exp(-odds))
    return float(np.clip((share * (count + 1) - 0.5) / count, 0, 1))
