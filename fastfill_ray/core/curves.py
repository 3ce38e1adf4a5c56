"""Backfilling curves on held-out pairs: every state between all stale and all new, ranked and measured.

Pairs have both vectors, so any mixture can be scored without re-embedding anything. A candidate is one way to run a
backfill: a map, how much of the old score a stale vector keeps, an order, and how stale scores are served.

Legend: Q queries, N items of the split, F fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.core.metrics import Floats, Interval, mean_interval
from fastfill_ray.core.plan import order_key
from fastfill_ray.core.ranks import Truth, measure
from fastfill_ray.core.serving import Form, Served, fit_served, interpolate, mixed

POINTS = 22  # of the published curve: FastFill evaluates after floor(i N / 21) items, i = 0..21
# Calibrations are fitted at these fractions; in between the parameters are interpolated.
KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
# Queries that a fit looks at: more make the parameters no better, only later.
FIT_QUERIES = 250


@dataclass(frozen=True)
class Scene:
    """One held-out split as its queries see it; -inf excludes an item from a query (self-match).

    new, old: (Q, N) float32 scores with both vectors new, both old; old is None where queries have no old vectors.
    truths: by relevance, `new_model` among them. id_hash: (N,) breaks ties of the order. groups: (Q,) of the queries.
    old_scale: factor that brings old scores to the spread of new ones; 1 for cosine.
    """

    new: NDArray[np.float32]
    old: NDArray[np.float32] | None
    truths: Mapping[str, Truth]
    id_hash: NDArray[np.uint64]
    groups: NDArray[np.object_] | None = None
    old_scale: float = 1.0

    def take(self, queries: NDArray[np.int64]) -> Scene:
        """The same items, asked by some of the queries."""
        return Scene(
            self.new[queries],
            None if self.old is None else self.old[queries],
            {name: truth.take(queries) for name, truth in self.truths.items()},
            self.id_hash,
            None if self.groups is None else self.groups[queries],
            self.old_scale,
        )

    def sample(self, count: int, seed: int) -> NDArray[np.int64]:
        """At most `count` queries, uniformly, ascending."""
        size = min(count, len(self.new))
        return np.sort(np.random.default_rng([seed, 7]).choice(len(self.new), size=size, replace=False))

    def answerable(self, relevance: str) -> int:
        """Queries with a relevant item."""
        return int((self.truths[relevance].counts > 0).sum()) if relevance in self.truths else 0


@dataclass(frozen=True)
class Candidate:
    """One way to run a backfill. weight: the aligned score's share of a stale score; below 1 it is `fused`."""

    method: str
    weight: float
    policy: str
    form: Form

    @property
    def stale_mode(self) -> str:
        return "aligned" if self.weight == 1 else "fused"


def fuse_scores(scene: Scene, stale: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Scores of fused vectors (Q, N): weight * aligned + (1 - weight) * old_scale * old."""
    if weight == 1:
        return stale
    if scene.old is None:
        raise ValueError("the queries have no old vectors: only weight 1 can be served")
    old = np.float32((1 - weight) * scene.old_scale) * scene.old
    return old if weight == 0 else np.float32(weight) * stale + old


def old_scale_of(old: NDArray[np.float32] | None, new: NDArray[np.float32], metric: str) -> float:
    """Spread of new scores over spread of old ones, (Q, N) each, excluded ones left out; 1 for cosine."""
    if old is None or metric == "cosine":
        return 1.0
    spread = float(old[np.isfinite(old)].std())
    return float(new[np.isfinite(new)].std()) / spread if spread > 0 else 1.0


def backfill_order(priority: NDArray[np.floating], id_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Items (N,), the first to be re-embedded first: by ``core.plan.order_key``, as the real waves are cut."""
    return np.argsort(~order_key(priority, id_hash), kind="stable")


def positions(order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Place (N,) of each item in the order, 0 <= u < 1."""
    place = np.empty(len(order), np.float32)
    place[order] = np.arange(len(order), dtype=np.float32) / len(order)
    return place


def fit_knots(
    scene: Scene,
    stale: NDArray[np.float32],
    order: NDArray[np.int64],
    relevance: str,
    metric: str,
    form: Form,
    *,
    seed: int,
    knots: Sequence[float] = KNOTS,
) -> list[Served]:
    """The calibration at each knot, for the objective, under this very order; each fit starts from the one before."""
    if form == "identity":
        return [Served()] * len(knots)
    queries = scene.sample(FIT_QUERIES, seed)
    truth, place = scene.truths[relevance].take(queries), positions(order)
    mine, new = stale[queries], scene.new[queries]
    fitted: list[Served] = []
    for knot in knots:
        fitted.append(fit_served(mine, new, place < knot, place, truth, metric, form, tuple(fitted[-1:])))
    return fitted


@dataclass(frozen=True)
class Curve:
    """Every relevance and metric along a backfill.

    fractions: (F,) share of the items that is new. values: {(relevance, metric): (F, Q)}, NaN without an answer.
    """

    fractions: Floats
    values: Mapping[tuple[str, str], Floats]

    def mean(self, relevance: str, metric: str) -> Floats:
        """The curve (F,)."""
        values = self.values[relevance, metric]
        answered = ~np.isnan(values).all(axis=0)
        curve: Floats = values[:, answered].mean(axis=1) if answered.any() else np.full(len(values), np.nan)
        return curve

    def area_per_query(self, relevance: str, metric: str) -> Floats:
        """Mean over the fractions per query (Q,): over 22 even ones it is FastFill's M~."""
        area: Floats = self.values[relevance, metric].mean(axis=0)
        return area

    def area(self, relevance: str, metric: str, *, seed: int = 0) -> Interval:
        """M~, the mean quality on the way, with its 95 % bootstrap interval over the queries."""
        return mean_interval(self.area_per_query(relevance, metric), seed=seed)


def trace(
    scene: Scene,
    stale: NDArray[np.float32],
    order: NDArray[np.int64],
    fitted: Sequence[Served],
    cutoffs: Sequence[int],
    *,
    knots: Sequence[float] = KNOTS,
    relevances: Sequence[str] | None = None,
    sampled: NDArray[np.bool_] | None = None,
) -> Curve:
    """The curve of one order and calibration.

    Args:
        stale: (Q, N) scores with the stale vectors, as they are before calibration.
        cutoffs: how many items are new at each point.
        sampled: (N,) items that are new from the start, as the pairs are in a real index.
    """
    size, place = len(order), positions(order)
    truths = {name: scene.truths[name] for name in relevances or scene.truths}
    collected: dict[tuple[str, str], list[Floats]] = {}
    for cutoff in cutoffs:
        is_new = np.zeros(size, bool) if sampled is None else sampled.copy()
        is_new[order[:cutoff]] = True
        served = interpolate(list(knots), list(fitted), cutoff / size)
        for name, metrics in measure(mixed(stale, scene.new, is_new, place, served), truths).items():
            for metric, values in metrics.items():
                collected.setdefault((name, metric), []).append(values)
    fractions = np.array([cutoff / size for cutoff in cutoffs], np.float64)
    return Curve(fractions, {key: np.stack(values) for key, values in collected.items()})


def published_cutoffs(size: int, points: int = POINTS) -> list[int]:
    """floor(i N / (points - 1)) for i = 0..points - 1 (FastFill's evaluation code)."""
    return [size * i // (points - 1) for i in range(points)]


def arm(scores: NDArray[np.float32], scene: Scene) -> dict[tuple[str, str], Floats]:
    """{(relevance, metric): (Q,)} of a state without stale and new: old/old or new/new."""
    return {
        (relevance, metric): values
        for relevance, metrics in measure(scores, scene.truths).items()
        for metric, values in metrics.items()
    }


def last_crossing(fractions: Floats, curve: Floats, level: float) -> float:
    """The least fraction from which on the curve never falls below `level` again, between points linearly."""
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return float(fractions[0])
    last = int(below[-1])
    if last == len(curve) - 1:
        return float(fractions[-1])
    share = (level - curve[last]) / (curve[last + 1] - curve[last])
    return float(fractions[last] + share * (fractions[last + 1] - fractions[last]))
