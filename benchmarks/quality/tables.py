"""The results as Markdown: means over the seeds, and their standard deviation where there are several. In per cent."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.quality.acceptance import ALIGNED, AUTO, BASELINE, acceptance
from benchmarks.quality.material import SETS
from benchmarks.results import Result, markdown

NAMES = {
    "label/cmc@1": "CMC@1",
    "label/cmc@5": "CMC@5",
    "label/map": "mAP",
    "new_model/recall@10": "overlap@10",
    "qrels/recall@1": "R@1",
    "qrels/mrr": "MRR",
}
MAIN_OBJECTIVES = ("label/map", "label/cmc@1", "qrels/recall@1", "new_model/recall@10")
PUBLISHED = ("FCT + random", BASELINE)
AUTOS = [(track, modes) for track in ("label-free", "labelled") for modes in (ALIGNED, AUTO)]


def render(results: Sequence[Result]) -> str:
    """Every table, then the lines of acceptance."""
    parts = ["# Quality benchmark", "All figures in per cent; areas are means over the 22 published points."]
    parts += ["## Summary", _summary(results)]
    for name in SETS:
        of_set = [result for result in results if result["set"] == name]
        if of_set:
            parts += _of_set(name, of_set)
    parts += ["## Acceptance", acceptance(results)]
    return "\n\n".join(parts)


def _summary(results: Sequence[Result]) -> str:
    """One line per set and objective: both ends, the published methods, and every `auto`."""
    head = ["set (seeds)", "objective", "old/old", *(f"{name}, published" for name in PUBLISHED)]
    head += [f"auto {track}, {modes}" for track, modes in AUTOS] + ["new/new"]
    lines = []
    for name in SETS:
        of_set = [result for result in results if result["set"] == name]
        lines += [_summary_line(of_set, o) for o in MAIN_OBJECTIVES if of_set and o in of_set[0]["objectives"]]
    return markdown(head, lines)


def _summary_line(results: list[Result], objective: str) -> list[str]:
    rows = [row for result in results for row in [*result["rows"], *result["auto"]]]
    shown = [[row for row in rows if row["name"] == name] for name in PUBLISHED]
    for track, modes in AUTOS:
        wanted = (objective, track, modes)
        shown.append([row for row in rows if (row["objective"], row["track"], row.get("modes")) == wanted])
    old, new = (cell(result["arms"][arm][objective]["value"] for result in results) for arm in ("old/old", "new/new"))
    areas = [cell(row["values"][objective]["area"] for row in same) for same in shown]
    return [f"{results[0]['set']} ({len(results)})", NAMES[objective], old, *areas, new]


def _of_set(name: str, results: list[Result]) -> list[str]:
    first = results[0]
    seconds = statistics.mean(result["seconds"]["all"] for result in results)
    parts = [
        f"## {name}",
        f"{first['description']} Metric {first['metric']}; items "
        + ", ".join(f"{part} {count}" for part, count in first["items"].items())
        + f"; queries: calibration {first['queries']['calibration']}, audit {first['queries']['audit']}; seeds "
        + ", ".join(str(result["seed"]) for result in results)
        + f"; {seconds:.0f} s of one core per seed.",
    ]
    for objective in (o for o in MAIN_OBJECTIVES if o in first["objectives"]):
        parts += [f"### {NAMES[objective]} as the objective", _main(results, objective)]
    parts += ["### What auto chose", _auto(results)]
    parts += [
        "### Calibration forms, aligned vectors, at the map and order of label-free auto",
        _areas(results, "forms"),
    ]
    if first["side"]:
        parts += ["### Side information", _areas(results, "side")]
    for key, heading, table in (
        ("gallery_size", "### Calibration and gallery size", _sizes),
        ("refit", "### Kernel ridge refitted on the way", _refit),
        ("groups", "### Groups: gap in mAP along the backfill", _groups),
    ):
        having = [result for result in results if key in result]
        if having:
            parts += [heading, table(having)]
    return parts


def _main(results: list[Result], objective: str) -> str:
    metrics = [metric for metric in NAMES if metric in results[0]["arms"]["new/new"]]
    head = ["order", "track", *(NAMES[metric] for metric in metrics), "at 0 %", "to 95 %", "to 99 %"]
    lines = []
    for arm in ("old/old", "new/new"):
        values = [[r["arms"][arm][metric]["value"] for r in results if arm in r["arms"]] for metric in metrics]
        lines.append([arm, "constant", *(cell(column) for column in values), "", "", ""])
    for entries in _together([[*r["rows"], *r["auto"]] for r in results]):
        row = entries[0]
        if row["objective"] not in (None, objective):
            continue
        areas = [cell([e["values"][metric]["area"] for e in entries]) for metric in metrics]
        at = [cell([e["values"][objective][key] for e in entries]) for key in ("at_0", "to_95", "to_99")]
        lines.append([row["name"], row["track"], *areas, *at])
    return markdown(head, lines)


def _auto(results: list[Result]) -> str:
    head = [
        "objective",
        "track",
        "stale modes",
        "winner",
        "runner-up",
        "margin",
        "best of the finalists",
        "auto - best",
    ]
    lines = []
    for entries in _together([r["auto"] for r in results]):
        row = entries[0]
        lines.append(
            [
                NAMES[row["objective"]],
                row["track"],
                row["modes"],
                _distinct(e["winner"] for e in entries),
                _distinct(e["runner_up"] or "none" for e in entries),
                interval([e["margin"] for e in entries]),
                _distinct(f"{e['best']} (of {e['rivals']})" for e in entries),
                interval([e["minus_best"] for e in entries]),
            ]
        )
    return markdown(head, lines)


def _areas(results: list[Result], key: str) -> str:
    lines = []
    for entries in _together([r[key] for r in results]):
        objective = entries[0]["objective"]
        values = [e["values"][objective] for e in entries]
        at = _distinct(f"{e['method']}, {e['policy']}" for e in entries)
        columns = [cell([value[column] for value in values]) for column in ("area", "at_0")]
        lines.append([NAMES[objective], entries[0]["name"], at, *columns])
    return markdown(["objective", "", "map, order", "area", "at 0 %"], lines)


def _sizes(results: list[Result]) -> str:
    head = ["items", "form", f"area, fitted on {results[0]['gallery_size'][0]['fitted_on']} items", "fitted there"]
    rows = [
        [str(row["items"]), row["form"], cell([row["carried"]]), cell([row["own"]])]
        for result in results
        for row in result["gallery_size"]
    ]
    return markdown(head, rows)


def _refit(results: list[Result]) -> str:
    rows = [
        [NAMES[row["objective"]], row["policy"], *(cell([row[key]]) for key in ("static", "refitted", "difference"))]
        for result in results
        for row in result["refit"]
    ]
    return markdown(["objective", "order", "area, map of the start", "area, refitted", "difference"], rows)


def _groups(results: list[Result]) -> str:
    studies = [result["groups"] for result in results]
    large, small = studies[0]["groups"]
    head = [f"{large} - {small}", *(f"{fraction:.0%}" for fraction in studies[0]["fractions"]), "closed at 10 %"]
    blank = [""] * len(head[2:])
    lines = [
        [arm, cell([study[key] for study in studies]), *blank] for arm, key in (("old/old", "old"), ("new/new", "new"))
    ]
    at = studies[0]["fractions"].index(0.1)
    for entries in _together([study["rows"] for study in studies]):
        gaps = [cell([e["gaps"][i] for e in entries]) for i in range(len(entries[0]["gaps"]))]
        lines.append([entries[0]["name"], *gaps, interval([e["closed"][at] for e in entries])])
    return markdown(head, lines)


def _together(per_seed: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Rows that are the same but for the seed, in the order of the first that has them."""
    same: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for rows in per_seed:
        for row in rows:
            key = tuple(row.get(name) for name in ("name", "track", "modes", "objective"))
            same.setdefault(key, []).append(row)
    return list(same.values())


def cell(values: Iterable[float | None]) -> str:
    """Mean, and spread where there are several; a dash where a value is unknown on every seed."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def interval(values: Iterable[dict[str, float] | None]) -> str:
    """Mean of the values and of both ends."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    value, low, high = (100 * statistics.mean(k[part] for k in known) for part in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
