"""The page says what the log says, needs nothing from outside, and shows text from the log as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from pydantic import BaseModel

from fastfill_ray.log.records import Verdict
from fastfill_ray.log.state import State
from fastfill_ray.report import html as html_module
from fastfill_ray.report.decision import decision
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.text import version_table
from fastfill_ray.sanitize import printable
from tests.report.logs import (
    INIT,
    finished,
    flipped,
    grouped,
    judged,
    living,
    metric,
    plan,
    predicted,
    rolled_back,
    running,
    version,
)
from tests.report.pages import Page


def test_an_objective_outside_the_usual_curves_is_drawn_first() -> None:
    state = State(
        plans=(plan(objective="qrels/mrr"),), versions=(version(0, 0.1, metrics=[metric("qrels", "mrr", 0.5)]),)
    )
    assert [c["metric"] for c in report_json(state)["curves"]] == ["mrr"]
    assert "MRR by qrels" in Page(report_html(state)).words


def test_the_page_draws_every_measured_curve_with_both_arms_and_hollow_held_points() -> None:
    page = Page(report_html(finished()))
    # The objective's is there twice, for wide and for narrow pages; only the audit items have no old/old here.
    assert page.count("polyline", "line-curve") == page.count("polygon", "band") == page.count("line", "line-new") == 6
    assert page.count("polyline", "line-plain") == 2
    assert page.count("line", "line-old") == 5
    assert page.count("circle", "dot") == 24
    assert page.count("circle", "dot-held") == 6
    for label in ("old/old 0.380", "new/new 0.630", "measured 0.630", "uncalibrated 0.630"):
        assert label in page.words


def test_the_page_leads_with_the_decision_and_what_it_rests_on() -> None:
    made = decision(finished())
    words = Page(report_html(finished())).words
    answer, _, after = words.partition(" Verdicts ")
    assert answer.endswith(
        f"Backfill report {made.words} Gained {made.gained} Cost {made.cost} 100 % of 6,012 items are re-embedded, and "
        "the run has ended. Readers open version 4 ."
    )
    assert after.index("Version 1 is held") < after.index("Quality while")
    assert "What is left" not in words


def test_a_price_says_what_the_embedding_cost() -> None:
    versions = tuple(each.model_copy(update={"embed_seconds": 720.0}) for each in finished().versions)
    state = finished().model_copy(update={"versions": versions})
    made = (
        f"{decision(state).cost} At 2.5 an hour of one actor the embedding comes to 2.50, 415.63 for a million items."
    )
    assert f"Cost {made}" in Page(report_html(state, 2.5)).words
    assert "an hour of one actor" not in Page(report_html(state)).words
    assert "an hour of one actor" not in Page(report_html(finished(), 2.5)).words  # nothing says how long it took


def test_every_version_has_its_verdict_with_the_interval_and_what_became_of_it() -> None:
    page = Page(report_html(judged(finished())))
    assert page.row("version") == ["version", "verdict", "difference (95 % interval)", "outcome"]
    assert page.row("0")[1:] == ["better than old/old", "+0.030 (+0.010 to +0.050)", "published"]
    assert page.row("1")[1:] == ["worse than version 0", "-0.030 (-0.050 to -0.010)", "held"]
    assert page.row("4")[1:] == ["better than version 3", "+0.030 (+0.010 to +0.050)", "published, serving"]
    changed = Page(report_html(judged(living())))
    assert changed.row("3")[1:] == ["follows the gallery: 61 items differ", "-", "published"]
    undecided = Verdict(publish=True, reason="undecided", difference=0.01, low=-0.01, high=0.03)
    state = State(plans=(plan(),), versions=(version(0, 0.1).model_copy(update={"verdict": undecided}),))
    assert Page(report_html(state)).row("0")[1] == "undecided against old/old"
    unknown = Verdict(publish=True, reason="old/old is not known, nothing to compare with")
    state = State(plans=(plan(),), versions=(version(0, 0.1).model_copy(update={"verdict": unknown}),))
    # The column of differences would hold only a dash.
    assert Page(report_html(state)).row("0")[1:] == ["not compared", "not published"]


def test_the_page_says_what_a_person_published() -> None:
    page = Page(report_html(rolled_back(finished(), 2)))
    assert "which somebody put there by hand" in page.words
    assert "Somebody published version 2 by hand (fastfill-ray rollback)." in page.words
    assert "by hand" not in Page(report_html(finished())).words
    again = Page(report_html(rolled_back(rolled_back(finished(), 2), 4)))
    assert "Somebody published version 2 by hand (fastfill-ray rollback)." in again.words


def test_the_page_holds_the_version_table_with_its_counts() -> None:
    page = Page(report_html(finished()))
    # No item is absent, which needs no column.
    assert page.row("version", of="seconds")[-3:] == ["seconds", "quarantined", "published"]
    assert page.row("4", of="seconds") == [
        *("4", "4", "100 %", "6,012", "0.600", "0.630", "0.660", "1.000", "16.5", "3", "yes, serving")
    ]
    assert "3 items are quarantined" in page.words
    assert "Version 1 is held: its mAP is lower than version 0's by 0.030 (0.010 to 0.050)" in page.words


def test_the_page_says_the_settings_and_why_they_were_chosen() -> None:
    words = Page(report_html(finished())).words
    for part in ("fastfill", "uncertainty", "5 %, 12.5 %, 25 %, 50 %, 100 % of the items", "old 64 dimensions"):
        assert part in words
    assert "mAP 0.512 at 0 % against 0.498 for ridge" in words


def test_the_page_says_the_shares_of_a_fused_score() -> None:
    fused = plan(stale_mode="fused", fusion={"old": 0.6, "new": 0.8})
    state = State(init=INIT, plans=(fused,))
    assert "fused: 0.36 x old + 0.64 x aligned score" in Page(report_html(state)).words
    assert report_json(state)["plan"]["fusion"] == {"old": 0.6, "new": 0.8}


def test_the_page_needs_nothing_from_outside_and_no_script() -> None:
    html = report_html(finished())
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href", "style", "onload"} & attrs.keys() for _, attrs in page.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert any("default-src 'none'" in (attrs.get("content") or "") for tag, attrs in page.tags if tag == "meta")
    assert "prefers-color-scheme: dark" in page.style
    assert "@media print" in page.style


def test_every_versions_flips_are_in_the_page_and_in_the_json() -> None:
    page = Page(report_html(flipped()))
    rows = [row for row in page.rows if len(row) == 9 and row[0].isdigit()]
    assert page.row("version", of="worse than old/old")[1:5] == [
        *("worse than old/old", "better than old/old", "mean loss to old/old", "mean gain over old/old")
    ]
    assert rows[0] == ["0", "5.0 % (4.0 to 6.0)", "30.0 % (28.0 to 32.0)", "0.125", "0.250", *["-"] * 4]
    assert rows[4][:2] == ["4", "9.0 % (8.0 to 10.0)"]
    assert rows[4][5:] == ["4.0 % (3.0 to 5.0)", "10.0 % (8.0 to 12.0)", "0.125", "0.250"]
    assert len(report_json(flipped())["versions"][1]["flips"]) == 4
    assert "Queries that got worse and better" not in report_html(finished())


def test_groups_have_a_table_and_change_no_other_figure() -> None:
    state, plain = grouped({"big": 0.05, "small": -0.1}), grouped({})
    assert version_table(state) == version_table(plain)
    assert report_json(state)["curves"] == report_json(plain)["curves"]
    page = Page(report_html(state))
    assert page.row("group") == ["group", "queries", "old/old", "0", "1", "new/new"]
    assert page.row("small") == ["small", "10", "0.280", "0.410", "0.530", "0.530"]
    assert page.row("gap")[2:] == ["0.150"] * 4
    assert "Per group" not in report_html(plain)


def test_a_stopped_run_has_ended_and_says_why() -> None:
    why = "97.0% of the gain from old/old to new/new is reached, stop.target_gain is 95.0%"
    last = version(1, 0.25).model_copy(update={"stopped": why})
    state = State(init=INIT, plans=(plan(),), versions=(version(0, 0.1), last), published=(0, 1))
    words = Page(report_html(state)).words
    assert "and the run has ended" in words
    assert f"Stop here, as the config's rule says: {why}; " in words
    assert words.count(why) == 1
    assert report_json(state)["stopped"] == why
    assert report_json(state)["finished"] is False
    assert "rule says" not in report_html(finished())
    # Where something else comes first, the rule is named below it.
    late = Page(report_html(state.model_copy(update={"published": (0,)}))).words
    assert f"It was stopped by rule: {why}." in late


def test_the_same_state_gives_the_same_bytes() -> None:
    assert report_html(finished()) == report_html(finished())


def test_predicted_and_measured_stand_side_by_side_in_page_and_json() -> None:
    page = Page(report_html(predicted()))
    # predicted 0.07 of 0.3, audit 0.1 of 0.3; on the index the way is from 0.38 to version 4's 0.63
    gallery = (version(0, 0.05).metrics[1].value - 0.38) / 0.25
    row = next(r for r in page.rows if r[:2] == ["0", "5 %"] and len(r) == 8)
    assert row[2:4] == ["0.430 (0.380 to 0.480)", "0.460 (0.440 to 0.480)"]
    assert row[5:] == ["23.3 %", "33.3 %", f"{100 * gallery:.1f} %"]
    report = report_json(predicted())
    assert report["prediction"][0]["gallery"]["share"] == pytest.approx(gallery)
    assert report["prediction_error"]["audit"] == pytest.approx(0.1)
    assert "prediction" not in report["plan"]
    assert "10 % on audit" in page.words
    assert "Predicted and measured" not in report_html(finished())


def test_the_predicted_curve_is_dashed_in_the_objectives_chart_alone() -> None:
    html = report_html(predicted())
    page = Page(html)
    assert page.count("polyline", "line-guess") == page.count("polygon", "band-guess") == 2
    assert all('class="line-guess"' in picture for picture in html.split("</svg>")[:2])
    # the predicted end is 0.9 of the gain on the audit items: 0.38 + 0.9 * 0.25 on the index
    assert "predicted 0.605" in page.words
    assert page.count("polyline", "line-curve") == 6
    colours = re.findall(r"--guess: (#\w+)", page.style)
    assert len(colours) == 3
    assert len(set(colours[:2])) == 2
    assert "line-guess" not in [attrs.get("class") for _, attrs in Page(report_html(finished())).tags]


@settings(deadline=None)
@given(st.text(max_size=40))
def test_text_from_the_log_stays_text(inner: str) -> None:
    evil = f"</td><script>alert(1)</script><img src=x onerror=y>'\"&{inner}"
    versions = (version(0, 0.1, held=evil, metrics=[metric("label", evil, 0.5)]),)
    tried = {"method": evil, "stale_mode": "fused", "weight": 0.8, "policy": evil, "calibration": "offset"}
    named = plan(
        method=evil,
        policy=evil,
        factory=evil,
        objective=f"label/{evil}",
        choices={evil: evil},
        choice={
            "objective": f"label/{evil}",
            "winner": tried,
            "trials": [{**tried, "area": 0.5, "stage": evil, "queries": 400}],
        },
        prediction=[{"fraction": 0.1, "relevance": "label", "metric": evil, "value": 0.5, "low": 0.4, "high": 0.6}],
    )
    page = Page(report_html(State(init=INIT, plans=(named,), versions=versions)))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "</td><script>alert(1)</script>" in page.words
    assert [[row[0], row[3]] for row in page.rows if row[-1] == "chosen"] == [[printable(evil)] * 2]


EVIL = "</td></style></title><script>alert(1)</script><img src=x onerror=y>'\"&{{ 7 * 7 }}"


def hostile(value: Any) -> Any:
    """The same records with hostile text, followed by the field's name, wherever a record holds free text."""
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if not isinstance(value, BaseModel):
        return value
    changes: dict[str, Any] = {}
    for name, field in type(value).model_fields.items():
        of_field = getattr(value, name)
        if field.annotation in (str, str | None) and of_field is not None:
            changes[name] = f"{EVIL} {name}"
        else:
            changes[name] = hostile(of_field)
    if "objective" in changes:
        changes["objective"] = f"label/{EVIL} metric"
    return value.model_copy(
        update=changes | {"choices": {f"{EVIL} key": f"{EVIL} why"}} if "choices" in changes else changes
    )


def everything() -> State:
    """A state with every kind of text that a log can hold: choice, flips, groups, a held version, a reason to stop."""
    beside = [metric("label", "map", 0.4).model_copy(update={"group": "some"})]
    versions = tuple(
        v.model_copy(update={"metrics": (*v.metrics, *beside), "flips": f.flips, "stopped": "enough"})
        for v, f in zip(predicted().versions, flipped().versions, strict=True)
    )
    return predicted(fitted_by="new_model").model_copy(update={"versions": versions})


def test_hostile_text_in_every_field_of_every_record_comes_out_as_text() -> None:
    html = report_html(hostile(everything()))
    page, usual = Page(html), Page(report_html(everything()))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in usual.tags}
    assert {name for _, attrs in page.tags for name in attrs} == {name for _, attrs in usual.tags for name in attrs}
    assert page.style == usual.style
    assert "<script" not in html
    values = ("plan", "policy", "method", "factory", "stale_factory", "metric", "group", "reason", "stopped")
    assert [name for name in (*values, "key", "why") if f"{EVIL} {name}" not in page.words] == []
    [label] = {attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"}
    assert label == f"{EVIL} metric by label against the share of the gallery re-embedded"


def test_the_template_escapes_everything_and_a_name_it_does_not_know_is_an_error_not_a_gap() -> None:
    template = Path(html_module.__file__).with_name("report.html.j2").read_text()
    assert not re.search(r"\|\s*safe|autoescape", template)
    assert html_module._ENVIRONMENT.from_string("{{ name }}").render(name="<") == "&lt;"
    with pytest.raises(UndefinedError, match="name"):
        html_module._ENVIRONMENT.from_string("{{ name }}").render()


def test_a_log_without_a_plan_gives_a_clear_page_and_line() -> None:
    assert version_table(State()).startswith("No plan yet")
    page = Page(report_html(State()))
    assert "There is no plan yet" in page.words
    assert page.rows == []


def test_a_plan_without_versions_shows_the_settings() -> None:
    page = Page(report_html(State(init=INIT, plans=(plan(),))))
    assert "no version has been built yet" in page.words
    assert "Nothing is measured or predicted yet." in page.words
    assert page.rows == []
    assert "fastfill" in page.words


def test_a_plan_without_versions_draws_what_is_predicted() -> None:
    page = Page(report_html(running(0)))
    assert page.count("polyline", "line-guess") == page.count("line", "line-new") == 2
    assert page.count("polyline", "line-curve") == 0
    assert [row[0] for row in page.rows[:3]] == ["fraction", "5 %", "12.5 %"]


def test_one_version_is_a_point_with_a_whisker() -> None:
    page = Page(report_html(State(plans=(plan(),), versions=(version(0, 0.05),), published=(0,))))
    assert page.count("line", "whisker") == page.count("circle", "dot") == 6
    assert page.count("polyline", "line-plain") == 2
    assert page.count("polygon", "band") == 0
    assert "Readers open version 0" in page.words


def test_missing_metrics_are_dashes_not_zeros_and_a_column_of_dashes_is_left_out() -> None:
    state = State(plans=(plan(baselines={}),), versions=(version(0, 0.05, metrics=()),))
    assert "No metric has been measured yet." in version_table(state)
    assert Page(report_html(state)).row("version", of="seconds") == [
        *("version", "wave", "fraction", "new items", "seconds", "published")
    ]
    some = version(1, 1.0, metrics=[metric("label", "map", 0.5)])
    page = Page(report_html(state.model_copy(update={"versions": (*state.versions, some)})))
    assert page.row("0", of="seconds")[4:6] == ["-", "12.5"]
