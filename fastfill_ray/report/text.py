"""The tables and notes that people read in a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastfill_ray.log.state import State
from fastfill_ray.report.decision import decision
from fastfill_ray.report.findings import difference, gains, outcome
from fastfill_ray.report.flips import flips_of
from fastfill_ray.report.model import change_note, column_curves, column_note, objective_curve, wave_words
from fastfill_ray.report.prediction import prediction_error
from fastfill_ray.report.rest import few_asked, prior_words
from fastfill_ray.report.wording import MISSING, metric_name, percent, score
from fastfill_ray.sanitize import printable
from fastfill_ray.types import Scope

CURVES_SHOWN = 12
WIDTH = 120
# Stages below this share of the time are one line together; those that come in numbers have one for all of them.
_LEAST_SHARE = 0.02
_OF_MANY = {"wave": "wait for waves", "build": "build versions"}


def lead(state: State) -> str:
    """The decision in one sentence, which `run` ends and the report begins with; "" without a plan."""
    return "" if state.plan is None else wrapped(decision(state).words)


def version_table(state: State) -> str:
    """The version table as plain text, at most WIDTH wide: what the metrics mean, the headings, one row per version of
    the last order between the arms.

    Below it, what the columns of the gate mean; where flips are known, a line on how many queries the newest version
    helps and hurts; of a finished plan, one on how far the prediction was off.
    """
    if state.plan is None:
        return "No plan yet: the run has not got as far as its first commit."
    note = column_note(state) if state.order_versions else "No version yet."
    if not any(version.version == state.serving for version in state.order_versions) and state.serving is not None:
        note += f" Version {state.serving}, of an earlier order, is served."
    notes = (gate_note(state), change_note(state), flips_note(state), prediction_note(state), prior_words(state))
    below = [wrapped(words) for words in notes if words]
    return "\n".join([wrapped(note), *table_lines(_version_columns(state)), *below])


def _version_columns(state: State) -> list[Column]:
    """The columns of the version table, with the arms where they are measured."""
    plan, versions, curves = state.plan, state.order_versions, column_curves(state)
    objective = objective_curve(state)
    if objective is not None and objective.name not in {curve.name for curve in curves.values()}:
        curves = {metric_name(objective.metric): objective, **curves}
    baselines = {} if plan is None else plan.baselines
    arms = [arm for arm in ("old/old", "new/new") if arm in baselines]
    gained = gains(state)

    def column(heading: str, cells: Iterable[str], arm_of: Mapping[str, str] | None = None, **how: Any) -> Column:
        values = list(cells)
        of_arm = {arm: (arm_of or {}).get(arm, MISSING) for arm in arms}
        before, after = ([of_arm[arm]] if arm in of_arm else [] for arm in ("old/old", "new/new"))
        return Column(heading, (*before, *values, *after), **how)

    metrics = []
    for heading, curve in curves.items():
        value_of = {point.version: point.value for point in curve.points}
        of_arms = {"old/old": curve.old, "new/new": curve.new}
        known = {arm: score(None if value is None else value.value) for arm, value in of_arms.items()}
        needed = objective is not None and curve.name == objective.name
        cells = [score(value_of.get(version.version)) for version in versions]
        metrics.append(column(heading, cells, known, is_needed=needed))
    names: dict[str, str] = {arm: arm for arm in arms}
    waves = [wave_words(state, version) for version in versions]
    steps = [MISSING if (gain := gained.get(version.version)) is None else f"{gain:+.3f}" for version in versions]
    outcomes = [outcome(state, version) for version in versions]
    return [
        column("version", [str(version.version) for version in versions], names, is_left=True),
        column("wave", waves),
        column("new", [percent(version.fraction) for version in versions]),
        column("new items", [f"{version.new_rows:,}" for version in versions], is_needed=False),
        *metrics,
        column("gain", steps),
        column("gate (95 % interval)", map(difference, versions)),
        column("verdict", outcomes, is_left=True),
        column("seconds", [f"{version.seconds:,.0f}" for version in versions], is_needed=False),
    ]


def gate_note(state: State) -> str:
    """What the columns of the gate mean; empty where it has compared nothing."""
    if state.plan is None or all(version.verdict.difference is None for version in state.order_versions):
        return ""
    relevance, _, metric = state.plan.objective.partition("/")
    of_column = (heading for heading, curve in column_curves(state).items() if curve.name == state.plan.objective)
    objective = f"{next(of_column, metric_name(metric))} by {relevance}"
    return (
        f"gain: of the objective, {objective}, over the version before, of the first one over old/old. gate: the "
        "difference to what was published then, on the same queries. better: by the whole interval; undecided: the "
        "interval reaches both sides of 0; held: worse, not published."
    )


def flips_note(state: State) -> str:
    """One line on the newest version's flips; empty where none are known."""
    versions = state.plan_versions
    flips = flips_of(state, versions[-1]) if versions else {}
    if not flips:
        return ""
    parts = [f"against {against} {100 * f.nfr:.1f} % worse, {100 * f.pfr:.1f} % better" for against, f in flips.items()]
    first = next(iter(flips.values()))
    name = f"{first.metric} by {first.relevance} ({first.scope})"
    return f"Queries of version {versions[-1].version}, {name}: {'; '.join(parts)}."


def prediction_note(state: State) -> str:
    """One line on how far the prediction was off; empty before the plan is finished, where it is not known, and where
    too few queries predicted anything.
    """
    if not state.finished or state.plan is None or few_asked(state.plan):
        return ""
    errors = prediction_error(state)
    scope: Scope = "audit" if errors["gallery"] is None else "gallery"
    error = errors[scope]
    if error is None:
        return ""
    first = state.plan.prediction[0]
    return (
        f"Predicted {first.metric} by {first.relevance}, measured on {scope}: mean absolute error of the share of the "
        f"gain {100 * error:.1f} %."
    )


def simulation_table(data: Mapping[str, Any], shown: int = CURVES_SHOWN) -> str:
    """Arms and the best curves by area under the objective, then the choice, as plain text; figures in percent.

    Args:
        data: what simulation.json holds.
    """
    names = _simulation_columns(data)
    objective = data["objective"] or names[0]
    rows: list[Sequence[str]] = [("", *names, "at 0 %", "to 95 %")]
    for arm, values in data["arms"].items():
        rows.append((arm, *(_points(values.get(name, {}).get("value")) for name in names), "", ""))
    best_first = sorted(data["curves"], key=lambda curve: -(curve["values"].get(objective, {}).get("area") or 0))
    for curve in best_first[:shown]:
        values = curve["values"]
        areas = [_points(values.get(name, {}).get("area")) for name in names]
        of_objective = values.get(objective, {})
        rows.append((_candidate(curve), *areas, _points(of_objective.get("at_0")), _points(of_objective.get("to_95"))))
    title = f"Arms, and areas under the curves (mean over the backfill, %), best {objective} first:"
    left = [column == 0 for column in range(len(rows[0]))]
    return "\n".join([title, *_aligned(rows, left), *_simulation_choice(data.get("choice"))])


def _simulation_columns(data: Mapping[str, Any]) -> list[str]:
    usual = ["label/cmc@1", "label/map", "qrels/recall@1", "new_model/recall@10"]
    measured = data["curves"][0]["values"] if data["curves"] else {}
    first = [data["objective"]] if data["objective"] else []
    return list(dict.fromkeys([*first, *(name for name in usual if name in measured)]))


def _simulation_choice(choice: Mapping[str, Any] | None) -> list[str]:
    if choice is None:
        return []
    lines = [printable(f"Chosen on the calibration split: {_candidate(choice['winner'])}.")]
    if choice["runner_up"] is not None and choice["margin"] is not None:
        margin = choice["margin"]
        lines.append(
            f"Runner-up: {printable(_candidate(choice['runner_up']))}; on the audit split the choice is ahead by "
            f"{100 * margin['value']:+.2f} points [{100 * margin['low']:+.2f}, {100 * margin['high']:+.2f}]."
        )
    return lines


def _candidate(candidate: Mapping[str, Any]) -> str:
    mode = "aligned" if candidate["weight"] == 1 else f"fused {candidate['weight']:g}"
    return f"{candidate['method']}, {mode}, {candidate['policy']}, {candidate['calibration']}"


def _points(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def seconds_table(seconds: Mapping[str, float]) -> list[str]:
    """Where the time of a run went: a line per stage, the longest first, waves and builds as one; none without any."""
    taken: dict[str, float] = {}
    for name, took_s in seconds.items():
        of_many = re.fullmatch(r"(wave|build) \d+", name)
        stage = name if of_many is None else _OF_MANY[of_many[1]]
        taken[stage] = taken.get(stage, 0.0) + took_s
    whole = sum(taken.values())
    if not whole:
        return []
    longest = sorted(
        (stage for stage in taken if taken[stage] >= _LEAST_SHARE * whole), key=lambda stage: -taken[stage]
    )
    rest = whole - sum(taken[stage] for stage in longest)
    rows = [
        *((stage, taken[stage]) for stage in longest),
        *([("all others", rest)] if len(longest) < len(taken) else []),
    ]
    columns = [
        Column("stage", tuple(stage for stage, _ in rows), is_left=True),
        Column("seconds", tuple(f"{took_s:,.1f}" for _, took_s in rows)),
        Column("share", tuple(f"{100 * took_s / whole:.0f} %" for _, took_s in rows)),
    ]
    return table_lines(columns)


@dataclass(frozen=True)
class Column:
    """A column of a table, its cells without the heading. is_needed: it stays where the lines get too long."""

    heading: str
    cells: tuple[str, ...]
    is_left: bool = False
    is_needed: bool = True


def table_lines(columns: Sequence[Column]) -> list[str]:
    """The lines of a table. Columns that are not needed are left out, first ones first, until it fits into WIDTH."""
    columns = list(columns)
    while True:
        rows = list(zip(*((column.heading, *column.cells) for column in columns), strict=True))
        lines = _aligned(rows, [column.is_left for column in columns])
        spare = [column for column in columns if not column.is_needed]
        if not spare or max(map(len, lines)) <= WIDTH:
            return lines
        columns.remove(spare[0])


def wrapped(text: str) -> str:
    """Printable, in lines of at most WIDTH."""
    glued = printable(text).replace(" %", "\xa0%")
    lines = textwrap.wrap(glued, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\xa0", " ")


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[bool]) -> list[str]:
    """Lines of cells, printable, padded to equal widths; `left`: per column, whether it is set to the left."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(left))]
    return [
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]
