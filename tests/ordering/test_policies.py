"""Priorities against plain loops, and what an order must not depend on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.demand import Demand, TakenItems, demand, taken
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.policies import (
    POLICIES,
    ItemColumns,
    Policy,
    Reference,
    class_loss,
    class_margin,
    entropy,
    expected_gain,
    priority_of,
    random_priority,
    uncertainty,
    weighted,
)
from fastfill_ray.ordering.proxies import (
    GAIN_DEPTH,
    GAIN_EVIDENCE,
    Proxies,
    make_proxies,
    merge_top,
    top_scores,
    with_thresholds,
)
from fastfill_ray.types import Metric

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
    result = class_margin(aligned, objects(labels), reference, objects(reference_labels))
    assert result.dtype == np.float32
    plain = [
        margin_of(item, label, reference.astype(np.float64), reference_labels)
        for item, label in zip(aligned.astype(np.float64), labels, strict=True)
    ]
    np.testing.assert_allclose(result, plain, atol=1e-4)


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


# entropy and class_loss


def log_shares(item: NDArray[np.float32], classifier: Classifier) -> list[float]:
    rows = zip(classifier.weight.astype("f8"), classifier.bias.tolist(), strict=True)
    logits = [float(item.astype("f8") @ weight) + bias for weight, bias in rows]
    total = math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits)
    return [logit - total for logit in logits]


def classifier_with(weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None) -> Classifier:
    """Classes "c0", "c1", ..."""
    names = np.array([f"c{row}" for row in range(len(weight))])
    return Classifier(weight, np.zeros(len(weight), np.float32) if bias is None else bias, names)


@given(st.integers(1, 6), st.integers(1, 7), st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_entropy_equals_a_loop_over_classes(items: int, classes: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    aligned, weight = rng.normal(size=(items, 3)).astype("f4"), spread * rng.normal(size=(classes, 3)).astype("f4")
    bias = rng.normal(size=classes).astype("f4")
    classifier = classifier_with(weight, bias)
    result = entropy(aligned, classifier)
    assert result.dtype == np.float32
    for item, value in enumerate(result):
        logs = log_shares(aligned[item], classifier)
        assert value == pytest.approx(-sum(math.exp(log) * log for log in logs), abs=1e-4)


def test_entropy_is_greatest_where_classes_are_even_and_is_zero_where_one_is_sure() -> None:
    weight = np.eye(4, dtype=np.float32)
    aligned = np.array([[1, 1, 1, 1], [999, 0, 0, 0], [50, 50, 0, 0]], "f4")
    even, sure, torn = entropy(aligned, classifier_with(weight))
    assert even == pytest.approx(math.log(4))
    assert sure == 0
    assert torn == pytest.approx(math.log(2))


@given(
    st.lists(st.sampled_from(["c0", "c1", "c2", "c9", None]), min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_class_loss_is_the_cross_entropy_also_for_unknown_classes_and_missing_labels(
    labels: list[str | None], classes: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    aligned = rng.normal(size=(len(labels), 3)).astype("f4")
    classifier = classifier_with(
        spread * rng.normal(size=(classes, 3)).astype("f4"), rng.normal(size=classes).astype("f4")
    )
    result = class_loss(aligned, objects(labels), classifier)
    assert result.dtype == np.float32
    for item, label, value in zip(aligned, labels, result, strict=True):
        logs = dict(zip(classifier.classes.tolist(), log_shares(item, classifier), strict=True))
        expected = -sum(math.exp(log) * log for log in logs.values())
        if label is not None:
            expected = -logs.get(label, min(logs.values()))
        assert value == pytest.approx(expected, abs=1e-3)


def test_class_loss_takes_numbers_for_the_rows_of_a_classifier_that_names_none() -> None:
    classifier = Classifier.of_class_numbers(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
    aligned = np.array([[9, 0, 0]] * 3, np.float32)
    numbers, words = (class_loss(aligned, objects(labels), classifier) for labels in ([0, 1, 7], ["0", "1", "7"]))
    np.testing.assert_allclose(numbers, words, rtol=1e-6)
    assert numbers[0] < 0.001
    assert numbers[1] == pytest.approx(9, abs=0.001)
    assert numbers[2] == numbers[1]


# expected_gain


def vectors(seed: int, items: int = 40) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Old (N, 4), new (N, 5) and aligned (N, 5) vectors."""
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=(items, 4)).astype("f4"), rng.normal(size=(items, 5)).astype("f4")
    return old, new, (new + 0.4 * rng.normal(size=new.shape)).astype("f4")


def proxies_of(metric: Metric, seed: int = 0, count: int = 7) -> Proxies:
    old, new, aligned = vectors(seed)
    return make_proxies(
        new[:count], old[:count], metric, items_new=new[count:], items_old=old[count:], items_aligned=aligned[count:]
    )


def similar(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return -float(((x - y) ** 2).sum())
    return float(x @ y) / (float(np.linalg.norm(x) * np.linalg.norm(y)) if metric == "cosine" else 1)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_expected_gain_is_the_sum_of_chances_to_be_among_each_proxys_first_ten(metric: Metric) -> None:
    proxies = proxies_of(metric)
    old, _, aligned = vectors(1)
    result = expected_gain(old, aligned, with_thresholds(proxies, old, aligned))
    expected = np.zeros(len(old))
    for query, query_old in zip(proxies.new, proxies.old, strict=True):
        evidence = [
            GAIN_EVIDENCE * similar(query, aligned[i], metric)
            + (1 - GAIN_EVIDENCE) * proxies.old_scale * similar(query_old, old[i], metric)
            for i in range(len(old))
        ]
        threshold = sorted(evidence, reverse=True)[GAIN_DEPTH - 1]
        expected += norm.cdf((np.array(evidence) - threshold) / proxies.spread)
    assert result.dtype == np.float32
    # The logistic function is within 0.01 of Phi, for each of the proxies.
    assert np.abs(result - expected).max() < 0.01 * len(proxies.new)
    assert np.corrcoef(result, expected)[0, 1] > 0.999


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_proxies_know_how_far_their_evidence_is_off(metric: Metric) -> None:
    proxies = proxies_of(metric)
    old, new, aligned = (part[7:] for part in vectors(0))
    errors = [
        similar(query, new[i], metric)
        - GAIN_EVIDENCE * similar(query, aligned[i], metric)
        - (1 - GAIN_EVIDENCE) * proxies.old_scale * similar(query_old, old[i], metric)
        for query, query_old in zip(proxies.new, proxies.old, strict=True)
        for i in range(len(new))
    ]
    assert proxies.spread == pytest.approx(np.std(errors), rel=1e-4)
    if metric == "cosine":
        assert proxies.old_scale == 1
    else:
        scores = [
            np.std([similar(query, item, metric) for query in queries for item in items])
            for queries, items in ((proxies.new, new), (proxies.old, old))
        ]
        assert proxies.old_scale == pytest.approx(scores[0] / scores[1], rel=1e-4)


def test_expected_gain_prefers_items_near_proxies() -> None:
    proxies = replace(proxies_of("cosine"), spread=0.05)
    old, _, aligned = vectors(1)
    old[0], aligned[0] = proxies.old[0], proxies.new[0]
    old[1], aligned[1] = -proxies.old.mean(axis=0), -proxies.new.mean(axis=0)
    result = expected_gain(old, aligned, with_thresholds(proxies, old, aligned))
    assert result[0] > result[1]
    assert result[0] > np.median(result)


def test_expected_gain_does_not_depend_on_how_many_items_come_at_a_time() -> None:
    old, _, aligned = vectors(1, 2100)
    proxies = with_thresholds(proxies_of("ip"), old, aligned)
    whole = expected_gain(old, aligned, proxies)
    parts = [expected_gain(old[i : i + 500], aligned[i : i + 500], proxies) for i in range(0, 2100, 500)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4)


def test_a_gallery_of_fewer_than_ten_items_still_has_an_order() -> None:
    old, _, aligned = (part[:3] for part in vectors(1))
    result = expected_gain(old, aligned, with_thresholds(proxies_of("ip"), old, aligned))
    assert np.isfinite(result).all()


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_the_top_of_a_gallery_is_the_same_however_it_is_split_into_parts(
    items: int, cuts: list[int], backwards: bool, seed: int
) -> None:
    evidence = np.random.default_rng(seed).integers(0, 9, (4, items)).astype(np.float32)
    parts = [top_scores(part) for part in np.split(evidence, sorted(min(cut, items) for cut in cuts), axis=1)]
    merged = merge_top(reversed(parts) if backwards else parts)
    assert merged.shape == (4, GAIN_DEPTH)
    for result, row in zip(merged.tolist(), evidence.tolist(), strict=True):
        best = sorted(row, reverse=True)[:GAIN_DEPTH]
        assert result == best + [-math.inf] * (GAIN_DEPTH - len(best))
    np.testing.assert_array_equal(merged, top_scores(evidence))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("numbers", [1, 40, 1 << 18])
def test_evidence_in_tiles_is_the_whole_evidence(metric: Metric, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfill_ray.ordering.proxies._TILE_NUMBERS", numbers)
    old, _, aligned = vectors(1, 50)
    proxies = proxies_of(metric)
    whole = proxies.evidence(old, aligned)
    for part, tile in proxies.tiles(old, aligned):
        np.testing.assert_allclose(tile, whole[:, part], rtol=1e-4, atol=1e-4)
    first = proxies.best(old[:7], aligned[:7])
    assert np.isneginf(first[:, 7:]).all()
    best = proxies.best(old[7:], aligned[7:], so_far=first)
    np.testing.assert_allclose(best, top_scores(whole), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(proxies.best(old[:0], aligned[:0], so_far=best), best)


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scores to merge"):
        merge_top([])


# Weights


@pytest.mark.parametrize("policy", POLICIES)
def test_a_weight_multiplies_what_the_priority_says(policy: str) -> None:
    rng = np.random.default_rng(0)
    priority = rng.normal(size=50) if policy in ("uncertainty", "class_margin") else rng.random(50)
    weight = rng.random(50).astype("f4") + 0.1
    pairs = rng.normal(size=(40, 3)).astype(np.float32)
    spread = float(((pairs - pairs.mean(axis=0)) ** 2).sum(axis=1).mean())
    result = weighted(policy, priority.astype("f4"), weight, Reference(new=pairs))  # type: ignore[arg-type]
    assert result.dtype == np.float32
    for value, before, times in zip(result.tolist(), priority.tolist(), weight.tolist(), strict=True):
        if policy == "uncertainty":
            assert math.exp(value) == pytest.approx(math.exp(before) * times, rel=1e-4)
        elif policy == "class_margin":
            assert value == pytest.approx(times / (1 + math.exp(-before / spread)), rel=1e-4)
        else:
            assert value == pytest.approx(before * times, rel=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_weights_keep_the_order_and_a_weight_of_zero_puts_an_item_last(policy: str) -> None:
    priority = np.linspace(0.1, 0.9, 9, dtype=np.float32) * (-1 if policy == "class_margin" else 1)
    reference = Reference(new=np.eye(3, dtype=np.float32))
    alike = weighted(policy, priority, np.full(9, 2.5, np.float32), reference)  # type: ignore[arg-type]
    assert np.argsort(alike).tolist() == np.argsort(priority).tolist()
    for nothing in (0.0, -1.0):
        weight = np.ones(9, np.float32)
        weight[int(priority.argmax())] = nothing
        result = weighted(policy, priority, weight, reference)  # type: ignore[arg-type]
        assert np.isfinite(result).all()
        assert result.argmin() == priority.argmax()


def everything() -> tuple[ItemColumns, Reference, dict[Policy, NDArray[np.float32]]]:
    """Columns and reference that have all that policies read, and each policy's own priorities of them."""
    old, new, aligned = vectors(3)
    rng = np.random.default_rng(3)
    labels, hashes = objects(rng.choice(["a", "b"], 40).tolist()), HASHES[:40]
    classifier = Classifier(rng.normal(size=(2, 5)).astype("f4"), np.zeros(2, "f4"), np.array(["a", "b"]))
    proxies = with_thresholds(proxies_of("l2"), old, aligned)
    asked = Demand(proxies, np.arange(1.0, 1 + len(proxies.new)))
    items_taken = TakenItems(np.sort(hashes[:3]), np.array([3.0, 1, 2]))
    reference = Reference(new[:9], labels[:9], classifier, proxies, asked, items_taken)
    log_variance, priority = rng.normal(size=40).astype("f4"), rng.normal(size=40).astype("f4")
    demanded = demand(old, aligned, asked)
    expected: dict[Policy, NDArray[np.float32]] = {
        "random": random_priority(hashes, 5),
        "uncertainty": log_variance,
        "entropy": entropy(aligned, classifier),
        "expected_gain": expected_gain(old, aligned, proxies),
        "class_margin": class_margin(aligned, labels, new[:9], labels[:9]),
        "class_loss": class_loss(aligned, labels, classifier),
        "demand": demanded,
        "taken": taken(hashes, items_taken, demanded),
        "column": priority,
    }
    return ItemColumns(hashes, old, aligned, log_variance, labels, priority=priority), reference, expected


def test_each_policy_gives_its_own_priorities_from_the_columns_times_the_traffic() -> None:
    columns, reference, expected = everything()
    traffic = np.linspace(0.5, 2, 40, dtype=np.float32)
    assert set(expected) == set(POLICIES)
    for policy in POLICIES:
        np.testing.assert_allclose(priority_of(policy, columns, reference, seed=5), expected[policy], rtol=1e-6)
        # A priority of the user's own is taken as it is.
        own = policy == "column"
        np.testing.assert_allclose(
            priority_of(policy, replace(columns, weights=traffic), reference, seed=5),
            expected[policy] if own else weighted(policy, expected[policy], traffic, reference),
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    ("policy", "lacking"),
    [
        ("entropy", {"classifier"}),
        ("expected_gain", {"proxies"}),
        ("class_margin", {"new"}),
        ("class_margin", {"labels"}),
        ("class_loss", {"classifier"}),
        ("demand", {"demand"}),
        ("taken", {"demand"}),
        ("taken", {"taken"}),
    ],
)
def test_a_policy_whose_reference_is_missing_is_an_error_and_not_another_order(
    policy: Policy, lacking: set[str]
) -> None:
    columns, reference, _ = everything()
    with pytest.raises(ValueError, match=f"policy {policy} needs .*, which is missing"):
        priority_of(policy, columns, replace(reference, **dict.fromkeys(lacking)), seed=5)


@pytest.mark.parametrize("policy", ["class_margin", "class_loss"])
def test_a_policy_that_reads_labels_is_an_error_without_them(policy: Policy) -> None:
    columns, reference, _ = everything()
    with pytest.raises(ValueError, match=f"policy {policy} needs labels of the items, which is missing"):
        priority_of(policy, replace(columns, labels=None), reference, seed=5)


def test_expected_gain_without_thresholds_is_an_error() -> None:
    columns, reference, _ = everything()
    assert reference.proxies is not None
    bare = replace(reference, proxies=replace(reference.proxies, thresholds=None))
    with pytest.raises(ValueError, match="expected_gain needs thresholds of its proxy queries"):
        priority_of("expected_gain", columns, bare, seed=5)


@pytest.mark.parametrize(("share", "depth"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.01, 1)])
def test_the_first_ten_of_a_gallery_reach_as_far_as_fewer_of_a_part_of_it(share: float, depth: int) -> None:
    old, _, aligned = vectors(1)
    proxies = with_thresholds(proxies_of("ip"), old, aligned, share)
    expected = np.sort(proxies.evidence(old, aligned), axis=1)[:, -depth]
    np.testing.assert_array_equal(proxies.thresholds, expected)
