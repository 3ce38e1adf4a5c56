"""Hits of many segments become one ranking: the one way in which a version is searched, and in which it is measured.

Legend: Q queries, S segments, K hits per query of one segment or of the merged ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.types import F32, I64


class Hits(NamedTuple):
    """Merged hits, best first; -inf, -1, -1 where there are fewer than K.

    scores: (Q, K) float32, calibrated. segments: (Q, K) number of the segment in its version. rows: (Q, K) row in it.
    """

    scores: F32
    segments: I64
    rows: I64

    def take(self, queries: slice) -> Hits:
        """The hits of some queries."""
        return Hits(self.scores[queries], self.segments[queries], self.rows[queries])


def merge_hits(
    scores: Sequence[F32],
    rows: Sequence[I64],
    calibrations: Sequence[Calibration],
    k: int,
    *,
    first: int = 0,
    before: Hits | None = None,
) -> Hits:
    """The k best hits over several segments, by scale * score + offset.

    A score is calibrated in float64 and rounded to float32 once; the rounded score, which is what a search returns,
    decides the order. So the k best of some segments, merged with further ones, are the k best of all of them.

    Args:
        scores: per segment (Q, K) as the segment gives them, larger is better, -inf where missing.
        rows: per segment (Q, K), -1 where missing.
        calibrations: one per segment.
        k: hits per query.
        first: number of the first of these segments.
        before: what the segments with smaller numbers were merged to.

    Returns:
        (Q, k) each: best first, equal scores in the order of segments, then rows.
    """
    parts = [] if before is None else [before]
    for number, (raw, row, calibration) in enumerate(zip(scores, rows, calibrations, strict=True), first):
        calibrated = (calibration.scale * raw.astype(np.float64) + calibration.offset).astype(np.float32)
        parts.append(Hits(np.where(row < 0, np.float32(-np.inf), calibrated), np.where(row < 0, -1, number), row))
    padding = [(0, 0), (0, max(0, k - sum(part.rows.shape[1] for part in parts)))]
    score = np.pad(np.concatenate([part.scores for part in parts], axis=1), padding, constant_values=-np.inf)
    segment = np.pad(np.concatenate([part.segments for part in parts], axis=1), padding, constant_values=-1)
    row = np.pad(np.concatenate([part.rows for part in parts], axis=1), padding, constant_values=-1)
    best = np.lexsort((row, segment, -score), axis=1)[:, :k]
    return Hits(
        np.take_along_axis(score, best, axis=1),
        np.take_along_axis(segment, best, axis=1),
        np.take_along_axis(row, best, axis=1),
    )


class HitMerger:
    """``merge_hits`` over the segments of a version one after the other, without all their hits in memory.

    Each hit may bring a value of its item along, such as the number of its label: what a hit is judged by.
    """

    def __init__(self, k: int) -> None:
        """`k`: hits per query that are kept."""
        self._k = k
        self._first = 0  # number of the first segment that waits
        self._before: tuple[Hits, I64] | None = None
        self._scores: list[F32] = []
        self._rows: list[I64] = []
        self._calibrations: list[Calibration] = []
        self._values: list[I64] = []

    def add(self, scores: F32, rows: I64, calibration: Calibration, values: I64) -> None:
        """The next segment of the version.

        Args:
            scores: (Q, K) as the segment gives them. rows: (Q, K).
            values: (N,) one per row of the segment.
        """
        self._scores.append(scores)
        self._rows.append(rows)
        self._calibrations.append(calibration)
        self._values.append(values)
        # A complete ranking is never merged here: its hits wait as they came, and mergers of other calibrations share
        # them. A cut one is merged whenever as many hits wait as are kept.
        if sum(part.shape[1] for part in self._scores) > self._k:
            self._before = self.best()
            self._first += len(self._scores)
            for waiting in (self._scores, self._rows, self._calibrations, self._values):
                waiting.clear()

    def best(self, queries: slice = slice(None)) -> tuple[Hits, I64]:
        """The best k hits of some queries over all segments so far, and the values of their items (Q, K); -1: none."""
        before, known = None, np.empty((0, 0), np.int64)
        if self._before is not None:
            before, known = self._before[0].take(queries), self._before[1][queries]
        hits = merge_hits(
            [scores[queries] for scores in self._scores],
            [rows[queries] for rows in self._rows],
            self._calibrations,
            self._k,
            first=self._first,
            before=before,
        )
        return hits, self._values_of(hits, known)

    def _values_of(self, hits: Hits, known: I64) -> I64:
        """Values (Q, K) of merged hits; `known` (Q, K): those of the hits before."""
        values = np.full(hits.rows.shape, -1, np.int64)
        waiting = hits.segments >= self._first
        if self._values:
            starts = np.cumsum([0, *(len(part) for part in self._values)])
            places = starts[hits.segments[waiting] - self._first] + hits.rows[waiting]
            values[waiting] = np.concatenate(self._values)[places]
        # Merging leaves the hits before in their order: the nth of them that is still here was the nth then.
        kept = (hits.segments >= 0) & ~waiting
        if kept.any():
            nth = np.maximum(np.cumsum(kept, axis=1) - 1, 0)
            values[kept] = np.take_along_axis(known, nth, axis=1)[kept]
        return values
