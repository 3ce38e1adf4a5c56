"""Curves of traffic: every state of a backfill by the share of the test's traffic that finds its answer first.

Legend: Q distinct queries of the test, N items, F states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.zipf.traffic import METRIC, VIEW, AskedPart
from fastfill_ray.experiment.candidate import WEIGHTS, Objective
from fastfill_ray.experiment.curves import Backfill, backfill_order, published_cutoffs
from fastfill_ray.experiment.items import MAX_QUERIES, Queries
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.log.gate import judge
from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.retrieval.intervals import Interval, resampling
from fastfill_ray.types import F32, F64, I64, Bools

OBJECTIVE = Objective("qrels", METRIC)
FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2)
KNOTS = (0.01, 0.05, 0.2, 0.5, 0.8)
FIT_EVENTS = 600
# Strengths of a prior that are tried: what the logarithm of an item's traffic adds, in spreads of a query's scores.
STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)


def found_first(scores: F32, answers: I64) -> Bools:
    """Whether each query's answer (Q,) scores above all other items (Q, N); a tie is not above."""
    own = scores[np.arange(len(answers)), answers]
    best: Bools = (scores >= own[:, None]).sum(axis=1) == 1
    return best


@dataclass(frozen=True, eq=False)
class Side:
    """A part as some of its queries see it: those that calibrations are fitted on, or those of the test.

    weights: (Q,) traffic, sums to 1. prior: (N,) what is added to the score of each item; 0 without a prior.
    """

    asked: AskedPart
    queries: Queries
    answers: I64
    weights: F64
    shadow: Shadow
    prior: F32

    @classmethod
    def of(cls, asked: AskedPart, chosen: I64, traffic: F64) -> Side:
        queries = asked.queries(chosen)
        shadow = asked.part.shadow(queries).only([OBJECTIVE.relevance])
        none = np.zeros(len(asked.part.items.ids), np.float32)
        return cls(asked, queries, asked.answers[chosen], traffic / traffic.sum(), shadow, none)

    @classmethod
    def tested(cls, asked: AskedPart) -> Side:
        """Every query of the test's traffic."""
        chosen = np.flatnonzero(asked.tested)
        return cls.of(asked, chosen, asked.tested[chosen].astype(np.float64))

    def stale(self, weight: float) -> F32:
        return self.asked.part.stale_scores(self.queries, self.shadow, VIEW, weight) + self.prior

    def backfill(self, weight: float, priority: F32) -> Backfill:
        shadow = replace(self.shadow, new=self.shadow.new + self.prior)
        return Backfill(shadow, self.stale(weight), backfill_order(priority, self.asked.part.items.id_hash))

    def mean(self, scores: F32) -> float:
        return float(self.weights @ found_first(scores, self.answers))

    def with_prior(self, strength: float) -> Side:
        """What was taken often scores higher: by the logarithm of its traffic."""
        spread = float(self.shadow.new.std(axis=1).mean())
        prior = strength * spread * np.log1p(self.asked.taken_of_item)
        return replace(self, prior=prior.astype(np.float32))

    def arm(self, name: str) -> F32:
        """Scores (Q, N) with both vectors old, or both new, and the prior."""
        scores = self.shadow.old if name == "old/old" else self.shadow.new
        if scores is None:
            raise ValueError("the queries have no old vectors")
        return scores + self.prior


def best_weight(fitting: Side) -> float:
    """The aligned score's share of a stale score that is best while all is stale."""
    return max(WEIGHTS, key=lambda weight: fitting.mean(fitting.stale(weight)))


def best_prior(fitting: Side, arm: str) -> float:
    """The strength of the prior that is best for an arm."""
    return max(STRENGTHS, key=lambda strength: fitting.mean(fitting.with_prior(strength).arm(arm)))


@dataclass(frozen=True, eq=False)
class TrafficCurve:
    """An order's curve. at: (len(FRACTIONS), Q) whether each query finds its answer; states: (22, Q) the same."""

    at: Bools
    states: Bools

    @property
    def area(self) -> F64:
        """Per query (Q,)."""
        area: F64 = self.states.mean(axis=0)
        return area


def traffic_curve(
    fitting: Side, test: Side, orders: Sequence[Mapping[str, F32]], name: str, weight: float
) -> TrafficCurve:
    """One order, calibrated on the calibration part's traffic and traced on the test's.

    Args:
        orders: of the calibration part, and of the audit part.
    """
    form: Form = "offset" if weight == 1 else "scale_offset"
    fitted = fitting.backfill(weight, orders[0][name]).fit(OBJECTIVE, form, KNOTS)
    traced = test.backfill(weight, orders[1][name])
    size = len(traced.order)

    def states(cutoffs: Sequence[int]) -> Bools:
        return np.stack([found_first(traced.served(fitted, cutoff), test.answers) for cutoff in cutoffs])

    return TrafficCurve(states([round(f * size) for f in FRACTIONS]), states(published_cutoffs(size)))


def interval(values: F64, weights: F64, *, seed: int) -> Interval:
    """The mean by traffic with its 95 % bootstrap interval over distinct queries, each with all of its traffic."""
    drawn = resampling(len(values), seed)
    low, high = np.quantile((drawn @ (weights * values)) / (drawn @ weights), [0.025, 0.975])
    return Interval(float(weights @ values / weights.sum()), float(low), float(high), len(values))


def published(traced: Side, curve: TrafficCurve, *, seed: int) -> list[float]:
    """What users are served in the 22 states: the old index until the gate lets one pass, and the last one that it did.

    The gate sees as many events as in a run, and holds a state that is surely worse by them than what is served.
    """
    events = np.random.default_rng(seed).choice(len(traced.weights), MAX_QUERIES, p=traced.weights)
    serving, means = found_first(traced.arm("old/old"), traced.answers), list[float]()
    for state in curve.states:
        now, before = (found[events].astype(np.float64) for found in (state, serving))
        if judge(now, before, against="what is served", max_regression=0.0, seed=seed).publish:
            serving = state
        means.append(float(traced.weights @ serving))
    return means


def rounded(interval: Interval) -> dict[str, Any]:
    return {"value": round(interval.value, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}
