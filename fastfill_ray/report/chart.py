"""One backfilling curve as inline SVG: geometry only, colours and strokes come from chart.css.

Text is 12 px in the units of the picture, so that a picture is legible where it is shown about as large as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fastfill_ray.log.records import MetricValue, Prediction
from fastfill_ray.report.labels import LINE_HEIGHT, spread, text_width, without_overlap, wrapped
from fastfill_ray.report.model import MeasuredCurve, Point
from fastfill_ray.report.wording import metric_name, percent, score, score_interval
from fastfill_ray.sanitize import printable


@dataclass(frozen=True)
class Size:
    """Of a picture in px, and of the frame in it. What is right of the frame is for the names of the lines."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def margin(self) -> int:
        return self.width - self.right - 26


WIDE = Size(1016, 380, left=52, right=856, top=26, bottom=332)
MEDIUM = Size(560, 280, left=52, right=400, top=26, bottom=232)
# For phones, and side by side on a wide page: the names stand below it, see `keys`.
SMALL = Size(340, 230, left=52, right=326, top=26, bottom=182)
# Between the frame and what is drawn in it; between two names.
_INSET, _GAP = 12, 3


def element(tag: str, *inside: str, css: str = "", **attributes: object) -> Markup:
    """One SVG element. Every attribute, and all of `inside` that is not Markup, is escaped here and nowhere else.

    Args:
        css: its class.
        attributes: `_` in a name stands for `-`.
    """
    named = ({"class": css} if css else {}) | {name.replace("_", "-"): value for name, value in attributes.items()}
    # Put together as plain text: Markup.format takes ten times as long, and a chart has hundreds of attributes.
    written = "".join(f' {name}="{escape(str(value))}"' for name, value in named.items())
    shown = "".join(part if isinstance(part, Markup) else escape(printable(part)) for part in inside)
    return Markup(f"<{tag}{written}>{shown}</{tag}>")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that enclose [low, high], at most `most` + 2 of them."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Frame:
    """Maps fractions from `first` to 1, and metric values, of which `marks` are labelled, to px."""

    size: Size
    first: float
    marks: Sequence[float]

    def x(self, fraction: float) -> float:
        left, right = self.size.left + _INSET, self.size.right - _INSET
        share = (min(max(fraction, self.first), 1.0) - self.first) / (1 - self.first)
        return round(left + share * (right - left), 1)

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return round(self.size.bottom - (value - low) / (high - low) * (self.size.bottom - self.size.top), 1)

    def path(self, pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in pairs)


@dataclass(frozen=True)
class Key:
    """A line of the chart: what it is, where it ends, and the suffix of its classes in chart.css."""

    name: str
    value: float
    css: str


def keys(curve: MeasuredCurve, predicted: Sequence[Prediction] = ()) -> tuple[Key, ...]:
    """Every line of the chart, the one that counts first."""
    found = [Key("measured", curve.points[-1].value, "curve")] if curve.points else []
    found += [Key("new/new", curve.new.value, "new")] if curve.new is not None else []
    found += [Key("predicted", predicted[-1].value, "guess")] if predicted else []
    found += [Key("uncalibrated", plain[-1].value, "plain")] if (plain := _uncalibrated(curve)) else []
    found += [Key("old/old", curve.old.value, "old")] if curve.old is not None else []
    return tuple(found)


def _uncalibrated(curve: MeasuredCurve) -> tuple[Point, ...]:
    """Nothing where calibration changes nothing: one line on the other would hide that there are two."""
    values = {point.version: point.value for point in curve.points}
    same = all(values.get(point.version) == point.value for point in curve.uncalibrated)
    return () if same else curve.uncalibrated


def svg(curve: MeasuredCurve, predicted: Sequence[Prediction] = (), size: Size = SMALL) -> Markup:
    """The chart as one element of a page.

    Args:
        predicted: the predicted curve on the chart's own scale.
    """
    box = f"0 0 {size.width} {size.height}"
    return element("svg", drawing(curve, predicted, size), viewBox=box, role="img", aria_label=summary(curve))


def summary(curve: MeasuredCurve) -> str:
    return f"{metric_name(curve.metric)} by {curve.relevance} against the share of the gallery re-embedded"


def drawing(curve: MeasuredCurve, predicted: Sequence[Prediction], size: Size) -> Markup:
    """What is in the chart: axes, both arms, bands, predicted, uncalibrated and measured curve, points, names."""
    arms = {name: arm for name, arm in (("old", curve.old), ("new", curve.new)) if arm is not None}
    banded: list[Point | Prediction] = [*curve.points, *predicted]
    plain = _uncalibrated(curve)
    lines: list[Point | MetricValue] = [*plain, *arms.values()]
    values = [v for p in banded for v in (p.low, p.value, p.high)] + [p.value for p in lines]
    # From the first version on: before it there is nothing. Where all is new at once, something is left of it.
    first = min([0.9, *(p.fraction for p in banded)])
    frame = Frame(size, first, ticks(min(values), max(values), most=6 if size.height > SMALL.height else 4))
    return Markup().join(
        [
            *_axes(frame, curve.points, predicted),
            *(element("line", css=f"line-{name}", **_horizontal(frame, arm.value)) for name, arm in arms.items()),
            _band(frame, predicted, "-guess"),
            *(_band(frame, part) for part in unbroken(curve.points)),
            _line(frame, predicted, "line-guess"),
            *(_line(frame, part, "line-plain") for part in unbroken(plain)),
            *(_line(frame, part, "line-curve") for part in unbroken(curve.points)),
            *(_dot(frame, point) for point in curve.points),
            *(_names(frame, curve, keys(curve, predicted)) if size.margin > 0 else ()),
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


def _horizontal(frame: Frame, value: float) -> dict[str, float]:
    return {"x1": frame.size.left, "x2": frame.size.right, "y1": frame.y(value), "y2": frame.y(value)}


def _axes(frame: Frame, points: Sequence[Point], predicted: Sequence[Prediction]) -> list[Markup]:
    size = frame.size
    decimals = max(0, -math.floor(math.log10(frame.marks[1] - frame.marks[0]) + 1e-9))
    parts = []
    for mark in frame.marks:
        parts.append(element("line", css="grid", **_horizontal(frame, mark)))
        parts.append(element("text", f"{mark:.{decimals}f}", x=size.left - 8, y=frame.y(mark) + 4, text_anchor="end"))
    fractions = sorted({*(p.fraction for p in points), *(p.fraction for p in predicted), 1.0})
    at, texts = [frame.x(fraction) for fraction in fractions], [percent(fraction) for fraction in fractions]
    parts += [element("line", css="grid", x1=x, x2=x, y1=size.bottom, y2=size.bottom + 5) for x in at]
    parts += _row(at, texts, size.bottom + 19)
    middle, below = (size.left + size.right) / 2, size.height - 8
    parts.append(element("text", "share of the gallery re-embedded", x=middle, y=below, text_anchor="middle"))
    points = sorted(points, key=lambda point: (point.fraction, point.version))
    return parts + _row([frame.x(p.fraction) for p in points], [f"v{p.version}" for p in points], size.top - 10)


def _row(centres: Sequence[float], texts: Sequence[str], y: float) -> list[Markup]:
    """The texts of one line that have room."""
    chosen = without_overlap(centres, texts)
    return [element("text", texts[i], x=centres[i], y=y, text_anchor="middle") for i in chosen]


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


def _names(frame: Frame, curve: MeasuredCurve, named: Sequence[Key]) -> list[Markup]:
    """What each line is, at its right end; lines that end at the same figure share one name."""
    size, last = frame.size, frame.x(curve.points[-1].fraction if curve.points else 1)
    at_curve = [key for key in named if key.css in ("curve", "plain")]
    room = size.right - last - 26
    # A curve that ends early is named where it ends; one that reaches the right edge shares the arms' margin.
    if any(text_width(f"{key.name} {score(key.value)}") > room for key in at_curve):
        return _labels(frame, size.right, size.margin, named)
    at_margin = [key for key in named if key not in at_curve]
    return _labels(frame, size.right, size.margin, at_margin) + _labels(frame, last, room, at_curve)


def _labels(frame: Frame, x: float, width: float, named: Sequence[Key]) -> list[Markup]:
    """Names right of `x`, each tied to the height of its line by a leader."""
    groups: dict[str, list[Key]] = {}
    for key in named:
        groups.setdefault(score(key.value), []).append(key)
    lines = [wrapped([key.name for key in group], value, width) for value, group in groups.items()]
    ends = [frame.y(group[0].value) for group in groups.values()]
    heights = [LINE_HEIGHT * len(each) + _GAP for each in lines]
    centres = spread(ends, heights, frame.size.top, frame.size.bottom)
    parts = []
    for group, texts, end, centre in zip(groups.values(), lines, ends, centres, strict=True):
        parts.append(element("polyline", css="leader", points=f"{x + 7},{end} {x + 15},{centre:.1f}"))
        first = centre + 4 - LINE_HEIGHT * (len(texts) - 1) / 2
        for i, text in enumerate(texts):
            parts.append(element("text", text, css=f"t-{group[0].css}", x=x + 20, y=f"{first + LINE_HEIGHT * i:.1f}"))
    return parts
