"""Predicted and measured shares of the gain agree with numbers worked out by hand."""

from __future__ import annotations

import pytest

from fastfill_ray.log.records import MetricValue, Prediction
from fastfill_ray.log.state import State
from fastfill_ray.report.prediction import (
    drawn_prediction,
    gain,
    mean_error,
    prediction_error,
    prediction_json,
    promises,
)
from fastfill_ray.report.text import prediction_note
from tests.report.logs import metric, plan, version

FRACTIONS = (0.1, 0.5, 1.0)


def promised(values: tuple[float, ...], relevance: str = "label") -> tuple[Prediction, ...]:
    return tuple(
        Prediction.model_validate(
            {"fraction": f, "relevance": relevance, "metric": "map", "value": v, "low": v - 0.04, "high": v + 0.04}
        )
        for f, v in zip(FRACTIONS, values, strict=True)
    )


def state(*, versions: int = 3, old: bool = True, end: float = 1.0, new: float = 0.8) -> State:
    """Audit: old/old 0.4, new/new 0.8, measured 0.4, 0.6, 0.8. Gallery: old/old 0.1, measured 0.15, 0.25, 0.3."""
    measured = [
        (metric("label", "map", audit, scope="audit"), metric("label", "map", gallery))
        for audit, gallery in ((0.4, 0.15), (0.6, 0.25), (0.8, 0.3))
    ]
    arms: dict[str, tuple[MetricValue, ...]] = {"new/new": (metric("label", "map", new, scope="audit"),)}
    if old:
        arms["old/old"] = (metric("label", "map", 0.4, scope="audit"), metric("label", "map", 0.1))
    fractions = (*FRACTIONS[:-1], end)
    made = tuple(version(i, f, metrics=m) for i, (f, m) in enumerate(zip(fractions, measured, strict=True)))
    made = (*made[:2], made[2].model_copy(update={"final": True}))[:versions]
    with_promise = plan(baselines=arms, waves=(0.5, end), prediction=promised((0.44, 0.64, 0.8)))
    return State(plans=(with_promise,), versions=made)


def shares(of: State, scope: str) -> list[float | None]:
    return [None if row[scope] is None else row[scope]["share"] for row in prediction_json(of)]


def test_shares_are_of_the_way_from_old_old_to_the_end_within_each_scope() -> None:
    # predicted: 0.04, 0.24, 0.4 of 0.4; audit: 0, 0.2, 0.4 of 0.4; gallery: 0.05, 0.15, 0.2 of 0.2
    assert shares(state(), "predicted") == pytest.approx([0.1, 0.6, 1.0])
    assert shares(state(), "audit") == pytest.approx([0.0, 0.5, 1.0])
    assert shares(state(), "gallery") == pytest.approx([0.25, 0.75, 1.0])


def test_the_error_is_the_mean_absolute_difference_of_the_shares_per_scope() -> None:
    assert prediction_error(state()) == pytest.approx({"audit": 0.2 / 3, "gallery": 0.3 / 3})


def test_values_keep_their_intervals() -> None:
    first = prediction_json(state())[0]
    assert (first["wave"], first["version"], first["fraction"]) == (0, 0, 0.1)
    assert first["predicted"] == pytest.approx({"value": 0.44, "low": 0.40, "high": 0.48, "share": 0.1})
    assert first["gallery"] == pytest.approx({"value": 0.15, "low": 0.13, "high": 0.17, "share": 0.25})


def test_the_end_of_the_published_index_is_known_when_everything_is_embedded() -> None:
    unfinished = state(versions=2)
    assert shares(unfinished, "gallery") == [None, None, None]
    assert prediction_error(unfinished) == pytest.approx({"audit": 0.1, "gallery": None})
    assert [p.version for p in promises(unfinished)] == [0, 1, None]
    assert shares(state(end=0.9), "gallery") == [None, None, None]


def test_without_old_old_each_series_starts_at_its_own_version_0() -> None:
    # predicted: 0.44 to 0.8; audit: 0.4 to 0.8; gallery: 0.15 to 0.3
    unknown = state(old=False)
    assert shares(unknown, "predicted") == pytest.approx([0.0, 0.2 / 0.36, 1.0])
    assert shares(unknown, "audit") == pytest.approx([0.0, 0.5, 1.0])
    assert shares(unknown, "gallery") == pytest.approx([0.0, 0.1 / 0.15, 1.0])


@pytest.mark.parametrize("new", [0.4, 0.3])
def test_where_there_is_no_gain_there_is_no_share_and_no_error(new: float) -> None:
    flat = state(new=new)
    assert shares(flat, "predicted") == shares(flat, "audit") == [None, None, None]
    assert prediction_error(flat) == {"audit": None, "gallery": None}
    assert prediction_note(flat) == ""


def test_where_the_end_is_not_surely_above_the_start_there_is_no_share_and_no_error() -> None:
    # new/new is 0.41 (0.39 to 0.43) on the audit items, old/old 0.4: shares of 0.01 would be noise.
    unsure = state(new=0.41)
    assert shares(unsure, "predicted") == shares(unsure, "audit") == [None, None, None]
    assert shares(unsure, "gallery") == pytest.approx([0.25, 0.75, 1.0])
    assert prediction_error(unsure) == {"audit": None, "gallery": None}
    assert prediction_note(unsure) == ""
    assert shares(state(new=0.43), "audit") == pytest.approx([0.0, 0.2 / 0.03, 0.4 / 0.03])


def test_the_note_does_not_speak_of_a_prediction_over_a_few_queries() -> None:
    def asked_by(queries: int) -> State:
        of = state().plans[0]
        promise = tuple(each.model_copy(update={"queries": queries}) for each in of.prediction)
        return state().model_copy(update={"plans": (of.model_copy(update={"prediction": promise}),)})

    assert prediction_note(asked_by(16)) == prediction_note(state()) != ""
    assert prediction_note(asked_by(15)) == ""


def test_one_version_is_too_few_for_an_error() -> None:
    assert prediction_error(state(versions=1)) == {"audit": None, "gallery": None}
    assert mean_error([0.1, None], [0.3, 0.2]) is None
    assert mean_error([0.1, 0.5], [0.3, 0.2]) == pytest.approx(0.25)


def test_a_gain_goes_up() -> None:
    assert gain(0.5, 0.5) is None
    assert gain(None, 0.5) is None
    rise = gain(0.2, 0.6)
    assert rise is not None
    assert rise.share(0.3) == pytest.approx(0.25)
    assert rise.value(0.25) == pytest.approx(0.3)


def test_the_note_names_the_error_once_the_plan_is_finished() -> None:
    assert prediction_note(state()) == (
        "Predicted map by label, measured on gallery: mean absolute error of the share of the gain 10.0 %."
    )
    assert prediction_note(state(end=0.9)) == (
        "Predicted map by label, measured on audit: mean absolute error of the share of the gain 6.7 %."
    )
    assert prediction_note(state(versions=2)) == ""


def test_a_chart_of_the_published_index_gets_the_predicted_shares_on_its_own_scale() -> None:
    drawn = drawn_prediction(state(), "label", "map", "gallery")
    assert [p.value for p in drawn] == pytest.approx([0.12, 0.22, 0.3])
    assert [p.high - p.value for p in drawn] == pytest.approx([0.02] * 3)
    assert [p.value for p in drawn_prediction(state(), "label", "map", "audit")] == [0.44, 0.64, 0.8]


def test_a_prediction_is_drawn_only_where_it_belongs() -> None:
    assert drawn_prediction(state(versions=2), "label", "map", "gallery") == ()
    assert drawn_prediction(state(), "label", "cmc@1", "audit") == ()
    assert drawn_prediction(state(), "new_model", "map", "audit") == ()


def test_a_plan_without_a_prediction_has_none() -> None:
    for empty in (State(), State(plans=(plan(),), versions=(version(0, 0.1),))):
        assert prediction_json(empty) == []
        assert prediction_error(empty) == {"audit": None, "gallery": None}
        assert prediction_note(empty) == ""
        assert drawn_prediction(empty, "label", "map", "audit") == ()


def for_the_index(values: tuple[float, ...], *, end: float = 1.0) -> State:
    """The state whose prediction is for the published index."""
    was = state(end=end)
    assert was.plan is not None
    made = tuple(
        p.model_copy(update={"scope": "gallery", "fraction": f})
        for p, f in zip(promised(values), (*FRACTIONS[:-1], end), strict=True)
    )
    return was.model_copy(update={"plans": (was.plan.model_copy(update={"prediction": made}),)})


def test_what_was_predicted_for_the_index_goes_from_its_old_old_to_its_own_end() -> None:
    # predicted: 0.04, 0.16, 0.2 of 0.2, from old/old 0.1 of the gallery; measured there: 0.05, 0.15, 0.2 of 0.2
    predicted = for_the_index((0.14, 0.26, 0.3))
    assert shares(predicted, "predicted") == pytest.approx([0.2, 0.8, 1.0])
    assert shares(predicted, "gallery") == pytest.approx([0.25, 0.75, 1.0])
    assert prediction_error(predicted)["gallery"] == pytest.approx(0.1 / 3)
    assert shares(for_the_index((0.14, 0.26, 0.29), end=0.9), "predicted") == [None, None, None]


def test_what_was_predicted_for_the_index_is_drawn_in_its_chart_as_it_is() -> None:
    predicted = for_the_index((0.14, 0.26, 0.3))
    assert [p.value for p in drawn_prediction(predicted, "label", "map", "gallery")] == [0.14, 0.26, 0.3]
    on_audit = drawn_prediction(predicted, "label", "map", "audit")
    assert [p.value for p in on_audit] == pytest.approx([0.4 + 0.4 * share for share in (0.2, 0.8, 1.0)])


def test_predictions_of_earlier_releases_are_of_the_audit_items() -> None:
    assert {p.scope for p in promised((0.1, 0.2, 0.3))} == {"audit"}
