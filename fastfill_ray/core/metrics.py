"""Retrieval metrics per query, their means with bootstrap intervals, and the area under a backfilling curve.

Legend: Q queries, K ranks looked at. ``hits`` (Q, K) bool says, best rank first, whether the item is relevant;
``num_relevant`` (Q,) counts all relevant items of the searched gallery, found or not. A query without a relevant item
has no value (NaN) and is left out of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

METRICS = ("cmc@1", "cmc@5", "map", "recall@1", "recall@10", "mrr", "ndcg@10")
_RESAMPLES = 1000


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval (percentile method) over `queries` values."""

    value: float
    low: float
    high: float
    queries: int


def per_query(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64]) -> dict[str, Floats]:
    """Every metric per query, (Q,) float64 each.

    cmc@k: 1 if a relevant item is among the first k. recall@k: share of the relevant items among the first k.
    map (the values are average precisions): mean over the relevant items of the precision at their rank, 0 for items
    below rank K (Manning et al., Introduction to Information Retrieval, ch. 8.4). mrr: 1 / rank of the first relevant
    item. ndcg@10: binary gains, log2 discount (Järvelin & Kekäläinen, 2002).
    """
    depth = hits.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        relevant = np.where(num_relevant > 0, num_relevant, np.nan).astype(np.float64)
        ranks = np.arange(1, depth + 1)
        found = np.cumsum(hits, axis=1)
        precision = np.where(hits, found / ranks, 0.0).sum(axis=1)
        first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
        discount = 1.0 / np.log2(np.arange(2, 12))
        ideal = np.concatenate([[np.nan], np.cumsum(discount)])[np.minimum(num_relevant, 10)]
        answerable = np.where(num_relevant > 0, 1.0, np.nan)

        def recall(k: int) -> Floats:
            found_at_k: Floats = hits[:, :k].sum(axis=1) / relevant
            return found_at_k

        return {
            "cmc@1": answerable * hits[:, :1].any(axis=1),
            "cmc@5": answerable * hits[:, :5].any(axis=1),
            "map": precision / relevant,
            "recall@1": recall(1),
            "recall@10": recall(10),
            "mrr": answerable / first,
            "ndcg@10": (hits[:, :10] * discount[: min(10, depth)]).sum(axis=1) / ideal,
        }


def rank(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Columns (Q, N) of each query's scores, best first; equal scores keep the order of their columns."""
    return np.argsort(-scores, axis=1, kind="stable")


def rank_hits(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`relevant` (Q, N) reordered best score first; entries that score -inf are never hits."""
    return np.take_along_axis(relevant & np.isfinite(scores), rank(scores), axis=1)


def per_query_by_relevance(
    scores: NDArray[np.floating],
    relevance: Mapping[str, NDArray[np.bool_]],
    num_relevant: Mapping[str, NDArray[np.int64]],
) -> dict[str, dict[str, Floats]]:
    """{relevance: ``per_query``} of one ranking, sorted once."""
    order, found = rank(scores), np.isfinite(scores)
    return {
        name: per_query(np.take_along_axis(relevant & found, order, axis=1), num_relevant[name])
        for name, relevant in relevance.items()
    }


@lru_cache(maxsize=4)
def _resampling(count: int, seed: int) -> Floats:
    """How often each of `count` values is drawn in each resample, (resamples, count): drawing with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)


def mean_interval(values: Floats, *, seed: int = 0) -> Interval:
    """Mean of the values that are not NaN, with a 95 % bootstrap interval; NaN throughout where there are none."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    means = _resampling(len(values), seed) @ values / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired_difference(now: Floats, before: Floats, *, seed: int = 0) -> Interval:
    """Mean of now - before over the queries that both have, with its paired 95 % bootstrap interval."""
    return mean_interval(now - before, seed=seed)


def summarise(values: Mapping[str, Floats], *, seed: int = 0) -> dict[str, Interval]:
    """``mean_interval`` of each metric that has at least one value."""
    intervals = {name: mean_interval(column, seed=seed) for name, column in values.items()}
    return {name: interval for name, interval in intervals.items() if interval.queries}


def curve_area(fractions: Sequence[float], values: Sequence[float]) -> float:
    """Area under a backfilling curve by the trapezoid rule, divided by the width it spans: the mean quality on the way.

    FastFill (Jaeckle et al., ICLR 2023) writes it M~, the expectation over a uniformly drawn fraction.
    """
    if len(fractions) < 2:
        return float(values[0])
    x, y = np.asarray(fractions), np.asarray(values)
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / (x[-1] - x[0]))
