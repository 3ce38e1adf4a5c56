"""Scores of a mixed index made comparable: similarity, norms, and the offset of stale scores.

Legend: Q queries, N items, E new dim. A score is larger-is-better: inner product, cosine, or minus squared L2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.core.metrics import per_query, rank_hits
from fastfill_ray.core.records import Calibration

Floats = NDArray[np.float32]
Metric = Literal["cosine", "ip", "l2"]

# Candidate offsets, in units of the typical gap between a stale item's score and the score of its new vector.
_GRID = np.linspace(-3, 3, 25)


def unit_rows(vectors: Floats) -> Floats:
    """Rows scaled to L2 norm 1; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return scaled


def similarity(queries: Floats, items: Floats, metric: Metric) -> Floats:
    """Scores (Q, N)."""
    if metric == "cosine":
        queries, items = unit_rows(queries), unit_rows(items)
    products: Floats = queries @ items.T
    if metric != "l2":
        return products
    squares = (queries**2).sum(axis=1)[:, None] + (items**2).sum(axis=1)[None, :]
    negative_distances: Floats = np.minimum(2 * products - squares, 0)
    return negative_distances


def match_norms(aligned: Floats, metric: Metric, norm: float) -> Floats:
    """Aligned vectors (N, E) brought to `norm`, the mean norm of new vectors on the pairs.

    A regression shrinks towards the mean: left as they are, aligned vectors sit too near to every query under L2 and
    too low under inner product, and a partial backfill can be worse than none. Under cosine there is nothing to match.
    """
    return aligned if metric == "cosine" else unit_rows(aligned) * np.float32(norm)


def mixed_scores(stale: Floats, new: Floats, is_new: NDArray[np.bool_], calibration: Calibration) -> Floats:
    """Scores (Q, N) of the mixed gallery: `new` for new items, calibrated `stale` for the others."""
    served = np.float32(calibration.scale) * stale + np.float32(calibration.offset)
    return np.where(is_new[None, :], new, served)


def fit_offset(
    stale: Floats, new: Floats, is_new: NDArray[np.bool_], relevant: NDArray[np.bool_], metric: str
) -> Calibration:
    """The offset of stale scores under which the mixed calibration gallery retrieves best.

    Args:
        stale: (Q, N) scores with the items' aligned vectors; -inf excludes an item from a query (self-match).
        new: (Q, N) scores with their new vectors.
        is_new: (N,) which items are new at this version's fraction.
        relevant: (Q, N).
        metric: name from core.metrics.METRICS whose mean is maximised; of equal candidates the smallest offset wins.

    Returns:
        The identity where nothing or everything is stale: an offset then changes no ranking.
    """
    if is_new.all() or not is_new.any():
        return Calibration()
    finite = np.isfinite(stale) & np.isfinite(new)
    gap = float(np.median(np.abs(new[finite] - stale[finite]))) if finite.any() else 0.0
    num_relevant = (relevant & finite).sum(axis=1)
    best, best_value = 0.0, -np.inf
    for offset in sorted((_GRID * gap).tolist(), key=abs):  # the smallest first: a tie does not replace it
        scores = mixed_scores(stale, new, is_new, Calibration(offset=offset))
        values = per_query(rank_hits(scores, relevant), num_relevant)[metric]
        value = float(np.nanmean(values)) if (~np.isnan(values)).any() else 0.0
        if value > best_value:
            best, best_value = offset, value
    return Calibration(offset=best)
