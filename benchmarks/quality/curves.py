"""Curves on the audit part, under calibrations fitted on the calibration part; and the published ones beside them.

A part is a sample of items as well as of queries, so areas come with what they are when groups of both are left out.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from benchmarks.quality.material import Material
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.experiment.candidate import Candidate, MapView, Objective
from fastfill_ray.experiment.curves import Curve, published_cutoffs
from fastfill_ray.experiment.experiment import Report, Reported
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.items import MAX_QUERIES, Queries
from fastfill_ray.experiment.published import published_curve
from fastfill_ray.experiment.shadow import Measured, Shadow, make_shadow
from fastfill_ray.experiment.summary import arms_json, curve_json
from fastfill_ray.retrieval.intervals import JACKKNIFE_GROUPS, Interval, jackknife_interval
from fastfill_ray.types import F64

SHOWN = ("label/cmc@1", "label/cmc@5", "label/map", "new_model/recall@10", "qrels/recall@1", "qrels/mrr")


# Of curves that only tell how far an area depends on the draw.
_POINTS_WITHOUT = 6


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over queries, and what it is with each of the jackknife's groups left out (JACKKNIFE_GROUPS,).

    Differences are paired: both sides leave out the same items.
    """

    value: float
    without: F64
    queries: int

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.without - other.without, min(self.queries, other.queries))

    @property
    def interval(self) -> Interval:
        return jackknife_interval(self.value, self.without.tolist(), self.queries)


class AuditCurves:
    """Candidates under one objective: each is fitted on the calibration part and traced on the audit part once."""

    def __init__(self, calibration: HeldOut, audit: HeldOut, objective: Objective, seed: int) -> None:
        report = Report(calibration, audit, objective, objective)
        self.objective, self.seed = objective, seed
        self.report, self.curve = report, cache(report.curve)
        self.queries = asking(audit, objective)
        self.arms: dict[str, Measured] = report.shadow.arms()
        self._audit = audit

    def areas(self, candidate: Candidate) -> F64:
        """Area (Q,) of the objective per query."""
        return self.curve(candidate).area_per_query(self.objective)

    def estimate(self, candidate: Candidate) -> Estimate:
        """Area of the objective, with what it is without each group."""
        fitted, objective, without = self.report.fit(candidate), self.objective, []
        for part, queries, shadow in self._left_out:
            cutoffs = published_cutoffs(len(part.items.ids), _POINTS_WITHOUT)
            curve = part.backfill(candidate, queries, shadow).trace(fitted, cutoffs)
            without.append(np.nanmean(curve.area_per_query(objective)))
        return estimate_of(self.areas(candidate), without)

    @cached_property
    def _left_out(self) -> list[tuple[HeldOut, Queries, Shadow]]:
        made = []
        for part in map(self._audit.without, range(JACKKNIFE_GROUPS)):
            queries = asking(part, self.objective)
            made.append((part, queries, part.shadow(queries).only([self.objective.relevance])))
        return made

    def constant(self, arm: str) -> F64:
        """The objective (Q,) per query at old/old or new/new."""
        return self.arms[arm][self.objective.relevance, self.objective.metric]

    def figures(self, candidate: Candidate) -> dict[str, Any]:
        """The candidate's curve, in the metrics that are shown."""
        return figures(candidate, self.curve(candidate), self.arms, self.seed)


def estimate_of(values: F64, without: list[np.floating[Any]]) -> Estimate:
    """The mean of values (Q,), NaN without an answer."""
    return Estimate(float(np.nanmean(values)), np.array(without, np.float64), int((~np.isnan(values)).sum()))


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
    material: Material,
    alignment: Alignment,
    policy: Literal["random", "uncertainty"] = "uncertainty",
    part: HeldOut | None = None,
) -> Published:
    """The published evaluation of a map (Jaeckle et al., ICLR 2023) on the audit part, or some of it."""
    part = material.audit if part is None else part
    items = replace(part.items, old=part.items.old.astype(np.float64), new=part.items.new.astype(np.float64))
    queries = items.as_queries()
    if material.evidence.queries is not None:
        queries = replace(part.queries, new=part.queries.new.astype(np.float64))
    shadow = make_shadow(items, queries, "l2")
    aligned, log_variance = alignment(part.items.old)
    curve = published_curve(items, shadow, aligned, log_variance, policy=policy, seed=material.seed, queries=queries)
    return Published(Candidate(MapView(alignment.method), 1.0, policy, "identity"), curve, shadow, queries)
