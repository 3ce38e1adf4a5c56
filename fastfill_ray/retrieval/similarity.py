"""Scores before calibration: similarity, and aligned vectors brought to the norm of new ones.

Legend: Q queries, N items, E new dim. A score is larger-is-better: inner product, cosine, or minus squared L2.
"""

from __future__ import annotations

import numpy as np

from fastfill_ray.types import F32, Metric


def unit_rows(vectors: F32) -> F32:
    """Rows scaled to L2 norm 1; zero rows stay zero."""
    norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))  # np.linalg.norm is slow for one row
    scaled: F32 = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
    return scaled


def similarity(queries: F32, items: F32, metric: Metric) -> F32:
    """Scores (Q, N)."""
    if metric == "cosine":
        queries, items = unit_rows(queries), unit_rows(items)
    products: F32 = queries @ items.T
    if metric != "l2":
        return products
    squares = (queries**2).sum(axis=1)[:, None] + (items**2).sum(axis=1)[None, :]
    negative_distances: F32 = np.minimum(2 * products - squares, 0)
    return negative_distances


def match_norms(aligned: F32, metric: Metric, norm: float) -> F32:
    """Aligned vectors (N, E) brought to `norm`, the mean norm of new vectors on the pairs.

    A regression shrinks towards the mean: left as they are, aligned vectors sit too near to every query under L2 and
    too low under inner product, and a partial backfill can be worse than none. Under cosine there is nothing to match.
    """
    return aligned if metric == "cosine" else unit_rows(aligned) * np.float32(norm)
