"""What an export loses in the middle of a backfill: without its calibration, and with the scale of its first version.

    python -m benchmarks.baked --cache sets --out results/baked [--sets digits ...] [--seeds 0 1 2]
    python -m benchmarks.baked --out results/baked --tables

`exact` is what ``open_index`` and a full baked export serve. `frozen` is a store that follows with ``--since``: stale
items keep the scale of the first export, and later offsets make up for it at the level where the first ten of a query
end. `no scale` is the same backfill calibrated by offsets alone, which ``--since`` follows exactly; `no_scale` is what
``serving.calibration: no_scale`` chooses instead, map and order among it. `naive` is an export that is not baked.
Calibrations are fitted on the calibration items, figures are of the audit items. Asserted first: inner products of
baked vectors are the scores that are measured. One core is enough (OMP_NUM_THREADS=1).

Legend: Q queries, N items.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.quality.curves import audit_curves
from benchmarks.quality.material import OVERLAP, SETS, Limits, Material, prepare
from benchmarks.results import Result, command_line, markdown
from fastfill_ray.experiment.candidate import Allowed, Candidate
from fastfill_ray.experiment.curves import Backfill, FittedCalibrations
from fastfill_ray.experiment.experiment import Report
from fastfill_ray.experiment.search import choose
from fastfill_ray.ordering.proxies import GAIN_DEPTH
from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.retrieval.calibration import NO_SCALE, Form, OrderCalibration
from fastfill_ray.retrieval.intervals import mean_interval, paired_difference
from fastfill_ray.retrieval.similarity import unit_rows

FRACTIONS = (0.05, 0.25, 0.5, 0.75)
# The form with most to lose, whatever the choice would have taken.
FORM: Form = "scale_offset_by_wave"
RIVALS = ("frozen", "no scale", "no_scale", "naive")
WEIGHTS = {"aligned": 1.0, "fused": 0.5}
LIMITS = Limits(methods=("kernel", "ridge", "procrustes"))
LEVEL_QUERIES = 64  # as many as an export asks
_CHECKED = 40  # items of the assertion


def measure(name: str, seed: int, *, cache: Path, folder: Path | None = None) -> Result:
    """Exact serving and its rivals on one set at one seed.

    Args:
        cache: where the benchmark sets are. folder: where trained maps are kept.
    """
    material = prepare(name, seed, cache, LIMITS, folder=folder)
    cases = []
    for objective in (material.objectives[0], OVERLAP):
        curves = audit_curves(material, objective)
        allowed = Allowed(material.evidence.views, material.tracks(objective)["label-free"], (1.0,))
        winner = choose(material.calibration, allowed, objective, seed).winner
        without = choose(material.calibration, replace(allowed, forms=NO_SCALE), objective, seed).winner
        for mode, weight in WEIGHTS.items():
            candidate = replace(winner, weight=weight, form=FORM)
            case = _case(material, curves.report, candidate, replace(without, weight=weight), seed)
            cases.append({"objective": str(objective), "mode": mode, "candidate": str(candidate), **case})
            print(f"{name}, seed {seed}: {objective}, {candidate}", file=sys.stderr, flush=True)
    return {"set": name, "seed": seed, "python": platform.python_version(), "numpy": np.__version__, "cases": cases}


def _case(material: Material, report: Report, candidate: Candidate, without: Candidate, seed: int) -> Result:
    """Per fraction the mean of `exact`, and what the rivals are above or below it, query by query.

    Args:
        without: what is chosen where no form has a scale.
    """
    objective = report.shown_by
    queries = material.audit.answered(objective.relevance).first(report.shadow.new.shape[0])
    backfill = material.audit.backfill(candidate, queries, report.shadow)
    exact = report.fit(candidate)
    frozen = _frozen(exact, backfill)
    if candidate.weight == 1:
        _check(material, candidate, backfill, frozen)
    cutoffs = [round(fraction * len(backfill.order)) for fraction in FRACTIONS]
    served = {
        "exact": (backfill, exact),
        "frozen": (backfill, frozen),
        "no scale": (backfill, report.fit(replace(candidate, form="offset_by_wave"))),
        "no_scale": (material.audit.backfill(without, queries, report.shadow), report.fit(without)),
        "naive": (backfill, FittedCalibrations()),
    }
    values = {
        name: of.trace(fitted, cutoffs, relevances=[objective.relevance]).values[objective.relevance, objective.metric]
        for name, (of, fitted) in served.items()
    }
    return {
        "scales": [calibration.scale for calibration in exact.calibrations],
        "without": str(without),
        "fractions": [
            {
                "fraction": fraction,
                "exact": mean_interval(values["exact"][at], seed=seed)._asdict(),
                **{
                    name: paired_difference(values[name][at], values["exact"][at], seed=seed)._asdict()
                    for name in RIVALS
                },
            }
            for at, fraction in enumerate(FRACTIONS)
        ],
    }


def _frozen(exact: FittedCalibrations, backfill: Backfill) -> FittedCalibrations:
    """As ``export --since`` keeps it: o' = o + (s' - s) level, s the scale of the first version."""
    stale = np.sort(backfill.stale[:LEVEL_QUERIES], axis=1)[:, -GAIN_DEPTH]
    level, first = float(stale.mean()), exact.at(FRACTIONS[0])
    return FittedCalibrations(
        exact.knots,
        tuple(
            OrderCalibration(first.scale, each.offset + (each.scale - first.scale) * level, each.slope)
            for each in exact.calibrations
        ),
    )


def _check(material: Material, candidate: Candidate, backfill: Backfill, fitted: FittedCalibrations) -> None:
    """Baked vectors of some items that are stale half way, and baked queries, have the scores that are measured."""
    cutoff = len(backfill.order) // 2
    calibration = fitted.at(cutoff / len(backfill.order))
    part, rows = material.audit, backfill.order[cutoff:][:: max(1, cutoff // _CHECKED)]
    queries = part.answered(OVERLAP.relevance).new[:_CHECKED]
    aligned = part.aligned[candidate.view][rows].astype(np.float32)
    if part.metric == "cosine":
        aligned = unit_rows(aligned)  # as an index keeps them
    baking = Baking(
        metric=part.metric,
        new_dim=aligned.shape[1],
        scale=calibration.scale,
        offset=calibration.offset,
        slope=calibration.slope,
    )
    places = backfill.positions[rows]
    items = np.concatenate([baking.items(vector[None], float(u)) for vector, u in zip(aligned, places, strict=True)])
    products = baking.queries(queries) @ items.T
    asking = part.answered(OVERLAP.relevance).first(_CHECKED)
    plain = part.stale_scores(asking, part.shadow(asking), candidate.view, 1.0)[:, rows]
    expected = calibration.apply(plain, places)
    known = np.isfinite(expected)  # a query does not find itself
    np.testing.assert_allclose(products[known], expected[known], rtol=1e-4, atol=1e-4 * np.abs(expected[known]).max())


def render(results: list[Result]) -> str:
    """One line per set, objective, mode and fraction; means over the seeds, widest intervals of them."""
    lines: list[list[str]] = []
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for result in results:
        for case in result["cases"]:
            for point in case["fractions"]:
                key = (result["set"], case["objective"], case["mode"], point["fraction"])
                groups.setdefault(key, []).append(point)
    for (name, objective, mode, fraction), points in groups.items():
        cells = [f"{100 * mean(p['exact']['value'] for p in points):.1f}"]
        for kind in RIVALS:
            low, high = min(p[kind]["low"] for p in points), max(p[kind]["high"] for p in points)
            value = mean(p[kind]["value"] for p in points)
            cells.append(f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
        lines.append([name, objective, mode, f"{100 * fraction:.0f} %", *cells])
    head = ["set", "objective", "stale items", "new", "exact", *(f"{kind}, against it" for kind in RIVALS)]
    return markdown(head, lines)


def main(arguments: list[str] | None = None) -> None:
    command_line(
        argparse.ArgumentParser(prog="python -m benchmarks.baked", description=__doc__.splitlines()[0]),
        arguments,
        sets=[name for name in SETS if name in ("digits", "docstrings")],
        seeds=[0, 1, 2],
        measure=lambda name, seed, given: measure(name, seed, cache=given.cache, folder=given.out / "maps"),
        render=render,
    )


if __name__ == "__main__":
    main()
