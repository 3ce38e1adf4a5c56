"""Orders that only the benchmark knows: rivals of the product's policies, and oracles that see the new vectors.

All of them at one map. Larger = re-embedded earlier. Legend: Q queries, N items of a part, P train pairs, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from benchmarks.quality.curves import asking
from benchmarks.quality.material import Material
from fastfill_ray.alignment.linear import ridge
from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.experiment.candidate import MapView, Objective
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.ordering.policies import class_loss
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, F64, I64, Objects

FIXED_MAP = "fastfill"
FIXED_VIEW = MapView(FIXED_MAP)
TRACKS = {
    "random": "label-free",
    "uncertainty": "label-free",
    "second opinion": "label-free",
    "entropy": "label-free",
    "expected_gain": "label-free",
    "nearest pair": "label-free",
    "regressor": "label-free",
    "class_margin": "labelled",
    "class_loss": "labelled",
    "class mean": "labelled",
    "bad hubs": "labelled",
    "true distance": "oracle",
    "realised gain": "oracle",
}
_FOLDS = 5
_HUB_DEPTH = 5


def with_every_order(material: Material, objective: Objective) -> tuple[HeldOut, HeldOut]:
    """(calibration, audit) whose fixed map has every order of TRACKS that the data allows.

    Args:
        objective: the realised gain is a gain of its relevance.
    """
    gain = membership if objective.relevance == "new_model" else average_precision_gain
    parts = []
    for part, regressed in zip((material.calibration, material.audit), _regressed(material), strict=True):
        queries = asking(part, objective)
        shadow = part.shadow(queries)
        stale = part.stale_scores(queries, shadow, FIXED_VIEW, 1.0)
        priorities = dict(part.priorities[FIXED_VIEW]) | _extra(material, part) | {"regressor": regressed}
        priorities["realised gain"] = gain(shadow, stale, shadow.relevant[objective.relevance])
        parts.append(replace(part, priorities={FIXED_VIEW: priorities}))
    return parts[0], parts[1]


def _as_mapped(material: Material, part: HeldOut) -> F32:
    """Aligned vectors (N, E) as the fixed map gives them."""
    return material.evidence.maps[FIXED_MAP](part.items.old)[0]


def _extra(material: Material, part: HeldOut) -> dict[str, F32]:
    train, items, aligned = material.train, part.items, part.aligned[FIXED_VIEW]
    alignment = cast(Alignment, material.evidence.maps[FIXED_MAP])
    priorities = {
        "second opinion": alignment.second_opinion(items.old, None, _as_mapped(material, part)),
        "nearest pair": nearest_pair(aligned, train.new),
        "true distance": np.linalg.norm(aligned - items.new, axis=1),
        "class mean": class_mean(aligned, items.labels, train.new, train.labels),
    }
    rows = np.random.default_rng([material.seed, 37]).permutation(len(train.ids))[:1000]
    near = similarity(train.new[rows], aligned, material.metric)
    priorities["bad hubs"] = bad_hubs(near, train.labels[rows], items.labels)
    return {name: priority.astype(np.float32) for name, priority in priorities.items()}


def nearest_pair(aligned: F32, reference: F32) -> F32:
    """Distance (N,) of each aligned vector to the nearest new vector of a train pair (P, E)."""
    nearest: F32 = np.sqrt(-similarity(aligned, reference, "l2").max(axis=1))
    return nearest


def class_mean(aligned: F32, labels: Objects, new: F32, classes: Objects) -> F32:
    """Distance (N,) to the mean new vector of the item's class among the train pairs; the largest where none has it."""
    means = {label: new[classes == label].mean(axis=0) for label in dict.fromkeys(classes.tolist())}
    nowhere = np.full(new.shape[1], np.nan, np.float32)
    distances = np.linalg.norm(aligned - np.stack([means.get(label, nowhere) for label in labels.tolist()]), axis=1)
    return np.where(np.isnan(distances), np.nanmax(distances), distances)


def bad_hubs(near: F32, classes: Objects, labels: Objects) -> F32:
    """How often (N,) an item is among the five nearest of a query of another class, minus of its own class.

    Args:
        near: (P, N) scores of proxy queries of these classes (P,).
    """
    top = np.argpartition(-near, _HUB_DEPTH - 1, axis=1)[:, :_HUB_DEPTH]
    sign = np.where(classes[:, None] == labels[top], -1.0, 1.0)
    return np.bincount(top.ravel(), weights=sign.ravel(), minlength=near.shape[1])


def _features(material: Material, part: HeldOut) -> F64:
    """(N, F): what is known of an item without its new vector and label."""
    priorities, as_mapped = part.priorities[FIXED_VIEW], _as_mapped(material, part)
    columns = [priorities[name] for name in ("uncertainty", "entropy") if name in priorities]
    columns.append(nearest_pair(part.aligned[FIXED_VIEW], material.train.new))
    columns += [np.linalg.norm(as_mapped, axis=1), np.linalg.norm(part.items.old, axis=1)]
    return np.concatenate([part.items.old, as_mapped, np.stack(columns, axis=1)], axis=1).astype(np.float64)


def _regressed(material: Material) -> tuple[F32, F32]:
    """Ridge predictions of the calibration items' log (squared error + class loss): cross-fitted, and of audit.

    The squared error is the mean over the dimensions, of vectors at unit rms, as in FastFill's loss.
    """
    part, classifier = material.calibration, material.evidence.classifier
    fit_on, apply_to = (_features(material, one) for one in (part, material.audit))
    rms = float(np.sqrt(np.square(material.train.new, dtype=np.float64).mean()))
    as_mapped = _as_mapped(material, part)
    loss = np.square((as_mapped - part.items.new) / rms, dtype=np.float64).mean(axis=1)
    if classifier is not None:
        loss = loss + class_loss(as_mapped, part.items.labels, classifier)
    target = np.log(np.maximum(loss, 1e-8))[:, None]
    center, spread = fit_on.mean(axis=0), np.maximum(fit_on.std(axis=0), 1e-6)
    fit_on, apply_to = (fit_on - center) / spread, (apply_to - center) / spread
    predicted = np.empty(len(fit_on))
    for fold in np.array_split(np.random.default_rng([material.seed, 41]).permutation(len(fit_on)), _FOLDS):
        rest = np.setdiff1d(np.arange(len(fit_on)), fold)
        predicted[fold] = ridge(fit_on[rest], target[rest])(fit_on[fold])[:, 0]
    return predicted.astype(np.float32), ridge(fit_on, target)(apply_to)[:, 0].astype(np.float32)


def membership(shadow: Shadow, stale: F32, relevant: RelevantItems) -> F32:
    """In how many queries' true top ten the item is (N,): the oracle of the overlap."""
    return np.bincount(relevant.items, minlength=stale.shape[1]).astype(np.float32)


def average_precision_gain(shadow: Shadow, stale: F32, relevant: RelevantItems) -> F32:
    """By how much mAP rises (N,) if this item alone is re-embedded and all others stay stale: a one-shot oracle.

    Moving one item shifts the ranks between its two places by one, so per query every item's change is a difference of
    two cumulative sums over the relevant items. Ties are taken as if the item's own vector came last.
    """
    total = np.zeros(stale.shape[1])
    for query in np.flatnonzero(relevant.counts).tolist():
        items = relevant.items[relevant.starts[query] : relevant.starts[query + 1]]
        total += _moves(stale[query], shadow.new[query], items) / len(items)
    return (total / max(int((relevant.counts > 0).sum()), 1)).astype(np.float32)


def _moves(stale: F32, new: F32, relevant: I64) -> F64:
    """Change (N,) of sum_j j / rank_j over the relevant items when one item's score turns from stale to new."""
    everyone = np.sort(stale)
    relevant = relevant[np.argsort(-stale[relevant], kind="stable")]
    scores, count = stale[relevant], len(relevant)
    number = np.arange(1, count + 1)
    rank = len(stale) - everyone.searchsorted(scores, side="right") + 1

    def sums(change: F64) -> F64:
        return np.concatenate([[0.0], np.cumsum(change)])

    now, above_it = number / rank, np.maximum(rank - 1, 1)  # an item of rank 1 has nothing above that could leave
    pushed, lifted = sums(number / (rank + 1) - now), sums(number / above_it - now)
    pushed_by_own, lifted_by_own = sums((number + 1) / (rank + 1) - now), sums((number - 1) / above_it - now)

    ascending = scores[::-1]
    before = count - ascending.searchsorted(stale, side="right")  # relevant items above the stale place
    after = count - ascending.searchsorted(new, side="right")  # and above the new one, an item itself included
    change = np.where(new > stale, pushed[before] - pushed[np.minimum(after, before)], 0.0)
    change = np.where(new < stale, lifted[after] - lifted[np.minimum(before, after)], change)

    above, target = number - 1, new[relevant]  # relevant items above each relevant one while it is stale
    down = target < scores
    others = np.where(down, after[relevant] - 1, after[relevant])
    ahead = len(stale) - everyone.searchsorted(target, side="right") - down
    own = (others + 1) / (ahead + 1) - now
    up = pushed_by_own[above] - pushed_by_own[np.minimum(others, above)]
    fall = lifted_by_own[np.maximum(others + 1, number)] - lifted_by_own[number]
    change[relevant] = own + np.where(down, fall, np.where(target > scores, up, 0.0))
    change[relevant[target == scores]] = 0.0
    change[~np.isfinite(stale) | ~np.isfinite(new)] = 0.0
    return change
