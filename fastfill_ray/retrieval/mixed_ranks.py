"""Ranks of the relevant items of a mixed gallery under one calibration after the other: a fit asks for thousands.

A calibration without a slope keeps the order of the stale scores among themselves, so both kinds are sorted once, and
a rank is two binary searches. With a slope the stale scores are sorted anew.

Legend: Q queries, N items, n of them new, m stale, P relevant (query, item) pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, I64, Bools

Serve = Callable[[F32, F32], F32]
"""(stale scores (Q, M), their positions (M,)) -> as they are served, computed score by score."""

# Metrics of the best relevant item alone: the other ranks are not looked at.
OF_THE_BEST = ("cmc@1", "cmc@5", "mrr")


class MixedRanks:
    """One state of a gallery, in which some items are new.

    Args:
        stale, new: (Q, N) scores with the items' stale and new vectors.
        is_new: (N,) which items are new. position: (N,) place in the order.
        relevant: of the Q queries.
    """

    def __init__(self, stale: F32, new: F32, is_new: Bools, position: F32, relevant: RelevantItems) -> None:
        self._all = stale, new, is_new, position
        self._relevant = relevant
        self._new = np.sort(new[:, is_new], axis=1)  # (Q, n)
        self._stale, self._position = stale[:, ~is_new], position[~is_new]  # (Q, m), (m,)
        self._ascending = np.sort(self._stale, axis=1)
        items = relevant.items
        self._owner = np.repeat(np.arange(len(stale)), relevant.counts)  # (P,)
        self._is_new, self._places = is_new[items], position[items]
        self._of_new, self._of_stale = new[self._owner, items], stale[self._owner, items]

    def mean(self, metric: str, serve: Serve, *, in_order: bool) -> float:
        """The mean of a metric over the queries that have a relevant item.

        Equal to the mean of ``metrics.measure`` of the served scores; for metrics of the best relevant item only where
        no other item scores as much as it.

        Args:
            in_order: whether `serve` keeps the order of the stale scores of a query.
        """
        if metric not in OF_THE_BEST:
            ranks = self.ranks(serve, in_order=in_order)
            return float(np.nanmean(metrics_of(self._relevant, ranks, [metric])[metric]))
        rows = np.flatnonzero(self._relevant.counts)
        best = np.maximum.reduceat(self._own(serve), self._relevant.starts[:-1][rows])
        if in_order:
            ascending = serve(self._ascending, np.zeros(len(self._position), np.float32))
            better_stale = ascending.shape[1] - at_most(ascending, rows, best)
        else:
            better_stale = (serve(self._stale, self._position)[rows] > best[:, None]).sum(axis=1)
        first = 1 + better_stale + self._new.shape[1] - at_most(self._new, rows, best)
        return float((1 / first).mean() if metric == "mrr" else (first <= int(metric[-1])).mean())

    def ranks(self, serve: Serve, *, in_order: bool) -> I64:
        """The rank (P,), from 1, of every relevant item: as ``ranking.ranks_of`` the served scores."""
        own = self._own(serve)
        if in_order:  # then no position counts
            ascending = serve(self._ascending, np.zeros(len(self._position), np.float32))
        else:
            ascending = np.sort(serve(self._stale, self._position), axis=1)
        ranks = np.ones(len(own), np.int64)
        tied = np.zeros(len(own), bool)
        for rows, inside in ((self._new, self._is_new), (ascending, ~self._is_new)):
            not_better = at_most(rows, self._owner, own)
            ranks += rows.shape[1] - not_better
            # The best that is not better, itself left out.
            next_one = not_better - 1 - inside
            some = np.flatnonzero(next_one >= 0)
            tied[some] |= rows[self._owner[some], next_one[some]] == own[some]
        for pair in np.flatnonzero(tied).tolist():  # equal scores are ranked by column
            ranks[pair] += self._equal_before(pair, own[pair], serve)
        return ranks

    def _own(self, serve: Serve) -> F32:
        """The served scores (P,) of the relevant items."""
        return np.where(self._is_new, self._of_new, serve(self._of_stale[None, :], self._places)[0])

    def _equal_before(self, pair: int, score: np.float32, serve: Serve) -> int:
        stale, new, is_new, position = self._all
        query, item = self._owner[pair], self._relevant.items[pair]
        before = np.where(is_new[:item], new[query, :item], serve(stale[query : query + 1, :item], position[:item])[0])
        return int((before == score).sum())


def at_most(rows: F32, owner: I64, values: F32) -> I64:
    """How many scores of its row are at most each value (P,): a binary search of all at once.

    Args:
        rows: (Q, M), each ascending. owner: (P,) the row of each value.
    """
    width = rows.shape[1]
    scores, first = rows.ravel(), owner * width
    count = np.zeros(len(values), np.int64)
    step = 1 << width.bit_length() >> 1
    while step:
        further = count + step
        inside = np.flatnonzero(further <= width)
        fits = inside[scores[first[inside] + further[inside] - 1] <= values[inside]]
        count[fits] = further[fits]
        step >>= 1
    return count
