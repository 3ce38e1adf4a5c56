"""Three narrower questions: calibration and gallery size, refitting the map on the way, and gaps between groups.

Legend: N items of a part, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np

from benchmarks.quality.material import MAP, Material, items_of
from benchmarks.quality.orders import FIXED_VIEW
from fastfill_ray.experiment.candidate import Candidate, MapView
from fastfill_ray.experiment.curves import published_cutoffs
from fastfill_ray.experiment.experiment import Report
from fastfill_ray.experiment.heldout import HeldOut, hold_out
from fastfill_ray.ordering.policies import Policy
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.simulation import train_maps
from fastfill_ray.types import F64, I64, SPLITS, Bools

GALLERY_SIZES = (1_000, 10_000)
SIZE_QUERIES = 300
REFITS = (0.10, 0.25, 0.50)
REFIT_POLICIES: tuple[Policy, ...] = ("random", "uncertainty")
KERNEL = MapView("kernel")
GROUP_FRACTIONS = (0.0, 0.02, 0.05, 0.10, 0.20, 0.50, 1.0)
GROUP_QUERIES = 1_000
GROUP_AUDIT = 12_000
_RESAMPLES = 500


def gallery_size(
    material: Material, candidate: Candidate, sizes: tuple[int, ...] = GALLERY_SIZES
) -> list[dict[str, Any]]:
    """Calibrations fitted on the calibration part, applied to galleries of other sizes, against ones fitted there.

    Fitted on the gallery itself, with its own queries, is the best that any fit could reach; it is no fair rival.
    """
    objective, rows = material.objectives[0], []
    drawn = np.random.default_rng([material.seed, 43]).permutation(material.built.split(material.seed)["audit"])
    for size in sizes:
        gallery = material.audit_of(np.sort(drawn[:size]), [candidate])
        gallery = replace(gallery, queries=gallery.queries.first(SIZE_QUERIES))
        carried, own = (Report(fit_on, gallery, objective, objective) for fit_on in (material.calibration, gallery))
        about = {"items": len(gallery.items.ids), "fitted_on": len(material.rows("calibration"))}
        for form in FORMS:
            at = replace(candidate, weight=1.0, form=form)
            areas = {"carried": carried.curve(at), "own": own.curve(at)}
            row = {**about, "form": form, "objective": str(objective)}
            rows.append(row | {name: curve.area(objective).value for name, curve in areas.items()})
    return rows


def refit(material: Material, refits: tuple[float, ...] = REFITS) -> list[dict[str, Any]]:
    """Kernel ridge refitted on train pairs and all re-embedded items after some shares, against the map of the start.

    Re-embedded items stay new; the refitted map orders the rest anew.
    """
    rows = []
    size = len(material.audit.items.ids)
    cutoffs = published_cutoffs(size)
    starts = [0, *(int(share * size) for share in refits), size + 1]
    for policy in REFIT_POLICIES:
        candidate = Candidate(KERNEL, 1.0, policy, "offset")
        stages = [(material.calibration, material.audit)]
        for start in starts[1:-1]:
            stages.append(_refitted(material, stages[-1][1].order(candidate)[:start], policy))
        for objective in material.both:
            static = Report(*stages[0], objective, objective).curve(candidate)
            points = []
            for stage, low, high in zip(stages, starts[:-1], starts[1:], strict=True):
                if within := [cutoff for cutoff in cutoffs if low <= cutoff < high]:
                    curve = Report(*stage, objective, objective).curve(candidate, within)
                    points.append(curve.values[objective.relevance, objective.metric])
            refitted = np.concatenate(points).mean(axis=0)  # (Q,)
            rows.append(
                {
                    "policy": policy,
                    "objective": str(objective),
                    "static": static.area(objective).value,
                    "refitted": float(np.nanmean(refitted)),
                    "difference": float(np.nanmean(refitted - static.area_per_query(objective))),
                }
            )
    return rows


def _refitted(material: Material, done: I64, policy: Policy) -> tuple[HeldOut, HeldOut]:
    """Both parts under kernel ridge fitted on train pairs and the audit items `done`, which stay the first."""
    rows = {split: material.rows(split) for split in SPLITS}
    pairs = items_of(material.built, rows | {"train": np.concatenate([rows["train"], rows["audit"][done]])})
    maps = train_maps(pairs, ["kernel"], "default", None, seed=material.seed, stream=StringIO())
    evidence = replace(material.evidence, pairs=pairs, maps=maps)
    calibration, audit = (hold_out(evidence, split, [policy]) for split in ("calibration", "audit"))
    first = audit.priorities[KERNEL][policy].copy()
    first[done] = first.max() + np.abs(first).max() + 1
    return (
        replace(calibration, queries=material.calibration.queries),
        replace(audit, queries=material.audit.queries, priorities={KERNEL: {policy: first}}),
    )


def groups(
    material: Material,
    winners: Mapping[str, Candidate],
    *,
    most_items: int = GROUP_AUDIT,
    most_queries: int = GROUP_QUERIES,
) -> dict[str, Any]:
    """The gap in label mAP between the two groups, larger minus smaller, along a backfill: orders at one map, and auto.

    The closed share at a fraction is (gap of old/old - gap there) / (gap of old/old - gap of new/new): a difference in
    differences, in shares of what can be closed. Queries are drawn per group, from a larger audit part.
    """
    seed, rng = material.seed, np.random.default_rng([material.seed, 47])
    compared = {
        "random": Candidate(FIXED_VIEW, 1.0, "random", "offset"),
        "uncertainty": Candidate(FIXED_VIEW, 1.0, "uncertainty", "offset"),
        **{f"auto, {track}": winner for track, winner in winners.items()},
    }
    drawn = np.sort(rng.permutation(material.built.split(seed)["audit"])[:most_items])
    audit = material.audit_of(drawn, list(compared.values()))
    items = audit.items
    if items.groups is None:
        raise ValueError(f"set {material.name!r} has no groups")
    names, counts = np.unique(items.groups.astype(str), return_counts=True)
    large, small = (str(names[i]) for i in np.argsort(-counts)[:2])
    asking = [rng.permutation(np.flatnonzero(items.groups == name))[:most_queries] for name in (large, small)]
    queries = items.as_queries().take(np.sort(np.concatenate(asking)))
    shadow, in_large = audit.shadow(queries).only(["label"]), queries.groups == large
    old, new = (shadow.arms()[arm]["label", "map"] for arm in ("old/old", "new/new"))
    report = Report(material.calibration, audit, MAP, MAP)
    cutoffs, rows = [round(fraction * len(items.ids)) for fraction in GROUP_FRACTIONS], []
    for name, candidate in compared.items():
        curve = audit.backfill(candidate, queries, shadow).trace(report.fit(candidate), cutoffs)
        values = curve.values["label", "map"]
        closed = [_closed(old, at, new, in_large, seed) for at in values]
        gaps = [_gap(at, in_large) for at in values]
        rows.append({"name": name, "gaps": gaps, "closed": closed, "overall": curve.mean(MAP).tolist()})
    return {
        "groups": [large, small],
        "queries": [int(in_large.sum()), int((~in_large).sum())],
        "items": len(items.ids),
        "fractions": list(GROUP_FRACTIONS),
        "old": _gap(old, in_large),
        "new": _gap(new, in_large),
        "rows": rows,
    }


def _gap(values: F64, in_large: Bools) -> float:
    return float(np.nanmean(values[in_large]) - np.nanmean(values[~in_large]))


def _closed(old: F64, at: F64, new: F64, in_large: Bools, seed: int) -> dict[str, float]:
    """The closed share with its 95 % bootstrap interval: queries are redrawn within their group."""
    kept = ~np.isnan(old) & ~np.isnan(new)
    stacked, rng = np.stack([old, at, new]), np.random.default_rng(seed)
    means = []
    for group in (in_large & kept, ~in_large & kept):
        values, count = stacked[:, group], int(group.sum())
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
        means.append(np.concatenate([values.mean(axis=1)[:, None], values @ weights.T], axis=1))
    before, now, after = means[0] - means[1]
    share = (before - now) / (before - after)
    low, high = np.quantile(share[1:], [0.025, 0.975])
    return {"value": float(share[0]), "low": float(low), "high": float(high)}
