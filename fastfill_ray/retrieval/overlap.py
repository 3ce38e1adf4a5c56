"""How much two searches of the same query agree, and where each finds what users took.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastfill_ray.types import F64

# Ids of the hits of each query, best first.
Ranked = Sequence[Sequence[int | str]]


def overlap(now: Ranked, before: Ranked) -> F64:
    """Share (Q,) of the hits that both have, of those that the longer list has; 1 where neither has any."""
    return np.array(
        [
            len(set(one) & set(other)) / max(len(one), len(other), 1) if one or other else 1.0
            for one, other in zip(now, before, strict=True)
        ]
    )


def same_first(now: Ranked, before: Ranked) -> F64:
    """Whether (Q,) the first hit is the same, 0 or 1."""
    return np.array([float(list(one[:1]) == list(other[:1])) for one, other in zip(now, before, strict=True)])


def reciprocal_ranks(hits: Ranked, taken: Sequence[Mapping[int | str, float]]) -> F64:
    """Mean of 1 / rank (Q,) of the items that users took, 0 for one that is no hit; NaN where none is known.

    Args:
        taken: per query {item: how often it was taken}, which weighs the mean.
    """
    values = np.full(len(hits), np.nan)
    for query, (ranked, amounts) in enumerate(zip(hits, taken, strict=True)):
        if amounts:
            rank_of = {item: rank for rank, item in enumerate(ranked, 1)}
            there = sum(amount / rank_of[item] for item, amount in amounts.items() if item in rank_of)
            values[query] = there / sum(amounts.values())
    return values
