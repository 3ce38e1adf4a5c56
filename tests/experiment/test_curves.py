"""Backfilling curves against brute force: every state built item by item and ranked in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Candidate
from fastfill_ray.experiment.curves import (
    KNOTS,
    Curve,
    arm,
    backfill_order,
    fit_knots,
    last_crossing,
    positions,
    published_cutoffs,
    trace,
)
from fastfill_ray.experiment.shadow import Scene, fuse_scores, old_scale_of
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.retrieval.calibration import OrderCalibration, fit_calibration, interpolate
from fastfill_ray.retrieval.metrics import METRICS, per_query
from fastfill_ray.retrieval.ranking import rank_hits
from fastfill_ray.retrieval.relevance import RelevantItems

Q, N = 9, 30
SEEDS = st.integers(0, 2**32 - 1)


def scene_of(seed: int = 0) -> tuple[Scene, NDArray[np.float32], dict[str, NDArray[np.bool_]]]:
    """A scene with old scores and groups, stale scores (Q, N), and the relevances as dense matrices."""
    rng = np.random.default_rng(seed)
    new = rng.integers(0, 9, (Q, N)).astype(np.float32)
    new[np.arange(Q), np.arange(Q)] = -np.inf
    labels = rng.integers(0, 4, N)
    relevant = (labels[:Q, None] == labels[None, :]) & np.isfinite(new)
    relevant[2] = False
    top = np.zeros((Q, N), bool)
    np.put_along_axis(top, np.argsort(-new, axis=1, kind="stable")[:, :10], True, axis=1)
    old, stale = (rng.integers(0, 9, (Q, N)).astype(np.float32) for _ in range(2))
    old[np.isneginf(new)] = stale[np.isneginf(new)] = -np.inf
    groups = np.array(["a", "b", None] * 3, object)
    truths = {"new_model": RelevantItems.top(new), "label": RelevantItems.of(relevant)}
    scene = Scene(new, old, truths, hash_ids(np.arange(N)), groups, 1.5)
    return scene, stale, {"new_model": top & np.isfinite(new), "label": relevant}


# Orders


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, 1e30, -1e30]), min_size=1, max_size=40), SEEDS)
@settings(max_examples=100, deadline=None)
def test_the_order_is_by_descending_order_key_as_real_waves_are_cut(priorities: list[float], seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 2**64, len(priorities), dtype=np.uint64)
    priority = np.array(priorities, np.float32)
    keys = order_key(priority, hashes)
    order = backfill_order(priority, hashes)
    assert sorted(order.tolist()) == list(range(len(priorities)))
    assert keys[order].tolist() == sorted(keys.tolist(), reverse=True)
    assert (np.diff(priority[order]) <= 0).all()


def test_equal_priorities_are_ordered_by_the_hash_and_not_by_place() -> None:
    hashes = hash_ids(np.arange(50))
    order = backfill_order(np.zeros(50, np.float32), hashes)
    assert order.tolist() == sorted(range(50), key=lambda i: -int(hashes[i]))


def test_positions_are_places_in_the_order() -> None:
    order = np.array([2, 0, 3, 1])
    assert positions(order).tolist() == [0.25, 0.75, 0.0, 0.5]


@pytest.mark.parametrize("size", [21, 22, 100, 599, 1797])
def test_the_published_cutoffs_are_floors_of_twenty_firsts(size: int) -> None:
    cutoffs = published_cutoffs(size)
    assert cutoffs == [int(np.floor(i * size / 21)) for i in range(22)]
    assert (cutoffs[0], cutoffs[-1]) == (0, size)
    assert published_cutoffs(size, 3) == [0, size // 2, size]


# Fused scores


@pytest.mark.parametrize("weight", [1.0, 0.8, 0.5, 0.0])
def test_fused_scores_are_the_weighted_sum_and_excluded_items_stay_excluded(weight: float) -> None:
    scene, stale, _ = scene_of()
    assert scene.old is not None
    found = fuse_scores(scene, stale, weight)
    for query in range(Q):
        for item in range(N):
            if query == item:
                assert np.isneginf(found[query, item])
            else:
                expected = weight * stale[query, item] + (1 - weight) * 1.5 * scene.old[query, item]
                assert found[query, item] == pytest.approx(expected, abs=1e-5)


def test_without_old_query_vectors_only_the_aligned_score_can_be_served() -> None:
    scene, stale, _ = scene_of()
    scene = replace(scene, old=None)
    assert fuse_scores(scene, stale, 1.0) is stale
    with pytest.raises(ValueError, match="no old vectors"):
        fuse_scores(scene, stale, 0.9)


def test_the_old_scale_brings_old_scores_to_the_spread_of_new_ones() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(5, 40)).astype("f4"), 7 * rng.normal(size=(5, 40)).astype("f4")
    old[0, 0] = new[0, 0] = -np.inf
    seen = np.isfinite(old)
    assert (old_scale_of(old, new, "ip") * old[seen]).std() == pytest.approx(new[seen].std(), rel=1e-5)
    assert old_scale_of(old, new, "cosine") == 1
    assert old_scale_of(None, new, "l2") == 1
    assert old_scale_of(np.zeros_like(old), new, "l2") == 1


@pytest.mark.parametrize(("weight", "mode"), [(1.0, "aligned"), (0.9, "fused"), (0.0, "fused")])
def test_a_candidate_that_keeps_some_of_the_old_score_is_fused(weight: float, mode: str) -> None:
    assert Candidate("ridge", weight, "random", "identity").stale_mode == mode


# Curves


def brute(
    scene: Scene,
    stale: NDArray[np.float32],
    order: list[int],
    served: list[OrderCalibration],
    cutoff: int,
    sampled: set[int],
) -> NDArray[np.float32]:
    """Scores (Q, N) of one state, item by item."""
    at = interpolate(list(KNOTS), served, cutoff / N)
    scores = np.empty((Q, N), np.float32)
    for place, item in enumerate(order):
        for query in range(Q):
            if place < cutoff or item in sampled:
                scores[query, item] = scene.new[query, item]
            else:
                shift = np.float32(at.offset) + np.float32(at.slope) * np.float32(place / N)
                scores[query, item] = np.float32(at.scale) * stale[query, item] + shift
    return scores


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_curve_is_at_every_cutoff_what_the_state_built_item_by_item_gives(
    seed: int, calibrated: bool, some_sampled: bool
) -> None:
    scene, stale, relevant = scene_of(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(N)
    served = [OrderCalibration(*rng.normal(1, 0.3, 3).tolist()) for _ in KNOTS] if calibrated else []
    sampled = rng.random(N) < 0.2 if some_sampled else None
    new_from_start = set() if sampled is None else set(np.flatnonzero(sampled).tolist())
    cutoffs = published_cutoffs(N)
    curve = trace(scene, stale, order, served, cutoffs, sampled=sampled)
    assert curve.fractions.tolist() == [cutoff / N for cutoff in cutoffs]
    assert set(curve.values) == {(relevance, metric) for relevance in relevant for metric in METRICS}
    for point, cutoff in enumerate(cutoffs):
        scores = brute(scene, stale, order.tolist(), served, cutoff, new_from_start)
        for relevance, matrix in relevant.items():
            expected = per_query(rank_hits(scores, matrix), matrix.sum(axis=1))
            for metric in METRICS:
                np.testing.assert_allclose(curve.values[relevance, metric][point], expected[metric], atol=1e-12)


def test_a_curve_ends_where_everything_is_new_whatever_the_calibration() -> None:
    scene, stale, _ = scene_of()
    curve = trace(scene, stale, np.arange(N), [OrderCalibration(3.0, -1.0, 2.0)] * len(KNOTS), [0, N])
    for key, values in arm(scene.new, scene).items():
        np.testing.assert_array_equal(curve.values[key][-1], values)
    for key, values in arm(stale, scene).items():
        plain = trace(scene, stale, np.arange(N), [], [0])
        np.testing.assert_array_equal(plain.values[key][0], values)


def test_only_the_relevances_asked_for_are_traced() -> None:
    scene, stale, _ = scene_of()
    curve = trace(scene, stale, np.arange(N), [], [0, N], relevances=["label"])
    assert {relevance for relevance, _ in curve.values} == {"label"}


def test_means_and_areas_leave_out_queries_without_an_answer() -> None:
    values = np.array([[0.0, np.nan, 1.0], [0.5, np.nan, 1.0], [1.0, np.nan, 1.0]])
    curve = Curve(np.array([0.0, 0.5, 1.0]), {("label", "map"): values, ("none", "map"): values * np.nan})
    assert curve.mean("label", "map").tolist() == [0.5, 0.75, 1.0]
    area = curve.area("label", "map")
    assert (area.value, area.queries) == (0.75, 2)
    assert area.low <= 0.75 <= area.high
    assert np.isnan(curve.mean("none", "map")).all()
    assert curve.area("none", "map").queries == 0


@pytest.mark.parametrize(
    ("curve", "level", "expected"),
    [
        ([0.0, 0.5, 1.0], 0.75, 0.75),
        ([0.0, 0.5, 1.0], 0.0, 0.0),
        ([0.0, 0.8, 0.4, 1.0], 0.7, 5 / 6),  # it fell again: the first crossing does not count
        ([0.9, 0.8, 1.0, 1.0], 0.7, 0.0),
        ([0.0, 0.2, 0.4], 0.9, 1.0),
        ([0.0, 1.0, 1.0], 1.0, 0.5),
    ],
)
def test_a_level_is_reached_where_the_curve_never_falls_below_it_again(
    curve: list[float], level: float, expected: float
) -> None:
    fractions = np.linspace(0, 1, len(curve))
    assert last_crossing(fractions, np.array(curve), level) == pytest.approx(expected)


# Fitting along a curve


def test_calibrations_are_fitted_at_each_knot_under_this_order_each_from_the_one_before() -> None:
    scene, stale, _ = scene_of()
    order = np.random.default_rng(1).permutation(N)
    found = fit_knots(scene, stale, order, "label", "map", "scale_offset", seed=0)
    place, before = positions(order), ()
    for knot, served in zip(KNOTS, found, strict=True):
        is_new = np.isin(np.arange(N), order[: int(np.ceil(knot * N - 1e-6))])
        expected = fit_calibration(stale, scene.new, is_new, place, scene.truths["label"], "map", "scale_offset", before)
        assert served == expected
        before = (served,)
    assert fit_knots(scene, stale, order, "label", "map", "identity", seed=0) == [OrderCalibration()] * len(KNOTS)


def test_a_scene_asked_by_some_queries_gives_their_rows() -> None:
    scene, stale, _ = scene_of()
    rows = np.array([1, 4, 8])
    part = scene.take(rows)
    assert part.groups is not None
    assert part.groups.tolist() == ["b", "b", None]
    whole, some = (trace(s, v, np.arange(N), [], [7]).values for s, v in ((scene, stale), (part, stale[rows])))
    for key, values in some.items():
        np.testing.assert_array_equal(values, whole[key][:, rows])


def test_queries_are_sampled_once_ascending_and_by_the_seed() -> None:
    scene, _, _ = scene_of()
    assert scene.sample(100, 0).tolist() == list(range(Q))
    drawn = scene.sample(4, 3)
    assert len(set(drawn.tolist())) == 4
    assert drawn.tolist() == sorted(drawn.tolist()) == scene.sample(4, 3).tolist()
    assert any(scene.sample(4, seed).tolist() != drawn.tolist() for seed in range(5))


def test_answerable_counts_queries_with_a_relevant_item() -> None:
    scene, _, relevant = scene_of()
    assert scene.answerable("label") == int(relevant["label"].any(axis=1).sum()) < Q
    assert scene.answerable("qrels") == 0
