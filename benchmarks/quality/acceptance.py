"""What the quality work promised, each with the figure reached, and whether it is met. From the JSON results alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.results import Result

MAP, CMC, OVERLAP, JUDGED = "label/map", "label/cmc@1", "new_model/recall@10", "qrels/recall@1"
BASELINE = "FastFill + uncertainty"
AUTO, ALIGNED = "fused or aligned", "aligned only"
# Points of area that auto may stay behind the best that was tried, where an interval tells them apart.
ALLOWED_BEHIND = 0.005


class Line(NamedTuple):
    """One promise on one set."""

    promise: str
    where: str
    figure: str
    met: bool


def acceptance(results: Sequence[Result]) -> str:
    """Markdown: a line per promise and set."""
    lines = ["| promise | where | figure | |", "| --- | --- | --- | --- |"]
    by_set: dict[str, list[Result]] = {}
    for result in results:
        by_set.setdefault(result["set"], []).append(result)
    for check in (half_of_the_gap, all_of_the_gap, never_worse, near_the_best, groups_closed):
        for name, of_set in by_set.items():
            for line in check(of_set):
                verdict = "met" if line.met else "NOT MET"
                lines.append(f"| {line.promise} | {name}, {line.where} | {line.figure} | {verdict} |")
    return "\n".join(lines)


def half_of_the_gap(results: Sequence[Result]) -> Iterator[Line]:
    """(a)"""
    promise = f"(a) label-free auto closes half of the area between published {BASELINE} and new/new"
    for objective in (MAP, OVERLAP):
        if MAP in results[0]["objectives"]:
            for modes in (AUTO, ALIGNED):
                yield _share_of_gap(results, objective, "label-free", modes, promise, 0.5)


def all_of_the_gap(results: Sequence[Result]) -> Iterator[Line]:
    """(b)"""
    promise = "(b) labelled auto closes all of it"
    for objective in (MAP, CMC):
        if objective in results[0]["objectives"]:
            for modes in (AUTO, ALIGNED):
                yield _share_of_gap(results, objective, "labelled", modes, promise, 1.0)


def _share_of_gap(
    results: Sequence[Result], objective: str, track: str, modes: str, promise: str, least: float
) -> Line:
    """The share of the gap in means over the seeds, on the same queries."""
    before, area, goal = (
        statistics.mean(values)
        for values in (
            [_baseline(result, objective) for result in results],
            [_area(_auto(result, objective, track, modes), objective) for result in results],
            [_arm(result, "new/new", objective) for result in results],
        )
    )
    share = (area - before) / (goal - before) if goal > before else float(area >= before)
    figure = f"{share:.0%} ({100 * before:.1f} -> {100 * area:.1f} -> {100 * goal:.1f})"
    return Line(promise, f"{objective}, {modes}", figure, share >= least)


def never_worse(results: Sequence[Result]) -> Iterator[Line]:
    """(c)"""
    if JUDGED not in results[0]["objectives"]:
        return
    rows = [_auto(result, JUDGED, "label-free", AUTO) for result in results]
    steps = [step for row in rows for step in row["minus_old"]]
    worst = min(steps, key=lambda step: step["high"])
    yield Line(
        "(c) at no fraction worse than old/old (paired interval)",
        JUDGED,
        "lowest upper end: {value:+.1f} [{low:+.1f}, {high:+.1f}] points".format(
            **{part: 100 * worst[part] for part in ("value", "low", "high")}
        ),
        worst["high"] >= 0,
    )
    area, old, new = (
        statistics.mean(values)
        for values in (
            [_area(row, JUDGED) for row in rows],
            [_arm(result, "old/old", JUDGED) for result in results],
            [_arm(result, "new/new", JUDGED) for result in results],
        )
    )
    share = (area - old) / (new - old)
    promise = "(c) area at least half way from old/old to new/new"
    figure = f"{share:.0%} ({100 * old:.1f} -> {100 * area:.1f} -> {100 * new:.1f})"
    yield Line(promise, JUDGED, figure, share >= 0.5)


def near_the_best(results: Sequence[Result]) -> Iterator[Line]:
    """(d): judged on the means over the seeds of the paired difference and of the ends of its interval."""
    promise = "(d) auto within 0.5 points, or the paired interval, of the best of the finalists"
    for row in results[0]["auto"]:
        key = row["objective"], row["track"], row["modes"]
        behind = [_auto(result, *key)["minus_best"] for result in results]
        value, low, high = (statistics.mean(b[part] for b in behind) for part in ("value", "low", "high"))
        lowest = min(b["value"] for b in behind)
        figure = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points, lowest seed {100 * lowest:+.1f}"
        yield Line(promise, ", ".join(key), figure, value >= -ALLOWED_BEHIND or high >= 0)


def groups_closed(results: Sequence[Result]) -> Iterator[Line]:
    """(e)"""
    studies = [result["groups"] for result in results if "groups" in result]
    if not studies:
        return
    at = studies[0]["fractions"].index(0.1)
    for name in (row["name"] for row in studies[0]["rows"] if row["name"].startswith("auto")):
        closed = [next(row for row in study["rows"] if row["name"] == name)["closed"] for study in studies]
        value, low, high = (statistics.mean(c[at][part] for c in closed) for part in ("value", "low", "high"))
        start = statistics.mean(c[0]["value"] for c in closed)
        # Above 100 % the gap has turned round: the smaller group is ahead by more than under new/new.
        figure = f"{value:.0%} [{low:.0%}, {high:.0%}], at 0 % already {start:.0%}"
        yield Line("(e) three quarters of the closable gap closed at 10 %", name, figure, value >= 0.75)


def _auto(result: Result, objective: str, track: str, modes: str) -> dict[str, Any]:
    wanted = (objective, track, modes)
    return next(row for row in result["auto"] if (row["objective"], row["track"], row["modes"]) == wanted)


def _area(row: dict[str, Any], objective: str) -> float:
    return float(row["values"][objective]["area"])


def _arm(result: Result, arm: str, objective: str) -> float:
    return float(result["arms"][arm][objective]["value"])


def _baseline(result: Result, objective: str) -> float:
    return float(next(row for row in result["rows"] if row["name"] == BASELINE)["shared"][objective])
