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

from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.retrieval.calibration import Form, Served, fit_served, interpolate, mixed
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.types import F32, F64, I64, U64, Bools

POINTS = 22  # of the published curve: FastFill evaluates after floor(i N / 21) items, i = 0..21
# Calibrations are fitted at these fractions; in between the parameters are interpolated.
KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
# Queries that a fit looks at: more make the parameters no better, only later.
FIT_QUERIES = 250


def backfill_order(priority: NDArray[np.floating], id_hash: U64) -> I64:
    """Items (N,), the first to be re-embedded first: by ``ordering.waves.order_key``, as the real waves are cut."""
    return np.argsort(~order_key(priority, id_hash), kind="stable")


def positions(order: I64) -> F32:
    """Place (N,) of each item in the order, 0 <= u < 1."""
    place = np.empty(len(order), np.float32)
    place[order] = np.arange(len(order), dtype=np.float32) / len(order)
    return place


def fit_knots(
    scene: Scene,
    stale: F32,
    order: I64,
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

    fractions: F64
    values: Mapping[tuple[str, str], F64]

    def mean(self, relevance: str, metric: str) -> F64:
        """The curve (F,)."""
        values = self.values[relevance, metric]
        answered = ~np.isnan(values).all(axis=0)
        curve: F64 = values[:, answered].mean(axis=1) if answered.any() else np.full(len(values), np.nan)
        return curve

    def area_per_query(self, relevance: str, metric: str) -> F64:
        """Mean over the fractions per query (Q,): over 22 even ones it is FastFill's M~."""
        area: F64 = self.values[relevance, metric].mean(axis=0)
        return area

    def area(self, relevance: str, metric: str, *, seed: int = 0) -> Interval:
        """M~, the mean quality on the way, with its 95 % bootstrap interval over the queries."""
        return mean_interval(self.area_per_query(relevance, metric), seed=seed)


def trace(
    scene: Scene,
    stale: F32,
    order: I64,
    fitted: Sequence[Served],
    cutoffs: Sequence[int],
    *,
    knots: Sequence[float] = KNOTS,
    relevances: Sequence[str] | None = None,
    sampled: Bools | None = None,
) -> Curve:
    """The curve of one order and calibration.

    Args:
        stale: (Q, N) scores with the stale vectors, as they are before calibration.
        cutoffs: how many items are new at each point.
        sampled: (N,) items that are new from the start, as the pairs are in a real index.
    """
    size, place = len(order), positions(order)
    truths = {name: scene.truths[name] for name in relevances or scene.truths}
    collected: dict[tuple[str, str], list[F64]] = {}
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


def arm(scores: F32, scene: Scene) -> dict[tuple[str, str], F64]:
    """{(relevance, metric): (Q,)} of a state without stale and new: old/old or new/new."""
    return {
        (relevance, metric): values
        for relevance, metrics in measure(scores, scene.truths).items()
        for metric, values in metrics.items()
    }


def last_crossing(fractions: F64, curve: F64, level: float) -> float:
    """The least fraction from which on the curve never falls below `level` again, between points linearly."""
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return float(fractions[0])
    last = int(below[-1])
    if last == len(curve) - 1:
        return float(fractions[-1])
    share = (level - curve[last]) / (curve[last + 1] - curve[last])
    return float(fractions[last] + share * (fractions[last + 1] - fractions[last]))
