"""Similarity, norms and the offset of stale scores, against plain numpy and brute force."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.core.calibration import Metric, fit_offset, match_norms, mixed_scores, similarity, unit_rows
from fastfill_ray.core.metrics import per_query, rank_hits
from fastfill_ray.core.records import Calibration
from tests.core.test_metrics import reference

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
METRICS: list[Metric] = ["cosine", "ip", "l2"]


def vectors(rows: int, dim: int = 6, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_equals_its_definition_pair_by_pair(metric: Metric) -> None:
    queries, items = vectors(7), vectors(11, seed=1)
    found = similarity(queries, items, metric)
    assert found.shape == (7, 11)
    assert found.dtype == np.float32
    for q, query in enumerate(queries.astype(np.float64)):
        for n, item in enumerate(items.astype(np.float64)):
            plain = {
                "ip": query @ item,
                "cosine": query @ item / np.linalg.norm(query) / np.linalg.norm(item),
                "l2": -((query - item) ** 2).sum(),
            }
            assert found[q, n] == pytest.approx(plain[metric], abs=1e-5)


def test_no_squared_distance_is_negative_and_no_cosine_of_a_zero_vector_is_undefined() -> None:
    same = vectors(50) * 1000
    assert similarity(same, same, "l2").max() <= 0
    zero = np.zeros((1, 6), np.float32)
    np.testing.assert_array_equal(similarity(zero, vectors(3), "cosine"), np.zeros((1, 3)))
    np.testing.assert_array_equal(unit_rows(zero), zero)


@pytest.mark.parametrize("metric", METRICS)
def test_aligned_vectors_get_the_norm_of_new_ones_and_keep_their_direction(metric: Metric) -> None:
    aligned = vectors(20)
    matched = match_norms(aligned, metric, 2.5)
    np.testing.assert_allclose(similarity(matched, aligned, "cosine").diagonal(), 1, rtol=1e-5)
    if metric == "cosine":
        assert matched is aligned
    else:
        np.testing.assert_allclose(np.linalg.norm(matched, axis=1), 2.5, rtol=1e-5)
        assert matched.dtype == np.float32


def test_a_shrunken_alignment_is_as_long_as_the_new_vectors_once_norms_match() -> None:
    new = unit_rows(vectors(40)) * np.float32(3)
    shrunken = new * np.float32(0.25)
    np.testing.assert_allclose(match_norms(shrunken, "ip", 3.0), new, rtol=1e-5)


SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 2.0])


@given(
    st.lists(st.tuples(SCORES, SCORES, st.booleans()), min_size=1, max_size=12),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([-1.0, 0.0, 0.5]),
)
def test_mixed_scores_serve_new_items_as_they_are_and_stale_ones_calibrated(
    items: list[tuple[float, float, bool]], scale: float, offset: float
) -> None:
    stale, new, is_new = (np.array(column) for column in zip(*items, strict=True))
    served = mixed_scores(
        stale[None].astype(np.float32), new[None].astype(np.float32), is_new, Calibration(scale=scale, offset=offset)
    )
    assert served[0].tolist() == [n if fresh else scale * s + offset for s, n, fresh in items]


def mean_average_precision(scores: Floats, relevant: Bools) -> float:
    """By loops: every item ranked, best score first, equal scores by position, excluded ones left out."""
    values = []
    for row, wanted in zip(scores.tolist(), relevant.tolist(), strict=True):
        ranked = sorted((n for n in range(len(row)) if row[n] > -np.inf), key=lambda n: (-row[n], n))
        hits = [wanted[n] for n in ranked]
        values.append(reference(hits, sum(hits))["map"])
    return float(np.nanmean(values))


def mixed_gallery(seed: int, *, shift: float) -> tuple[Floats, Floats, Bools, Bools]:
    """Scores (stale, new) where stale = new - shift, half of the items new, and the new model's top 10 as truth."""
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(40, 120)).astype(np.float32)
    relevant = np.zeros(new.shape, bool)
    np.put_along_axis(relevant, np.argsort(-new, axis=1)[:, :10], True, axis=1)
    return new - np.float32(shift), new, rng.random(120) < 0.5, relevant


@pytest.mark.parametrize("shift", [0.3, 1.0, -0.7])
def test_a_known_shift_is_found_and_the_metric_comes_back(shift: float) -> None:
    stale, new, is_new, relevant = mixed_gallery(0, shift=shift)
    fitted = fit_offset(stale, new, is_new, relevant, "map")
    assert fitted.offset == pytest.approx(shift, abs=0.26 * abs(shift))
    assert fitted.scale == 1
    before = mean_average_precision(mixed_scores(stale, new, is_new, Calibration()), relevant)
    after = mean_average_precision(mixed_scores(stale, new, is_new, fitted), relevant)
    assert after > 0.99 > before + 0.03


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.5]), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_the_offset_is_the_best_of_its_grid_and_never_worse_than_none(seed: int, noise: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(12, 30)).astype(np.float32)
    stale = (new - 0.4 + noise * rng.normal(size=new.shape)).astype(np.float32)
    own = rng.integers(0, 30, 12)
    stale[np.arange(12), own] = new[np.arange(12), own] = -np.inf
    is_new, relevant = rng.random(30) < share, rng.random(new.shape) < 0.1
    fitted = fit_offset(stale, new, is_new, relevant, "map")
    if is_new.all() or not is_new.any():
        assert fitted == Calibration()
        return

    def value(offset: float) -> float:
        return mean_average_precision(mixed_scores(stale, new, is_new, Calibration(offset=offset)), relevant)

    finite = np.isfinite(new)
    gap = float(np.median(np.abs(new[finite] - stale[finite])))
    grid = [step / 4 * gap for step in range(-12, 13)]
    best = max(value(offset) for offset in grid)
    assert value(fitted.offset) == pytest.approx(best, abs=1e-9)
    assert value(fitted.offset) >= value(0.0) - 1e-9
    for offset in grid:
        if abs(offset) < abs(fitted.offset) - 1e-6:
            assert value(offset) < best


@pytest.mark.parametrize("all_new", [True, False])
def test_nothing_is_calibrated_where_everything_is_new_or_everything_stale(all_new: bool) -> None:
    stale, new, _, relevant = mixed_gallery(1, shift=1.0)
    assert fit_offset(stale, new, np.full(120, all_new), relevant, "map") == Calibration()


@pytest.mark.parametrize("relevant", [True, False])
def test_where_no_offset_helps_there_is_none(relevant: bool) -> None:
    stale, new, is_new, _ = mixed_gallery(2, shift=1.0)
    # Everything relevant: each ranking is perfect. Nothing relevant: no query has a value.
    assert fit_offset(stale, new, is_new, np.full(new.shape, relevant), "map") == Calibration()


def test_excluded_items_take_no_part_in_the_fit_and_raise_no_warning() -> None:
    stale, new, is_new, relevant = mixed_gallery(3, shift=0.5)
    excluded = np.random.default_rng(0).random(new.shape) < 0.2
    stale[excluded] = new[excluded] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_offset(stale, new, is_new, relevant, "map").offset == pytest.approx(0.5, abs=0.13)
        assert fit_offset(np.full_like(new, -np.inf), new, is_new, relevant, "map") == Calibration()


def test_the_fit_serves_whichever_metric_is_the_objective() -> None:
    stale, new, is_new, relevant = mixed_gallery(4, shift=0.8)
    for metric in ("recall@10", "ndcg@10"):
        fitted = fit_offset(stale, new, is_new, relevant, metric)
        scores = mixed_scores(stale, new, is_new, fitted)
        plain = mixed_scores(stale, new, is_new, Calibration())
        totals = relevant.sum(axis=1)
        value, without = (per_query(rank_hits(s, relevant), totals)[metric].mean() for s in (scores, plain))
        assert value > without
