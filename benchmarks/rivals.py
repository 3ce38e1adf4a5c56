"""Cheaper ways through a change of models, beside backfills: the same items and queries for all.

    python -m benchmarks.rivals --cache sets --out results [--sets docstrings ...] [--seeds 0 1 2]
    python -m benchmarks.rivals --out results --tables > tables.md

The rivals are those of ``experiment.rivals``. auto: what a run would choose between two maps in closed form, with every
order, stale mode and calibration. aligned, fused: its map in random order, one calibration; fused with old queries of
the old model, and with queries mapped by a reverse map. One core is enough (OMP_NUM_THREADS=1).

Legend: Q queries, N items.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.material import SETS as QUALITY_SETS
from benchmarks.quality.material import Limits, prepare_set
from benchmarks.results import Result, main_with_maps, markdown
from benchmarks.sets import load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.alignment.reverse import fit_reverse
from fastfill_ray.experiment.candidate import WEIGHTS, Candidate, MapView, Objective
from fastfill_ray.experiment.curves import Curve
from fastfill_ray.experiment.experiment import Question, Report, run_experiment
from fastfill_ray.experiment.heldout import Evidence, HeldOut, answered, hold_out
from fastfill_ray.experiment.items import MAX_QUERIES
from fastfill_ray.experiment.rivals import QUERY_MAP, SHOWN, rival_curves
from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.types import F64

# In closed form, so that a set takes a minute; `auto` chooses between them.
METHODS: tuple[Method, ...] = ("kernel", "ridge")
SETS = QUALITY_SETS | {"operations-qrels": ("operations", True)}
AUTO, FUSED, FUSED_MAPPED = "auto", "fused", "fused, mapped queries"


def best_weight(part: HeldOut, objective: Objective, view: MapView) -> float:
    """The aligned score's share that is best while all is stale; 1 is `aligned`."""
    queries = part.answered(objective.relevance).first(MAX_QUERIES)
    shadow = part.shadow(queries).only([objective.relevance])

    def value(weight: float) -> float:
        measured = shadow.measure(part.stale_scores(queries, shadow, view, weight))
        return float(np.nanmean(measured[objective.relevance, objective.metric]))

    return max(WEIGHTS, key=value)


def fused(parts: Sequence[HeldOut], objective: Objective, view: MapView) -> tuple[float, Curve]:
    """The best share of the aligned score, and the curve with it in random order, calibrated on the first part."""
    weight = best_weight(parts[0], objective, view)
    form: Form = "offset" if weight == 1 else "scale_offset"
    return weight, Report(parts[0], parts[1], objective, objective).curve(Candidate(view, weight, "random", form))


def rows(evidence: Evidence, objective: Objective) -> dict[str, Any]:
    """Every way by one objective: its curve, its area, and how far above it the calibrated backfills are."""
    findings = run_experiment(evidence, Question(objective, WEIGHTS))
    users, train = evidence.queries, evidence.pairs.part("train")
    further = None if users is None else answered(users, train, "qrels")
    reverse = fit_reverse(train, "kernel", "default", seed=evidence.seed, queries=further)
    winner = findings.choice.winner
    parts = [hold_out(evidence, split, []) for split in ("calibration", "audit")]
    mapped = [replace(part, queries=replace(part.queries, old=reverse(part.queries.new)[0])) for part in parts]
    weight, of_fused = fused(parts, objective, winner.view)
    mapped_weight, of_mapped = fused(mapped, objective, winner.view)
    curves = {
        AUTO: findings.curve(winner),
        "aligned": Report(parts[0], parts[1], objective, objective).curve(
            Candidate(winner.view, 1, "random", "offset")
        ),
        FUSED: of_fused,
        FUSED_MAPPED: of_mapped,
        **rival_curves(
            parts[1].items,
            findings.queries,
            evidence.metric,
            mapped=reverse(findings.queries.new)[0],
            seed=evidence.seed,
        ),
    }
    values = {name: curve.values[objective.relevance, objective.metric] for name, curve in curves.items()}
    arms = {
        arm: float(np.nanmean(measured[objective.relevance, objective.metric]))
        for arm, measured in findings.arms.items()
    }
    for name, of_way in values.items():
        if name != QUERY_MAP and abs(float(np.nanmean(of_way[-1])) - arms["new/new"]) > 1e-9:
            raise AssertionError(f"{name}: does not end where the new model is")
    return {
        "arms": arms,
        "winner": str(winner),
        "weights": {FUSED: weight, FUSED_MAPPED: mapped_weight},
        "rows": {name: _row(name, values, evidence.seed) for name in values},
    }


def _row(name: str, values: Mapping[str, F64], seed: int) -> dict[str, Any]:
    area = values[name].mean(axis=0)
    above = {
        other: mean_interval(values[other].mean(axis=0) - area, seed=seed)[:3] for other in (AUTO, FUSED, FUSED_MAPPED)
    }
    return {
        "curve": np.nanmean(values[name], axis=1).tolist(),
        "area": mean_interval(area, seed=seed)[:3],
        "above": above,
    }


def measure(name: str, seed: int, cache: Path, folder: Path) -> Result:
    data, judged = SETS[name]
    limits = Limits(methods=METHODS, calibration=2000 if judged else 800)
    start = time.process_time()
    material = prepare_set(load_set(data, cache), name, seed, limits, judged=judged, folder=folder, stream=sys.stderr)
    return {
        "set": name,
        "seed": seed,
        "description": material.built.description,
        "objectives": {str(objective): rows(material.evidence, objective) for objective in material.both},
        "seconds": round(time.process_time() - start, 1),
    }


def render(results: list[Result]) -> str:
    parts = [f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; numpy {np.__version__}."]
    for name, group in groupby(results, key=lambda result: result["set"]):
        runs = list(group)
        parts += [
            _table(name, objective, [run["objectives"][objective] for run in runs])
            for objective in runs[0]["objectives"]
        ]
    return "\n\n".join(parts)


def _table(name: str, objective: str, runs: list[dict[str, Any]]) -> str:
    arms = {arm: 100 * float(np.mean([run["arms"][arm] for run in runs])) for arm in runs[0]["arms"]}
    lines = []
    for way in runs[0]["rows"]:
        shown = np.mean([run["rows"][way]["curve"] for run in runs], axis=0)[list(SHOWN)]
        area = float(np.mean([run["rows"][way]["area"][0] for run in runs]))
        gaps = [_gap([run["rows"][way]["above"][other] for run in runs]) for other in runs[0]["rows"][way]["above"]]
        lines.append([way, *(f"{100 * value:.1f}" for value in shown), f"{100 * area:.1f}", *gaps])
    shares = [f"{100 * place / 21:.0f} %" for place in SHOWN]
    head = ["way", *shares, "area", *(f"area of {other} above it" for other in runs[0]["rows"][AUTO]["above"])]
    said = ", ".join(f"{arm} {value:.1f}" for arm, value in arms.items())
    counted = Counter(run["winner"] for run in runs)
    winners = "; ".join(f"{count} x {winner}" for winner, count in counted.most_common())
    return f"### {name}, {objective} ({len(runs)} seeds): {said}\n\nauto: {winners}.\n\n{markdown(head, lines)}"


def _gap(intervals: list[list[float]]) -> str:
    value = np.mean([interval[0] for interval in intervals])
    low, high = min(interval[1] for interval in intervals), max(interval[2] for interval in intervals)
    return f"{100 * value:+.1f} ({100 * low:+.1f}..{100 * high:+.1f})"


def main(arguments: list[str] | None = None) -> None:
    main_with_maps("benchmarks.rivals", __doc__, arguments, sets=SETS, measure=measure, render=render)


if __name__ == "__main__":
    main()
