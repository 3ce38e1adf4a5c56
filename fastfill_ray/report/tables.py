"""The tables of the report's page: cells as text, still without markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastfill_ray.log.records import FlipValue, Plan, Version
from fastfill_ray.log.state import State
from fastfill_ray.report.choice import HEADINGS as TRIAL_HEADINGS
from fastfill_ray.report.choice import trial_rows
from fastfill_ray.report.findings import against, difference, finding
from fastfill_ray.report.flips import AGAINST, flips_of, group_metrics
from fastfill_ray.report.model import HEADINGS, MeasuredCurve, change_of, objective_curve, status, table_rows
from fastfill_ray.report.prediction import SCOPES, promises
from fastfill_ray.report.wording import MISSING, SCOPE_PLACES, SCOPE_WORDS, metric_name, percent, score, score_interval


@dataclass(frozen=True)
class Row:
    """The cells of one line of a table; `mark` says that it is an arm, a held version or neither."""

    cells: tuple[str, ...]
    mark: Literal["", "arm", "held"] = ""


@dataclass(frozen=True)
class Table:
    """Rows under headings; `words`: the headings of the columns that hold words, all others hold figures."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    words: tuple[str, ...] = ()


def without_empty_columns(headings: tuple[str, ...], rows: Sequence[Row], words: tuple[str, ...] = ()) -> Table:
    """The table without the columns that hold only dashes."""
    filled = [any(row.cells[i] != MISSING for row in rows) for i in range(len(headings))]

    def chosen(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cell for cell, is_filled in zip(cells, filled, strict=True) if is_filled)

    return Table(chosen(headings), tuple(Row(chosen(row.cells), row.mark) for row in rows), words)


@dataclass(frozen=True)
class MetricTable:
    """A table of one metric by one relevance. `where`: on what it was measured, in words."""

    metric: str
    relevance: str
    table: Table
    where: str = ""


def versions_table(state: State) -> Table:
    """The version table, with what is not where it should be, if anything is."""
    versions = {str(version.version): version for version in state.order_versions}
    rows = []
    for cells in table_rows(state):
        version = versions.get(cells[0])
        if version is None:
            rows.append(Row((*cells[:-1], *[MISSING] * 3), "arm"))
            continue
        held = status(state, version) == "held"
        counts = (f"{count:,}" if count else MISSING for count in (version.quarantined, version.absent))
        rows.append(Row((*cells[:-1], *counts, "held" if held else cells[-1]), "held" if held else ""))
    return without_empty_columns((*HEADINGS[:-1], "quarantined", "absent", HEADINGS[-1]), rows, words=HEADINGS[-1:])


VERDICT_HEADINGS = ("version", "verdict", "difference (95 % interval)", "outcome")


def verdicts_table(state: State) -> Table | None:
    """What the gate found of every version, and what became of it; None without a version."""
    rows = []
    for version in state.order_versions:
        now = status(state, version)
        found = f"{finding(version)}{_than(state, version)}"
        outcome = "published, serving" if state.serving == version.version else now
        cells = (str(version.version), found, difference(version), outcome)
        rows.append(Row(cells, "held" if now == "held" else ""))
    return without_empty_columns(VERDICT_HEADINGS, rows, words=("verdict", "outcome")) if rows else None


def _than(state: State, version: Version) -> str:
    """With what a version was compared, or what it follows."""
    if (change := change_of(state, version)) is not None:
        return f": {change.items:,} items differ"
    word = {"better": "than", "worse": "than", "undecided": "against"}.get(finding(version))
    return "" if word is None else f" {word} {against(state, version)}"


FLIP_COLUMNS = ("worse than", "better than", "mean loss to", "mean gain over")


def flips_table(state: State) -> MetricTable | None:
    """Per version the shares of queries that got worse and better, against the old system and the version before."""
    flips = {version.version: flips_of(state, version) for version in state.order_versions}
    first = next((value for values in flips.values() for value in values.values()), None)
    if first is None:
        return None
    headings = ("version", *(f"{column} {of}" for of in AGAINST for column in FLIP_COLUMNS))
    rows = (
        Row((str(number), *(cell for of in AGAINST for cell in _flip_cells(values.get(of)))))
        for number, values in flips.items()
    )
    table = without_empty_columns(headings, tuple(rows))
    return MetricTable(metric_name(first.metric), first.relevance, table, where=SCOPE_WORDS[first.scope])


def _flip_cells(value: FlipValue | None) -> tuple[str, ...]:
    """Shares of the queries that got worse and better, and by how much on average."""
    if value is None:
        return (MISSING,) * 4
    shares = ((value.nfr, value.nfr_low, value.nfr_high), (value.pfr, value.pfr_low, value.pfr_high))
    written = (f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for share, low, high in shares)
    return (*written, score(value.mean_loss), score(value.mean_gain))


def groups_table(state: State, plan: Plan) -> MetricTable | None:
    """The objective per group of the queries and version, and the gap between the groups."""
    best = objective_curve(state)
    if best is None:
        return None
    place = (best.scope, best.relevance, best.metric)
    versions = {str(v.version): group_metrics(v.metrics).get(place, {}) for v in state.order_versions}
    names = dict.fromkeys(name for groups in versions.values() for name in groups)
    if not names:
        return None
    arms = {arm: group_metrics(plan.baselines.get(arm, ())).get(place, {}) for arm in ("old/old", "new/new")}
    columns = {"old/old": arms["old/old"], **versions, "new/new": arms["new/new"]}
    columns = {heading: groups for heading, groups in columns.items() if groups}
    rows = []
    for name in names:
        queries = max(groups[name].queries for groups in columns.values() if name in groups)
        values = (groups[name].value if name in groups else None for groups in columns.values())
        rows.append(Row((name, f"{queries:,}", *map(score, values))))
    spans = ([m.value for m in groups.values()] for groups in columns.values())
    rows.append(Row(("gap", MISSING, *(score(max(values) - min(values)) for values in spans)), "arm"))
    table = Table(("group", "queries", *columns), tuple(rows), words=("group",))
    return MetricTable(metric_name(best.metric), best.relevance, table)


def predictions_table(state: State) -> MetricTable | None:
    """Per version what was predicted and what was measured, as values and as shares of the gain."""
    made = promises(state)
    if not made:
        return None
    rows = []
    for p in made:
        values = [p.prediction, *(p.measured.get(scope) for scope in SCOPES)]
        shares = [p.share, *(p.shares.get(scope) for scope in SCOPES)]
        cells = [MISSING if p.version is None else str(p.version), percent(p.prediction.fraction)]
        cells += [MISSING if v is None else score_interval(v.value, v.low, v.high) for v in values]
        cells += [MISSING if share is None else percent(share) for share in shares]
        rows.append(Row(tuple(cells)))
    on = {what: [f"{what} on {scope}" for scope in SCOPES] for what in ("measured", "share")}
    headings = ("version", "fraction", "predicted", *on["measured"], "share predicted", *on["share"])
    first = made[0].prediction
    return MetricTable(
        metric_name(first.metric), first.relevance, without_empty_columns(headings, rows), SCOPE_PLACES[first.scope]
    )


def areas_table(curves: tuple[MeasuredCurve, ...]) -> Table:
    rows = []
    for curve in curves:
        arms = (None if arm is None else arm.value for arm in (curve.old, curve.new))
        values = (curve.area, curve.area_uncalibrated, *arms)
        rows.append(Row((f"{metric_name(curve.metric)} by {curve.relevance}", curve.scope, *map(score, values))))
    headings = ("metric", "scope", "measured", "uncalibrated", "old/old", "new/new")
    return without_empty_columns(headings, rows, words=("scope",))


def trials_table(plan: Plan) -> Table | None:
    """The best candidates of the last stage of the choice."""
    rows = tuple(Row(cells) for cells in trial_rows(plan))
    return Table(TRIAL_HEADINGS, rows, words=("stale mode", "policy", "calibration", "outcome")) if rows else None
