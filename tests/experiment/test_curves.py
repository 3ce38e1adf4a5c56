"""Backfilling curves against brute force: every state built item by item and ranked in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Candidate, MapView, Objective, views_of
from fastfill_ray.experiment.curves import (
    KNOTS,
    Backfill,
    Curve,
    FittedCalibrations,
    backfill_order,
    last_crossing,
    published_cutoffs,
)
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.retrieval.calibration import MixedScores, OrderCalibration, fit_calibration
from fastfill_ray.retrieval.metrics import METRICS, per_query
from fastfill_ray.retrieval.ranking import rank_hits
from fastfill_ray.retrieval.relevance import RelevantItems

Q, N = 9, 30
SEEDS = st.integers(0, 2**32 - 1)
LABEL_MAP = Objective("label", "map")


def backfill_of(seed: int = 0) -> tuple[Backfill, dict[str, NDArray[np.bool_]]]:
    """A backfill with old scores and groups in an order drawn by the seed, and its relevances as dense matrices."""
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
    shadow = Shadow(new, old, {"new_model": RelevantItems.top(new), "label": RelevantItems.of(relevant)}, groups)
    return Backfill(shadow, stale, rng.permutation(N)), {"new_model": top & np.isfinite(new), "label": relevant}


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
    backfill, _ = backfill_of()
    order = np.array([2, 0, 3, 1])
    assert replace(backfill, order=order).positions.tolist() == [0.25, 0.75, 0.0, 0.5]


@pytest.mark.parametrize("size", [21, 22, 100, 599, 1797])
def test_the_published_cutoffs_are_floors_of_twenty_firsts(size: int) -> None:
    cutoffs = published_cutoffs(size)
    assert cutoffs == [int(np.floor(i * size / 21)) for i in range(22)]
    assert (cutoffs[0], cutoffs[-1]) == (0, size)
    assert published_cutoffs(size, 3) == [0, size // 2, size]


# Candidates


@pytest.mark.parametrize(("weight", "mode"), [(1.0, "aligned"), (0.9, "fused"), (0.0, "fused")])
def test_a_candidate_that_keeps_some_of_the_old_score_is_fused(weight: float, mode: str) -> None:
    assert Candidate(MapView("ridge"), weight, "random", "identity").stale_mode == mode


def test_candidates_that_differ_in_nothing_but_the_form_are_the_same_but_for_it() -> None:
    one = Candidate(MapView("ridge"), 1.0, "random", "identity")
    assert one.same_but_form(replace(one, form="offset"))
    others = (replace(one, policy="entropy"), replace(one, weight=0.5), replace(one, view=MapView("ridge", True)))
    assert not any(one.same_but_form(replace(other, form="offset")) for other in others)


def test_a_candidate_in_words() -> None:
    fused = Candidate(MapView("kernel", norms_kept=True), 0.8, "expected_gain", "scale_offset")
    assert str(fused) == "kernel, norms kept, fused 0.8, expected_gain, scale_offset"
    assert str(replace(fused, view=MapView("kernel"), weight=1.0)) == "kernel, aligned, expected_gain, scale_offset"


def test_norms_are_kept_or_matched_but_under_cosine_they_do_not_count() -> None:
    assert views_of("ridge", "cosine") == (MapView("ridge"),)
    assert views_of("ridge", "l2") == views_of("ridge", "ip") == (MapView("ridge"), MapView("ridge", norms_kept=True))


# Calibrations along the order


@pytest.mark.parametrize(
    ("at", "offset"), [(0.0, 10.0), (0.2, 10.0), (0.3, 15.0), (0.4, 20.0), (0.7, 5.0), (0.8, 0.0), (1.0, 0.0)]
)
def test_parameters_between_knots_are_interpolated_and_beyond_them_the_nearest(at: float, offset: float) -> None:
    fits = tuple(OrderCalibration(offset=value) for value in (10.0, 20.0, 0.0))
    assert FittedCalibrations((0.2, 0.4, 0.8), fits).at(at).offset == pytest.approx(offset)


def test_without_any_fit_stale_scores_stay_as_they_are() -> None:
    assert FittedCalibrations().at(0.5) == OrderCalibration()


# Curves


def brute(backfill: Backfill, fitted: FittedCalibrations, cutoff: int, sampled: set[int]) -> NDArray[np.float32]:
    """Scores (Q, N) of one state, item by item."""
    at = fitted.at(cutoff / N)
    scores = np.empty((Q, N), np.float32)
    for place, item in enumerate(backfill.order.tolist()):
        for query in range(Q):
            if place < cutoff or item in sampled:
                scores[query, item] = backfill.shadow.new[query, item]
            else:
                shift = np.float32(at.offset) + np.float32(at.slope) * np.float32(place / N)
                scores[query, item] = np.float32(at.scale) * backfill.stale[query, item] + shift
    return scores


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_curve_is_at_every_cutoff_what_the_state_built_item_by_item_gives(
    seed: int, calibrated: bool, some_sampled: bool
) -> None:
    backfill, relevant = backfill_of(seed)
    rng = np.random.default_rng([seed, 1])
    fits = tuple(OrderCalibration(*rng.normal(1, 0.3, 3).tolist()) for _ in KNOTS)
    fitted = FittedCalibrations(KNOTS, fits) if calibrated else FittedCalibrations()
    sampled = rng.random(N) < 0.2 if some_sampled else None
    new_from_start = set() if sampled is None else set(np.flatnonzero(sampled).tolist())
    cutoffs = published_cutoffs(N)
    curve = backfill.trace(fitted, cutoffs, sampled=sampled)
    assert curve.fractions.tolist() == [cutoff / N for cutoff in cutoffs]
    assert set(curve.values) == {(relevance, metric) for relevance in relevant for metric in METRICS}
    for point, cutoff in enumerate(cutoffs):
        scores = brute(backfill, fitted, cutoff, new_from_start)
        for relevance, matrix in relevant.items():
            expected = per_query(rank_hits(scores, matrix), matrix.sum(axis=1))
            for metric in METRICS:
                values = curve.values[relevance, metric][point]  # type: ignore[index]
                np.testing.assert_allclose(values, expected[metric], atol=1e-12)


def test_a_curve_ends_where_everything_is_new_whatever_the_calibration() -> None:
    backfill, _ = backfill_of()
    fitted = FittedCalibrations(KNOTS, (OrderCalibration(3.0, -1.0, 2.0),) * len(KNOTS))
    curve, plain = backfill.trace(fitted, [0, N]), backfill.trace(FittedCalibrations(), [0])
    for key, values in backfill.shadow.arms()["new/new"].items():
        np.testing.assert_array_equal(curve.values[key][-1], values)
    for key, values in backfill.shadow.measure(backfill.stale).items():
        np.testing.assert_array_equal(plain.values[key][0], values)


def test_only_the_relevances_asked_for_are_traced() -> None:
    backfill, _ = backfill_of()
    curve = backfill.trace(FittedCalibrations(), [0, N], relevances=["label"])
    assert {relevance for relevance, _ in curve.values} == {"label"}


def test_means_and_areas_leave_out_queries_without_an_answer() -> None:
    values = np.array([[0.0, np.nan, 1.0], [0.5, np.nan, 1.0], [1.0, np.nan, 1.0]])
    curve = Curve(np.array([0.0, 0.5, 1.0]), {("label", "map"): values, ("qrels", "map"): values * np.nan})
    assert curve.mean(LABEL_MAP).tolist() == [0.5, 0.75, 1.0]
    np.testing.assert_array_equal(curve.area_per_query(LABEL_MAP), [0.5, np.nan, 1.0])
    area = curve.area(LABEL_MAP)
    assert (area.value, area.queries) == (0.75, 2)
    assert area.low <= 0.75 <= area.high
    nothing = Objective("qrels", "map")
    assert np.isnan(curve.mean(nothing)).all()
    assert curve.area(nothing).queries == 0


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
    backfill, _ = backfill_of()
    fitted = backfill.fit(LABEL_MAP, "scale_offset")
    assert fitted.knots == KNOTS
    before: tuple[OrderCalibration, ...] = ()
    for knot, calibration in zip(KNOTS, fitted.calibrations, strict=True):
        is_new = np.isin(np.arange(N), backfill.order[: int(np.ceil(knot * N - 1e-6))])
        state = MixedScores(backfill.stale, backfill.shadow.new, is_new, backfill.positions)
        relevant = backfill.shadow.relevant["label"]
        assert calibration == fit_calibration(state, relevant, "map", "scale_offset", before)
        before = (calibration,)
    assert backfill.fit(LABEL_MAP, "identity").calibrations == (OrderCalibration(),) * len(KNOTS)
    assert backfill.fit(LABEL_MAP, "offset", (0.3, 0.6)).knots == (0.3, 0.6)


def test_the_first_queries_see_the_same_backfill_as_all_of_them() -> None:
    backfill, _ = backfill_of()
    part = backfill.first(4)
    assert part.shadow.groups is not None
    assert part.shadow.groups.tolist() == ["a", "b", None, "a"]
    whole, some = (b.trace(FittedCalibrations(), [7]).values for b in (backfill, part))
    for key, values in some.items():
        np.testing.assert_array_equal(values, whole[key][:, :4])
    assert backfill.first(Q) is backfill
    assert len(backfill.first(100).stale) == Q
