"""Whole states of a backfill on held-out pairs, without re-embedding anything: the shadow gallery.

The pairs have both vectors, so any mixture of stale and new can be scored: an item of the shadow gallery counts as new
in version k iff its priority puts it in a wave <= k. (The real index always serves a pair's new vector.)

Legend: Q queries, N shadow items, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.retrieval.calibration import Form, Served, fit_served, mixed
from fastfill_ray.retrieval.fusion import Fusion, fuse
from fastfill_ray.retrieval.metrics import per_query_by_relevance
from fastfill_ray.retrieval.ranking import rank
from fastfill_ray.retrieval.relevance import TRUTH_DEPTH, Truth
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, F64, Bools, Metric

# Queries that a fit looks at: more make the parameters no better, only later.
_FIT_QUERIES = 300


@dataclass(frozen=True)
class Shadow:
    """Scores of every query with every shadow item in each state; -inf excludes a query's own item.

    ``relevance`` holds (Q, N) bool per available relevance; ``new_model`` is always there. ``waves`` (N,): the wave
    that the order alone gives each item; ``middles``: the place in the order, 0 to 1, of each wave's middle, by its
    number. ``sampled`` (N,): items that stand for the pairs when a calibration is fitted.
    """

    old: F32 | None
    stale: F32
    new: F32
    relevance: dict[str, Bools]
    waves: NDArray[np.int16]
    sampled: Bools
    middles: F32

    @property
    def position(self) -> F32:
        """Each item's place in the order (N,), as a segment knows it: the middle of its wave."""
        places: F32 = self.middles[self.waves]
        return places

    def is_new(self, wave: int) -> Bools:
        return self.waves <= wave

    def per_query(self, scores: F32) -> dict[str, dict[str, F64]]:
        """{relevance: {metric: (Q,)}} of one state's scores."""
        counts = {name: (relevant & np.isfinite(scores)).sum(axis=1) for name, relevant in self.relevance.items()}
        return per_query_by_relevance(scores, self.relevance, counts)

    def at(self, wave: int, served: Served) -> dict[str, dict[str, F64]]:
        """The state in which waves <= `wave` are new."""
        return self.per_query(mixed(self.stale, self.new, self.is_new(wave), self.position, served))

    def fit(self, wave: int, relevance: str, metric: str, form: Form, seed: int) -> Served:
        """The calibration of that state for an objective.

        In the real index the pairs are new as well, whatever their priority. So that it is fitted at the version's own
        fraction, as large a share of the shadow items (``sampled``) counts as new here.
        """
        answered = np.flatnonzero(self.relevance[relevance].any(axis=1))
        drawn = np.sort(np.random.default_rng([seed, 17]).permutation(answered)[:_FIT_QUERIES])
        return fit_served(
            self.stale[drawn],
            self.new[drawn],
            self.is_new(wave) | self.sampled,
            self.position,
            Truth.of(self.relevance[relevance][drawn]),
            metric,
            form,
        )

    def answerable(self, relevance: str) -> int:
        """Queries that have a relevant item under `relevance`."""
        return int(self.relevance[relevance].any(axis=1).sum()) if relevance in self.relevance else 0


def make_shadow(
    *,
    queries_new: F32,
    items_new: F32,
    items_aligned: F32,
    metric: Metric,
    relevance: dict[str, Bools],
    waves: NDArray[np.int16],
    excluded: Bools,
    sampled: Bools,
    middles: F32,
    queries_old: F32 | None = None,
    items_old: F32 | None = None,
    fusion: Fusion | None = None,
) -> Shadow:
    """A shadow gallery from vectors.

    Args:
        queries_new: (Q, E). queries_old: (Q, D), None where the old model cannot embed queries.
        items_new: (N, E). items_aligned: (N, E), norms matched. items_old: (N, D).
        relevance: (Q, N) per relevance that the data offers; `new_model` is added.
        waves: (N,) the wave that the order alone gives each item.
        excluded: (Q, N) pairs of a query and its own item.
        sampled: (N,) a uniform sample of the items, as large a share as the pairs are of the gallery.
        middles: (W + 2,) the middle of each wave, ``ordering.waves.wave_middles``.
        fusion: of fused stale vectors; None where they are the aligned ones.

    Raises:
        ValueError: a fusion with old vectors, and none are given.
    """

    def scores(queries: F32, items: F32) -> F32:
        return np.where(excluded, np.float32(-np.inf), similarity(queries, items, metric))

    queries_stale, items_stale = queries_new, items_aligned
    if fusion is not None:
        queries_stale = fuse(queries_old, queries_new, fusion, metric)
        items_stale = fuse(items_old, items_aligned, fusion, metric)
    new = scores(queries_new, items_new)
    top = rank(new)[:, :TRUTH_DEPTH]
    truth = np.zeros(new.shape, bool)
    np.put_along_axis(truth, top, True, axis=1)
    return Shadow(
        old=scores(queries_old, items_old) if queries_old is not None and items_old is not None else None,
        stale=scores(queries_stale, items_stale),
        new=new,
        relevance={
            **{name: relevant & ~excluded for name, relevant in relevance.items()},
            "new_model": truth & np.isfinite(new),
        },
        waves=waves,
        sampled=sampled,
        middles=middles,
    )
