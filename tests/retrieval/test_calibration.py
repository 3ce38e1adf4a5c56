"""Forms of calibration: what is recovered where the cure is known, and that a fit never does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.retrieval.calibration import FORMS, Form, MixedScores, OrderCalibration, fit_calibration
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


def value(scores: Floats, relevant: RelevantItems, metric: str = "map") -> float:
    return float(np.nanmean(measure(scores, {"": relevant})[""][metric]))


# Applying


def test_a_stale_score_is_scaled_and_shifted_by_its_place_and_a_new_one_stays_as_it_is() -> None:
    new, is_new, position, _ = world()
    stale = new + 1
    before = stale.copy()
    scores = MixedScores(stale, new, is_new, position).under(OrderCalibration(2.0, -0.5, 0.25))
    for item in range(N):
        expected = new[:, item] if is_new[item] else 2 * stale[:, item] - 0.5 + 0.25 * position[item]
        np.testing.assert_allclose(scores[:, item], expected, atol=1e-6)
    np.testing.assert_array_equal(stale, before)
    plain = MixedScores(stale, new, is_new, position).under(OrderCalibration())
    np.testing.assert_array_equal(plain[:, ~is_new], stale[:, ~is_new])


def test_an_excluded_item_stays_excluded_under_every_calibration() -> None:
    new, is_new, position, _ = world()
    new[:, 3] = -np.inf
    scores = MixedScores(new.copy(), new, is_new, position).under(OrderCalibration(0.1, 100.0, -5.0))
    assert np.isneginf(scores[:, 3]).all()
    assert np.isfinite(np.delete(scores, 3, axis=1)).all()


def test_between_two_fits_every_parameter_moves_in_a_straight_line() -> None:
    first, second = OrderCalibration(1.0, 0.0, -1.0), OrderCalibration(2.0, 4.0, 1.0)
    assert first.between(second, 0.25) == OrderCalibration(1.25, 1.0, -0.5)
    assert (first.between(second, 0), first.between(second, 1)) == (first, second)


# Fitting


@pytest.mark.parametrize("form", [form for form in FORMS if form != "identity"])
def test_a_known_shift_is_recovered(form: Form) -> None:
    new, is_new, position, relevant = world()
    state = MixedScores(new - 2, new, is_new, position)
    fitted = fit_calibration(state, relevant, "map", form)
    assert value(state.under(fitted), relevant) > 0.97
    if form == "offset":
        assert fitted.offset == pytest.approx(2.0, abs=0.3)
        assert (fitted.scale, fitted.slope) == (1.0, 0.0)


def test_a_known_scale_is_recovered_where_an_offset_alone_cannot_mend_it() -> None:
    new, is_new, position, relevant = world()
    new = new + np.linspace(-3, 3, Q, dtype=np.float32)[:, None]  # each query has its own level
    state = MixedScores(new / 2 - 1, new, is_new, position)
    form: Form
    fits, values = {}, {}
    for form in ("offset", "scale_offset"):
        fits[form] = fit_calibration(state, relevant, "map", form)
        values[form] = value(state.under(fits[form]), relevant)
    assert fits["scale_offset"].scale == pytest.approx(2.0, rel=0.1)
    assert fits["scale_offset"].offset == pytest.approx(2.0, abs=0.4)
    assert values["scale_offset"] > 0.98 > 0.9 > values["offset"]


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.floats(-2, 2), st.sampled_from(["map", "recall@10"]))
@settings(max_examples=25, deadline=None)
def test_a_richer_form_is_never_worse_than_the_offset_alone(seed: int, scale: float, by: float, metric: str) -> None:
    new, is_new, position, relevant = world(seed)
    rng = np.random.default_rng(seed)
    new, relevant = new[:30], relevant.take(np.arange(30))
    stale = (scale * new + by + 0.5 * rng.normal(size=new.shape)).astype(np.float32)
    state = MixedScores(stale, new, is_new, position)
    values = {}
    for form in FORMS:
        values[form] = value(state.under(fit_calibration(state, relevant, metric, form)), relevant, metric)
    assert values["offset"] >= values["identity"]
    assert min(values["offset_by_wave"], values["scale_offset"], values["scale_offset_by_wave"]) >= values["offset"]


@pytest.mark.parametrize("everything_is_stale", [False, True])
def test_a_known_slope_is_recovered_also_where_everything_is_stale(everything_is_stale: bool) -> None:
    new, is_new, position, relevant = world()
    is_new &= not everything_is_stale
    state = MixedScores(new - 3 * position[None, :], new, is_new, position)
    fitted = fit_calibration(state, relevant, "map", "offset_by_wave")
    assert fitted.scale == 1
    assert fitted.slope == pytest.approx(3.0, abs=0.5)
    assert value(state.under(fitted), relevant) > 0.95
    assert value(state.under(OrderCalibration()), relevant) < 0.9


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS), st.sampled_from(["map", "recall@10", "cmc@1"]))
@settings(max_examples=40, deadline=None)
def test_a_fit_is_never_worse_than_the_identity_on_its_own_data(seed: int, form: Form, metric: str) -> None:
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(12, 25)).astype(np.float32)
    stale = (rng.uniform(0.2, 2) * new + rng.normal(size=new.shape) + rng.normal()).astype(np.float32)
    out = rng.random(new.shape) < 0.05
    new[out] = stale[out] = -np.inf
    position, relevant = (rng.permutation(25) / 25).astype(np.float32), RelevantItems.top(new, 3)
    is_new = position < rng.random()
    start = OrderCalibration(offset=float(rng.normal()))
    state = MixedScores(stale, new, is_new, position)
    fitted = fit_calibration(state, relevant, metric, form, (start,))
    assert fitted.scale > 0
    identity = value(state.under(OrderCalibration()), relevant, metric)
    assert value(state.under(fitted), relevant, metric) >= identity


@pytest.mark.parametrize("form", FORMS)
def test_a_form_moves_its_own_parameters_alone(form: Form) -> None:
    new, is_new, position, relevant = world()
    start = OrderCalibration(2.0, 1.0, 1.0)
    stale = (new - 3 * position[None, :]) / 2 - 1
    fitted = fit_calibration(MixedScores(stale, new, is_new, position), relevant, "map", form, (start,))
    if not form.startswith("scale"):
        assert fitted.scale == 1
    if not form.endswith("by_wave"):
        assert fitted.slope == 0
    if form == "identity":
        assert fitted == OrderCalibration()


@pytest.mark.parametrize("form", FORMS)
def test_where_no_ranking_can_change_nothing_is_fitted(form: Form) -> None:
    new, is_new, position, relevant = world()
    stale = new - 2
    nothing, excluded = RelevantItems.of(np.zeros(new.shape, bool)), np.full_like(new, -np.inf)
    states = [
        (MixedScores(stale, new, is_new | True, position), relevant),
        (MixedScores(stale, new, is_new, position), nothing),
        (MixedScores(excluded, excluded, is_new, position), nothing),
    ]
    if not form.endswith("by_wave"):
        states.append((MixedScores(stale, new, is_new & False, position), relevant))
    for state, its in states:
        assert fit_calibration(state, its, "map", form) == OrderCalibration()


def test_a_start_that_is_right_already_is_kept() -> None:
    new, is_new, position, relevant = world()
    start = OrderCalibration(offset=2.0)
    state = MixedScores(new - 2, new, is_new, position)
    assert fit_calibration(state, relevant, "map", "offset", (start,)) == start
