"""Orders that only the benchmark knows: rivals of the product's policies, and oracles that see the new vectors.

All of them at one map. Larger = re-embedded earlier. Legend: Q queries, N items of a part, P train pairs, C classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.material import Floats, Material, Part
from fastfill_ray.alignment.linear import ridge
from fastfill_ray.experiment.candidate import View
from fastfill_ray.experiment.experiment import Split
from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.ordering.policies import class_loss
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.retrieval.similarity import match_norms, similarity

FIXED_MAP = "fastfill"
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


def with_every_order(material: Material, relevance: str) -> tuple[Split, Split]:
    """(calibration, audit) whose view of the fixed map has every order of TRACKS that the data allows.

    Args:
        relevance: what the realised gain is a gain of.
    """
    features = [_features(material, part) for part in (material.calibration, material.audit)]
    regressed = _regressed(material, *features)
    splits = []
    for part, predicted in zip((material.calibration, material.audit), regressed, strict=True):
        view, scene = part.split.views[FIXED_MAP], part.split.scene
        priorities = dict(view.priorities) | _extra(material, part)
        priorities["regressor"] = predicted
        gain = membership if relevance == "new_model" else average_precision_gain
        priorities["realised gain"] = gain(scene, view.stale, scene.truths[relevance])
        splits.append(replace(part.split, views={FIXED_MAP: View(view.stale, priorities)}))
    return splits[0], splits[1]


def _matched(material: Material, part: Part) -> Floats:
    return match_norms(part.aligned[FIXED_MAP], material.metric, material.norm)


def _extra(material: Material, part: Part) -> dict[str, Floats]:
    train, items, aligned = material.train, part.items, _matched(material, part)
    found = {
        "second opinion": material.trained[FIXED_MAP].second_opinion(items.old, None, part.aligned[FIXED_MAP]),
        "nearest pair": nearest_pair(aligned, train.new),
        "true distance": np.linalg.norm(aligned - items.new, axis=1),
        "class mean": class_mean(aligned, items.labels, train.new, train.labels),
    }
    rows = np.random.default_rng([material.seed, 37]).permutation(len(train.ids))[:1000]
    near = similarity(train.new[rows], aligned, material.metric)
    found["bad hubs"] = bad_hubs(near, train.labels[rows], items.labels)
    return {name: priority.astype(np.float32) for name, priority in found.items()}


def nearest_pair(aligned: Floats, reference: Floats) -> Floats:
    """Distance (N,) of each aligned vector to the nearest new vector of a train pair (P, E)."""
    nearest: Floats = np.sqrt(-similarity(aligned, reference, "l2").max(axis=1))
    return nearest


def class_mean(aligned: Floats, labels: NDArray[np.object_], new: Floats, classes: NDArray[np.object_]) -> Floats:
    """Distance (N,) to the mean new vector of the item's class among the train pairs; the largest where none has it."""
    means = {label: new[classes == label].mean(axis=0) for label in dict.fromkeys(classes.tolist())}
    nowhere = np.full(new.shape[1], np.nan, np.float32)
    distances = np.linalg.norm(aligned - np.stack([means.get(label, nowhere) for label in labels.tolist()]), axis=1)
    return np.where(np.isnan(distances), np.nanmax(distances), distances)


def bad_hubs(near: Floats, asked: NDArray[np.object_], labels: NDArray[np.object_]) -> Floats:
    """How often (N,) an item is among the five nearest of a query of another class, minus of its own class.

    Args:
        near: (P, N) scores of proxy queries whose classes are `asked`.
    """
    top = np.argpartition(-near, _HUB_DEPTH - 1, axis=1)[:, :_HUB_DEPTH]
    sign = np.where(asked[:, None] == labels[top], -1.0, 1.0)
    return np.bincount(top.ravel(), weights=sign.ravel(), minlength=near.shape[1])


def _features(material: Material, part: Part) -> NDArray[np.float64]:
    """(N, F): what is known of an item without its new vector and label."""
    view, aligned = part.split.views[FIXED_MAP], part.aligned[FIXED_MAP]
    told = [view.priorities[name] for name in ("uncertainty", "entropy") if name in view.priorities]
    told += [nearest_pair(_matched(material, part), material.train.new), np.linalg.norm(aligned, axis=1)]
    told.append(np.linalg.norm(part.items.old, axis=1))
    return np.concatenate([part.items.old, aligned, np.stack(told, axis=1)], axis=1).astype(np.float64)


def _regressed(material: Material, mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Ridge predictions of the calibration items' log (squared error + class loss): cross-fitted, and of audit.

    The squared error is the mean over the dimensions, of vectors at unit rms, as in FastFill's loss.
    """
    part = material.calibration
    rms = float(np.sqrt(np.square(material.train.new, dtype=np.float64).mean()))
    loss = np.square((part.aligned[FIXED_MAP] - part.items.new) / rms, dtype=np.float64).mean(axis=1)
    if material.head is not None:
        loss = loss + class_loss(part.aligned[FIXED_MAP], part.items.labels, material.head)
    target = np.log(np.maximum(loss, 1e-8))[:, None]
    center, spread = mine.mean(axis=0), np.maximum(mine.std(axis=0), 1e-6)
    mine, theirs = (mine - center) / spread, (theirs - center) / spread
    predicted = np.empty(len(mine))
    for fold in np.array_split(np.random.default_rng([material.seed, 41]).permutation(len(mine)), _FOLDS):
        rest = np.setdiff1d(np.arange(len(mine)), fold)
        predicted[fold] = ridge(mine[rest], target[rest])(mine[fold])[:, 0]
    return predicted.astype(np.float32), ridge(mine, target)(theirs)[:, 0].astype(np.float32)


def membership(scene: Scene, stale: Floats, truth: RelevantItems) -> Floats:
    """In how many queries' true top ten the item is (N,): the oracle of the overlap."""
    return np.bincount(truth.items, minlength=stale.shape[1]).astype(np.float32)


def average_precision_gain(scene: Scene, stale: Floats, truth: RelevantItems) -> Floats:
    """By how much mAP rises (N,) if this item alone is re-embedded and all others stay stale: a one-shot oracle.

    Moving one item shifts the ranks between its two places by one, so per query every item's change is a difference of
    two cumulative sums over the relevant items. Ties are taken as if the item's own vector came last.
    """
    total = np.zeros(stale.shape[1])
    for query in np.flatnonzero(truth.counts).tolist():
        relevant = truth.items[truth.starts[query] : truth.starts[query + 1]]
        total += _moves(stale[query], scene.new[query], relevant) / len(relevant)
    return (total / max(int((truth.counts > 0).sum()), 1)).astype(np.float32)


def _moves(stale: Floats, new: Floats, relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """Change (N,) of sum_j j / rank_j over the relevant items when one item's score turns from stale to new."""
    everyone = np.sort(stale)
    relevant = relevant[np.argsort(-stale[relevant], kind="stable")]
    scores, count = stale[relevant], len(relevant)
    number = np.arange(1, count + 1)
    rank = len(stale) - everyone.searchsorted(scores, side="right") + 1

    def sums(change: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([[0.0], np.cumsum(change)])

    now, above_it = number / rank, np.maximum(rank - 1, 1)  # an item of rank 1 has nothing above that could leave
    pushed, lifted = sums(number / (rank + 1) - now), sums(number / above_it - now)
    pushed_by_own, lifted_by_own = sums((number + 1) / (rank + 1) - now), sums((number - 1) / above_it - now)

    ascending = scores[::-1]
    before = count - ascending.searchsorted(stale, side="right")  # relevant items above the stale place
    after = count - ascending.searchsorted(new, side="right")  # and above the new one, an item itself included
    change = np.where(new > stale, pushed[before] - pushed[np.minimum(after, before)], 0.0)
    change = np.where(new < stale, lifted[after] - lifted[np.minimum(before, after)], change)

    mine, target = number - 1, new[relevant]  # index of each relevant item among them: `mine` are above it
    down = target < scores
    others = np.where(down, after[relevant] - 1, after[relevant])
    ahead = len(stale) - everyone.searchsorted(target, side="right") - down
    own = (others + 1) / (ahead + 1) - now
    up = pushed_by_own[mine] - pushed_by_own[np.minimum(others, mine)]
    fall = lifted_by_own[np.maximum(others + 1, number)] - lifted_by_own[number]
    change[relevant] = own + np.where(down, fall, np.where(target > scores, up, 0.0))
    change[relevant[target == scores]] = 0.0
    change[~np.isfinite(stale) | ~np.isfinite(new)] = 0.0
    return change
