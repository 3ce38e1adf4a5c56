"""A popularity prior: what users took often scores higher, without any backfill. What an order by it is held against.

Legend: Q queries, N items.
"""

from __future__ import annotations

import numpy as np

from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.ranking import ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, F64

# How much the logarithm of an item's traffic adds, in spreads of the scores; 0 is no prior.
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)


def with_prior(scores: F32, traffic: F64, strength: float) -> F32:
    """Scores (Q, N) plus the prior of each item: strength * spread of the scores * log(1 + traffic).

    Args:
        traffic: (N,) how often each item was taken.
    """
    finite = scores[np.isfinite(scores)]
    spread = float(finite.std()) if finite.size else 0.0
    return scores + (strength * spread * np.log1p(traffic)).astype(np.float32)


def best_strength(scores: F32, traffic: F64, relevant: RelevantItems, metric: str) -> float:
    """The strength under which these scores (Q, N) retrieve best by the mean of a metric; of equal ones the least."""

    def value(strength: float) -> float:
        ranks = ranks_of(with_prior(scores, traffic, strength), {"": relevant})[""]
        return float(np.nanmean(metrics_of(relevant, ranks, [metric])[metric]))

    return max(STRENGTHS, key=value) if (relevant.counts > 0).any() else 0.0
