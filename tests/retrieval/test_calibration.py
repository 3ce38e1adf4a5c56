"""Forms of calibration: what is recovered where the cure is known, and that a fit never does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.retrieval.calibration import FORMS, Form, OrderCalibration, fit_calibration, interpolate, mixed
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.retrieval.relevance import RelevantItems

Floats = NDArray[np.float32]
Q, N = 120, 150


def world(seed: int = 0) -> tuple[Floats, NDArray[np.bool_], Floats, RelevantItems]:
    """New scores (Q, N), who is new, places in the order (N,), and relevance: the first ten by new scores."""
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(Q, N)).astype(np.float32)
    position = (rng.permutation(N) / N).astype(np.float32)
    return new, position < 0.4, position, RelevantItems.top(new)


def value(scores: Floats, truth: RelevantItems, metric: str = "map") -> float:
    return float(np.nanmean(measure(scores, {"": truth})[""][metric]))


def fitted(stale: Floats, form: Form, metric: str = "map", seed: int = 0) -> OrderCalibration:
    new, is_new, position, truth = world(seed)
    return fit_calibration(stale, new, is_new, position, truth, metric, form)


# Applying


def test_a_stale_score_is_scaled_and_shifted_by_its_place_and_a_new_one_is_served_as_it_is() -> None:
    new, is_new, position, _ = world()
    stale = new + 1
    before = stale.copy()
    scores = mixed(stale, new, is_new, position, OrderCalibration(2.0, -0.5, 0.25))
    for item in range(N):
        expected = new[:, item] if is_new[item] else 2 * stale[:, item] - 0.5 + 0.25 * position[item]
        np.testing.assert_allclose(scores[:, item], expected, atol=1e-6)
    np.testing.assert_array_equal(stale, before)
    np.testing.assert_array_equal(mixed(stale, new, is_new, position, OrderCalibration())[:, ~is_new], stale[:, ~is_new])


def test_an_excluded_item_stays_excluded_whatever_is_served() -> None:
    new, is_new, position, _ = world()
    new[:, 3] = -np.inf
    scores = mixed(new.copy(), new, is_new, position, OrderCalibration(0.1, 100.0, -5.0))
    assert np.isneginf(scores[:, 3]).all()
    assert np.isfinite(np.delete(scores, 3, axis=1)).all()


def test_between_two_fits_every_parameter_moves_in_a_straight_line() -> None:
    first, second = OrderCalibration(1.0, 0.0, -1.0), OrderCalibration(2.0, 4.0, 1.0)
    assert first.between(second, 0.25) == OrderCalibration(1.25, 1.0, -0.5)
    assert (first.between(second, 0), first.between(second, 1)) == (first, second)


@pytest.mark.parametrize(
    ("at", "offset"), [(0.0, 10.0), (0.2, 10.0), (0.3, 15.0), (0.4, 20.0), (0.7, 5.0), (0.8, 0.0), (1.0, 0.0)]
)
def test_parameters_between_knots_are_interpolated_and_beyond_them_the_nearest(at: float, offset: float) -> None:
    knots, fits = [0.2, 0.4, 0.8], [OrderCalibration(offset=10.0), OrderCalibration(offset=20.0), OrderCalibration(offset=0.0)]
    assert interpolate(knots, fits, at).offset == pytest.approx(offset)


def test_without_any_fit_stale_scores_are_served_as_they_are() -> None:
    assert interpolate([], [], 0.5) == OrderCalibration()


# Fitting


@pytest.mark.parametrize("form", [form for form in FORMS if form != "identity"])
def test_a_known_shift_is_recovered(form: Form) -> None:
    new, is_new, position, truth = world()
    served = fitted(new - 2, form)
    assert value(mixed(new - 2, new, is_new, position, served), truth) > 0.97
    if form == "offset":
        assert served.offset == pytest.approx(2.0, abs=0.3)
        assert (served.scale, served.slope) == (1.0, 0.0)


def test_a_known_scale_is_recovered_where_an_offset_alone_cannot_mend_it() -> None:
    new, is_new, position, truth = world()
    new = new + np.linspace(-3, 3, Q, dtype=np.float32)[:, None]  # each query has its own level
    stale = new / 2 - 1
    form: Form
    found = {}
    for form in ("offset", "scale_offset"):
        served = fit_calibration(stale, new, is_new, position, truth, "map", form)
        found[form] = served, value(mixed(stale, new, is_new, position, served), truth)
    assert found["scale_offset"][0].scale == pytest.approx(2.0, rel=0.1)
    assert found["scale_offset"][0].offset == pytest.approx(2.0, abs=0.4)
    assert found["scale_offset"][1] > 0.98 > 0.9 > found["offset"][1]


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.floats(-2, 2), st.sampled_from(["map", "recall@10"]))
@settings(max_examples=25, deadline=None)
def test_a_richer_form_is_never_worse_than_the_offset_alone(seed: int, scale: float, by: float, metric: str) -> None:
    new, is_new, position, truth = world(seed)
    rng = np.random.default_rng(seed)
    new, truth = new[:30], truth.take(np.arange(30))
    stale = (scale * new + by + 0.5 * rng.normal(size=new.shape)).astype(np.float32)
    values = {}
    for form in FORMS:
        served = fit_calibration(stale, new, is_new, position, truth, metric, form)
        values[form] = value(mixed(stale, new, is_new, position, served), truth, metric)
    assert values["offset"] >= values["identity"]
    assert min(values["offset_by_wave"], values["scale_offset"], values["scale_offset_by_wave"]) >= values["offset"]


@pytest.mark.parametrize("everything_is_stale", [False, True])
def test_a_known_slope_is_recovered_also_where_everything_is_stale(everything_is_stale: bool) -> None:
    new, is_new, position, truth = world()
    is_new &= not everything_is_stale
    stale = new - 3 * position[None, :]
    served = fit_calibration(stale, new, is_new, position, truth, "map", "offset_by_wave")
    assert served.scale == 1
    assert served.slope == pytest.approx(3.0, abs=0.5)
    assert value(mixed(stale, new, is_new, position, served), truth) > 0.95
    assert value(mixed(stale, new, is_new, position, OrderCalibration()), truth) < 0.9


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS), st.sampled_from(["map", "recall@10", "cmc@1"]))
@settings(max_examples=40, deadline=None)
def test_a_fit_is_never_worse_than_the_identity_on_its_own_data(seed: int, form: Form, metric: str) -> None:
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(12, 25)).astype(np.float32)
    stale = (rng.uniform(0.2, 2) * new + rng.normal(size=new.shape) + rng.normal()).astype(np.float32)
    out = rng.random(new.shape) < 0.05
    new[out] = stale[out] = -np.inf
    position, truth = (rng.permutation(25) / 25).astype(np.float32), RelevantItems.top(new, 3)
    is_new = position < rng.random()
    start = OrderCalibration(offset=float(rng.normal()))
    served = fit_calibration(stale, new, is_new, position, truth, metric, form, (start,))
    assert served.scale > 0
    assert value(mixed(stale, new, is_new, position, served), truth, metric) >= value(
        mixed(stale, new, is_new, position, OrderCalibration()), truth, metric
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_form_moves_its_own_parameters_alone(form: Form) -> None:
    new, is_new, position, truth = world()
    start = OrderCalibration(2.0, 1.0, 1.0)
    stale = (new - 3 * position[None, :]) / 2 - 1
    served = fit_calibration(stale, new, is_new, position, truth, "map", form, (start,))
    if not form.startswith("scale"):
        assert served.scale == 1
    if not form.endswith("by_wave"):
        assert served.slope == 0
    if form == "identity":
        assert served == OrderCalibration()


@pytest.mark.parametrize("form", FORMS)
def test_where_no_ranking_can_change_nothing_is_fitted(form: Form) -> None:
    new, is_new, position, truth = world()
    stale = new - 2
    assert fit_calibration(stale, new, is_new | True, position, truth, "map", form) == OrderCalibration()
    if not form.endswith("by_wave"):
        assert fit_calibration(stale, new, is_new & False, position, truth, "map", form) == OrderCalibration()
    nothing = RelevantItems.of(np.zeros(new.shape, bool))
    assert fit_calibration(stale, new, is_new, position, nothing, "map", form) == OrderCalibration()
    excluded = np.full_like(new, -np.inf)
    assert fit_calibration(excluded, excluded, is_new, position, nothing, "map", form) == OrderCalibration()


def test_a_start_that_is_right_already_is_kept() -> None:
    new, is_new, position, truth = world()
    start = OrderCalibration(offset=2.0)
    assert fit_calibration(new - 2, new, is_new, position, truth, "map", "offset", (start,)) == start
