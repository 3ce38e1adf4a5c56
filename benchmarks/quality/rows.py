"""The main comparisons: the published protocol, every order at one map, forms of calibration, side information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np

from benchmarks.quality.curves import SHOWN, AuditCurves, asking, audit_curves, figures, published
from benchmarks.quality.material import Material, items_of
from benchmarks.quality.orders import FIXED_VIEW, TRACKS, with_every_order
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.experiment.candidate import Candidate, MapView, Objective
from fastfill_ray.experiment.heldout import hold_out
from fastfill_ray.experiment.summary import arms_json
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.simulation import train_maps
from fastfill_ray.types import SPLITS

PUBLISHED = (("FCT", "fct", "random"), ("FastFill", "fastfill", "uncertainty"))


def arms(curves: AuditCurves) -> dict[str, Any]:
    """old/old and new/new of the metrics that are shown, by the relevance of the objective."""
    relevance = f"{curves.objective.relevance}/"
    return {
        arm: {name: value for name, value in values.items() if name in SHOWN and name.startswith(relevance)}
        for arm, values in arms_json(curves.arms, seed=curves.seed).items()
    }


def published_rows(material: Material, maps: Mapping[str, Alignment], note: str = "") -> list[dict[str, Any]]:
    """FCT in random order and FastFill by its uncertainty as published.

    ``shared`` holds the areas over the queries that all other rows are measured on, so that differences are paired.
    """
    rows = []
    for name, method, policy in PUBLISHED:
        if method not in maps:
            continue
        one = published(material, maps[method], policy)
        shared = {}
        for relevance, metric in one.curve.values:
            objective = Objective(relevance, metric)
            if str(objective) in SHOWN:
                shared[str(objective)] = float(np.nanmean(one.areas(objective, asking(material.audit, objective))))
        row = {"track": "published", "name": f"{name} + {policy}{note}", "objective": None, "shared": shared}
        rows.append(row | figures(one.candidate, one.curve, one.shadow.arms(), material.seed))
    return rows


def paper_rows(material: Material) -> list[dict[str, Any]]:
    """The same with maps of the published size and schedule."""
    methods = [method for _, method, _ in PUBLISHED if method in material.limits.methods]
    built = material.built.classifier
    own = None if built is None else material.evidence.classifier
    maps = train_maps(material.evidence.pairs, methods, "paper", own, seed=material.seed, stream=StringIO())
    return published_rows(material, maps, " (paper)")


def order_rows(material: Material) -> list[dict[str, Any]]:
    """Every order at the fixed map and the form `offset`, once per objective that the calibration is fitted for."""
    rows = []
    for objective in material.both:
        calibration, audit = with_every_order(material, objective)
        curves = AuditCurves(calibration, audit, objective, material.seed)
        for order, track in TRACKS.items():
            if order in audit.priorities[FIXED_VIEW]:
                shown = curves.figures(Candidate(FIXED_VIEW, 1.0, order, "offset"))
                rows.append({"track": track, "name": order, "objective": str(objective), **shown})
    return rows


def form_rows(material: Material, chosen: Mapping[Objective, Candidate]) -> list[dict[str, Any]]:
    """Every form of calibration at a candidate's map and order, aligned vectors alone; `raw`: norms not matched."""
    rows = []
    for objective, candidate in chosen.items():
        curves, view = audit_curves(material, objective), MapView(candidate.view.method)
        compared = {form: Candidate(view, 1.0, candidate.policy, form) for form in FORMS}
        named = {"norm only" if form == "identity" else str(form): at for form, at in compared.items()}
        if material.metric != "cosine":  # where there is no norm to match, raw is norm only
            named["raw"] = replace(compared["identity"], view=view._replace(norms_kept=True))
        rows += [{"name": name, "objective": str(objective), **curves.figures(at)} for name, at in named.items()]
    return rows


def side_rows(material: Material) -> list[dict[str, Any]]:
    """FCT that reads side vectors against FCT without, in random order."""
    if material.built.side is None or "fct" not in material.evidence.maps:
        return []
    pairs = items_of(material.built, {split: material.rows(split) for split in SPLITS}, side=True)
    maps = train_maps(pairs, ["fct"], "default", None, seed=material.seed, stream=StringIO())
    evidence = replace(material.evidence, pairs=pairs, maps=maps)
    parts = {"without": (material.calibration, material.audit)}
    parts["with"] = tuple(
        replace(hold_out(evidence, split, ["random"]), queries=part.queries)
        for split, part in zip(SPLITS[1:], parts["without"], strict=True)
    )
    rows = []
    for name, (calibration, audit) in parts.items():
        for objective in material.both:
            curves = AuditCurves(calibration, audit, objective, material.seed)
            shown = curves.figures(Candidate(MapView("fct"), 1.0, "random", "offset"))
            rows.append({"name": f"FCT {name} side information", "objective": str(objective), **shown})
    return rows
