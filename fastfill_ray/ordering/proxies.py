"""Proxy queries: train pairs that stand for the users' queries in the order `expected_gain`.

Legend: N items, P proxy queries, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.retrieval.similarity import similarity, unit_rows
from fastfill_ray.types import F32, Metric

GAIN_DEPTH = 10  # `expected_gain` looks at the first ten of each proxy query
# Share of the aligned score in the evidence of `expected_gain`; the rest is the old score. Measured on docstrings:
# overlap@10 of the curve 68.1 at 0.8, 68.0 at 0.6, 67.4 at 1.
GAIN_EVIDENCE = 0.7
# Evidence that is looked at at a time, 1 MiB: it stays in the cache, where each further look at it costs little.
_TILE_NUMBERS = 1 << 18


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
        queries, items = self._sides(old, aligned)
        return self._product(queries, items, np.empty((len(queries), len(items)), np.float32))

    def tiles(self, old: F32, aligned: F32) -> Iterator[tuple[slice, F32]]:
        """``evidence`` of all items, some at a time: which (n of N), and theirs (P, n), which the next overwrites."""
        queries, items = self._sides(old, aligned)
        rows = max(1, _TILE_NUMBERS // max(1, len(queries)))
        memory = np.empty(len(queries) * min(rows, len(items)), np.float32)
        for start in range(0, len(items), rows):
            part = slice(start, min(start + rows, len(items)))
            shape = len(queries), part.stop - start
            yield part, self._product(queries, items[part], memory[: shape[0] * shape[1]].reshape(shape))

    def _product(self, queries: F32, items: F32, out: F32) -> F32:
        np.matmul(queries, items.T, out=out)
        return np.minimum(out, 0, out=out) if self.metric == "l2" else out

    def _sides(self, old: F32, aligned: F32) -> tuple[F32, F32]:
        """Queries (P, K) and items (N, K) whose products are the evidence."""
        parts = [(1.0, self.new, aligned)]
        if self.old is not None:
            old_share = (1 - GAIN_EVIDENCE) * self.old_scale
            parts = [(GAIN_EVIDENCE, self.new, aligned), (old_share, self.old, old)]
        queries, items = [], []
        for share, asked, found in parts:
            if self.metric == "cosine":
                asked, found = unit_rows(asked), unit_rows(found)
            queries.append(asked * np.float32(2 * share if self.metric == "l2" else share))
            items.append(found)
            if self.metric == "l2":  # - |q - x|^2 = 2 q.x - |q|^2 - |x|^2
                of_queries, of_items = (np.square(each).sum(axis=1, keepdims=True) for each in (asked, found))
                queries += [of_queries * np.float32(-share), np.full_like(of_queries, -share)]
                items += [np.ones_like(of_items), of_items]
        return np.concatenate(queries, axis=1), np.concatenate(items, axis=1)

    def chances(self, old: F32, aligned: F32) -> Iterator[tuple[slice, F32]]:
        """How likely each item is at or above each query's threshold, in tiles as ``tiles`` gives them: Phi((s - tau) /
        spread). The logistic function stands for Phi (largest difference 0.01; Bowling et al., 2009). A query without
        a threshold, since there are fewer items, is certain of each.
        """
        assert self.thresholds is not None
        certain = ~np.isfinite(self.thresholds)
        thresholds = np.where(certain, np.float32(0), self.thresholds)[:, None]
        for part, tile in self.tiles(old, aligned):
            tile -= thresholds
            tile *= np.float32(-1.702 / self.spread)
            np.clip(tile, -60, 60, out=tile)
            np.exp(tile, out=tile)
            tile += 1
            np.reciprocal(tile, out=tile)
            tile[certain] = 1
            yield part, tile

    def best(self, old: F32, aligned: F32, depth: int = GAIN_DEPTH, so_far: F32 | None = None) -> F32:
        """Each query's best scores (P, depth) among the items and those `so_far`; see ``top_scores``."""
        best = np.full((len(self.new), depth), -np.inf, np.float32) if so_far is None else so_far.copy()
        for _, tile in self.tiles(old, aligned):
            # After the first tiles few queries find anything that is better than what they have.
            better = np.flatnonzero(tile.max(axis=1, initial=-np.inf) > best[:, -1])
            if len(better):
                best[better] = top_scores(np.concatenate([best[better], tile[better]], axis=1), depth)
        return best


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
    return replace(proxies, thresholds=proxies.best(old, aligned)[:, :depth][:, -1])


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
