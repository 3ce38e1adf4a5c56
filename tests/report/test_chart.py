"""The drawing stays inside its picture, no text lies on another, and what it writes is escaped."""

from __future__ import annotations

import itertools
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from fastfill_ray.log.records import MetricValue, Prediction
from fastfill_ray.log.state import State
from fastfill_ray.report.chart import MEDIUM, SMALL, WIDE, Size, element, keys, svg, ticks
from fastfill_ray.report.labels import LINE_HEIGHT, spread, text_width, without_overlap, wrapped
from fastfill_ray.report.model import MeasuredCurve, Point, objective_curve
from fastfill_ray.report.prediction import drawn_prediction
from tests.report.logs import finished, living, metric, predicted, running

SIZES = (WIDE, MEDIUM, SMALL)


class Box(NamedTuple):
    """Of a text, estimated."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.top < other.bottom and other.top < self.bottom


def texts(picture: str) -> list[Box]:
    boxes = []
    for text in ElementTree.fromstring(picture).iter("text"):
        x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), text_width(text.text or "")
        x -= width * {"start": 0, "middle": 0.5, "end": 1}[text.attrib.get("text-anchor", "start")]
        boxes.append(Box(text.text or "", x, y - 9, x + width, y + 3))
    return boxes


def assert_legible(picture: str, size: Size) -> None:
    boxes = texts(picture)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other), (one, other)
    for box in boxes:
        assert box.left >= 0, box
        assert box.top >= 0, box
        assert box.right <= size.width, box
        assert box.bottom <= size.height, box


def drawn(state: State, size: Size) -> str:
    curve = objective_curve(state)
    assert curve is not None
    return str(svg(curve, drawn_prediction(state, curve.relevance, curve.metric, curve.scope), size))


@pytest.mark.parametrize("size", SIZES)
def test_everything_that_is_drawn_is_inside_the_picture_and_no_text_lies_on_another(size: Size) -> None:
    for state in (predicted(), living(), running(1), running(2), running(4)):
        picture = drawn(state, size)
        assert_legible(picture, size)
        for part in ElementTree.fromstring(picture).iter():
            for name in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy"} & part.attrib.keys():
                assert 0 <= float(part.attrib[name]) <= (size.width if "x" in name else size.height)


values = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), values, values), min_size=1, max_size=12),
    st.lists(st.tuples(st.floats(0, 1), values), max_size=6),
    st.one_of(st.none(), values),
    st.one_of(st.none(), values),
)
def test_no_text_lies_on_another_whatever_the_curve(
    points: list[tuple[float, float, float]],
    promised: list[tuple[float, float]],
    old: float | None,
    new: float | None,
) -> None:
    def arm(value: float | None) -> MetricValue | None:
        return None if value is None else metric("label", "map", value)

    measured = [Point(i, x, v, v - 0.1, v + 0.1, "published") for i, (x, v, _) in enumerate(sorted(points))]
    plain = [Point(i, x, v, v, v, "published") for i, (x, _, v) in enumerate(sorted(points))]
    curve = MeasuredCurve("label", "map", "gallery", tuple(measured), tuple(plain), arm(old), arm(new))
    predictions = [
        Prediction(fraction=x, relevance="label", metric="map", value=v, low=v, high=v) for x, v in sorted(promised)
    ]
    for size in SIZES:
        assert_legible(str(svg(curve, predictions, size)), size)


def test_lines_that_end_at_the_same_figure_share_one_name() -> None:
    names = [box.text for box in texts(drawn(predicted(), WIDE))]
    assert [name for name in names if "new/new" in name or "0.630" in name] == [
        "measured, new/new,",
        "uncalibrated 0.630",
    ]
    assert "predicted 0.605" in names
    # Where there is no room beside the frame, they are named below the picture.
    assert not any("measured" in box.text for box in texts(drawn(predicted(), SMALL)))


def test_a_curve_that_ends_early_is_named_where_it_ends() -> None:
    boxes = {box.text: box for box in texts(drawn(running(3), WIDE))}
    assert boxes["measured 0.545"].right < WIDE.right < boxes["old/old 0.380"].left


def test_the_axis_begins_at_the_first_version_and_names_the_versions_shares() -> None:
    boxes = texts(drawn(finished(), WIDE))
    shares = [box for box in boxes if box.text.endswith(" %")]
    assert [box.text for box in shares] == ["5 %", "12.5 %", "25 %", "50 %", "100 %"]
    assert shares[0].left < WIDE.left + 12 < shares[0].right
    assert [box.text for box in texts(drawn(finished(), SMALL)) if box.text.startswith("v")] == ["v0", "v2", "v3", "v4"]


def test_every_line_has_a_key_and_new_new_is_known_once_everything_is_new() -> None:
    state = finished()
    curve = objective_curve(state.model_copy(update={"plans": (state.plans[0].model_copy(update={"baselines": {}}),)}))
    assert curve is not None
    assert [(key.name, key.css) for key in keys(curve)] == [
        *[("measured", "curve"), ("new/new", "new"), ("uncalibrated", "plain")]
    ]
    some = objective_curve(running(3, state.plans[0].model_copy(update={"baselines": {}})))
    assert some is not None
    assert [key.name for key in keys(some)] == ["measured", "uncalibrated"]
    same = MeasuredCurve("label", "map", "gallery", some.points, some.points, None, None)
    assert [key.name for key in keys(same)] == ["measured"]
    assert "line-plain" not in svg(same)


def test_an_element_escapes_whatever_is_not_markup_in_it_and_in_its_attributes() -> None:
    inner = element("title", "<b>&\"'")
    assert inner == Markup("<title>&lt;b&gt;&amp;&#34;&#39;</title>")
    assert element("text", inner, css="t", text_anchor='"><script>', x=1.5) == Markup(
        '<text class="t" text-anchor="&#34;&gt;&lt;script&gt;" x="1.5"><title>&lt;b&gt;&amp;&#34;&#39;</title></text>'
    )


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_ticks_enclose_the_values_and_are_few(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-6
    assert marks[-1] >= low + span - 1e-6
    assert 2 <= len(marks) <= 9


@given(st.lists(st.tuples(st.floats(26, 252), st.integers(1, 3)), min_size=1, max_size=5))
def test_labels_keep_their_distance_their_order_and_the_frame(labels: list[tuple[float, int]]) -> None:
    centres, heights = [centre for centre, _ in labels], [LINE_HEIGHT * lines for _, lines in labels]
    placed = spread(centres, heights, 26, 252)
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for i, j in itertools.pairwise(order):
        assert placed[j] - placed[i] >= (heights[i] + heights[j]) / 2 - 1e-6
    assert placed[order[0]] - heights[order[0]] / 2 >= 26 - 1e-6
    assert placed[order[-1]] + heights[order[-1]] / 2 <= 252 + 1e-6
    for i, j in itertools.permutations(range(len(placed)), 2):
        assert centres[i] >= centres[j] or placed[i] <= placed[j]


def test_of_the_texts_of_one_line_the_outer_ones_come_first() -> None:
    assert without_overlap([], []) == []
    assert without_overlap([0, 20, 30, 200], ["5 %", "6 %", "7 %", "100 %"]) == [0, 2, 3]
    assert without_overlap([0, 10], ["5 %", "6 %"]) == [0]


def test_names_are_wrapped_to_the_margin() -> None:
    assert wrapped(["measured", "new/new"], "0.630", 300) == ["measured, new/new 0.630"]
    assert wrapped(["measured", "new/new"], "0.630", 120) == ["measured,", "new/new 0.630"]
    assert wrapped(["uncalibrated"], "0.630", 20) == ["uncalibrated", "0.630"]
