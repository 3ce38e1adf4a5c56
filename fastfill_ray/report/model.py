"""What people see of a run, derived from the log alone: the version table and the figures behind the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from fastfill_ray.log.records import Changes, MetricValue, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.wording import MISSING, percent, score
from fastfill_ray.retrieval.metrics import curve_area
from fastfill_ray.types import Relevance, Scope

Status = Literal["published", "held", "not published", "expired"]
# Where several are measured, this is the order in which curves are shown, after the objective's own.
CURVES: tuple[tuple[Relevance, str], ...] = (
    ("label", "cmc@1"),
    ("label", "map"),
    ("qrels", "recall@1"),
    ("qrels", "recall@10"),
    ("log", "recall@1"),
    ("log", "recall@10"),
    ("new_model", "recall@10"),
)
# Table heading -> the curves that may fill the column, the first measured one does.
METRIC_COLUMNS: dict[str, tuple[tuple[Relevance, str], ...]] = {
    "CMC@1": (("label", "cmc@1"),),
    "mAP": (("label", "map"),),
    "R@1": (("qrels", "recall@1"), ("log", "recall@1")),
    "recall@10": (("log", "recall@10"), ("new_model", "recall@10"), ("qrels", "recall@10")),
}
HEADINGS = ("version", "wave", "fraction", "new items", *METRIC_COLUMNS, "seconds", "published")


@dataclass(frozen=True)
class Point:
    """One version on a curve; ``fraction`` of the gallery re-embedded, 95 % interval [low, high].

    cause: as ``log.records.Version``. With a change the curve begins anew, for another gallery.
    """

    version: int
    fraction: float
    value: float
    low: float
    high: float
    status: Status
    cause: Literal["wave", "change"] = "wave"


@dataclass(frozen=True)
class MeasuredCurve:
    """One metric over the versions in the last plan's order, all points in one scope; the arms are of the last plan.

    new: of the arm new/new where that was measured in this scope; else of the newest version, if all of it is new.
    """

    relevance: Relevance
    metric: str
    scope: Scope
    points: tuple[Point, ...]
    uncalibrated: tuple[Point, ...]
    old: MetricValue | None
    new: MetricValue | None

    @property
    def name(self) -> str:
        return f"{self.relevance}/{self.metric}"

    @property
    def area(self) -> float | None:
        return area_under(self.points)

    @property
    def area_uncalibrated(self) -> float | None:
        """None unless it covers the same versions as ``area``: anything else would not compare."""
        same = [p.version for p in self.points] == [p.version for p in self.uncalibrated]
        return area_under(self.uncalibrated) if same else None

    @property
    def gain_share(self) -> float | None:
        """How far the last version is on the way from old/old to new/new; None where that way does not go up."""
        if not self.points or self.old is None or self.new is None or self.new.value <= self.old.value:
            return None
        return (self.points[-1].value - self.old.value) / (self.new.value - self.old.value)


def area_under(points: tuple[Point, ...]) -> float | None:
    """``retrieval.metrics.curve_area`` over the versions; None for fewer than two points.

    Where the gallery changed on the way, over those that went further than all before them.
    """
    furthest = itertools.accumulate((point.fraction for point in points), max, initial=-math.inf)
    points = tuple(point for point, before in zip(points, furthest, strict=False) if point.fraction > before)
    if len(points) < 2:
        return None
    return curve_area([point.fraction for point in points], [point.value for point in points])


def status(state: State, version: Version) -> Status:
    if version.version in state.expired:
        return "expired"
    if version.version in state.published:
        return "published"
    return "not published" if version.verdict.publish else "held"


def metric_value(
    metrics: Iterable[MetricValue], relevance: str, metric: str, scope: str, calibrated: bool = True
) -> MetricValue | None:
    """The value over all queries; None if it was not measured."""
    for m in metrics:
        # The name first: it tells most of them apart.
        if m.metric == metric and (m.relevance, m.scope, m.calibrated, m.group) == (relevance, scope, calibrated, None):
            return m
    return None


def measured_curve(state: State, relevance: Relevance, metric: str) -> MeasuredCurve | None:
    """The curve of one metric in the scope that covers most versions (gallery where equal); None if not measured."""
    versions = state.order_versions
    by_scope: dict[Scope, tuple[Point, ...]] = {
        scope: _points(state, versions, relevance, metric, scope, calibrated=True) for scope in ("gallery", "audit")
    }
    scope = max(by_scope, key=lambda s: len(by_scope[s]))
    if state.plan is None or not by_scope[scope]:
        return None
    arms, newest = state.plan.baselines, versions[-1]
    new = metric_value(arms.get("new/new", ()), relevance, metric, scope)
    if new is None and newest.fraction == 1:
        new = metric_value(newest.metrics, relevance, metric, scope)
    return MeasuredCurve(
        relevance=relevance,
        metric=metric,
        scope=scope,
        points=by_scope[scope],
        uncalibrated=_points(state, versions, relevance, metric, scope, calibrated=False),
        old=metric_value(arms.get("old/old", ()), relevance, metric, scope),
        new=new,
    )


def _points(
    state: State, versions: Iterable[Version], relevance: str, metric: str, scope: str, *, calibrated: bool
) -> tuple[Point, ...]:
    values = ((v, metric_value(v.metrics, relevance, metric, scope, calibrated)) for v in versions)
    return tuple(
        Point(v.version, v.fraction, m.value, m.low, m.high, status(state, v), v.cause)
        for v, m in values
        if m is not None
    )


def measured_curves(state: State) -> tuple[MeasuredCurve, ...]:
    """Every measured curve, the objective's first."""
    wanted = dict.fromkeys([*_objective(state), *CURVES])
    return tuple(curve for c in wanted if (curve := measured_curve(state, *c)) is not None)


def objective_curve(state: State) -> MeasuredCurve | None:
    return next((measured_curve(state, *c) for c in _objective(state)), None)


def _objective(state: State) -> list[tuple[Relevance, str]]:
    """What the last plan's objective names; nothing without a plan."""
    relevance, _, metric = state.plan.objective.partition("/") if state.plan is not None else ("", "", "")
    return [(known, metric) for known in get_args(Relevance) if known == relevance]


def column_curves(state: State) -> dict[str, MeasuredCurve]:
    """Table heading -> the curve whose values fill it; headings without one are left out."""
    columns: dict[str, MeasuredCurve] = {}
    for heading, candidates in METRIC_COLUMNS.items():
        measured = (measured_curve(state, *candidate) for candidate in candidates)
        first = next((curve for curve in measured if curve is not None), None)
        if first is not None:
            columns[heading] = first
    return columns


def column_note(state: State) -> str:
    """What the metric columns mean: relevance and scope of each."""
    columns = column_curves(state)
    if not columns:
        return "No metric has been measured yet."
    return "Metrics: " + ", ".join(f"{name} by {c.relevance} ({c.scope})" for name, c in columns.items()) + "."


def table_rows(state: State) -> list[tuple[str, ...]]:
    """Cells under ``HEADINGS``: old/old and new/new where measured, the versions in the last plan's order between."""
    columns = column_curves(state)
    rows = []
    for version in state.order_versions:
        cells = [str(version.version), wave_words(state, version), percent(version.fraction), f"{version.new_rows:,}"]
        for heading in METRIC_COLUMNS:
            points = columns[heading].points if heading in columns else ()
            cells.append(score(next((p.value for p in points if p.version == version.version), None)))
        rows.append((*cells, f"{version.seconds:,.1f}", _published(state, version)))
    baselines = state.plan.baselines if state.plan is not None else {}
    if "old/old" in baselines:
        old = [score(c.old.value if (c := columns.get(h)) and c.old else None) for h in METRIC_COLUMNS]
        rows.insert(0, ("old/old", *[MISSING] * 3, *old, *[MISSING] * 2))
    if "new/new" in baselines:
        new = [score(c.new.value if (c := columns.get(h)) and c.new else None) for h in METRIC_COLUMNS]
        rows.append(("new/new", *[MISSING] * 3, *new, *[MISSING] * 2))
    return rows


def change_of(state: State, version: Version) -> Changes | None:
    """How the gallery changed, for a version that shows it; None for a version after a wave."""
    if version.cause == "wave":
        return None
    return state.order_plans[version.plan].changes or Changes(added=0, changed=0, removed=0)


def change_note(state: State) -> str:
    """What changes among the versions are, and the newest one in full; empty without any."""
    changes = [version for version in state.order_versions if version.cause == "change"]
    if not changes:
        return ""
    newest = changes[-1]
    return (
        f"change (n): a version that follows the gallery, in which n items differ; the gate does not judge it. Version "
        f"{newest.version} {newest.verdict.reason}."
    )


def wave_words(state: State, version: Version) -> str:
    """The wave after which a version stands, or that it follows the gallery."""
    change = change_of(state, version)
    return str(version.wave) if change is None else f"change ({change.items:,})"


def _published(state: State, version: Version) -> str:
    now = status(state, version)
    if now == "published":
        return "yes, serving" if state.serving == version.version else "yes"
    if now == "held":
        difference = version.verdict.difference
        return "held" if difference is None else f"held ({difference:+.4f})"
    return "no" if now == "not published" else now
