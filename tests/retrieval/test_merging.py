"""Merging hits equals sorting them all in a plain loop, at once or one segment after the other, ties included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.merging import HitMerger, Hits, merge_hits
from fastfill_ray.types import F32, I64

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 0.0, 0.5])),
    min_size=1,
    max_size=6,
)


class Segments(NamedTuple):
    scores: list[F32]
    rows: list[I64]
    calibrations: list[Calibration]
    values: list[I64]


def some_segments(shapes: list[tuple[int, float, float]], num_queries: int, seed: int) -> Segments:
    """Few distinct scores, so that there are ties within and between segments; some hits are missing."""
    rng = np.random.default_rng(seed)
    made = Segments([], [], [], [])
    for width, scale, offset in shapes:
        shape = num_queries, width
        scores = rng.integers(-2, 3, shape).astype(np.float32)
        rows = np.array([rng.permutation(width) for _ in range(num_queries)], np.int64).reshape(shape)
        missing = rng.random(shape) < 0.2
        scores[missing], rows[missing] = -np.inf, -1
        made.scores.append(scores)
        made.rows.append(rows)
        made.calibrations.append(Calibration(scale=scale, offset=offset))
        made.values.append(np.where(missing, -1, rng.integers(0, 9, shape)))
    return made


def by_loop(segments: Segments, query: int, k: int) -> list[tuple[float, int, int]]:
    """(score, segment, row) of the k best hits of one query."""
    hits = [
        (calibration.scale * float(score) + calibration.offset, number, int(row))
        for number, (scores, rows, calibration, _) in enumerate(zip(*segments, strict=True))
        for score, row in zip(scores[query], rows[query], strict=True)
        if row >= 0
    ]
    best = sorted(hits, key=lambda hit: (-hit[0], hit[1], hit[2]))[:k]
    return best + [(-np.inf, -1, -1)] * (k - len(best))


def assert_same(one: Hits, other: Hits) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@given(SHAPES, st.integers(1, 12), st.integers(0, 3), SEEDS)
@settings(max_examples=150, deadline=None)
def test_merging_equals_sorting_all_calibrated_hits(
    shapes: list[tuple[int, float, float]], k: int, num_queries: int, seed: int
) -> None:
    segments = some_segments(shapes, num_queries, seed)
    hits = merge_hits(segments.scores, segments.rows, segments.calibrations, k)
    assert [column.shape for column in hits] == [(num_queries, k)] * 3
    assert [column.dtype for column in hits] == [np.float32, np.int64, np.int64]
    for query in range(num_queries):
        assert list(zip(*(column[query].tolist() for column in hits), strict=True)) == by_loop(segments, query, k)


@given(SHAPES, st.integers(1, 12), st.integers(0, 6), SEEDS)
@settings(max_examples=150, deadline=None)
def test_what_some_segments_were_merged_to_stands_for_them(
    shapes: list[tuple[int, float, float]], k: int, cut: int, seed: int
) -> None:
    scores, rows, calibrations, _ = some_segments(shapes, 3, seed)
    before = merge_hits(scores[:cut], rows[:cut], calibrations[:cut], k) if cut and scores[:cut] else None
    first = 0 if before is None else min(cut, len(scores))
    then = merge_hits(scores[first:], rows[first:], calibrations[first:], k, first=first, before=before)
    assert_same(then, merge_hits(scores, rows, calibrations, k))


@given(SHAPES, st.integers(1, 12), SEEDS)
@settings(max_examples=150, deadline=None)
def test_one_segment_after_the_other_equals_all_at_once_and_values_go_with_their_items(
    shapes: list[tuple[int, float, float]], k: int, seed: int
) -> None:
    segments = some_segments(shapes, 3, seed)
    merger = HitMerger(k)
    for part in zip(*segments, strict=True):
        merger.add(*part)
    hits, values = merger.best()
    assert_same(hits, merge_hits(segments.scores, segments.rows, segments.calibrations, k))
    for place in np.ndindex(hits.rows.shape):
        number, row = int(hits.segments[place]), int(hits.rows[place])
        query = place[0]
        there = number >= 0 and segments.rows[number][query].tolist().index(row)
        assert values[place] == (-1 if number < 0 else segments.values[number][query, there])
    some, their_values = merger.best(slice(1, 3))
    assert_same(some, hits.take(slice(1, 3)))
    np.testing.assert_array_equal(their_values, values[1:])


def test_only_about_the_hits_that_are_kept_wait_in_memory() -> None:
    merger = HitMerger(10)
    for seed in range(20):
        merger.add(*(column[0] for column in some_segments([(10, 1.0, 0.0)], 2, seed)))
        assert sum(waiting.shape[1] for waiting in merger._scores) <= 10


def test_scores_that_float32_cannot_tell_apart_are_ties() -> None:
    # 1 + 2**-30 is 1 in float32, which is what a search returns: the earlier segment comes first.
    scores, rows = [np.zeros((1, 1), np.float32)] * 2, [np.zeros((1, 1), np.int64)] * 2
    hits = merge_hits(scores, rows, [Calibration(offset=1.0), Calibration(offset=1 + 2**-30)], 2)
    assert hits.scores.tolist() == [[1.0, 1.0]]
    assert hits.segments.tolist() == [[0, 1]]


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(ValueError, match="need at least one array"):
        merge_hits([], [], [], 3)
