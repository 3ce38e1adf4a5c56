"""A report of a gallery that changed: all versions of one order, changes among them, each compared with its like."""

from __future__ import annotations

import re

import pytest

from fastfill_ray.report.chart import unbroken
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.model import area_under, objective_curve
from fastfill_ray.report.prediction import promises
from fastfill_ray.report.text import version_table
from tests.report.logs import arm, living, plan, predicted, version
from tests.report.pages import Page


def test_the_table_has_every_version_of_the_order_and_says_which_are_changes_of_how_many_items() -> None:
    note, _, *rows = version_table(living()).splitlines()
    cells = [re.split(r"\s{2,}", row.strip())[:2] for row in rows[:9]]
    assert cells[1:8] == [
        *(["0", "0"], ["1", "1"], ["2", "2"], ["3", "change (61)"], ["4", "3"], ["5", "4"], ["6", "change (1,001)"])
    ]
    assert "is served" not in note
    below = " ".join(rows)
    assert "change (n): a version that follows the gallery" in below
    assert "Version 6 follows the gallery" in below


def test_versions_of_another_order_are_not_among_them() -> None:
    state = living()
    anew = plan(plan="other", version_waves=(0,))
    made = version(7, 0.1).model_copy(update={"plan": "other"})
    state = state.model_copy(update={"plans": (*state.plans, anew), "versions": (*state.versions, made)})
    assert [v["version"] for v in report_json(state)["versions"]] == [7]
    assert "Version 6, of an earlier order, is served." in version_table(state)


def test_the_json_names_plan_cause_and_changes_of_every_version() -> None:
    versions = report_json(living())["versions"]
    assert [v["plan"] for v in versions] == ["ab12"] * 3 + ["cd34"] * 3 + ["ef56"]
    assert [v["cause"] for v in versions] == ["wave"] * 3 + ["change", "wave", "wave", "change"]
    assert versions[3]["changes"] == {"added": 30, "changed": 20, "removed": 11}
    assert versions[4]["changes"] is None
    curve = next(c for c in report_json(living())["curves"] if c["metric"] == "map")
    assert [p["cause"] for p in curve["points"]] == [v["cause"] for v in versions]


def test_a_curve_breaks_where_the_gallery_changed_and_its_area_counts_each_share_once() -> None:
    curve = objective_curve(living())
    assert curve is not None
    assert [[p.version for p in part] for part in unbroken(curve.points)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert curve.area == area_under(tuple(p for p in curve.points if p.version not in (3, 6)))


def test_the_page_draws_the_parts_and_says_what_the_plan_follows() -> None:
    page = Page(report_html(living()))
    lines = [a for tag, a in page.tags if tag == "polyline" and a.get("class") == "line-curve"]
    assert len(lines) == 3 * sum(tag == "svg" for tag, _ in page.tags)
    assert any("pairs, map, order and calibration" in text for text in page.text)
    assert any(text.endswith("published, after a change of the gallery") for text in page.text)


def test_a_prediction_is_held_against_the_first_version_after_its_wave_and_never_against_a_change() -> None:
    state = predicted()
    root = state.plans[0]
    waves = {"waves": root.waves, "prediction": root.prediction, "follows": "ab12"}
    caught_up = version(5, 0.5).model_copy(update={"plan": "cd34", "wave": 2})
    change = version(6, 0.5).model_copy(update={"plan": "cd34", "wave": 3, "cause": "change"})
    late = {
        "plans": (*state.plans, plan(plan="cd34", version_waves=(2, 3), **waves)),
        "versions": (*state.versions[:3], caught_up, change),
    }
    assert [p.version for p in promises(state.model_copy(update=late))] == [0, 1, 2, None, None]


def test_shares_of_the_gain_are_by_the_arms_of_the_gallery_that_a_version_shows() -> None:
    state = predicted()
    root = state.plans[0]
    harder = {"old/old": arm(0.2), "new/new": root.baselines["new/new"]}
    follows = root.model_copy(update={"plan": "cd34", "follows": "ab12", "version_waves": (3, 4), "baselines": harder})
    moved = tuple(v.model_copy(update={"plan": "cd34"}) if v.version > 2 else v for v in state.versions)
    before = promises(state)
    after = promises(state.model_copy(update={"plans": (root, follows), "versions": moved}))
    assert [p.shares["gallery"] for p in after[:3]] == [p.shares["gallery"] for p in before[:3]]
    end = after[4].measured["gallery"].value
    assert after[3].shares["gallery"] == pytest.approx((after[3].measured["gallery"].value - 0.23) / (end - 0.23))
