"""What people see of a run, derived from the log alone: the version table and the figures behind the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fastfill_ray.log.records import MetricValue, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.flips import flips_note, group_gap
from fastfill_ray.report.prediction import prediction_error, prediction_json, prediction_note
from fastfill_ray.retrieval.metrics import curve_area
from fastfill_ray.types import Relevance, Scope

Status = Literal["published", "held", "not published", "expired"]
# Where several are measured, this is the order in which curves are shown, after the objective's own.
CURVES: tuple[tuple[Relevance, str], ...] = (
    ("label", "cmc@1"),
    ("label", "map"),
    ("qrels", "recall@1"),
    ("qrels", "recall@10"),
    ("new_model", "recall@10"),
)
# Table heading -> the curves that may fill the column, the first measured one does.
METRIC_COLUMNS: dict[str, tuple[tuple[Relevance, str], ...]] = {
    "CMC@1": (("label", "cmc@1"),),
    "mAP": (("label", "map"),),
    "R@1": (("qrels", "recall@1"),),
    "recall@10": (("new_model", "recall@10"), ("qrels", "recall@10")),
}
HEADINGS = ("version", "wave", "fraction", "new items", *METRIC_COLUMNS, "seconds", "published")
MISSING = "-"


@dataclass(frozen=True)
class Point:
    """One version on a curve; ``fraction`` of the gallery re-embedded, 95 % interval [low, high]."""

    version: int
    fraction: float
    value: float
    low: float
    high: float
    status: Status


@dataclass(frozen=True)
class Curve:
    """One metric over the versions of the last plan, all points in one scope."""

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
    """``retrieval.metrics.curve_area`` over the versions; None for fewer than two points."""
    if len(points) < 2 or points[-1].fraction <= points[0].fraction:
        return None
    return curve_area([point.fraction for point in points], [point.value for point in points])


def status(state: State, version: Version) -> Status:
    if version.version in state.expired:
        return "expired"
    if version.version in state.published:
        return "published"
    return "not published" if version.verdict.publish else "held"


def find(
    metrics: Iterable[MetricValue], relevance: str, metric: str, scope: str, calibrated: bool = True
) -> MetricValue | None:
    """The value over all queries, None if it was not measured."""
    wanted = (relevance, metric, scope, calibrated, None)
    return next((m for m in metrics if (m.relevance, m.metric, m.scope, m.calibrated, m.group) == wanted), None)


def curve(state: State, relevance: Relevance, metric: str) -> Curve | None:
    """The curve of one metric in the scope that covers most versions (gallery where equal); None if not measured."""
    versions = state.plan_versions
    by_scope: dict[Scope, tuple[Point, ...]] = {
        scope: _points(state, versions, relevance, metric, scope, calibrated=True) for scope in ("gallery", "audit")
    }
    scope = max(by_scope, key=lambda s: len(by_scope[s]))
    if state.plan is None or not by_scope[scope]:
        return None
    arms = state.plan.baselines
    return Curve(
        relevance=relevance,
        metric=metric,
        scope=scope,
        points=by_scope[scope],
        uncalibrated=_points(state, versions, relevance, metric, scope, calibrated=False),
        old=find(arms.get("old/old", ()), relevance, metric, scope),
        new=find(arms.get("new/new", ()), relevance, metric, scope),
    )


def _points(
    state: State, versions: Iterable[Version], relevance: str, metric: str, scope: str, *, calibrated: bool
) -> tuple[Point, ...]:
    found = ((v, find(v.metrics, relevance, metric, scope, calibrated)) for v in versions)
    return tuple(
        Point(v.version, v.fraction, m.value, m.low, m.high, status(state, v)) for v, m in found if m is not None
    )


def curves(state: State) -> tuple[Curve, ...]:
    """Every measured curve, the objective's first."""
    if state.plan is None:
        return ()
    wanted = list(CURVES)
    relevance, _, metric = state.plan.objective.partition("/")
    for known in get_args(Relevance):
        if known == relevance:
            wanted = [(known, metric), *(c for c in CURVES if c != (known, metric))]
    return tuple(found for c in wanted if (found := curve(state, *c)) is not None)


def objective_curve(state: State) -> Curve | None:
    return next((c for c in curves(state) if state.plan is not None and c.name == state.plan.objective), None)


def column_curves(state: State) -> dict[str, Curve]:
    """Table heading -> the curve whose values fill it; headings without one are left out."""
    columns: dict[str, Curve] = {}
    for heading, candidates in METRIC_COLUMNS.items():
        found = next((c for candidate in candidates if (c := curve(state, *candidate)) is not None), None)
        if found is not None:
            columns[heading] = found
    return columns


def column_note(state: State) -> str:
    """What the metric columns mean: relevance and scope of each."""
    columns = column_curves(state)
    if not columns:
        return "No metric has been measured yet."
    return "Metrics: " + ", ".join(f"{name} by {c.relevance} ({c.scope})" for name, c in columns.items()) + "."


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def score(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def plain(text: str) -> str:
    """Text from the log made safe for a terminal line: no control characters, single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def table_rows(state: State) -> list[tuple[str, ...]]:
    """Cells under ``HEADINGS``: old/old and new/new where measured, the last plan's versions between them."""
    columns = column_curves(state)
    rows = []
    for version in state.plan_versions:
        cells = [str(version.version), str(version.wave), percent(version.fraction), f"{version.new_rows:,}"]
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


def _published(state: State, version: Version) -> str:
    found = status(state, version)
    if found == "published":
        return "yes, serving" if state.serving == version.version else "yes"
    if found == "held":
        difference = version.verdict.difference
        return "held" if difference is None else f"held ({difference:+.4f})"
    return "no" if found == "not published" else found


def version_table(state: State) -> str:
    """The version table as plain text: what the metrics mean, the headings, one row per version of the last plan.

    Below it, where flips are known, a line on how many queries the newest version helps and hurts; of a finished plan,
    one on how far the prediction was off.
    """
    if state.plan is None:
        return "No plan yet: the run has not got as far as its first commit."
    table = [HEADINGS, *table_rows(state)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if heading in ("version", "published") else cell.rjust(width)
            for heading, cell, width in zip(HEADINGS, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]
    note = column_note(state) if state.plan_versions else "No version yet."
    if not any(version.version == state.serving for version in state.plan_versions) and state.serving is not None:
        note += f" Version {state.serving}, of an earlier plan, is served."
    below = [plain(words) for words in (flips_note(state), prediction_note(state)) if words]
    return "\n".join([note, *lines, *below])


def report_json(state: State) -> dict[str, Any]:
    """Everything a notebook would plot, as plain JSON values.

    Keys: ``finished``, ``stopped`` (why, null if not), ``serving``, ``init``, ``plan`` (without its file references,
    and without arms and prediction, which have keys of their own), ``objective`` (the last version's value, both arms
    and ``gain_share``), ``versions`` (with ``status``, all ``metrics``, ``flips``, ``segments`` and ``index_bytes``),
    ``baselines``, ``curves`` (each with its points, both areas and both arms), ``group_gap`` (per scope, relevance and
    metric: the gap between the groups in each version, beside the overall value), ``prediction`` (per version:
    ``predicted``, ``audit`` and ``gallery``, each with value, interval and share of the gain), ``prediction_error``
    (per scope: mean absolute difference of the shares). Keys are there even when empty: null, [] or {}.
    """
    own_keys = {"kind", "units", "templates", "baselines", "baseline_queries", "prediction"}
    plan, best = state.plan, objective_curve(state)
    return {
        "finished": state.finished,
        "stopped": state.stopped,
        "serving": state.serving,
        "init": None if state.init is None else state.init.model_dump(mode="json", exclude={"kind"}),
        "plan": None if plan is None else plan.model_dump(mode="json", exclude=own_keys),
        "objective": None
        if plan is None
        else {
            "name": plan.objective,
            "scope": best.scope if best else None,
            "value": best.points[-1].value if best else None,
            "old/old": best.old.value if best and best.old else None,
            "new/new": best.new.value if best and best.new else None,
            "gain_share": best.gain_share if best else None,
        },
        "versions": [
            {
                **v.model_dump(mode="json", exclude={"kind", "plan", "segments", "query_metrics"}),
                "status": status(state, v),
                "segments": len(v.segments),
                "index_bytes": sum(s.index.size + s.ids.size for s in v.segments),
            }
            for v in state.plan_versions
        ],
        "baselines": {}
        if plan is None
        else {arm: [m.model_dump(mode="json") for m in values] for arm, values in plan.baselines.items()},
        "curves": [
            {
                "relevance": c.relevance,
                "metric": c.metric,
                "scope": c.scope,
                "points": [asdict(p) for p in c.points],
                "uncalibrated": [asdict(p) for p in c.uncalibrated],
                "area": c.area,
                "area_uncalibrated": c.area_uncalibrated,
                "old/old": None if c.old is None else c.old.model_dump(mode="json"),
                "new/new": None if c.new is None else c.new.model_dump(mode="json"),
            }
            for c in curves(state)
        ],
        "group_gap": group_gap(state),
        "prediction": prediction_json(state),
        "prediction_error": prediction_error(state),
    }
