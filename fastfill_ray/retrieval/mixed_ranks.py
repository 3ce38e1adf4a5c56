"""Ranks of the relevant items of a mixed gallery, whose scores are sorted once for all its states and calibrations.

A state keeps some of the new scores and some of the stale ones, in their order. A calibration without a slope keeps the
order of the stale ones, too: a rank is then two binary searches, and no state is ever sorted. With a slope its stale
scores are.

Legend: Q queries, N items, n of them new, m stale, P relevant (query, item) pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, I64, Bools

Serve = Callable[[F32, F32], F32]
"""(stale scores (Q, M), their positions (M,)) -> as they are served, computed score by score."""

# Metrics of the best relevant item alone: the other ranks are not looked at.
OF_THE_BEST = ("cmc@1", "cmc@5", "mrr")
# Scores that are put in order at a time: so many stay in the processor's cache.
_BLOCK_SCORES = 1 << 18
# So few pairs of a relevant and any item are compared, all of them, in less time than the calls of a search take.
_FEW_PAIRS = 1 << 15


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Scores (Q, N) beside their order: ascending (Q, N), and the column (Q, N) of each."""

    scores: F32
    ascending: F32
    columns: NDArray[Any]

    @classmethod
    def of(cls, scores: F32) -> SortedScores:
        """Every row sorted; columns are as few bytes as they fit into."""
        ascending = np.empty_like(scores)
        columns = np.empty(scores.shape, np.min_scalar_type(max(scores.shape[1] - 1, 0)))
        step = max(1, _BLOCK_SCORES // max(scores.shape[1], 1))
        for first in range(0, len(scores), step):
            rows = slice(first, first + step)
            order = np.argsort(scores[rows], axis=1)
            columns[rows] = order
            ascending[rows] = np.take_along_axis(scores[rows], order, axis=1)
        return cls(scores, ascending, columns)

    def some(self, rows: slice) -> SortedScores:
        """Of some queries, in views."""
        return SortedScores(self.scores[rows], self.ascending[rows], self.columns[rows])

    def where(self, chosen: Bools) -> F32:
        """The ascending scores (Q, n) where `chosen` (Q, N) says so, of equally many in every row."""
        places = np.flatnonzero(chosen)
        return self.ascending.ravel().take(places).reshape(len(chosen), len(places) // max(len(chosen), 1))


class Served(NamedTuple):
    """The stale scores (Q, m) of a state as they are served, each row ascending, and what serves them."""

    ascending: F32
    serve: Serve


@dataclass(frozen=True, eq=False)
class RelevantScores:
    """The scores of the relevant items with either vector. owner: (P,) their queries. new, stale: (P,)."""

    relevant: RelevantItems
    owner: I64
    new: F32
    stale: F32

    @classmethod
    def of(cls, stale: SortedScores, new: SortedScores, relevant: RelevantItems) -> RelevantScores:
        """Out of all scores."""
        owner = relevant.owner
        return cls(relevant, owner, new.scores[owner, relevant.items], stale.scores[owner, relevant.items])


class Mixture:
    """A gallery that becomes new item by item: what all its states share is computed once.

    Args:
        stale, new: scores with the items' stale and new vectors.
        turns: (N,) integers >= 0; an item is new in the states whose number is above its turn.
        position: (N,) place in the order.
    """

    def __init__(self, stale: SortedScores, new: SortedScores, turns: I64, position: F32) -> None:
        self.stale, self.new, self.position = stale, new, position
        self._end = int(turns.max(initial=0)) + 1
        # In few bytes a row of turns is compared in a tenth of the time that looking its items up takes.
        self._turns = turns.astype(np.min_scalar_type(self._end))
        self._of_stale, self._of_new = (self._turns.take(scores.columns) for scores in (stale, new))  # (Q, N) each

    def state(self, number: int) -> MixedState:
        """The state in which the items whose turn is below `number` are new."""
        least = self._turns.dtype.type(min(number, self._end))
        in_order = self._of_stale < least, self._of_new < least
        return MixedState(self.stale, self.new, self._turns < least, self.position, in_order)


class MixedState:
    """Some items are new, the others stale.

    Args:
        stale, new: scores with the items' stale and new vectors.
        is_new: (N,) which items are new. position: (N,) place in the order.
        in_order: (Q, N) each, `is_new` in the order of the ascending stale and new scores, if it is at hand.
    """

    def __init__(
        self,
        stale: SortedScores,
        new: SortedScores,
        is_new: Bools,
        position: F32,
        in_order: tuple[Bools, Bools] | None = None,
    ) -> None:
        self.stale, self.new, self.is_new, self.position = stale, new, is_new, position
        self._in_order = in_order
        self.new_ascending = new.where(in_order[1] if in_order else is_new.take(new.columns))  # (Q, n)

    @cached_property
    def _stale(self) -> F32:
        # Row by row in memory, as sorts and searches read it; an index of columns would leave it column by column.
        return self.stale.scores.take(np.flatnonzero(~self.is_new), axis=1)  # (Q, m)

    @cached_property
    def _ascending(self) -> F32:
        is_new = self._in_order[0] if self._in_order else self.is_new.take(self.stale.columns)
        return self.stale.where(~is_new)  # (Q, m)

    def served(self, serve: Serve, *, in_order: bool) -> Served:
        """The stale scores of the state.

        Args:
            in_order: whether `serve` keeps the order of a query's scores, wherever the items stand.
        """
        if in_order:
            return Served(serve(self._ascending, np.zeros(self._ascending.shape[1], np.float32)), serve)
        stale = self.unordered(serve)
        stale.sort(axis=1)
        return Served(stale, serve)

    def unordered(self, serve: Serve) -> F32:
        """The served stale scores (Q, m), as the items stand."""
        return serve(self._stale, self.position[~self.is_new])

    def relevant(self, relevant: RelevantItems) -> MixedRanks:
        """What the ranks of these items follow from."""
        return MixedRanks(self, RelevantScores.of(self.stale, self.new, relevant))


class MixedRanks:
    """The ranks of relevant items in a state, however its stale scores are served.

    Args:
        are_new: (P,) whether each relevant item is new to its own query, to which all others are as in the state; of
            queries that have one each. None: they are as in the state.
    """

    def __init__(self, state: MixedState, scores: RelevantScores, are_new: Bools | None = None) -> None:
        self._state, self._relevant = state, scores.relevant
        items = scores.relevant.items
        self._in_state, self._position = state.is_new[items], state.position[items]
        self._is_new = self._in_state if are_new is None else are_new
        self._elsewhere = self._is_new != self._in_state
        self._owner, self._of_new, self._of_stale = scores.owner, scores.new, scores.stale

    def mean(self, metric: str, serve: Serve, *, in_order: bool) -> float:
        """The mean of a metric over the queries that have a relevant item.

        Equal to the mean of ``metrics.measure`` of the served scores; for metrics of the best relevant item only where
        no other item scores as much as it.

        Args:
            in_order: see ``MixedState.served``.
        """
        if metric not in OF_THE_BEST:
            few = len(self._owner) * len(self._state.is_new) <= _FEW_PAIRS and not self._elsewhere.any()
            ranks = self._compared(serve) if few else self.ranks(self._state.served(serve, in_order=in_order))
            values = metrics_of(self._relevant, ranks, [metric])[metric]
            some = self._relevant.counts > 0
            # As nanmean, which takes longer than the metric itself of few queries.
            return float(values.mean() if some.all() else np.where(some, values, 0.0).sum() / some.sum())
        rows = np.flatnonzero(self._relevant.counts)
        best = np.maximum.reduceat(self._own(serve), self._relevant.starts[:-1][rows])
        new = self._state.new_ascending
        first = 1 + new.shape[1] - at_most(new, rows, best)
        if in_order:
            stale = self._state.served(serve, in_order=True).ascending
            first += stale.shape[1] - at_most(stale, rows, best)
        else:  # a comparison takes less than a sort
            first += (self._state.unordered(serve)[rows] > best[:, None]).sum(axis=1)
        if self._elsewhere.any():  # they are among the scores of the state as what they are not
            there = self._elsewhere & (self._served_in_state(serve) > np.repeat(best, self._relevant.counts[rows]))
            first -= np.add.reduceat(there.astype(np.int64), self._relevant.starts[:-1][rows])
        return float((1 / first).mean() if metric == "mrr" else (first <= int(metric[-1])).mean())

    def ranks(self, served: Served) -> I64:
        """The rank (P,), from 1, of every relevant item: as ``ranking.ranks_of`` the served scores."""
        own = self._own(served.serve)
        ranks = np.ones(len(own), np.int64)
        tied = np.zeros(len(own), bool)
        if self._elsewhere.any():  # they are among the scores of the state as what they are not
            ranks -= self._elsewhere & (self._served_in_state(served.serve) > own)
        in_place = ~self._elsewhere
        inside_of = self._is_new & in_place, ~self._is_new & in_place
        for rows, inside in zip((self._state.new_ascending, served.ascending), inside_of, strict=True):
            not_better = at_most(rows, self._owner, own)
            ranks += rows.shape[1] - not_better
            if rows.shape[1]:
                # The best that is not better, itself left out.
                next_one = not_better - 1 - inside
                likes = rows.ravel().take(self._owner * rows.shape[1] + np.maximum(next_one, 0))
                tied |= (likes == own) & (next_one >= 0)
        pairs, step = np.flatnonzero(tied), max(1, _BLOCK_SCORES // max(len(self._state.is_new), 1))
        for first in range(0, len(pairs), step):  # equal scores are ranked by column
            some = pairs[first : first + step]
            ranks[some] += self._equal_before(some, own[some], served.serve)
        return ranks

    def _compared(self, serve: Serve) -> I64:
        """As ``ranks`` of items that are as in the state, each compared with all others."""
        state = self._state
        served = np.where(state.is_new, state.new.scores, serve(state.stale.scores, state.position))
        rows, own = served.take(self._owner, axis=0), served[self._owner, self._relevant.items][:, None]
        better: I64 = ((rows > own) | ((rows == own) & self._before)).sum(axis=1)
        return better + 1

    @cached_property
    def _before(self) -> Bools:
        """Which items (P, N) are in the columns before that of each relevant one."""
        return np.arange(len(self._state.is_new)) < self._relevant.items[:, None]

    def _own(self, serve: Serve) -> F32:
        """The served scores (P,) of the relevant items."""
        return np.where(self._is_new, self._of_new, serve(self._of_stale[None, :], self._position)[0])

    def _served_in_state(self, serve: Serve) -> F32:
        """The scores (P,) by which the relevant items stand among those of the state."""
        return np.where(self._in_state, self._of_new, serve(self._of_stale[None, :], self._position)[0])

    def _equal_before(self, pairs: I64, own: F32, serve: Serve) -> I64:
        """How many items in the columns before that of some relevant ones score as much as these, (T,) each."""
        state, queries, items = self._state, self._owner[pairs], self._relevant.items[pairs]
        before = np.arange(len(state.is_new)) < items[:, None]
        stale = serve(state.stale.scores[queries], state.position)
        served = np.where(state.is_new, state.new.scores[queries], stale)
        equal: I64 = ((served == own[:, None]) & before).sum(axis=1)
        return equal


def at_most(rows: F32, owner: I64, values: F32) -> I64:
    """How many scores of its row are at most each value (P,): a binary search of all at once.

    Args:
        rows: (Q, M), each ascending. owner: (P,) the row of each value.
    """
    width = rows.shape[1]
    if width == 0:
        return np.zeros(len(values), np.int64)
    scores, first = rows.ravel(), owner * width
    # All rows are equally long, so that one step serves every value. What comes before `place` is at most the value; of
    # the next `rest` scores that is not known yet.
    place, rest = first.copy(), width
    while rest > 1:
        half = rest >> 1
        place += half * (scores.take(place + (half - 1)) <= values)
        rest -= half
    place += scores.take(place) <= values
    counts: I64 = place - first
    return counts
