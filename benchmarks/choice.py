"""What the choice is worth: its winner on the audit items, and whether it brings what the choice expected.

    python -m benchmarks.choice --cache sets --out results/choice [--sets digits ...] [--seeds 0 1 2 3 4]
    python -m benchmarks.choice --out results/choice --tables

One JSON file per set and seed; what exists is not measured again. Trained maps are kept under --out, too. One core is
enough (OMP_NUM_THREADS=1). Calibration and audit have the same number of items, and no query in common. Stale vectors
may be fused where users' queries ask, as in `simulate`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any, TextIO

import numpy as np

from benchmarks.quality.autos import best_of, finalists
from benchmarks.quality.curves import (
    AuditCurves,
    Estimate,
    Published,
    asking,
    audit_curves,
    estimate_of,
    published,
)
from benchmarks.quality.material import SETS, Limits, Material, prepare
from benchmarks.results import Result, main_with_maps, markdown
from fastfill_ray.experiment.candidate import WEIGHTS, Allowed, Objective
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.search import choose
from fastfill_ray.ordering.policies import Policy
from fastfill_ray.retrieval.intervals import JACKKNIFE_GROUPS, Interval

LIMITS = Limits(calibration=1000, audit=1000, queries=1000, equal=True)
# Of the items only some are sought by a query of the set's own.
JUDGED_LIMITS = Limits(calibration=2000, audit=2000, queries=1000, equal=True)
PUBLISHED_MAP = "fastfill"


def measure(
    name: str,
    seed: int,
    *,
    cache: Path,
    limits: Limits | None = None,
    folder: Path | None = None,
    stream: TextIO = sys.stderr,
) -> Result:
    """Every choice on one set at one seed.

    Args:
        cache: where the benchmark sets are. folder: where trained maps are kept.
    """
    limits = limits or (JUDGED_LIMITS if SETS[name][1] else LIMITS)
    material = prepare(name, seed, cache, limits, folder=folder, stream=stream)
    cases = []
    alignment = material.evidence.maps[PUBLISHED_MAP]
    parts = [material.audit, *map(material.audit.without, range(JACKKNIFE_GROUPS))]
    as_published = [published(material, alignment, part=part) for part in parts]
    for objective in material.objectives:
        curves = audit_curves(material, objective)
        rival = published_area(as_published, curves)
        for track, policies in material.tracks(objective).items():
            start = time.process_time()
            cases.append({"track": track, **_case(material, curves, policies, rival)})
            cases[-1]["seconds"] = round(time.process_time() - start, 1)
            print(f"{name}, seed {seed}, {objective}, {track}: {cases[-1]['winner']}", file=stream, flush=True)
    counted = {"calibration": material.calibration, "audit": material.audit}
    return {
        "set": name,
        "seed": seed,
        "items": {split: len(part.items.ids) for split, part in counted.items()},
        "queries": {split: len(part.queries.ids) for split, part in counted.items()},
        "cases": cases,
    }


def published_area(as_published: list[Published], curves: AuditCurves) -> Estimate:
    """Area of the published method by the objective: on the audit part, then without each group of it."""
    objective, (whole, *without) = curves.objective, as_published
    left_out = [np.nanmean(part.curve.area_per_query(objective)) for part in without]
    return estimate_of(whole.areas(objective, curves.queries), left_out)


def _case(material: Material, curves: AuditCurves, policies: list[Policy], as_published: Estimate) -> dict[str, Any]:
    """One choice. minus_...: area of the winner minus another's, on the same items and queries."""
    objective = curves.objective
    weights = (1.0,) if material.evidence.queries is None else WEIGHTS
    allowed = Allowed(material.evidence.views, policies, weights)
    choice = choose(material.calibration, allowed, objective, curves.seed)
    last = finalists(choice)
    best, area = best_of(curves, last), curves.estimate(choice.winner)
    others = {"best": curves.estimate(best), "published": as_published}
    if choice.runner_up is not None:
        others["runner_up"] = curves.estimate(choice.runner_up)
    return {
        "objective": str(objective),
        "winner": str(choice.winner),
        "runner_up": None if choice.runner_up is None else str(choice.runner_up),
        "best": str(best),
        "finalists": len(last),
        "expected": choice.expected._asdict(),
        "area": area.interval._asdict(),
        "new_new": {
            "calibration": new_new(material.calibration, objective),
            "audit": float(np.nanmean(curves.constant("new/new"))),
        },
        "published": as_published.interval._asdict(),
        **{f"minus_{name}": (area - other).interval._asdict() for name, other in others.items()},
        "optimism": independent_difference(choice.expected, area.interval)._asdict(),
    }


def new_new(part: HeldOut, objective: Objective) -> float:
    """The full new model by the objective."""
    shadow = part.shadow(asking(part, objective)).only([objective.relevance])
    return float(np.nanmean(shadow.measure(shadow.new)[objective.relevance, objective.metric]))


def independent_difference(first: Interval, second: Interval) -> Interval:
    """First minus second, of two independent samples."""
    half = float(np.hypot(first.high - first.low, second.high - second.low)) / 2
    value = first.value - second.value
    return Interval(value, value - half, value + half, min(first.queries, second.queries))


def render(results: list[Result]) -> str:
    """A line per set, objective and track, then the share of the cases whose optimism is within its interval."""
    head = ["set (seeds)", "objective", "track", "winners", "expected", "area", "new/new", "published"]
    head += ["- runner-up", "- best finalist", "- published", "optimism", "inside"]
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        for case in result["cases"]:
            rows.setdefault((result["set"], case["objective"], case["track"]), []).append(case)
    lines = [[f"{name} ({len(same)})", *about, *_cells(same)] for (name, *about), same in rows.items()]
    everything = [case for same in rows.values() for case in same]
    inside = sum(map(_inside, everything))
    share = f"{inside / len(everything):.0%}" if everything else "none"
    return "\n\n".join(
        [
            "Areas in per cent, means over the seeds; differences with 95 % intervals that cover the draw of items and "
            "queries, pooled as if seeds were independent (they draw from the same set). Optimism: expected - area.",
            markdown(head, lines),
            f"Optimism within its 95 % interval: {inside} of {len(everything)} cases ({share}).",
        ]
    )


def _cells(same: list[dict[str, Any]]) -> list[str]:
    """The cells of one line: the same case at several seeds."""
    winners = Counter(case["winner"] for case in same)
    new_new = (mean(case["new_new"][split] for case in same) for split in ("calibration", "audit"))
    return [
        "; ".join(f"{count} x {winner}" for winner, count in winners.most_common()),
        *(f"{100 * mean(case[key]['value'] for case in same):.1f}" for key in ("expected", "area")),
        " / ".join(f"{100 * value:.1f}" for value in new_new),
        f"{100 * mean(case['published']['value'] for case in same):.1f}",
        *(pooled([case.get(f"minus_{key}") for case in same]) for key in ("runner_up", "best", "published")),
        pooled([case["optimism"] for case in same]),
        f"{sum(map(_inside, same))}/{len(same)}",
    ]


def _inside(case: dict[str, Any]) -> bool:
    return bool(case["optimism"]["low"] <= 0 <= case["optimism"]["high"])


def pooled(intervals: list[dict[str, float] | None]) -> str:
    """Mean of independent differences with its 95 % interval, in points; a dash where there are none."""
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return "-"
    value = 100 * mean(interval["value"] for interval in known)
    half = 100 * float(np.sqrt(sum(((i["high"] - i["low"]) / 2) ** 2 for i in known))) / len(known)
    return f"{value:+.1f} [{value - half:+.1f}, {value + half:+.1f}]"


def main(arguments: list[str] | None = None) -> None:
    main_with_maps("benchmarks.choice", __doc__, arguments, sets=SETS, measure=measure, render=render, seeds=range(5))


if __name__ == "__main__":
    main()
