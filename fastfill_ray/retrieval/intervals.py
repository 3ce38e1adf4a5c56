"""Means with bootstrap intervals, and paired differences.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastfill_ray.types import F64

_RESAMPLES = 1000


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval (percentile method) over `queries` values."""

    value: float
    low: float
    high: float
    queries: int


@lru_cache(maxsize=4)
def _resampling(count: int, seed: int) -> F64:
    """How often each of `count` values is drawn in each resample, (resamples, count): drawing with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)


def mean_interval(values: F64, *, seed: int = 0) -> Interval:
    """Mean of the values that are not NaN, with a 95 % bootstrap interval; NaN throughout where there are none."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    means = _resampling(len(values), seed) @ values / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired_difference(now: F64, before: F64, *, seed: int = 0) -> Interval:
    """Mean of now - before over the queries that both have, with its paired 95 % bootstrap interval."""
    return mean_interval(now - before, seed=seed)


def summarise(values: Mapping[str, F64], *, seed: int = 0) -> dict[str, Interval]:
    """``mean_interval`` of each metric that has at least one value."""
    intervals = {name: mean_interval(column, seed=seed) for name, column in values.items()}
    return {name: interval for name, interval in intervals.items() if interval.queries}
