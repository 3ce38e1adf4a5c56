"""Curves never mix scopes or plans, and their areas are means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.log.state import State
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.report.model import Point, area_under, measured_curve
from fastfill_ray.report.text import version_table
from tests.report.logs import finished, metric, plan, version


def test_only_the_last_plan_is_shown() -> None:
    again = plan(plan="cd34", baselines={})
    state = finished().model_copy(update={"plans": (plan(), again)})
    assert "No version yet." in version_table(state)
    assert report_json(state)["versions"] == []
    assert "0.630" not in report_html(state)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
def test_the_area_lies_between_the_lowest_and_the_highest_point(values: list[float], gaps: list[float]) -> None:
    at = [sum(gaps[:i]) for i in range(len(values))]
    points = tuple(Point(i, x, v, v, v, "published") for i, (x, v) in enumerate(zip(at, values, strict=True)))
    area = area_under(points)
    assert area is not None
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9


def test_the_area_of_a_straight_line_is_its_middle() -> None:
    line = tuple(Point(i, f, 0.2 + 0.6 * f, 0, 1, "published") for i, f in enumerate((0.0, 0.1, 0.7, 1.0)))
    assert area_under(line) == pytest.approx(0.5)
    assert area_under(line[:1]) is None


def test_a_curve_takes_the_scope_that_covers_more_versions_and_never_mixes() -> None:
    both = [metric("label", "map", 0.4), metric("label", "map", 0.7, scope="audit")]
    versions = (version(0, 0.1, metrics=both), version(1, 1.0, metrics=both[1:]))
    state = State(plans=(plan(),), versions=versions)
    curve = measured_curve(state, "label", "map")
    assert curve is not None
    assert curve.scope == "audit"
    assert [p.value for p in curve.points] == [0.7, 0.7]
    assert curve.old is None
