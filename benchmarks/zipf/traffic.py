"""Queries asked by Zipf's law, the log first and the test later, and a set's part under them.

Legend: Q queries that seek an item of the part, N items of the part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.sets import BenchmarkSet
from fastfill_ray.experiment.candidate import MapView
from fastfill_ray.experiment.heldout import Evidence, HeldOut, hold_out
from fastfill_ray.experiment.items import MAX_QUERIES, Queries
from fastfill_ray.ordering.demand import Demand, TakenItems, demand, taken, with_thresholds
from fastfill_ray.ordering.proxies import make_proxies
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.types import F32, F64, I64, Split

VIEW = MapView("ridge")
METRIC = "cmc@1"
TEST_EVENTS = 20_000


def zipf(count: int, exponent: float = 1.0) -> F64:
    """How likely each of `count` queries is, the most frequent first: proportional to 1 / rank^exponent."""
    weights = 1 / np.arange(1, count + 1) ** exponent
    return np.asarray(weights / weights.sum())


def log_events(probability: F64, coverage: float) -> int:
    """How many events a log has whose queries are this share of later traffic: sum_q p_q (1 - (1 - p_q)^L)."""
    low, high = 1.0, 1e9
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        covered = float(probability @ -np.expm1(middle * np.log1p(-probability)))
        low, high = (middle, high) if covered < coverage else (low, middle)
    return round(high)


@dataclass(frozen=True, eq=False)
class AskedPart:
    """A held-out part with the queries that seek its items, how often each is in the log, and later in the test.

    rows: (Q,) of the queries in the set. answers: (Q,) rows of the items in the part. logged, tested: (Q,) events.
    """

    part: HeldOut
    built: BenchmarkSet
    rows: I64
    answers: I64
    logged: I64
    tested: I64

    @property
    def covered(self) -> float:
        """The share of the test's traffic whose query, and so its answer, is in the log."""
        return float(self.tested[self.logged > 0].sum() / self.tested.sum())

    @property
    def taken_of_item(self) -> F64:
        """How often each item (N,) was taken in the log."""
        return np.bincount(self.answers, weights=self.logged, minlength=len(self.part.items.ids))

    def vectors(self, chosen: I64) -> tuple[F32, F32]:
        """New and old vectors of some of the queries."""
        if self.built.queries_new is None or self.built.queries_old is None:
            raise ValueError(f"set {self.built.name!r} has no queries of its own")
        return self.built.queries_new[self.rows[chosen]], self.built.queries_old[self.rows[chosen]]

    def queries(self, chosen: I64) -> Queries:
        """Some of the queries, once for each time that they are chosen."""
        new, old = self.vectors(chosen)
        ids = self.part.items.ids
        judged = tuple(Judgement(row, ids[item]) for row, item in enumerate(self.answers[chosen].tolist()))
        return Queries(np.array([f"q{row}" for row in range(len(chosen))], object), new, old, judged=judged)

    def events(self, count: int, seed: int) -> I64:
        """Queries of `count` events of the test."""
        events = np.repeat(np.arange(len(self.rows)), self.tested)
        return np.random.default_rng(seed).permutation(events)[:count]


def ask(evidence: Evidence, built: BenchmarkSet, split: Split, coverage: float) -> AskedPart:
    """A part of a set under the traffic of at most MAX_QUERIES queries; which is how frequent is drawn by chance."""
    part = hold_out(evidence, split, ["uncertainty", "expected_gain"])
    if built.query_item is None:
        raise ValueError(f"set {built.name!r} has no queries of its own")
    row_of = part.items.row_of
    rng = np.random.default_rng([evidence.seed, ("calibration", "audit").index(split)])
    rows = rng.permutation(np.flatnonzero([item in row_of for item in built.query_item.tolist()]))[:MAX_QUERIES]
    answers = np.array([row_of[item] for item in built.query_item[rows].tolist()], np.int64)
    probability = zipf(len(rows))
    logged = rng.multinomial(log_events(probability, coverage), probability)
    return AskedPart(part, built, rows, answers, logged, rng.multinomial(TEST_EVENTS, probability))


def orders(asked: AskedPart, unseen: HeldOut) -> dict[str, F32]:
    """The priorities (N,) of every order that is compared.

    Args:
        unseen: items that the map has not seen, whose new vectors tell how far the evidence errs.
    """
    items, aligned = asked.part.items, asked.part.aligned[VIEW]
    chosen = np.flatnonzero(asked.logged)
    new, old = asked.vectors(chosen)
    proxies = make_proxies(
        new,
        old,
        asked.part.metric,
        items_new=unseen.items.new,
        items_old=unseen.items.old,
        items_aligned=unseen.aligned[VIEW],
    )
    logged = with_thresholds(Demand(proxies, asked.logged[chosen].astype(np.float64)), items.old, aligned, METRIC)
    demanded = demand(items.old, aligned, logged)
    users_took = TakenItems.of(items.ids, asked.taken_of_item)
    known: dict[str, F32] = {str(policy): values for policy, values in asked.part.priorities[VIEW].items()}
    return known | {"demand": demanded, "taken": taken(items.id_hash, users_took, demanded)}
