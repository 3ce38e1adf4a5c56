"""Similarity and norms, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.retrieval.similarity import match_norms, similarity, unit_rows
from fastfill_ray.types import Metric

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
