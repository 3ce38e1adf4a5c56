"""Orders by what users ask for: the expected loss of the logged queries while an item is stale; what was taken, first.

Legend: N items, M items that were taken, Q logged queries, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.proxies import GAIN_DEPTH, Proxies
from fastfill_ray.types import F32, F64, I64, U64, Objects

# How many of a query's best items a metric looks at, where these are fewer than `expected_gain` looks at. Measured on
# docstrings sought by their sentences (aligned, the log covers 80 %), R@1 of the curve: 41.1 with one, 39.8 with ten.
DEPTHS = {"cmc@1": 1, "recall@1": 1, "mrr": 1, "cmc@5": 5}


@dataclass(frozen=True, eq=False)
class Demand:
    """Logged queries, as the proxies of `expected_gain`, with their traffic.

    proxies: the queries' vectors, with thresholds over the gallery: the score of the last of the best items that the
    metric looks at. traffic: (Q,) how often each was asked.
    """

    proxies: Proxies
    traffic: F64


def demand(old: F32, aligned: F32, logged: Demand) -> F32:
    """How much traffic is expected to miss the item while it is stale (N,): in 0 to the sum of the traffic.

    sum_q traffic_q Phi((s(q, i) - tau_q) / spread): `expected_gain` with the log as proxies, which is its case of equal
    traffic. An item counts by how likely it is among the best of a query, and a query by how often it is asked; see
    ``Proxies.chances``. Reads no label.

    Args:
        old: (N, D). aligned: (N, E), as they are indexed.

    Raises:
        ValueError: proxies without thresholds, or not one traffic per query.
    """
    proxies, traffic = logged.proxies, logged.traffic
    if proxies.thresholds is None:
        raise ValueError("policy demand needs thresholds of the logged queries, which are missing")
    if traffic.shape != proxies.thresholds.shape:
        raise ValueError(f"policy demand: {len(traffic)} traffics for {len(proxies.thresholds)} logged queries")
    shares = (traffic / max(float(traffic.max(initial=0)), 1e-300)).astype(np.float32)  # float32 counts to 2^24 only
    priority = np.empty(len(old), np.float32)
    for part, chances in proxies.chances(old, aligned):
        np.matmul(shares, chances, out=priority[part])
    return priority * np.float32(traffic.max(initial=0))


@dataclass(frozen=True, eq=False)
class TakenItems:
    """What users took. hashes: (M,) of the items' ids, ascending. traffic: (M,) how often each was taken."""

    hashes: U64
    traffic: F64

    @classmethod
    def of(cls, ids: Objects | I64, traffic: F64) -> TakenItems:
        """From the items' ids (M,), each once, and their traffic (M,): where that is shares, in units of the least."""
        hashes, traffic = hash_ids(ids), traffic / min(1.0, float(traffic[traffic > 0].min(initial=1.0)))
        order = np.argsort(hashes)
        return cls(hashes[order], traffic[order])

    def of_items(self, id_hash: U64) -> F64:
        """How often each of some items (N,) was taken."""
        if not len(self.hashes):
            return np.zeros(len(id_hash))
        place = np.minimum(np.searchsorted(self.hashes, id_hash), len(self.hashes) - 1)
        return np.where(self.hashes[place] == id_hash, self.traffic[place], 0.0)


def taken(id_hash: U64, items: TakenItems, demanded: F32) -> F32:
    """Items that users took first, by their traffic, then all others by their demand (N,).

    An item that was taken has a priority above 1, in steps of the logarithm of its traffic that tell 1,448 from 1,449;
    within a step demand decides, as it does among all others, squeezed into 0 to 1.

    Args:
        id_hash: (N,). demanded: (N,) of ``demand``.
    """
    counts = items.of_items(id_hash)
    squeezed = np.log2(1 + demanded.astype(np.float64)) / 128  # float32 ends at 2^128
    steps = np.maximum(np.round(np.log2(1 + counts) * 1024), 1) / 1024
    return np.where(counts > 0, 1 + steps + squeezed / 2048, squeezed).astype(np.float32)


@dataclass(frozen=True, eq=False)
class LoggedQueries:
    """What orders know of a query log: the distinct queries of its fit part, and what was taken in it.

    new: (Q, E). old: (Q, D), None where they have no old vectors. traffic: (Q,). taken: None where the log names no
    items. fingerprint: names all of it.
    """

    new: F32
    old: F32 | None
    traffic: F64
    taken: TakenItems | None
    fingerprint: str


def with_thresholds(logged: Demand, old: F32, aligned: F32, metric: str, share: float = 1.0) -> Demand:
    """The same with the thresholds of a gallery, from items that are this share of it: old (N, D), aligned (N, E).

    Args:
        metric: of the objective: as many of the best items count as it looks at.
    """
    depth = max(1, round(DEPTHS.get(metric, GAIN_DEPTH) * share))
    thresholds = logged.proxies.best(old, aligned, depth)[:, -1]
    return replace(logged, proxies=replace(logged.proxies, thresholds=thresholds))


def column_priority(values: F64) -> F32:
    """A priority column of the user's (N,): larger is earlier. What is not there, NaN, comes last.

    Integers and float64 beyond float32 keep their place at its ends.
    """
    limit = np.finfo(np.float32).max
    return np.where(np.isnan(values), -limit, np.clip(values, -limit, limit)).astype(np.float32)
