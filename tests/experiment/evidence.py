"""Evidence for whole experiments: synthetic pairs, and maps that cost nothing to train."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.experiment.heldout import Evidence, TrainedMap
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.types import F32, SPLITS
from tests import synthetic

COUNTS = {"train": 80, "calibration": 90, "audit": 70}


def objects(values: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def vectors(x: F32) -> tuple[F32, F32]:
    """Old and new vectors of latent factors; the new ones bend, so that no map is perfect."""
    return synthetic.old_vectors(x), np.tanh(synthetic.new_vectors(x) / 4).astype(np.float32)


def pairs_of() -> PairedItems:
    """All three splits, with labels and groups; the splits' rows alternate."""
    rows = sum(COUNTS.values())
    x, classes = synthetic.latent(rows)
    old, new = vectors(x)
    split = objects([split for split in SPLITS for _ in range(COUNTS[split])])
    order = np.random.default_rng(3).permutation(rows)
    return PairedItems(
        ids=objects([f"item-{i}" for i in range(rows)]),
        old=old,
        new=new,
        split=split[order],
        labels=objects([f"class-{c}" for c in classes]),
        groups=objects([f"group-{c % 3}" for c in classes]),
    )


def users_of(count: int = 75, *, old: bool = True) -> Queries:
    """Users' queries with labels and groups."""
    x, classes = synthetic.latent(count, seed=4)
    theirs, new = vectors(x)
    return Queries(
        ids=objects([f"query-{i}" for i in range(count)]),
        new=new,
        old=theirs if old else None,
        labels=objects([f"class-{c}" for c in classes]),
        groups=objects(["a", None, "b"] * (count // 3) + [None] * (count % 3)),
    )


def linear_map(pairs: PairedItems, noise: float) -> TrainedMap:
    """Least squares on the train pairs, made worse by a wave of the old vector; its log-variance knows how much."""
    train = pairs.part("train").by_hash()
    weight = np.linalg.lstsq(train.old, train.new, rcond=None)[0].astype(np.float32)
    turn = np.random.default_rng(0).normal(size=weight.shape).astype(np.float32)

    def apply(old: F32, side: F32 | None = None) -> tuple[F32, F32]:
        wave = np.sin(old @ turn)
        strength = np.abs(old[:, 0])
        return old @ weight + np.float32(noise) * strength[:, None] * wave, strength

    return apply


def maps_of(pairs: PairedItems) -> dict[str, TrainedMap]:
    """`ridge` is the better one, `procrustes` the cheaper one."""
    return {"procrustes": linear_map(pairs, 0.6), "ridge": linear_map(pairs, 0.1)}


def evidence_of(queries: Queries | None = None, **changes: Any) -> Evidence:
    """Cosine, no classifier; `changes` replace fields."""
    pairs = pairs_of()
    fields: dict[str, Any] = {
        "pairs": pairs,
        "queries": queries,
        "metric": "cosine",
        "maps": maps_of(pairs),
        "classifier": None,
        "seed": 0,
    }
    return Evidence(**{**fields, **changes})
