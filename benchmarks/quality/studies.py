"""Three narrower questions: calibration and gallery size, refitting the map on the way, and gaps between groups."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.material import MAP, Material, Objective, own_queries, pairs_table
from benchmarks.quality.orders import FIXED_MAP
from benchmarks.quality.rows import told
from fastfill_ray.experiment.candidate import Candidate
from fastfill_ray.experiment.curves import Curve, arm, backfill_order, published_cutoffs
from fastfill_ray.experiment.experiment import Split
from fastfill_ray.experiment.items import items_as_queries
from fastfill_ray.experiment.search import carry
from fastfill_ray.experiment.shadow import make_view
from fastfill_ray.ordering.policies import Policy, Reference
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.simulation import items_of, train_maps

GALLERY_SIZES = (1_000, 10_000)
SIZE_QUERIES = 300
REFITS = (0.10, 0.25, 0.50)
REFIT_POLICIES: tuple[Policy, ...] = ("random", "uncertainty")
GROUP_FRACTIONS = (0.0, 0.02, 0.05, 0.10, 0.20, 0.50, 1.0)
GROUP_QUERIES = 1_000
GROUP_AUDIT = 12_000
_RESAMPLES = 500


def only(split: Split, relevance: str, method: str) -> Split:
    """The split with one relevance and one map."""
    scene = replace(split.scene, truths={relevance: split.scene.truths[relevance]}, groups=None)
    return Split(scene, {method: split.views[method]})


def area(fit_on: Split, show_on: Split, candidate: Candidate, objective: Objective, seed: int) -> float:
    """Area under the objective's 22 points."""
    pairs = [(split.scene, split.views[candidate.method]) for split in (fit_on, show_on)]
    curve, _ = carry(pairs[0], pairs[1], candidate, *objective, seed=seed)
    return curve.area(*objective).value


def gallery_size(
    material: Material, candidate: Candidate, sizes: tuple[int, ...] = GALLERY_SIZES
) -> list[dict[str, Any]]:
    """Calibrations fitted on the calibration split, applied to galleries of other sizes, against ones fitted there.

    Fitted on the gallery itself, with its own queries, is the best that any fit could reach; it is no fair rival.
    """
    objective, method, rows = material.objectives[0], candidate.method, []
    fit_on = only(material.calibration.split, objective[0], method)
    taken = np.random.default_rng([material.seed, 43]).permutation(material.built.split(material.seed)["audit"])
    for size in sizes:
        items = pairs_table(material.built, {"audit": np.sort(taken[:size])})
        asked = own_queries(items, replace(material.limits, queries=SIZE_QUERIES), material.seed)
        split = only(material.part(items, replace(asked, groups=None), (method,)).split, objective[0], method)
        for form in FORMS:
            at = Candidate(method, 1.0, candidate.policy, form)
            carried = area(fit_on, split, at, objective, material.seed)
            own = carried if form == "identity" else area(split, split, at, objective, material.seed)
            told_of = {"items": len(items.ids), "fitted_on": len(material.calibration.items.ids), "form": form}
            rows.append({**told_of, "objective": told(objective), "carried": carried, "own": own})
    return rows


def refit(material: Material, refits: tuple[float, ...] = REFITS) -> list[dict[str, Any]]:
    """Kernel ridge refitted on train pairs and all re-embedded items after some shares, against the map of the start.

    Re-embedded items stay new; the refitted map orders the rest anew.
    """
    rows = []
    size = len(material.audit.items.ids)
    cutoffs = published_cutoffs(size)
    for policy in REFIT_POLICIES:
        candidate = Candidate("kernel", 1.0, policy, "offset")
        stages = [(material.calibration.split.views["kernel"], material.audit.split.views["kernel"])]
        for share in refits:
            done = _order(stages[-1][1], material, policy)[: int(share * size)]
            stages.append(_refitted(material, done, policy))
        starts = [0, *(int(share * size) for share in refits), size + 1]
        for objective in material.both:
            static = _curve(material, stages[0], candidate, objective, cutoffs)
            parts = [
                _curve(material, stage, candidate, objective, [c for c in cutoffs if low <= c < high])
                for stage, low, high in zip(stages, starts[:-1], starts[1:], strict=True)
                if any(low <= c < high for c in cutoffs)
            ]
            joined = np.concatenate([part.values[objective] for part in parts])
            difference = np.nanmean(joined.mean(axis=0) - static.area_per_query(*objective))
            rows.append(
                {
                    "policy": policy,
                    "objective": told(objective),
                    "static": static.area(*objective).value,
                    "refitted": float(np.nanmean(joined.mean(axis=0))),
                    "difference": float(difference),
                }
            )
    return rows


def _order(view: Any, material: Material, policy: str) -> NDArray[np.int64]:
    return backfill_order(view.priorities[policy], material.audit.items.id_hash)


def _refitted(material: Material, done: NDArray[np.int64], policy: Policy) -> tuple[Any, Any]:
    """The views (calibration, audit) of a map that was fitted on the items `done` as well; those come first."""
    split = np.where(np.isin(np.arange(len(material.audit.items.ids)), done), "train", "audit").astype(object)
    train, audit = material.train, material.audit.items
    table = replace(
        material.table,
        ids=np.concatenate([train.ids, audit.ids]),
        id_hash=np.concatenate([train.id_hash, audit.id_hash]),
        old=np.concatenate([train.old, audit.old]),
        new=np.concatenate([train.new, audit.new]),
        split=np.concatenate([train.split, split]),
        labels=np.concatenate([train.labels, audit.labels]),
        groups=None,
    )
    alignment = train_maps(table, ("kernel",), "default", None, material.seed, StringIO())["kernel"]
    views = []
    for part in (material.calibration, material.audit):
        aligned, log_variance = alignment(part.items.old)
        views.append(
            make_view(
                items_of(part.items),
                part.asked,
                aligned,
                log_variance,
                material.metric,
                norm=material.norm,
                reference=Reference(),
                policies=[policy],
                seed=material.seed,
            )
        )
    first = views[1].priorities[policy].copy()
    first[done] = first.max() + np.abs(first).max() + 1
    return views[0], replace(views[1], priorities={policy: first})


def _curve(
    material: Material, views: tuple[Any, Any], candidate: Candidate, objective: Objective, cutoffs: list[int]
) -> Curve:
    pairs = []
    for part, view in zip((material.calibration, material.audit), views, strict=True):
        split = only(part.split, objective[0], "kernel")
        pairs.append((split.scene, view))
    return carry(pairs[0], pairs[1], candidate, *objective, seed=material.seed, cutoffs=cutoffs)[0]


def groups(
    material: Material,
    winners: dict[str, Candidate],
    *,
    most_items: int = GROUP_AUDIT,
    most_queries: int = GROUP_QUERIES,
) -> dict[str, Any]:
    """The gap in label mAP between the two groups, larger minus smaller, along a backfill: orders at one map, and auto.

    The closed share at a fraction is (gap of old/old - gap there) / (gap of old/old - gap of new/new): a difference in
    differences, in shares of what can be closed. Queries are drawn per group, from a larger audit part.
    """
    seed, rng = material.seed, np.random.default_rng([material.seed, 47])
    rows = np.sort(rng.permutation(material.built.split(seed)["audit"])[:most_items])
    items = pairs_table(material.built, {"audit": rows})
    assert items.groups is not None
    names, counts = np.unique(items.groups.astype(str), return_counts=True)
    large, small = (str(names[i]) for i in np.argsort(-counts)[:2])
    drawn = [rng.permutation(np.flatnonzero(items.groups == name))[:most_queries] for name in (large, small)]
    asked = items_as_queries(items_of(items), np.sort(np.concatenate(drawn)))
    curves = {
        "random": Candidate(FIXED_MAP, 1.0, "random", "offset"),
        "uncertainty": Candidate(FIXED_MAP, 1.0, "uncertainty", "offset"),
        **{f"auto, {track}": winner for track, winner in winners.items()},
    }
    part = material.part(items, asked, tuple({candidate.method for candidate in curves.values()}))
    cutoffs = [round(fraction * len(items.ids)) for fraction in GROUP_FRACTIONS]
    scene = replace(part.split.scene, truths={"label": part.split.scene.truths["label"]})
    assert scene.groups is not None
    assert scene.old is not None
    old, new = arm(scene.old, scene)[MAP], arm(scene.new, scene)[MAP]
    told_of, in_large = [], scene.groups == large
    for name, candidate in curves.items():
        view = part.split.views[candidate.method]
        fit_on = only(material.calibration.split, "label", candidate.method)
        fitted = (fit_on.scene, fit_on.views[candidate.method])
        curve, _ = carry(fitted, (scene, view), candidate, *MAP, seed=seed, cutoffs=cutoffs)
        values = curve.values[MAP]
        closed = [_closed(old, at, new, in_large, seed) for at in values]
        gaps = [_gap(at, in_large) for at in values]
        told_of.append({"name": name, "gaps": gaps, "closed": closed, "overall": curve.mean(*MAP).tolist()})
    return {
        "groups": [large, small],
        "queries": [int(in_large.sum()), int((~in_large).sum())],
        "items": len(items.ids),
        "fractions": list(GROUP_FRACTIONS),
        "old": _gap(old, in_large),
        "new": _gap(new, in_large),
        "rows": told_of,
    }


def _gap(values: NDArray[np.float64], in_large: NDArray[np.bool_]) -> float:
    return float(np.nanmean(values[in_large]) - np.nanmean(values[~in_large]))


def _closed(
    old: NDArray[np.float64], at: NDArray[np.float64], new: NDArray[np.float64], in_large: NDArray[np.bool_], seed: int
) -> dict[str, float]:
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
