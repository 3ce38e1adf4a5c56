"""Hits of many segments become one ranking: the one way in which a version is searched, and in which it is measured.

Legend: Q queries, S segments, K hits per query of one segment or of the merged ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.types import F32, F64, I64

Number = TypeVar("Number", bound=np.generic)
Values = NDArray[np.signedinteger]


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
    parts = [*([] if before is None else [before]), *_calibrated(scores, rows, calibrations, first)]
    return _best(parts, k)[0]


def best_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of hits that are calibrated already: equal scores in the order of segments, then rows."""
    if len(parts) == 1 and parts[0].scores.shape[1] >= k:
        scores, segments, rows = parts[0]
        if (scores[:, 1:] < scores[:, :-1]).all():  # in order already
            return Hits(scores[:, :k], segments[:, :k], rows[:, :k])
    return _best(parts, k)[0]


def calibrated_scores(raw: F32, scale: float | F64, offset: float | F64) -> F32:
    """Raw scores (Q, K) as they are merged, rounded once; scale and offset of all, or (K,)."""
    scores: F32 = (scale * raw.astype(np.float64) + offset).astype(np.float32)
    return scores


def _calibrated(
    scores: Sequence[F32], rows: Sequence[I64], calibrations: Sequence[Calibration], first: int
) -> Iterator[Hits]:
    """The hits of each segment as they are merged."""
    for number, (raw, row, calibration) in enumerate(zip(scores, rows, calibrations, strict=True), first):
        merged = np.where(row < 0, np.float32(-np.inf), calibrated_scores(raw, calibration.scale, calibration.offset))
        yield Hits(merged, np.where(row < 0, -1, number), row)


def _best(parts: Sequence[Hits], k: int) -> tuple[Hits, I64]:
    """The k best hits of all parts, and where each stood in the parts side by side (Q, <= k)."""
    score = np.concatenate([part.scores for part in parts], axis=1)
    segment = np.concatenate([part.segments for part in parts], axis=1)
    row = np.concatenate([part.rows for part in parts], axis=1)
    place = _in_order(score, segment, row)[:, :k]
    return Hits(_taken(score, place, k, -np.inf), _taken(segment, place, k, -1), _taken(row, place, k, -1)), place


def _in_order(score: F32, segment: I64, row: I64) -> I64:
    """Places (Q, L) of the hits, best first, equal scores in the order of segments, then rows.

    What is merged are a few runs that are sorted already: a stable sort by the score alone joins them, where one by
    segments and rows, too, sorts anew. Only equal scores are left to be put in order then.
    """
    place: I64 = np.argsort(-score, axis=1, kind="stable")
    ordered = np.take_along_axis(score, place, axis=1)
    like_before = np.zeros(score.shape, bool)
    like_before[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    tied = like_before.copy()
    tied[:, :-1] |= like_before[:, 1:]
    query, rank = np.nonzero(tied)
    if len(query):
        run, places = np.cumsum(~like_before[query, rank]), place[query, rank]
        order = np.lexsort((row[query, places], segment[query, places], run))
        place[query, rank] = places[order]
    return place


def _taken(column: NDArray[Number], place: I64, k: int, missing: float) -> NDArray[Number]:
    """The entries of a column (Q, L) at `place` (Q, <= k), filled up to (Q, k)."""
    taken = np.take_along_axis(column, place, axis=1)
    if place.shape[1] == k:  # padding takes longer than all else for a single query
        return taken
    return np.pad(taken, [(0, 0), (0, k - place.shape[1])], constant_values=missing)


class HitMerger:
    """``merge_hits`` over the segments of a version one after the other, without all their hits in memory.

    Each hit brings a whole number along, such as whether it is relevant: what it is judged by.
    """

    def __init__(self, k: int) -> None:
        """`k`: hits per query that are kept."""
        self._k = k
        self._first = 0  # number of the first segment that waits
        self._before: tuple[Hits, Values] | None = None
        self._scores: list[F32] = []
        self._rows: list[I64] = []
        self._calibrations: list[Calibration] = []
        self._values: list[Values] = []

    def add(self, scores: F32, rows: I64, calibration: Calibration, values: Values) -> None:
        """The next segment of the version.

        Args:
            scores: (Q, K) as the segment gives them. rows: (Q, K), -1 where missing.
            values: (Q, K) one per hit, of one type over all segments.
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

    def best(self, queries: slice = slice(None)) -> tuple[Hits, Values]:
        """The best k hits of some queries over all segments so far, and their values (Q, k); -1 where hits are missing
        from all segments.
        """
        parts = list(
            _calibrated(
                [scores[queries] for scores in self._scores],
                [rows[queries] for rows in self._rows],
                self._calibrations,
                self._first,
            )
        )
        values = [part[queries] for part in self._values]
        if self._before is not None:
            parts.insert(0, self._before[0].take(queries))
            values.insert(0, self._before[1][queries])
        hits, place = _best(parts, self._k)
        return hits, _taken(np.concatenate(values, axis=1), place, self._k, -1)
