"""Means with bootstrap intervals, paired differences, and intervals that cover the draw of the items, too.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastfill_ray.types import F64

_RESAMPLES = 1000
# Groups of items that are left out in turn, and the 97.5 % quantile of Student's t with one degree of freedom less.
JACKKNIFE_GROUPS, _T = 10, 2.262


class Interval(NamedTuple):
    """A mean of `queries` values and its 95 % interval: by bootstrap (percentile method) where nothing else is said."""

    value: float
    low: float
    high: float
    queries: int


@lru_cache(maxsize=4)
def resampling(count: int, seed: int) -> F64:
    """How often each of `count` values is drawn in each resample, (resamples, count): drawing with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)


def mean_interval(values: F64, *, weights: F64 | None = None, seed: int = 0) -> Interval:
    """Mean of the values that are not NaN, with a 95 % bootstrap interval; NaN throughout where there are none.

    Args:
        weights: (Q,) above 0, how much each query counts; None: all alike. Queries are drawn, and their weights with
            them.
    """
    there = ~np.isnan(values)
    values = values[there]
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    drawn = resampling(len(values), seed)
    if weights is None:
        mean, means = float(values.mean()), drawn @ values / len(values)
    else:
        weights = weights[there]
        mean, means = float(values @ weights / weights.sum()), drawn @ (values * weights) / (drawn @ weights)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), len(values))


def paired_difference(now: F64, before: F64, *, seed: int = 0) -> Interval:
    """Mean of now - before over the queries that both have, with its paired 95 % bootstrap interval."""
    return mean_interval(now - before, seed=seed)


def jackknife_interval(value: float, without: Sequence[float], queries: int) -> Interval:
    """A mean with the 95 % interval of the delete-a-group jackknife (Wolter, Introduction to Variance Estimation).

    A bootstrap over queries takes the searched items as given. Where these are a sample, too, all queries miss or gain
    the same items, and the mean is less certain than its queries tell: by half as much again for mAP on a few thousand
    items. Leaving groups of both out in turn covers both draws.

    Args:
        without: the mean with each of JACKKNIFE_GROUPS random groups of items and queries left out.
    """
    means = np.asarray(without, np.float64)
    half = _T * float(np.sqrt((len(means) - 1) / len(means) * np.square(means - means.mean()).sum()))
    return Interval(value, value - half, value + half, queries)


def summarise(values: Mapping[str, F64], *, seed: int = 0) -> dict[str, Interval]:
    """``mean_interval`` of each metric that has at least one value."""
    intervals = {name: mean_interval(column, seed=seed) for name, column in values.items()}
    return {name: interval for name, interval in intervals.items() if interval.queries}
