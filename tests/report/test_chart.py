"""The drawing stays inside its frame, its labels apart, and what it writes is escaped."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from fastfill_ray.report.chart import HEIGHT, WIDTH, element, spread, ticks
from fastfill_ray.report.html import report_html
from tests.report.logs import predicted
from tests.report.pages import Page


def test_every_drawn_coordinate_is_inside_the_picture() -> None:
    for tag, attrs in Page(report_html(predicted())).tags:
        numbers = {k: float(attrs[k] or "") for k in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy") if attrs.get(k)}
        for key, value in numbers.items():
            assert 0 <= value <= (WIDTH if "x" in key else HEIGHT), (tag, attrs)


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


@given(st.lists(st.floats(26, 252), min_size=1, max_size=5))
def test_labels_keep_their_distance_their_order_and_the_frame(heights: list[float]) -> None:
    placed = spread(heights, 15, 26, 252)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-6 for a, b in pairwise(ordered))
    assert ordered[0] >= 26 - 1e-6
    assert ordered[-1] <= 252 + 1e-6
    assert all(
        (placed[i] <= placed[j]) for i in range(len(placed)) for j in range(len(placed)) if heights[i] < heights[j]
    )
