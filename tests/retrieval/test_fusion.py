"""Fused vectors against the sum of the scores of their halves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.retrieval.fusion import Fusion, fuse, fused_dim, fusion_of
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import Metric

METRICS: list[Metric] = ["cosine", "ip", "l2"]
D, E = 3, 5


def vectors(rows: int, dim: int, seed: int, size: float = 1.0) -> NDArray[np.float32]:
    return (size * np.random.default_rng(seed).normal(size=(rows, dim))).astype(np.float32)


weights = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@given(st.sampled_from(METRICS), weights, st.floats(0.01, 100), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_fused_scores_are_the_weighted_sum_of_old_and_aligned_scores(
    metric: Metric, weight: float, old_scale: float, size: float, seed: int
) -> None:
    queries = vectors(4, D, seed, size), vectors(4, E, seed + 1)
    items = vectors(6, D, seed + 2, size), vectors(6, E, seed + 3)
    fusion = fusion_of(weight, metric, old_scale)
    found = similarity(fuse(*queries, fusion, metric), fuse(*items, fusion, metric), metric)
    scale = 1.0 if metric == "cosine" else old_scale
    old, aligned = (similarity(q, x, metric).astype(float) for q, x in zip(queries, items, strict=True))
    expected = (1 - weight) * scale * old + weight * aligned
    tolerance = 1e-4 * (1 + scale * size**2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance)


@given(weights, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_under_cosine_fused_vectors_have_norm_one(weight: float, seed: int) -> None:
    fused = fuse(vectors(5, D, seed, 7), vectors(5, E, seed + 1, 0.1), fusion_of(weight, "cosine"), "cosine")
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("weight", "dim"), [(0, D), (0.3, D + E), (1, E)])
def test_a_half_whose_factor_is_0_is_left_out_and_need_not_be_given(metric: Metric, weight: float, dim: int) -> None:
    fusion = fusion_of(weight, metric)
    given: dict[str, Any] = {"old": vectors(4, D, 0), "new": vectors(4, E, 1)}
    fused = fuse(given["old"], given["new"], fusion, metric)
    assert fused.shape == (4, dim) == (4, fused_dim(fusion, D, E))
    assert fused.dtype == np.float32
    assert fused.flags.c_contiguous
    for half, factor in (("old", fusion.old), ("new", fusion.new)):
        without = {**given, half: None}
        if factor == 0:
            np.testing.assert_array_equal(fuse(without["old"], without["new"], fusion, metric), fused)
        else:
            with pytest.raises(ValueError, match=f"the {half} vectors are missing"):
                fuse(without["old"], without["new"], fusion, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_a_weight_of_1_is_the_mode_aligned(metric: Metric) -> None:
    queries, items = vectors(4, E, 0), vectors(6, E, 1)
    fusion = fusion_of(1, metric)
    found = similarity(fuse(None, queries, fusion, metric), fuse(None, items, fusion, metric), metric)
    np.testing.assert_allclose(found, similarity(queries, items, metric), atol=1e-5)


def test_the_factors_are_the_roots_of_the_shares() -> None:
    assert fusion_of(0.36, "l2", old_scale=4) == Fusion(old=1.6, new=0.6)
    assert fusion_of(0.36, "cosine", old_scale=4) == Fusion(old=0.8, new=0.6)


@pytest.mark.parametrize(
    ("weight", "old_scale"), [(-0.1, 1), (1.1, 1), (float("nan"), 1), (0.5, 0), (0.5, -1), (0.5, float("inf"))]
)
def test_shares_that_are_none_are_refused(weight: float, old_scale: float) -> None:
    with pytest.raises(ValueError, match="0 <= weight <= 1 and 0 < old_scale expected"):
        fusion_of(weight, "l2", old_scale)


def test_halves_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[4, 5\] rows"):
        fuse(vectors(4, D, 0), vectors(5, E, 1), Fusion(old=1, new=1), "ip")
    with pytest.raises(ValueError, match="their squares must sum to 1"):
        fuse(vectors(4, D, 0), vectors(4, E, 1), Fusion(old=1, new=1), "cosine")
