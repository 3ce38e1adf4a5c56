"""The table of a simulation, for people: from the same JSON that simulation.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 12


def simulation_table(data: Mapping[str, Any], shown: int = SHOWN) -> str:
    """Arms and the best curves by area under the objective, then the choice, as plain text; figures in percent."""
    names = _columns(data)
    rows: list[Sequence[str]] = [("", *names, "at 0 %", "to 95 %")]
    for arm, values in data["arms"].items():
        rows.append((arm, *(_percent(values.get(name, {}).get("value")) for name in names), "", ""))
    main = data["objective"] or names[0]
    curves = sorted(data["curves"], key=lambda c: -(c["values"].get(main, {}).get("area") or 0))
    for curve in curves[:shown]:
        values = curve["values"]
        cells = [_percent(values.get(name, {}).get("area")) for name in names]
        of_main = values.get(main, {})
        rows.append((_name(curve), *cells, _percent(of_main.get("at_0")), _percent(of_main.get("to_95"))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"Arms, and areas under the curves (mean over the backfill, %), best {main} first:"]
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    choice = data.get("choice")
    if choice is not None:
        lines.append(f"Chosen on the calibration split: {_name(choice['winner'])}.")
        if choice["runner_up"] is not None and choice["margin"] is not None:
            m = choice["margin"]
            lines.append(
                f"Runner-up: {_name(choice['runner_up'])}; on the audit split the choice is ahead by "
                f"{100 * m['value']:+.2f} points [{100 * m['low']:+.2f}, {100 * m['high']:+.2f}]."
            )
    return "\n".join(line.rstrip() for line in lines)


def _columns(data: Mapping[str, Any]) -> list[str]:
    wanted = ["label/cmc@1", "label/map", "qrels/recall@1", "new_model/recall@10"]
    there = data["curves"][0]["values"] if data["curves"] else {}
    first = [data["objective"]] if data["objective"] else []
    return list(dict.fromkeys([*first, *(name for name in wanted if name in there)]))


def _name(candidate: Mapping[str, Any]) -> str:
    mode = "aligned" if candidate["weight"] == 1 else f"fused {candidate['weight']:g}"
    return f"{candidate['method']}, {mode}, {candidate['policy']}, {candidate['calibration']}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
