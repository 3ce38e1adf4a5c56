"""One backfilling curve as inline SVG: geometry only, colours and strokes come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fastfill_ray.log.records import Prediction
from fastfill_ray.report.model import MeasuredCurve, Point
from fastfill_ray.report.wording import metric_name, percent, score

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 424, 26, 232
LABEL_GAP = 15


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
    """Maps fractions in [0, 1] and metric values in [low, high] to pixels."""

    low: float
    high: float

    def x(self, fraction: float) -> float:
        return round(LEFT + min(max(fraction, 0.0), 1.0) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        return round(BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP), 1)

    def path(self, pairs: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in pairs)


def svg(curve: MeasuredCurve, predicted: Sequence[Prediction] = ()) -> str:
    """The chart: axes, both arms, bands, predicted, uncalibrated and calibrated curve, points, labels at the right.

    Args:
        predicted: the promised curve, on the chart's own scale.
    """
    arms = [(arm, m) for arm, m in (("old", curve.old), ("new", curve.new)) if m is not None]
    values = [v for p in curve.points for v in (p.low, p.value, p.high)]
    values += [p.value for p in curve.uncalibrated] + [m.value for _, m in arms]
    values += [v for p in predicted for v in (p.low, p.value, p.high)]
    marks = ticks(min(values), max(values))
    frame = Frame(marks[0], marks[-1])
    last = curve.points[-1]
    at_margin = [(m.value, f"{arm}/{arm} {score(m.value)}", f"t-{arm}") for arm, m in arms]
    at_curve = [(last.value, f"calibrated {score(last.value)}", "t-curve")]
    if curve.uncalibrated:
        plain = curve.uncalibrated[-1].value
        at_curve.append((plain, f"uncalibrated {score(plain)}", "t-plain"))
    if predicted:
        at_margin.append((predicted[-1].value, f"predicted {score(predicted[-1].value)}", "t-guess"))
    # A curve that ends early is labelled where it ends; one that reaches the right edge shares the arms' margin.
    if last.fraction > 0.6:
        at_margin, at_curve = at_margin + at_curve, []
    summary = f"{metric_name(curve.metric)} by {curve.relevance} against the share of the gallery re-embedded"
    return "".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">',
            *_axes(frame, marks, curve),
            *(f'<line class="arm-{a}" {_horizontal(frame.y(m.value))}/>' for a, m in arms),
            _band(frame, predicted, "guess") if predicted else "",
            _band(frame, curve.points),
            _line(frame, predicted, "line-guess"),
            _line(frame, curve.uncalibrated, "line-plain"),
            _line(frame, curve.points, "line"),
            *(_dot(frame, p) for p in curve.points),
            *_labels(frame, RIGHT, at_margin),
            *_labels(frame, frame.x(last.fraction), at_curve),
            "</svg>",
        ]
    )


def _horizontal(y: float) -> str:
    return f'x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"'


def _axes(frame: Frame, marks: Sequence[float], curve: MeasuredCurve) -> list[str]:
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    parts = []
    for mark in marks:
        y = frame.y(mark)
        parts.append(f'<line class="grid" {_horizontal(y)}/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{mark:.{decimals}f}</text>')
    for quarter in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = frame.x(quarter)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 19}" text-anchor="middle">{percent(quarter)}</text>')
    parts.append(
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">share of the gallery re-embedded</text>'
    )
    free = -math.inf
    for point in curve.points:
        x, text = frame.x(point.fraction), f"v{point.version}"
        if x >= free:
            parts.append(f'<text x="{x}" y="{TOP - 10}" text-anchor="middle">{text}</text>')
            free = x + 8 * len(text) + 2
    return parts


def _band(frame: Frame, points: Sequence[Point | Prediction], of: str = "") -> str:
    """The 95 % interval: an area, or a whisker where there is one point only. `of`: the curve, "" the measured one."""
    css = f"-{of}" if of else ""
    if len(points) == 1:
        (p,) = points
        x = frame.x(p.fraction)
        return f'<line class="whisker{css}" x1="{x}" x2="{x}" y1="{frame.y(p.low)}" y2="{frame.y(p.high)}"/>'
    outline = [(p.fraction, p.high) for p in points] + [(p.fraction, p.low) for p in reversed(points)]
    return f'<polygon class="band{css}" points="{frame.path(outline)}"/>'


def _line(frame: Frame, points: Sequence[Point | Prediction], css: str) -> str:
    if not points:
        return ""
    if len(points) == 1:
        x, y = frame.x(points[0].fraction), frame.y(points[0].value)
        return f'<polyline class="{css}" points="{x - 5},{y} {x + 5},{y}"/>'
    return f'<polyline class="{css}" points="{frame.path([(p.fraction, p.value) for p in points])}"/>'


def _dot(frame: Frame, p: Point) -> str:
    css = "dot" if p.status in ("published", "expired") else "dot-held"
    text = (
        f"version {p.version}, {percent(p.fraction)}: {score(p.value)} ({score(p.low)} to {score(p.high)}), {p.status}"
    )
    return (
        f'<circle class="{css}" cx="{frame.x(p.fraction)}" cy="{frame.y(p.value)}" r="4.5">'
        f"<title>{escape(text)}</title></circle>"
    )


def _labels(frame: Frame, x: float, labels: Sequence[tuple[float, str, str]]) -> list[str]:
    """Texts right of `x`, each tied to its own height by a leader."""
    heights = [frame.y(value) for value, _, _ in labels]
    parts = []
    for (_, text, css), y, placed in zip(labels, heights, spread(heights, LABEL_GAP, TOP, BOTTOM), strict=True):
        parts.append(f'<polyline class="leader" points="{x + 7},{y} {x + 15},{placed:.1f}"/>')
        parts.append(f'<text class="{css}" x="{x + 18}" y="{placed + 4:.1f}">{escape(text)}</text>')
    return parts
