"""Held-out splits in which it is known what is best, small enough that a whole choice takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import MapView, Objective
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.ordering.policies import Policy
from fastfill_ray.types import F32, Bools

Q, N, OLD, NEW = 24, 60, 8, 12
GOOD, BAD = MapView("good"), MapView("bad")
NEW_MODEL_MAP = Objective("new_model", "map")


@dataclass(frozen=True)
class View:
    """What a map and its orders make of a split: aligned (N, E), priorities {policy: (N,)}."""

    aligned: F32
    priorities: Mapping[Policy, F32]


def views_of(items: PairedItems, seed: int) -> dict[MapView, View]:
    """`good` is wrong about a third of the items, and its uncertainty tells which; `bad` is wrong about all of them."""
    rng = np.random.default_rng([seed, 1])
    size = len(items.ids)
    wrong: Bools = rng.random(size) < 0.33
    noise = rng.normal(size=items.new.shape).astype(np.float32)
    priorities: dict[Policy, F32] = {
        "random": rng.random(size).astype(np.float32),
        "uncertainty": wrong.astype(np.float32),
    }
    good = items.new + 2 * noise * wrong[:, None] + np.float32(0.05) * noise
    return {GOOD: View(good, priorities), BAD: View(items.new * np.float32(0.2) + 2 * noise, priorities)}


def split_of(
    seed: int = 0,
    *,
    queries: int = Q,
    items: int = N,
    old: bool = False,
    make_views: Callable[[PairedItems, int], Mapping[MapView, View]] = views_of,
) -> HeldOut:
    """Scores are inner products; old vectors say nothing. Two splits of different seeds are drawn alike.

    Args:
        old: whether the queries have old vectors.
    """
    rng = np.random.default_rng(seed)
    ids = np.array([f"item-{seed}-{i}" for i in range(items)], object)
    paired = PairedItems(
        ids=ids,
        old=rng.normal(size=(items, OLD)).astype(np.float32),
        new=rng.normal(size=(items, NEW)).astype(np.float32),
        split=np.array(["calibration"] * items, object),
    )
    names = np.array([f"query-{seed}-{i}" for i in range(queries)], object)
    users = Queries(
        ids=names,
        new=rng.normal(size=(queries, NEW)).astype(np.float32),
        old=rng.normal(size=(queries, OLD)).astype(np.float32) if old else None,
        groups=names,
    )
    split = HeldOut(paired, users.shuffled(0), "ip", 1.0, {}, {})
    return with_views(split, make_views(paired, seed))


def with_views(split: HeldOut, views: Mapping[MapView, View]) -> HeldOut:
    """The same split under other maps."""
    aligned = {view: made.aligned for view, made in views.items()}
    return replace(split, aligned=aligned, priorities={view: made.priorities for view, made in views.items()})


def same_old(split: HeldOut) -> HeldOut:
    """The same split, but the old model was as good as the new one."""
    items, queries = split.items, split.queries
    return replace(split, items=replace(items, old=items.new), queries=replace(queries, old=queries.new))
