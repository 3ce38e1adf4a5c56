"""Proxy queries: train pairs that stand for the users' queries in the order `expected_gain`.

Legend: N items, P proxy queries, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, Metric

GAIN_DEPTH = 10  # `expected_gain` looks at the first ten of each proxy query
# Share of the aligned score in the evidence of `expected_gain`; the rest is the old score. Measured on docstrings:
# overlap@10 of the curve 68.1 at 0.8, 68.0 at 0.6, 67.4 at 1.
GAIN_EVIDENCE = 0.7


@dataclass(frozen=True)
class Proxies:
    """Queries that stand for the users': train pairs, whose old and new vectors are both known, or logged queries.

    new: (P, E). old: (P, D), None where users' queries have no old vectors. thresholds: (P,) score of each one's k-th
    best item of the gallery, in ``evidence``. spread: typical error of the evidence, in the same units. old_scale:
    brings old scores to the spread of new ones.
    """

    new: F32
    old: F32 | None
    metric: Metric
    spread: float
    old_scale: float
    thresholds: F32 | None = None

    def evidence(self, old: F32, aligned: F32) -> F32:
        """How near each item seems to each proxy query (P, N), by its old (N, D) and aligned (N, E) vectors."""
        if self.old is None:
            return similarity(self.new, aligned, self.metric)
        share, scale = np.float32(1 - GAIN_EVIDENCE), np.float32(self.old_scale)
        near = similarity(self.new, aligned, self.metric)
        return np.float32(GAIN_EVIDENCE) * near + share * scale * similarity(self.old, old, self.metric)


def make_proxies(
    new: F32, old: F32 | None, metric: Metric, *, items_new: F32, items_old: F32, items_aligned: F32
) -> Proxies:
    """Proxy queries without thresholds yet; the spread of their evidence is measured on held-out items.

    Args:
        new, old: (P, E), (P, D) of train pairs or of logged queries; old is None where these have none.
        items_new, items_old, items_aligned: (N, E), (N, D), (N, E) of pairs that the map has not seen.
    """
    true, scale = similarity(new, items_new, metric), 1.0
    if old is not None and metric != "cosine":
        scale = float(true.std() / max(float(similarity(old, items_old, metric).std()), 1e-12))
    made = Proxies(new, old, metric, 1.0, scale)
    error = true - made.evidence(items_old, items_aligned)
    return replace(made, spread=max(float(error.std()), 1e-12))


def with_thresholds(proxies: Proxies, old: F32, aligned: F32, share: float = 1.0) -> Proxies:
    """The proxies with the thresholds of a gallery, from items that are this share of it: old (N, D), aligned (N, E).

    The first ten of the gallery reach as far as so much fewer of a part of it.
    """
    depth = max(1, round(GAIN_DEPTH * share))
    return replace(proxies, thresholds=top_scores(proxies.evidence(old, aligned))[:, :depth][:, -1])


def top_scores(evidence: F32, depth: int = GAIN_DEPTH) -> F32:
    """The best `depth` scores per proxy query (P, depth), best first; -inf where there are fewer items."""
    best = evidence
    if evidence.shape[1] > depth:
        best = -np.partition(-evidence, depth - 1, axis=1)[:, :depth]
    padded = np.pad(best, [(0, 0), (0, depth - best.shape[1])], constant_values=-np.inf)
    return -np.sort(-padded, axis=1)


def merge_top(parts: Iterable[F32], depth: int = GAIN_DEPTH) -> F32:
    """``top_scores`` of the union from those of the parts; the order of the parts does not matter."""
    merged: F32 | None = None
    for part in parts:
        merged = part if merged is None else top_scores(np.concatenate([merged, part], axis=1), depth)
    if merged is None:
        raise ValueError("no scores to merge")
    return merged
