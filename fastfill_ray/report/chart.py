"""One backfilling curve as inline SVG: geometry only, colours and strokes come from chart.css."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fastfill_ray.log.records import MetricValue, Prediction
from fastfill_ray.report.model import MeasuredCurve, Point
from fastfill_ray.report.wording import metric_name, percent, score, score_interval
from fastfill_ray.sanitize import printable

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 424, 26, 232
LABEL_GAP = 15


def element(tag: str, *inside: str, css: str = "", **attributes: object) -> Markup:
    """One SVG element. Every attribute, and all of `inside` that is not Markup, is escaped here and nowhere else.

    Args:
        css: its class.
        attributes: `_` in a name stands for `-`.
    """
    named = ({"class": css} if css else {}) | {name.replace("_", "-"): value for name, value in attributes.items()}
    written = Markup().join(Markup(' {}="{}"').format(name, value) for name, value in named.items())
    shown = (part if isinstance(part, Markup) else printable(part) for part in inside)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup().join(shown))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that enclose [low, high], at most `most` + 2 of them."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def spread(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Heights moved apart to at least `gap`, order kept, inside [top, bottom] where they fit."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for before, i in enumerate(order):
        placed[i] = max(placed[i], top if before == 0 else placed[order[before - 1]] + gap)
    limit = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


@dataclass(frozen=True)
class Frame:
    """Maps fractions in [0, 1] and metric values, of which `marks` are labelled, to pixels."""

    marks: Sequence[float]

    def x(self, fraction: float) -> float:
        return round(LEFT + min(max(fraction, 0.0), 1.0) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    def path(self, pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in pairs)


@dataclass(frozen=True)
class Label:
    """A text at the height of a metric value."""

    value: float
    text: str
    css: str


def svg(curve: MeasuredCurve, predicted: Sequence[Prediction] = ()) -> Markup:
    """The chart as one element of a page.

    Args:
        predicted: the predicted curve on the chart's own scale.
    """
    return element(
        "svg", drawing(curve, predicted), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary(curve)
    )


def summary(curve: MeasuredCurve) -> str:
    return f"{metric_name(curve.metric)} by {curve.relevance} against the share of the gallery re-embedded"


def drawing(curve: MeasuredCurve, predicted: Sequence[Prediction] = ()) -> Markup:
    """What is in the chart: axes, both arms, bands, predicted, uncalibrated and calibrated curve, points, labels."""
    arms = {name: arm for name, arm in (("old", curve.old), ("new", curve.new)) if arm is not None}
    banded: list[Point | Prediction] = [*curve.points, *predicted]
    lines: list[Point | MetricValue] = [*curve.uncalibrated, *arms.values()]
    values = [v for p in banded for v in (p.low, p.value, p.high)] + [p.value for p in lines]
    frame = Frame(ticks(min(values), max(values)))
    return Markup().join(
        [
            *_axes(frame, curve),
            *(element("line", css=f"arm-{name}", **_horizontal(frame.y(arm.value))) for name, arm in arms.items()),
            _band(frame, predicted, "-guess"),
            *(_band(frame, part) for part in unbroken(curve.points)),
            _line(frame, predicted, "line-guess"),
            *(_line(frame, part, "line-plain") for part in unbroken(curve.uncalibrated)),
            *(_line(frame, part, "line") for part in unbroken(curve.points)),
            *(_dot(frame, point) for point in curve.points),
            *_captions(frame, curve, predicted, arms),
        ]
    )


def unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """The parts of a curve between changes of the gallery: what lies before one is of another gallery."""
    parts: list[list[Point]] = []
    for point in points:
        if not parts or point.cause == "change":
            parts.append([])
        parts[-1].append(point)
    return parts


def _horizontal(y: float) -> dict[str, float]:
    return {"x1": LEFT, "x2": RIGHT, "y1": y, "y2": y}


def _axes(frame: Frame, curve: MeasuredCurve) -> list[Markup]:
    decimals = max(0, -math.floor(math.log10(frame.marks[1] - frame.marks[0]) + 1e-9))
    parts = []
    for mark in frame.marks:
        y = frame.y(mark)
        parts.append(element("line", css="grid", **_horizontal(y)))
        parts.append(element("text", f"{mark:.{decimals}f}", x=LEFT - 8, y=y + 4, text_anchor="end"))
    for quarter in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = frame.x(quarter)
        parts.append(element("line", css="grid", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 5))
        parts.append(element("text", percent(quarter), x=x, y=BOTTOM + 19, text_anchor="middle"))
    middle, below = (LEFT + RIGHT) / 2, HEIGHT - 8
    parts.append(element("text", "share of the gallery re-embedded", x=middle, y=below, text_anchor="middle"))
    free = -math.inf
    for point in curve.points:  # a version's number above its point, where there is room
        x, text = frame.x(point.fraction), f"v{point.version}"
        if x >= free:
            parts.append(element("text", text, x=x, y=TOP - 10, text_anchor="middle"))
            free = x + 8 * len(text) + 2
    return parts


def _band(frame: Frame, points: Sequence[Point | Prediction], suffix: str = "") -> Markup:
    """The 95 % interval: an area, or a whisker where there is one point only. `suffix`: of its class."""
    if not points:
        return Markup()
    if len(points) == 1:
        (p,) = points
        x = frame.x(p.fraction)
        return element("line", css=f"whisker{suffix}", x1=x, x2=x, y1=frame.y(p.low), y2=frame.y(p.high))
    outline = [(p.fraction, p.high) for p in points] + [(p.fraction, p.low) for p in reversed(points)]
    return element("polygon", css=f"band{suffix}", points=frame.path(outline))


def _line(frame: Frame, points: Sequence[Point | Prediction], css: str) -> Markup:
    if not points:
        return Markup()
    if len(points) == 1:
        x, y = frame.x(points[0].fraction), frame.y(points[0].value)
        return element("polyline", css=css, points=f"{x - 5},{y} {x + 5},{y}")
    return element("polyline", css=css, points=frame.path((p.fraction, p.value) for p in points))


def _dot(frame: Frame, point: Point) -> Markup:
    published = point.status in ("published", "expired")
    value = score_interval(point.value, point.low, point.high)
    change = ", after a change of the gallery" if point.cause == "change" else ""
    title = element("title", f"version {point.version}, {percent(point.fraction)}: {value}, {point.status}{change}")
    at = {"cx": frame.x(point.fraction), "cy": frame.y(point.value), "r": 4.5}
    return element("circle", title, css="dot" if published else "dot-held", **at)


def _captions(
    frame: Frame, curve: MeasuredCurve, predicted: Sequence[Prediction], arms: dict[str, MetricValue]
) -> list[Markup]:
    """What each line is, at its right end."""
    last = curve.points[-1]
    at_margin = [Label(arm.value, f"{name}/{name} {score(arm.value)}", f"t-{name}") for name, arm in arms.items()]
    if predicted:
        at_margin.append(Label(predicted[-1].value, f"predicted {score(predicted[-1].value)}", "t-guess"))
    at_curve = [Label(last.value, f"calibrated {score(last.value)}", "t-curve")]
    if curve.uncalibrated:
        plain = curve.uncalibrated[-1].value
        at_curve.append(Label(plain, f"uncalibrated {score(plain)}", "t-plain"))
    # A curve that ends early is labelled where it ends; one that reaches the right edge shares the arms' margin.
    if last.fraction > 0.6:
        return _labels(frame, RIGHT, at_margin + at_curve)
    return _labels(frame, RIGHT, at_margin) + _labels(frame, frame.x(last.fraction), at_curve)


def _labels(frame: Frame, x: float, labels: Sequence[Label]) -> list[Markup]:
    """Texts right of `x`, each tied to its own height by a leader."""
    heights = [frame.y(label.value) for label in labels]
    parts = []
    for label, y, placed in zip(labels, heights, spread(heights, LABEL_GAP, TOP, BOTTOM), strict=True):
        parts.append(element("polyline", css="leader", points=f"{x + 7},{y} {x + 15},{placed:.1f}"))
        parts.append(element("text", label.text, css=label.css, x=x + 18, y=f"{placed + 4:.1f}"))
    return parts
