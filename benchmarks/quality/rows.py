"""The main comparisons: the published protocol, every order at one map, forms of calibration, side information."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np

from benchmarks.quality.material import Floats, Material, Objective, Part
from benchmarks.quality.orders import FIXED_MAP, TRACKS, with_every_order
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.experiment.candidate import Candidate, View, map_of
from fastfill_ray.experiment.curves import Curve
from fastfill_ray.experiment.experiment import Reported, Split, authors_curve
from fastfill_ray.experiment.items import items_as_queries
from fastfill_ray.experiment.results import arms_json, curve_json
from fastfill_ray.experiment.search import carry
from fastfill_ray.experiment.shadow import Scene, make_scene, make_view, scores_of
from fastfill_ray.ordering.policies import Reference
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.simulation import items_of, train_maps

SHOWN = ("label/cmc@1", "label/cmc@5", "label/map", "new_model/recall@10", "qrels/recall@1", "qrels/mrr")
AUTHORS = (("FCT", "fct", "random"), ("FastFill", "fastfill", "uncertainty"))


def told(objective: Objective) -> str:
    """relevance/metric."""
    return "/".join(objective)


def figures(candidate: Candidate, curve: Curve, scene: Scene, seed: int) -> dict[str, Any]:
    """``experiment.results.curve_json`` of the metrics that are shown."""
    plain = replace(scene, groups=None)
    arms = arms_json(plain, seed=seed)
    made = curve_json(Reported(candidate, curve), plain, arms, seed=seed)
    made["values"] = {name: value for name, value in made["values"].items() if name in SHOWN}
    return made


def arms(scene: Scene, seed: int) -> dict[str, Any]:
    """old/old and new/new of the metrics that are shown."""
    return {
        name: {metric: value for metric, value in values.items() if metric in SHOWN}
        for name, values in arms_json(replace(scene, groups=None), seed=seed).items()
    }


def show(
    fit_on: Split, show_on: Split, candidate: Candidate, objective: Objective, seed: int
) -> tuple[dict[str, Any], Curve]:
    """Figures and curve of a candidate under calibrations fitted for an objective."""
    pairs = [(split.scene, split.views[candidate.method]) for split in (fit_on, show_on)]
    curve, _ = carry(pairs[0], pairs[1], candidate, *objective, seed=seed)
    return figures(candidate, curve, show_on.scene, seed), curve


def authors_rows(material: Material, trained: Mapping[str, Alignment], note: str = "") -> list[dict[str, Any]]:
    """FCT in random order and FastFill by its uncertainty as published: raw L2 on raw vectors, no calibration.

    Every audit item asks (every judged query where the set has queries of its own). ``shared`` holds the areas over the
    queries that all other rows are measured on, so that differences are paired.
    """
    part = material.audit.items
    items = replace(items_of(part), old=part.old.astype(np.float64), new=part.new.astype(np.float64), groups=None)
    if material.judged:
        asked, mine = material.audit.asked, np.arange(len(material.audit.asked.new))
    else:
        asked, mine = items_as_queries(items, np.arange(len(part.ids))), material.audit.asked.own
    assert mine is not None
    scene, rows = make_scene(items, asked, "l2"), []
    for name, method, policy in AUTHORS:
        if method not in trained:
            continue
        aligned, log_variance = trained[method](part.old)
        view = make_view(
            items,
            asked,
            aligned.astype(np.float64),
            log_variance,
            "l2",
            norm=None,
            reference=Reference(),
            policies=["random", "uncertainty"],
            seed=material.seed,
        )
        curve = authors_curve(scene, view, policy)
        shared = {told(key): float(np.nanmean(curve.area_per_query(*key)[mine])) for key in curve.values}
        rows.append(
            {
                "track": "published",
                "name": f"{name} + {policy}{note}",
                "objective": None,
                "shared": {metric: value for metric, value in shared.items() if metric in SHOWN},
                **figures(Candidate(method, 1.0, policy, "identity"), curve, scene, material.seed),
            }
        )
    return rows


def paper_rows(material: Material) -> list[dict[str, Any]]:
    """The same with maps of the published size and schedule."""
    methods = [method for _, method, _ in AUTHORS if method in material.limits.methods]
    trained = train_maps(material.table, methods, "paper", material.built.classifier, material.seed, StringIO())
    return authors_rows(material, trained, " (paper)")


def order_rows(material: Material) -> list[dict[str, Any]]:
    """Every order at the fixed map and the form `offset`, once per objective that the calibration is fitted for."""
    rows = []
    for objective in material.both:
        calibration, audit = with_every_order(material, objective[0])
        for order, track in TRACKS.items():
            if order in audit.views[FIXED_MAP].priorities:
                found, _ = show(
                    calibration, audit, Candidate(FIXED_MAP, 1.0, order, "offset"), objective, material.seed
                )
                rows.append({"track": track, "name": order, "objective": told(objective), **found})
    return rows


def form_rows(material: Material, chosen: Iterable[tuple[Objective, Candidate]]) -> list[dict[str, Any]]:
    """Every form of calibration at a candidate's map and order, aligned vectors alone; `raw`: norms not matched."""
    rows = []
    for objective, candidate in chosen:
        method, parts = map_of(candidate.method)[0], (material.calibration, material.audit)
        for form in FORMS:
            at = Candidate(method, 1.0, candidate.policy, form)
            found, _ = show(parts[0].split, parts[1].split, at, objective, material.seed)
            name = "norm only" if form == "identity" else form
            rows.append({"name": name, "objective": told(objective), **found})
        if material.metric != "cosine":  # where there is no norm to match, raw is norm only
            at = Candidate(method, 1.0, candidate.policy, "identity")
            found, _ = show(*(_raw(material, part, method) for part in parts), at, objective, material.seed)
            rows.append({"name": "raw", "objective": told(objective), **found})
    return rows


def _raw(material: Material, part: Part, method: str) -> Split:
    """The split with scores of the aligned vectors as the map gives them."""
    scene, view = part.split.scene, part.split.views[method]
    stale: Floats = scores_of(part.asked.new, part.aligned[method], material.metric, ~np.isfinite(scene.new))
    return Split(scene, {method: View(stale, view.priorities)})


def side_rows(material: Material) -> list[dict[str, Any]]:
    """FCT that reads side vectors against FCT without, in random order."""
    if material.beside is None or "fct" not in material.trained:
        return []
    with_side = train_maps(material.beside, ("fct",), "default", None, material.seed, StringIO())["fct"]
    rows = []
    for name in ("without", "with"):
        splits = []
        for part, at in ((material.calibration, "calibration"), (material.audit, "audit")):
            split = part.split
            if name == "with":
                aligned, log_variance = with_side(part.items.old, material.beside.part(at).side)
                view = make_view(
                    items_of(part.items),
                    part.asked,
                    aligned,
                    log_variance,
                    material.metric,
                    norm=material.norm,
                    reference=Reference(),
                    policies=["random"],
                    seed=material.seed,
                )
                split = Split(part.split.scene, {"fct": view})
            splits.append(split)
        for objective in material.both:
            found, _ = show(splits[0], splits[1], Candidate("fct", 1.0, "random", "offset"), objective, material.seed)
            rows.append({"name": f"FCT {name} side information", "objective": told(objective), **found})
    return rows
