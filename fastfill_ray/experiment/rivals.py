"""Cheaper ways through a change of models, on the same held-out items and queries as a backfill.

What is new is taken in random order, whose curve needs no map. Scores of two indexes are merged as they are: none of
these ways is calibrated.

Legend: Q queries, N items, D old dim, P relevant (query, item) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastfill_ray.experiment.curves import Backfill, Curve, FittedCalibrations, backfill_order, published_cutoffs
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Measured, Shadow, Unseen, make_shadow, scores_of
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.retrieval.metrics import metrics_of
from fastfill_ray.retrieval.ranking import rank
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, I64, Bools, Metric

SWAP_AT_END, NAIVE_SWAP, QUERY_MAP = "swap at the end", "naive swap", "query map"
RANK_MERGE, MAPPED_RANK_MERGE, RRF = "rank merge", "rank merge, mapped queries", "RRF"
# Places among the 22 points that tables show: 0, 10, 24, 48, 76, 90 and 100 %.
SHOWN = (0, 2, 5, 10, 16, 19, 21)
# Scores of a state that are held at a time.
_BLOCK_SCORES = 1 << 20


def rival_curves(
    items: PairedItems, queries: Queries, metric: Metric, *, mapped: F32 | None, seed: int
) -> dict[str, Curve]:
    """Each rival's curve at the 22 published points; those without the vectors that they need are left out.

    swap at the end: the old system serves until every item is embedded. naive swap: new queries search old vectors as
    they are, where both models have as many dimensions. query map: the old index, asked with mapped queries for ever
    (Drift-Adapter; Vejendla, EMNLP 2025). rank merge: stale items by the old query, new ones by the new query, merged
    by raw scores (Seo et al., WACV 2025); the same with mapped queries. RRF: the two lists merged by reciprocal ranks
    (Cormack et al., SIGIR 2009).

    Args:
        items: (N,) of one split.
        mapped: (Q, D) old query vectors made of the new ones by a reverse map; None without one.
    """
    shadow = make_shadow(items, queries, metric)
    order = backfill_order(random_priority(items.id_hash, seed), items.id_hash)
    curves: dict[str, Curve] = {}

    def merged(stale: F32) -> Curve:
        return Backfill(shadow, stale, order).trace(FittedCalibrations(), published_cutoffs(len(order)))

    def of_old_index(asking: F32) -> F32:
        """Scores (Q, N) of the old vectors, asked with some vectors (Q, D)."""
        return scores_of(asking, items.old, metric, Unseen.of(items, queries))

    if shadow.old is not None:
        arms = shadow.arms()
        curves[SWAP_AT_END] = _constant(arms["old/old"], arms["new/new"], len(order))
    if items.old.shape[1] == queries.new.shape[1]:
        curves[NAIVE_SWAP] = merged(of_old_index(queries.new))
    if mapped is not None:
        of_mapped = of_old_index(mapped)
        old_index = shadow.measure(of_mapped)
        curves[QUERY_MAP] = _constant(old_index, old_index, len(order))
        curves[MAPPED_RANK_MERGE] = merged(of_mapped)
    if shadow.old is not None:
        curves[RANK_MERGE] = merged(shadow.old)
        curves[RRF] = _reciprocal_ranks(shadow, shadow.old, order)
    return curves


def _constant(before: Measured, end: Measured, size: int) -> Curve:
    """One value until the last of the published points."""
    fractions = np.array(published_cutoffs(size)) / size
    return Curve(fractions, {key: np.stack([*[before[key]] * (len(fractions) - 1), end[key]]) for key in before})


def _reciprocal_ranks(shadow: Shadow, old: F32, order: I64) -> Curve:
    """RRF's curve; old: (Q, N), order: (N,)."""
    size, cutoffs = len(order), published_cutoffs(len(order))
    step = max(1, _BLOCK_SCORES // max(size, 1))
    blocks: list[Measured] = []
    for first in range(0, len(old), step):
        part = shadow.some(first, first + step)
        lists = RankedLists.of(part.new, old[first : first + step])
        states: list[Measured] = []
        for cutoff in cutoffs:
            is_new = np.zeros(size, bool)
            is_new[order[:cutoff]] = True
            merged = lists.merged(is_new)
            states.append(
                {
                    (relevance, metric): values
                    for relevance, relevant in part.relevant.items()
                    for metric, values in metrics_of(relevant, merged.ranks(relevant)).items()
                }
            )
        blocks.append({key: np.stack([state[key] for state in states]) for key in states[0]})
    values = {key: np.concatenate([block[key] for block in blocks], axis=1) for key in blocks[0]}
    return Curve(np.array(cutoffs) / size, values)


@dataclass(frozen=True, eq=False)
class RankedLists:
    """All items as the new and the old index rank them, those that a query does not meet behind all others.

    columns: (2, Q, N) items, best first. places: (2, Q, N) of each item. met: (Q, N) whether a query meets an item.
    """

    columns: I64
    places: I64
    met: Bools

    @classmethod
    def of(cls, new: F32, old: F32) -> RankedLists:
        """From scores (Q, N), -inf where a query does not meet an item."""
        columns = np.stack([rank(new), rank(old)])
        places = np.empty_like(columns)
        np.put_along_axis(places, columns, np.arange(new.shape[1])[None, None, :], axis=2)
        return cls(columns, places, np.isfinite(new))

    def merged(self, is_new: Bools) -> MergedLists:
        """The two lists while some of the items (N,) are in the new index and the others in the old one."""
        inside = is_new, ~is_new
        inside_in_order = (part.take(columns) for part, columns in zip(inside, self.columns, strict=True))
        upto = np.stack([np.cumsum(part, axis=1) for part in inside_in_order])
        return MergedLists(self, is_new, upto, np.stack([self.met[:, part].sum(axis=1) for part in inside]))


@dataclass(frozen=True, eq=False)
class MergedLists:
    """Two lists, merged by reciprocal ranks: the score of an item is 1 / (60 + its rank in its own list).

    Each item is in one list, so that merging takes one from each in turn, of equal ranks the new one first, whatever
    the constant (60; Cormack et al., SIGIR 2009).

    is_new: (N,). upto: (2, Q, N) how many of its items an index ranks up to each place. lengths: (2, Q).
    """

    lists: RankedLists
    is_new: Bools
    upto: I64
    lengths: I64

    def ranks(self, relevant: RelevantItems) -> I64:
        """The rank (P,), from 1, of every relevant item."""
        owner, items = relevant.owner, relevant.items
        index = np.where(self.is_new[items], 0, 1)
        in_list = self.upto[index, owner, self.lists.places[index, owner, items]]  # rank (P,) in its own list
        # Of the other list those of a better rank come first, and before a stale item the new one of its rank.
        before: I64 = np.minimum(in_list - 1 + index, self.lengths[1 - index, owner])
        return in_list + before
