"""Curves on the audit part, under calibrations fitted on the calibration part; and the published ones beside them.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from benchmarks.quality.material import Material
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.experiment.candidate import Candidate, MapView, Objective
from fastfill_ray.experiment.curves import Curve
from fastfill_ray.experiment.experiment import Report, Reported
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.items import MAX_QUERIES, Queries
from fastfill_ray.experiment.published import published_curve
from fastfill_ray.experiment.shadow import Measured, Shadow, make_shadow
from fastfill_ray.experiment.summary import arms_json, curve_json
from fastfill_ray.types import F64

SHOWN = ("label/cmc@1", "label/cmc@5", "label/map", "new_model/recall@10", "qrels/recall@1", "qrels/mrr")


class AuditCurves:
    """Candidates under one objective: each is fitted on the calibration part and traced on the audit part once."""

    def __init__(self, calibration: HeldOut, audit: HeldOut, objective: Objective, seed: int) -> None:
        report = Report(calibration, audit, objective, objective)
        self.objective, self.seed = objective, seed
        self.report, self.curve = report, cache(report.curve)
        self.queries = asking(audit, objective)
        self.arms: dict[str, Measured] = report.shadow.arms()

    def areas(self, candidate: Candidate) -> F64:
        """Area (Q,) of the objective per query."""
        return self.curve(candidate).area_per_query(self.objective)

    def constant(self, arm: str) -> F64:
        """The objective (Q,) per query at old/old or new/new."""
        return self.arms[arm][self.objective.relevance, self.objective.metric]

    def figures(self, candidate: Candidate) -> dict[str, Any]:
        """The candidate's curve, in the metrics that are shown."""
        return figures(candidate, self.curve(candidate), self.arms, self.seed)


def audit_curves(material: Material, objective: Objective) -> AuditCurves:
    """Those of the material's own parts."""
    return AuditCurves(material.calibration, material.audit, objective, material.seed)


def asking(part: HeldOut, objective: Objective) -> Queries:
    """The queries that ``Report`` measures on."""
    return part.answered(objective.relevance).first(MAX_QUERIES)


def figures(candidate: Candidate, curve: Curve, arms: Mapping[str, Measured], seed: int) -> dict[str, Any]:
    """``experiment.results.curve_json`` of the metrics that are shown."""
    made = curve_json(Reported(candidate, curve), arms_json(arms, seed=seed), seed=seed)
    made["values"] = {name: value for name, value in made["values"].items() if name in SHOWN}
    return made


@dataclass(frozen=True)
class Published:
    """A curve as published: raw L2 on raw vectors, no calibration; every audit item asks, or every judged query."""

    candidate: Candidate
    curve: Curve
    shadow: Shadow
    queries: Queries

    def areas(self, objective: Objective, queries: Queries) -> F64:
        """Area (Q,) per query, of some of the queries in their order."""
        row_of = {value: row for row, value in enumerate(self.queries.ids.tolist())}
        return self.curve.area_per_query(objective)[[row_of[value] for value in queries.ids.tolist()]]


def published(
    material: Material, alignment: Alignment, policy: Literal["random", "uncertainty"] = "uncertainty"
) -> Published:
    """The published evaluation of a map (Jaeckle et al., ICLR 2023) on the audit part."""
    part = material.audit
    items = replace(part.items, old=part.items.old.astype(np.float64), new=part.items.new.astype(np.float64))
    queries = items.as_queries()
    if material.evidence.queries is not None:
        queries = replace(part.queries, new=part.queries.new.astype(np.float64))
    shadow = make_shadow(items, queries, "l2")
    aligned, log_variance = alignment(part.items.old)
    curve = published_curve(items, shadow, aligned, log_variance, policy=policy, seed=material.seed, queries=queries)
    return Published(Candidate(MapView(alignment.method), 1.0, policy, "identity"), curve, shadow, queries)
