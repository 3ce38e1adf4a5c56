"""A plan as text: what people decide by before the waves are paid for."""

from __future__ import annotations

import re

import pytest

from fastfill_ray.experiment.results import MeanValue
from fastfill_ray.log.state import State
from fastfill_ray.report.plan_text import plan_text
from fastfill_ray.report.result import BackfillResult
from tests.report.logs import finished, metric, plan, predicted

WAVES = (301, 451, 751, 1503, 3006, 0)


def planned(**changes: object) -> State:
    """A plan with a choice and a prediction, and no version yet."""
    fields = {"waves": (0.125, 0.25, 0.5, 1.0), "version_waves": (0, 1, 2, 3, 4), "wave_rows": WAVES, **changes}
    return predicted(**fields).model_copy(update={"versions": (), "published": ()})


def cells(row: str) -> list[str]:
    return re.split(r"\s{2,}", row.strip())


def test_a_plan_says_what_was_chosen_and_why_and_by_how_much_it_is_ahead() -> None:
    text = plan_text(planned(), None)
    assert text.startswith("Plan ab12: 6,012 items, 301 of them pairs. Objective: mAP by label.\n")
    lines = text.splitlines()
    assert "  map          fastfill" in lines
    assert "  policy       uncertainty (as the config says)" in lines
    assert "Why: best label/map." in lines
    told = text.replace("\n", " ")
    assert "Runner-up: kernel, fused, 0.8 aligned, expected_gain, offset. The choice is ahead by +0.0100" in told
    assert "The interval holds 0: by these pairs both are as good." in told


def test_what_an_earlier_plan_has_made_new_is_not_called_pairs() -> None:
    text = plan_text(planned(first_share=0.05, carried_share=0.03), None)
    assert text.startswith("Plan ab12: 6,012 items, 301 of them pairs or carried. Objective: mAP by label.\n")
    assert "301 (pairs, carried)" in text
    assert "carried" not in plan_text(planned(), None)


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        (
            {"value": -0.053, "low": -0.0955, "high": -0.0273, "queries": 70},
            "The choice is behind by 0.0530 (0.0273 to 0.0955) of the area under the curve, over 70 queries of the "
            "audit pairs. The choice was made on the calibration pairs.",
        ),
        (
            {"value": -0.01, "low": -0.03, "high": 0.01, "queries": 70},
            "The choice is behind by 0.0100 (-0.0100 to 0.0300) of the area under the curve, over 70 queries of the "
            "audit pairs. The interval holds 0: by these pairs both are as good.",
        ),
        (
            {"value": -0.053, "low": -0.0955, "high": -0.0273, "queries": 3},
            "over 3 queries of the audit pairs. So few queries tell next to nothing.",
        ),
    ],
)
def test_a_choice_that_is_behind_on_the_audit_pairs_is_said_to_be_behind(margin: dict[str, float], words: str) -> None:
    state = planned()
    choice = state.plans[0].choice
    assert choice is not None
    measured = choice.model_copy(update={"margin": MeanValue.model_validate(margin)})
    of = state.plans[0].model_copy(update={"choice": measured})
    assert words in plan_text(state.model_copy(update={"plans": (of,)}), None).replace("\n", " ")


def with_queries(state: State, count: int, **changes: object) -> State:
    """The same plan, its prediction over so many queries."""
    of = state.plans[0]
    promise = [each.model_copy(update={"queries": count, **changes}) for each in of.prediction]
    return state.model_copy(update={"plans": (of.model_copy(update={"prediction": tuple(promise)}),)})


def test_it_is_said_how_many_queries_predict_and_that_a_few_tell_next_to_nothing() -> None:
    enough = plan_text(with_queries(planned(), 16), None)
    assert "Predicted mAP by label, on the audit items, with 95 % intervals over 16 queries:" in enough
    assert "next to nothing" not in enough
    few = plan_text(with_queries(planned(), 3, relevance="new_model"), None).replace("\n", " ")
    assert "Predicted mAP by new_model, on the audit items, with 95 % intervals over 3 queries:" in few
    assert (
        "These figures tell next to nothing: only 3 queries are held out that have an answer, and at least 16 are "
        "needed to tell anything." in few
    )
    assert "They are not by label: too few of the queries that are held out have an answer by that." in few
    assert "of the gain" not in few
    assert "of the gain" in enough
    assert "intervals over 1 query:" in plan_text(with_queries(planned(), 1), None)


def test_where_a_gain_is_not_sure_no_share_of_it_is_told() -> None:
    audit = {
        name: (metric("label", "map", value, scope="audit"),) for name, value in (("old/old", 0.65), ("new/new", 0.66))
    }
    text = plan_text(planned(baselines=audit), None)
    assert "of the gain\n" not in text
    assert cells(
        text.splitlines()[
            text.splitlines().index("Predicted mAP by label, on the audit items, with 95 % intervals:") + 1
        ]
    ) == ["version", "wave", "new", "rows", "predicted"]
    assert "There is no share of the gain: that there is a gain is not sure, by these intervals." in text
    assert "There is no share" not in plan_text(planned(), None)


def test_a_plan_says_what_is_predicted_of_every_version_between_the_arms_with_its_rows() -> None:
    lines = plan_text(planned(), None).splitlines()
    first = lines.index("Predicted mAP by label, on the audit items, with 95 % intervals:")
    table = [cells(line) for line in lines[first + 1 : first + 9]]
    assert table[0] == ["version", "wave", "new", "rows", "predicted", "of the gain"]
    assert table[1] == ["old/old", "-", "-", "-", "0.360 (0.340 to 0.380)", "0 %"]
    assert table[2] == ["0", "0", "5 %", "301 (pairs)", "0.430 (0.380 to 0.480)", "23.3 %"]
    assert table[6] == ["4", "4", "100 %", "3,006", "0.630 (0.580 to 0.680)", "90 %"]
    assert table[7] == ["new/new", "-", "-", "-", "0.660 (0.640 to 0.680)", "100 %"]


def test_what_is_predicted_of_the_published_index_stands_between_the_arms_of_that() -> None:
    state = planned()
    promise = [each.model_copy(update={"scope": "gallery"}) for each in state.plans[0].prediction]
    of_gallery = state.plans[0].model_copy(update={"prediction": tuple(promise)})
    lines = plan_text(state.model_copy(update={"plans": (of_gallery,)}), None).splitlines()
    first = lines.index("Predicted mAP by label, in the published index, with 95 % intervals:")
    table = [cells(line) for line in lines[first + 1 : first + 9]]
    assert [row[4].split()[0] for row in table[1:]] == ["0.380", "0.430", "0.480", "0.530", "0.580", "0.630", "0.630"]


def test_the_work_is_said_in_actor_hours_from_the_measured_rate() -> None:
    due = "To embed: 5,711 items"
    told = plan_text(planned(), 2.5).replace("\n", " ")
    assert f"{due} at 2.5 s each, as measured at the pairs: 4 actor-hours (3 h 58 min of one actor)" in told
    assert "an hour" not in told
    priced = plan_text(planned(), 2.5, 3.0).replace("\n", " ")
    assert "versions. At 3 an hour that is 11.90, 2,083.33 for a million items." in priced
    assert f"{due}. Nothing was embedded so far" in plan_text(planned(), None)
    only_half = planned(version_waves=(0, 1, 2), wave_rows=(301, 451, 751, 4509))
    assert "To embed: 1,202 items" in plan_text(only_half, 1.0)
    assert "Nothing is left to embed." in plan_text(planned(version_waves=(0,)), 1.0)


def test_a_plan_without_choice_or_prediction_is_told_without() -> None:
    state = State(plans=(plan(choices={}, baselines={}, wave_rows=WAVES, waves=(0.125, 0.25, 0.5, 1.0, 1.0)),))
    text = plan_text(state, 0.1)
    assert "Runner-up" not in text
    assert "Why" not in text
    assert plan_text(State(), None).startswith("No plan yet")


def test_the_text_of_a_run_ends_with_the_command_that_goes_on_unless_it_is_finished() -> None:
    result = BackfillResult("out", planned(), finished=False, seconds={"pairs": 8.0}, item_s=0.01)
    lines = result.text("fastfill-ray run --config c.yaml").splitlines()
    assert lines[0].startswith("Plan ab12")
    assert lines[-2:] == ["Report: out/reports/report.html", "Go on: fastfill-ray run --config c.yaml"]
    assert "out: the plan is made; of its waves nothing is embedded; nothing is published yet." in lines
    nothing_to_gain = planned(baselines={"old/old": (metric("label", "map", 0.9, scope="audit"),)})
    stops = BackfillResult("out", nothing_to_gain, finished=False).text("again").splitlines()
    assert any(line.startswith("Stop here, there is nothing to gain") for line in stops)
    assert stops[-1] == "To go on all the same: again"
    done = BackfillResult("out", finished(), finished=True, seconds={"pairs": 8.0}).text("again")
    assert done.startswith("Metrics: ")
    assert "Go on" not in done
