"""The report says what was chosen, what came second and what was tried."""

from __future__ import annotations

from fastfill_ray.experiment.results import ChoiceResult
from fastfill_ray.report.choice import choice_words, trial_rows
from fastfill_ray.report.html import report_html
from tests.report.logs import candidate, plan, predicted
from tests.report.pages import Page


def test_the_page_says_what_was_chosen_what_came_second_and_what_was_tried_last() -> None:
    page = Page(report_html(predicted()))
    assert "Choice" in page.words
    assert "kernel: best label/map" in page.words
    assert "kernel, fused 0.8; ahead by +0.0100" in page.words
    assert "+0.0100 (-0.0020 to +0.0220) of the area under the curve, over 450 queries" in page.words
    rows = [row for row in page.rows if row[0] == "kernel"]
    assert len(rows) == 8
    assert rows[0] == ["kernel", "aligned", "1", "expected_gain", "offset", "0.6000", "chosen"]
    assert rows[1] == ["kernel", "fused", "0.8", "expected_gain", "offset", "0.5900", "runner-up"]
    assert "0.9000" not in page.words  # an area of an earlier stage


def test_an_objective_that_too_few_queries_answer_is_said_not_to_have_chosen() -> None:
    words = Page(report_html(predicted(fitted_by="new_model"))).words
    assert "new_model: too few calibration queries have an answer by label" in words
    assert "too few" not in Page(report_html(predicted(fitted_by="label"))).words


def choice(**changes: object) -> ChoiceResult:
    """A map with its own norms won, the same map with matched norms came second; an earlier stage tried more."""
    winner, runner_up = candidate("ridge", 0.6) | {"norms_kept": True}, candidate("ridge", 0.5)
    fields: dict[str, object] = {
        "objective": "label/map",
        "winner": {key: value for key, value in winner.items() if key not in ("area", "stage", "queries")},
        "runner_up": {key: value for key, value in runner_up.items() if key not in ("area", "stage", "queries")},
        "trials": [winner, runner_up, candidate("ridge", 0.7, stage="map")],
    }
    return ChoiceResult.model_validate({**fields, **changes})


def test_a_map_with_its_own_norms_is_another_candidate_than_the_same_map_without() -> None:
    rows = trial_rows(plan(choice=choice()))
    assert [(row[0], row[-1]) for row in rows] == [("ridge, norms kept", "chosen"), ("ridge", "runner-up")]


def test_a_choice_without_a_rival_has_no_margin_and_no_runner_up() -> None:
    alone = plan(choice=choice(runner_up=None, trials=[]), choices={})
    assert trial_rows(alone) == []
    assert choice_words(alone) == {"calibration": "offset"}


def test_where_nothing_was_chosen_there_is_nothing_to_say() -> None:
    assert choice_words(plan(choices={})) == {}
    assert trial_rows(plan(choices={})) == []
    assert "Choice" not in Page(report_html(predicted(choices={}, choice=None))).words


def test_a_choice_comes_back_from_the_log_as_it_was() -> None:
    made = plan(choice=choice())
    assert type(made).model_validate_json(made.model_dump_json()) == made
