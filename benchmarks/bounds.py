"""What bounds the curves that stay below the full new model: more pairs for the map, or nothing that a map can give.

    python -m benchmarks.bounds --cache sets --out results [--sets glyphs ...] [--seeds 0 1 2]
    python -m benchmarks.bounds --out results --tables > tables.md

Per set the objective that is open there, asked of `auto` (every order, stale mode and form) twice on the same audit
items and queries: with maps of the usual pairs, and with maps of the same inputs that are given every item of the set
that is neither calibration nor audit. Beside them published FastFill, whose map has the usual pairs. One core is enough
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.maps import kept_maps
from benchmarks.quality.material import (
    CMC,
    JUDGED,
    OVERLAP,
    SETS,
    Limits,
    Material,
    draw,
    items_of,
    prepare_set,
)
from benchmarks.quality.rows import published_rows
from benchmarks.results import Result, main_with_maps, markdown
from benchmarks.sets import load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.alignment.pairs import classifier_for
from fastfill_ray.experiment.candidate import WEIGHTS, Objective
from fastfill_ray.experiment.experiment import Question, run_experiment
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.retrieval.intervals import mean_interval

OPEN = {"digits": CMC, "docstrings": CMC, "docstrings-qrels": JUDGED, "glyphs": OVERLAP, "glyphs-biased": OVERLAP}
METHODS: tuple[Method, ...] = ("kernel", "ridge", "fastfill")


def measure(name: str, seed: int, cache: Path, folder: Path) -> Result:
    data, judged = SETS[name]
    objective, built = OPEN[name], load_set(data, cache)
    limits = Limits(methods=METHODS, calibration=2000 if judged else 800)
    start = time.process_time()
    material = prepare_set(built, name, seed, limits, judged=judged, folder=folder, stream=sys.stderr)
    usual, given_all = (
        _auto(evidence, objective) for evidence in (material.evidence, with_all_pairs(material, folder))
    )
    published = next(row for row in published_rows(material, material.evidence.maps) if "FastFill" in row["name"])
    return {
        "set": name,
        "seed": seed,
        "objective": str(objective),
        "published": published["shared"][str(objective)],
        "usual": usual,
        "all": given_all,
        "seconds": round(time.process_time() - start, 1),
    }


def with_all_pairs(material: Material, folder: Path) -> Evidence:
    """The evidence, with maps and orders that know every item of the set which is not held out."""
    built, limits = material.built, material.limits
    rows = draw(built, material.seed, limits)
    held_out = np.concatenate([rows["calibration"], rows["audit"]])
    rows |= {"train": np.setdiff1d(np.arange(len(built.old)), held_out)}
    pairs = items_of(built, rows)
    own = None if built.classifier is None else Classifier.of_class_numbers(*built.classifier)
    maps = kept_maps(pairs, METHODS, own, seed=material.seed, folder=folder, stream=sys.stderr)
    classifier = classifier_for(own, pairs.part("train"))
    return replace(material.evidence, pairs=pairs, maps=maps, classifier=classifier)


def _auto(evidence: Evidence, objective: Objective) -> dict[str, Any]:
    """What `auto` chooses, and its curve on the audit items; arms on the same queries."""
    findings = run_experiment(evidence, Question(objective, WEIGHTS))
    if findings.chosen_by != objective:
        raise AssertionError(f"chosen by {findings.chosen_by}, not by {objective}")
    values = findings.curve(findings.choice.winner).values[objective.relevance, objective.metric]
    return {
        "pairs": len(evidence.pairs.part("train").ids),
        "winner": str(findings.choice.winner),
        "first": float(np.nanmean(values[0])),
        "area": mean_interval(values.mean(axis=0), seed=evidence.seed)[:3],
        "arms": {
            arm: float(np.nanmean(measured[objective.relevance, objective.metric]))
            for arm, measured in findings.arms.items()
        },
    }


def render(results: list[Result]) -> str:
    head = (
        *("set (seeds)", "objective", "old/old", "published FastFill, area", "pairs", "auto at 0 %", "auto, area"),
        *("all pairs", "at 0 %", "area", "new/new", "share of the gap", "with all pairs"),
    )
    named = {name: [result for result in results if result["set"] == name] for name in OPEN}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; numpy {np.__version__}."
    return f"{machine}\n\n{markdown(head, [_line(name, runs) for name, runs in named.items() if runs])}"


def _line(name: str, runs: Sequence[Result]) -> list[str]:
    def mean(*path: str) -> float:
        found: list[float] = []
        for run in runs:
            value: Any = run
            for key in path:
                value = value[key]
            found.append(value[0] if isinstance(value, list) else value)
        return 100 * float(np.mean(found))

    old, new = mean("usual", "arms", "old/old"), mean("usual", "arms", "new/new")
    base = mean("published") if runs[0]["objective"] == str(OVERLAP) else old
    shares = [(mean(which, "area") - base) / (new - base) for which in ("usual", "all")]
    cells = [name + f" ({len(runs)})", runs[0]["objective"], f"{old:.1f}", f"{mean('published'):.1f}"]
    for which in ("usual", "all"):
        cells += [f"{runs[0][which]['pairs']:,}", f"{mean(which, 'first'):.1f}", f"{mean(which, 'area'):.1f}"]
    return [*cells, f"{new:.1f}", *(f"{share:.0%}" for share in shares)]


def main(arguments: list[str] | None = None) -> None:
    main_with_maps("benchmarks.bounds", __doc__, arguments, sets=OPEN, measure=measure, render=render)


if __name__ == "__main__":
    main()
