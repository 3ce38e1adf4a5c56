"""Retrieval metrics per query, their means with bootstrap intervals, and the area under a backfilling curve.

Legend: Q queries, K ranks looked at, P relevant (query, item) pairs. ``hits`` (Q, K) says, best rank first, whether the
item is relevant, or its grade; ``num_relevant`` (Q,) counts all relevant items of the searched gallery, found or not. A
query without a relevant item has no value (NaN) and is left out of means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.retrieval.ranking import Name, rank, ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, F64, I64, Bools

METRICS = ("cmc@1", "cmc@5", "map", "recall@1", "recall@10", "mrr", "ndcg@10")
# nDCG's discount of the ranks 1 to 10.
_DISCOUNT = 1.0 / np.log2(np.arange(2, 12))
# Of a number that holds a query and a rank, the bits of the rank.
_RANK_BITS = 41


def per_query(hits: Bools | F64, num_relevant: I64, best_grades: F64 | None = None) -> dict[str, F64]:
    """Every metric per query, (Q,) float64 each.

    cmc@k: 1 if a relevant item is among the first k. recall@k: share of the relevant items among the first k.
    map (the values are average precisions): mean over the relevant items of the precision at their rank, 0 for items
    below rank K (Manning et al., Introduction to Information Retrieval, ch. 8.4). mrr: 1 / rank of the first relevant
    item. ndcg@10: log2 discount (Järvelin & Kekäläinen, 2002); the gain is the grade itself, as in trec_eval's
    ndcg_cut, which BEIR and MTEB report, and not 2^grade - 1. Every other metric counts a grade above 0 as relevant.

    Args:
        hits: (Q, K) bool, or float64 grades, 0 where an item is not relevant.
        best_grades: (Q, 10) the highest grades in the searched gallery, descending, 0 where there are fewer: what the
            ideal ranking begins with. None where every relevant item has grade 1.
    """
    gains, hits = hits[:, :10], hits > 0
    depth = hits.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        relevant = np.where(num_relevant > 0, num_relevant, np.nan).astype(np.float64)
        ranks = np.arange(1, depth + 1)
        found = np.cumsum(hits, axis=1)
        precision = np.where(hits, found / ranks, 0.0).sum(axis=1)
        first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
        answerable = np.where(num_relevant > 0, 1.0, np.nan)

        def recall(k: int) -> F64:
            found_at_k: F64 = hits[:, :k].sum(axis=1) / relevant
            return found_at_k

        return {
            "cmc@1": answerable * hits[:, :1].any(axis=1),
            "cmc@5": answerable * hits[:, :5].any(axis=1),
            "map": precision / relevant,
            "recall@1": recall(1),
            "recall@10": recall(10),
            "mrr": answerable / first,
            "ndcg@10": (gains * _DISCOUNT[: min(10, depth)]).sum(axis=1) / ideal_gain(num_relevant, best_grades),
        }


def ideal_gain(num_relevant: I64, best_grades: F64 | None = None) -> F64:
    """The discounted gain (Q,) of the best possible first ten ranks; NaN where nothing is relevant."""
    if best_grades is None:
        gain: F64 = np.concatenate([[np.nan], np.cumsum(_DISCOUNT)])[np.minimum(num_relevant, 10)]
        return gain
    return np.where(num_relevant > 0, np.cumsum(best_grades * _DISCOUNT, axis=1)[:, -1], np.nan)


def per_query_by_relevance(
    scores: NDArray[np.floating],
    relevance: Mapping[str, Bools],
    num_relevant: Mapping[str, I64],
) -> dict[str, dict[str, F64]]:
    """{relevance: ``per_query``} of one ranking, sorted once."""
    order, found = rank(scores), np.isfinite(scores)
    return {
        name: per_query(np.take_along_axis(relevant & found, order, axis=1), num_relevant[name])
        for name, relevant in relevance.items()
    }


def curve_area(fractions: Sequence[float], values: Sequence[float]) -> float:
    """Area under a backfilling curve by the trapezoid rule, divided by the width it spans: the mean quality on the way.

    FastFill (Jaeckle et al., ICLR 2023) writes it M~, the expectation over a uniformly drawn fraction.
    """
    if len(fractions) < 2:
        return float(values[0])
    x, y = np.asarray(fractions), np.asarray(values)
    return float(np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) / (x[-1] - x[0]))


def metrics_of(relevant: RelevantItems, ranks: I64, metrics: Sequence[str] = METRICS) -> dict[str, F64]:
    """Metrics of ``retrieval.metrics.METRICS`` per query (Q,); NaN where a query has no relevant item.

    Args:
        ranks: (P,) of ``ranks_of``, below 2^41.
        metrics: those that are wanted; nothing is computed for others.
    """
    counts = relevant.counts
    count = len(counts)
    some = counts > 0
    owner = relevant.owner
    num_relevant = np.where(some, counts, np.nan).astype(np.float64)

    def total(values: F64) -> F64:
        sums = np.bincount(owner, weights=values, minlength=count).astype(np.float64)
        return np.where(some, sums, np.nan)

    @cache  # three metrics ask for it
    def first() -> F64:
        ranks_of_first = np.full(count, np.nan)
        if some.any():
            ranks_of_first[some] = np.minimum.reduceat(ranks, relevant.starts[:-1][some])
        return ranks_of_first

    def cmc(depth: int) -> F64:
        return np.where(some, (first() <= depth).astype(np.float64), np.nan)

    def recall(depth: int) -> F64:
        return total((ranks <= depth).astype(np.float64)) / num_relevant

    def mean_average_precision() -> F64:
        # As one number, owner first: that sorts many times faster than by two columns.
        ordered = np.sort(owner << _RANK_BITS | ranks) & (1 << _RANK_BITS) - 1
        position = np.arange(1, len(ranks) + 1) - relevant.starts.take(owner)
        return total(position / ordered) / num_relevant

    def ndcg(depth: int) -> F64:
        gains = 1.0 if relevant.grades is None else relevant.grades
        found = total(np.where(ranks <= depth, gains / np.log2(ranks + 1), 0.0))
        return found / ideal_gain(counts, relevant.best_grades)

    formulas: dict[str, Callable[[], F64]] = {
        "cmc@1": lambda: cmc(1),
        "cmc@5": lambda: cmc(5),
        "map": mean_average_precision,
        "recall@1": lambda: recall(1),
        "recall@10": lambda: recall(10),
        "mrr": lambda: 1 / first(),
        "ndcg@10": lambda: ndcg(10),
    }
    return {name: formulas[name]() for name in metrics}


def measure(scores: F32, relevances: Mapping[Name, RelevantItems]) -> dict[Name, dict[str, F64]]:
    """{relevance: {metric: (Q,)}} of one state's scores (Q, N)."""
    ranks = ranks_of(scores, relevances)
    return {name: metrics_of(relevant, ranks[name]) for name, relevant in relevances.items()}
