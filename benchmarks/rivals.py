"""Cheaper ways through a change of models, beside a backfill: one map (ridge), random order, the same queries for all.

    python -m benchmarks.rivals --cache sets --out results [--sets docstrings ...] [--seeds 0 1 2]
    python -m benchmarks.rivals --out results --tables > tables.md

naive swap: the old index serves until everything is embedded. query map: the old index as it is, asked with new queries
mapped to old ones (Drift-Adapter; Vejendla, EMNLP 2025). rank merge: what is stale is asked by old queries, what is new
by new ones, merged by raw scores (Seo et al., WACV 2025); the same with mapped queries. RRF: two lists merged by
reciprocal ranks (Cormack et al., SIGIR 2009). aligned, fused: as a backfill serves stale items; fused with old queries
of the old model, and with mapped ones. One core is enough (OMP_NUM_THREADS=1).

Legend: Q queries, N items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.material import SETS as QUALITY_SETS
from benchmarks.quality.material import Limits, Material, prepare_set
from benchmarks.results import Result, command_line, markdown
from benchmarks.sets import load_set
from fastfill_ray.alignment.reverse import fit_reverse
from fastfill_ray.experiment.candidate import WEIGHTS, Candidate, MapView, Objective
from fastfill_ray.experiment.curves import backfill_order, published_cutoffs
from fastfill_ray.experiment.heldout import HeldOut, answered
from fastfill_ray.experiment.items import Queries
from fastfill_ray.experiment.shadow import Measured, Shadow, own_items, scores_of
from fastfill_ray.retrieval.calibration import fit_queries
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.retrieval.ranking import rank
from fastfill_ray.types import F32, F64, Bools

METHOD = "ridge"
VIEW = MapView(METHOD)
SETS = QUALITY_SETS | {"operations-qrels": ("operations", True)}
# Places among the 22 points that are shown: 0, 10, 24, 48, 76, 90 and 100 %.
SHOWN = (0, 2, 5, 10, 16, 19, 21)
# Where backfills are calibrated; in random order little changes between.
KNOTS = (0.05, 0.5, 0.95)
_RRF_CONSTANT = 60

# (Q, N) scores of the state in which some of the items (N,) are new.
State = Callable[[Bools], F32]


def merged(shadow: Shadow, old: F32) -> State:
    """Rank merge: stale items by `old` (Q, N), the score of an old query, as it is."""
    return lambda is_new: np.where(is_new, shadow.new, old)


def reciprocal_ranks(shadow: Shadow, old: F32) -> State:
    """RRF: an item scores 1 / (60 + its rank) in the index that it is in; of equal ranks the new item is first."""

    def scores(is_new: Bools) -> F32:
        fused = np.full(shadow.new.shape, -np.inf, np.float32)
        for of_part, part, behind in ((shadow.new, is_new, 0.0), (old, ~is_new, 0.25)):
            ranked = rank(of_part[:, part])
            places = np.empty(ranked.shape, np.float32)
            np.put_along_axis(places, ranked, np.arange(ranked.shape[1], dtype=np.float32)[None, :], axis=1)
            fused[:, part] = np.where(np.isfinite(of_part[:, part]), 1 / (_RRF_CONSTANT + 1 + places + behind), -np.inf)
        return fused

    return scores


def best_weight(part: HeldOut, objective: Objective) -> float:
    """The aligned score's share that is best while all is stale; 1 is `aligned`."""
    shadow = part.shadow(part.queries).only([objective.relevance])

    def value(weight: float) -> float:
        measured = shadow.measure(part.stale_scores(part.queries, shadow, VIEW, weight))
        return float(np.nanmean(measured[objective.relevance, objective.metric]))

    return max(WEIGHTS, key=value)


def backfilled(calibration: HeldOut, audit: HeldOut, shadow: Shadow, objective: Objective, weight: float) -> State:
    """A backfill in random order, calibrated on the calibration part."""
    candidate = Candidate(VIEW, weight, "random", "offset" if weight == 1 else "scale_offset")
    queries = calibration.answered(objective.relevance).first(fit_queries(objective.metric))
    fit_shadow = calibration.shadow(queries).only([objective.relevance])
    fitted = calibration.backfill(candidate, queries, fit_shadow).fit(objective, candidate.form, KNOTS)
    traced = audit.backfill(candidate, audit.queries, shadow)
    return lambda is_new: traced.served(fitted, int(is_new.sum()))


def curve(shadow: Shadow, order: Any, state: State, objective: Objective) -> F64:
    """The objective (22, Q) of each query at the published points."""
    points: list[Measured] = []
    for cutoff in published_cutoffs(len(order)):
        is_new = np.zeros(len(order), bool)
        is_new[order[:cutoff]] = True
        points.append(shadow.measure(state(is_new)))
    return np.stack([point[objective.relevance, objective.metric] for point in points])


def with_mapped(part: HeldOut, mapped: F32) -> HeldOut:
    """The part as queries ask it whose old vectors are mapped from their new ones."""
    return replace(part, queries=replace(part.queries, old=mapped))


def rows(material: Material, objective: Objective) -> dict[str, Any]:
    """Every way by one objective: its curve, its area, and how far above it the calibrated backfills are."""
    reverse = fit_reverse(material.train, METHOD, "default", seed=material.seed, queries=_fit_queries(material))
    calibration, audit = material.calibration, material.audit
    mapped = [with_mapped(part, reverse(part.queries.new)[0]) for part in (calibration, audit)]
    shadow = audit.shadow(audit.queries).only([objective.relevance])
    if shadow.old is None or mapped[1].queries.old is None:
        raise ValueError(f"set {material.name!r}: the queries have no old vectors")
    of_mapped = scores_of(mapped[1].queries.old, audit.items.old, audit.metric, own_items(audit.items, audit.queries))
    old, new = shadow.old, shadow.new
    mapped_shadow = replace(shadow, old=of_mapped)
    weights = {name: best_weight(part, objective) for name, part in (("true", calibration), ("mapped", mapped[0]))}
    ways: dict[str, State] = {
        "naive swap": lambda is_new: new if is_new.all() else old,
        "query map": lambda is_new: of_mapped,
        "rank merge": merged(shadow, old),
        "rank merge, mapped queries": merged(shadow, of_mapped),
        "RRF": reciprocal_ranks(shadow, old),
        "aligned": backfilled(calibration, audit, shadow, objective, 1.0),
        "fused": backfilled(calibration, audit, shadow, objective, weights["true"]),
        "fused, mapped queries": backfilled(mapped[0], mapped[1], mapped_shadow, objective, weights["mapped"]),
    }
    order = backfill_order(audit.priorities[VIEW]["random"], audit.items.id_hash)
    values = {name: curve(shadow, order, state, objective) for name, state in ways.items()}
    arms = {arm: float(np.nanmean(m[objective.relevance, objective.metric])) for arm, m in shadow.arms().items()}
    for name, of_way in values.items():
        if name != "query map" and abs(float(np.nanmean(of_way[-1])) - arms["new/new"]) > 1e-9:
            raise AssertionError(f"{name}: does not end where the new model is")
    return {"arms": arms, "weights": weights, "rows": {name: _row(name, values, material.seed) for name in ways}}


def _fit_queries(material: Material) -> Queries | None:
    """The set's own queries that seek train items: the reverse map learns from them, too. None where items ask."""
    users = material.evidence.queries
    return None if users is None else answered(users, material.train, "qrels")


def _row(name: str, values: Mapping[str, F64], seed: int) -> dict[str, Any]:
    area = values[name].mean(axis=0)
    above = {
        other: mean_interval(values[other].mean(axis=0) - area, seed=seed)[:3] for other in values if "fused" in other
    }
    return {
        "curve": np.nanmean(values[name], axis=1).tolist(),
        "area": mean_interval(area, seed=seed)[:3],
        "above": above,
    }


def measure(name: str, seed: int, cache: Path, folder: Path) -> Result:
    data, judged = SETS[name]
    limits = Limits(methods=(METHOD,), calibration=2000 if judged else 800, queries=500)
    material = prepare_set(load_set(data, cache), name, seed, limits, judged=judged, folder=folder, stream=sys.stderr)
    return {
        "set": name,
        "seed": seed,
        "description": material.built.description,
        "objectives": {str(objective): rows(material, objective) for objective in material.both},
    }


def render(results: list[Result]) -> str:
    parts = []
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
    head = ["way", *shares, "area", *(f"area of {other} above it" for other in runs[0]["rows"]["query map"]["above"])]
    said = ", ".join(f"{arm} {value:.1f}" for arm, value in arms.items())
    return f"### {name}, {objective} ({len(runs)} seeds): {said}\n\n{markdown(head, lines)}"


def _gap(intervals: list[list[float]]) -> str:
    value = np.mean([interval[0] for interval in intervals])
    low, high = min(interval[1] for interval in intervals), max(interval[2] for interval in intervals)
    return f"{100 * value:+.1f} ({100 * low:+.1f}..{100 * high:+.1f})"


def main(arguments: list[str] | None = None) -> None:
    command_line(
        argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.splitlines()[0]),
        arguments,
        sets=SETS,
        seeds=[0, 1, 2],
        measure=lambda name, seed, given: measure(name, seed, given.cache, given.out / "maps"),
        render=render,
    )


if __name__ == "__main__":
    main()
