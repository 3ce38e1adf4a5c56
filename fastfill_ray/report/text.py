"""The tables and notes that people read in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastfill_ray.log.state import State
from fastfill_ray.report.flips import flips_of
from fastfill_ray.report.model import HEADINGS, change_note, column_note, table_rows
from fastfill_ray.report.prediction import prediction_error
from fastfill_ray.report.wording import MISSING
from fastfill_ray.sanitize import printable
from fastfill_ray.types import Scope

CURVES_SHOWN = 12


def version_table(state: State) -> str:
    """The version table as plain text: what the metrics mean, the headings, one row per version of the last order.

    Below it, where flips are known, a line on how many queries the newest version helps and hurts; of a finished plan,
    one on how far the prediction was off.
    """
    if state.plan is None:
        return "No plan yet: the run has not got as far as its first commit."
    note = column_note(state) if state.order_versions else "No version yet."
    if not any(version.version == state.serving for version in state.order_versions) and state.serving is not None:
        note += f" Version {state.serving}, of an earlier order, is served."
    left = [heading in ("version", "published") for heading in HEADINGS]
    below = [printable(words) for words in (change_note(state), flips_note(state), prediction_note(state)) if words]
    return "\n".join([printable(note), *_aligned([HEADINGS, *table_rows(state)], left), *below])


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
    """One line on how far the prediction was off; empty before the plan is finished and where it is not known."""
    if not state.finished:
        return ""
    errors = prediction_error(state)
    scope: Scope = "audit" if errors["gallery"] is None else "gallery"
    error = errors[scope]
    if error is None or state.plan is None:
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
