"""Priorities against plain loops, and what an order must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.core.plan import hash_ids
from fastfill_ray.core.policies import class_margin, random_priority, uncertainty

HASHES = hash_ids(np.arange(20_000, dtype=np.int64))


@pytest.mark.parametrize("ids", [np.arange(20_000), np.array([f"doc/{i}" for i in range(20_000)], object)])
def test_random_priorities_are_uniform_in_zero_to_one(ids: NDArray[np.int64]) -> None:
    priority = random_priority(hash_ids(ids), 0)
    assert priority.dtype == np.float32
    assert priority.min() >= 0
    assert priority.max() < 1
    expected = (np.arange(20_000) + 0.5) / 20_000
    assert np.abs(np.sort(priority) - expected).max() < 0.014  # Kolmogorov-Smirnov, 0.1 % level


def test_random_orders_of_two_seeds_are_unrelated_and_one_seed_repeats() -> None:
    first, second = random_priority(HASHES, 1), random_priority(HASHES, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    np.testing.assert_array_equal(first, random_priority(HASHES, 1))


def test_a_random_priority_belongs_to_the_id_and_not_to_its_place() -> None:
    order = np.random.default_rng(0).permutation(len(HASHES))
    np.testing.assert_array_equal(random_priority(HASHES[order], 3), random_priority(HASHES, 3)[order])


def test_uncertainty_is_the_log_variance_itself() -> None:
    log_variance = np.array([-1.0, 3.0, 0.5], np.float32)
    np.testing.assert_array_equal(uncertainty(log_variance), log_variance)


def objects(values: list[str | None]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def margin_of(
    item: NDArray[np.float64], label: str | None, reference: NDArray[np.float64], labels: list[str | None]
) -> float:
    """By a loop: distance to the nearest of the own class minus distance to the nearest of any other class."""
    own: list[float] = []
    other: list[float] = []
    worst = 0.0
    for vector, its in zip(reference, labels, strict=True):
        distance = float(((item - vector) ** 2).sum())
        worst = max(worst, distance)
        if its is not None:
            (own if its == label else other).append(distance)
    return min(own, default=worst) - min(other, default=worst)


LABELS = st.sampled_from(["cat", "dog", "eel", None])


@given(
    st.lists(LABELS | st.just("unseen"), min_size=1, max_size=8),
    st.lists(LABELS, min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_class_margin_equals_a_loop_also_for_unknown_classes_and_missing_labels(
    labels: list[str | None], reference_labels: list[str | None], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    aligned = rng.normal(size=(len(labels), 3)).astype(np.float32)
    reference = rng.normal(size=(len(reference_labels), 3)).astype(np.float32)
    found = class_margin(aligned, objects(labels), reference, objects(reference_labels))
    assert found.dtype == np.float32
    plain = [
        margin_of(item, label, reference.astype(np.float64), reference_labels)
        for item, label in zip(aligned.astype(np.float64), labels, strict=True)
    ]
    np.testing.assert_allclose(found, plain, atol=1e-4)


def test_class_margin_puts_an_item_near_another_class_before_one_near_its_own() -> None:
    reference = np.array([[0.0, 0], [10, 0]], np.float32)
    aligned = np.array([[1.0, 0], [9, 0], [5, 0]], np.float32)
    near, far, between = class_margin(aligned, objects(["a"] * 3), reference, objects(["a", "b"]))
    assert near < between < far
    assert between == pytest.approx(0)


def test_class_margin_does_not_depend_on_how_many_items_come_at_a_time() -> None:
    rng = np.random.default_rng(0)
    aligned, reference = rng.normal(size=(2100, 4)).astype("f4"), rng.normal(size=(9, 4)).astype("f4")
    labels, reference_labels = objects(rng.choice(["a", "b"], 2100).tolist()), objects(list("aabbbaabb"))
    whole = class_margin(aligned, labels, reference, reference_labels)
    parts = [
        class_margin(aligned[i : i + 500], labels[i : i + 500], reference, reference_labels)
        for i in range(0, 2100, 500)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
