"""From vectors of held-out pairs to what the curves are traced on: a scene per split, a view per map.

Legend: Q queries, N items of the split, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import View, map_of, views_of
from fastfill_ray.experiment.items import Asked, Items
from fastfill_ray.ordering.policies import Policy, Reference, priority_of, weighted
from fastfill_ray.ordering.proxies import Proxies, make_proxies, with_thresholds
from fastfill_ray.retrieval.relevance import Truth
from fastfill_ray.retrieval.similarity import match_norms, similarity
from fastfill_ray.types import F32, I64, U64, Bools, Metric, Objects


@dataclass(frozen=True)
class Scene:
    """One held-out split as its queries see it; -inf excludes an item from a query (self-match).

    new, old: (Q, N) float32 scores with both vectors new, both old; old is None where queries have no old vectors.
    truths: by relevance, `new_model` among them. id_hash: (N,) breaks ties of the order. groups: (Q,) of the queries.
    old_scale: factor that brings old scores to the spread of new ones; 1 for cosine.
    """

    new: F32
    old: F32 | None
    truths: Mapping[str, Truth]
    id_hash: U64
    groups: Objects | None = None
    old_scale: float = 1.0

    def take(self, queries: I64) -> Scene:
        """The same items, asked by some of the queries."""
        return Scene(
            self.new[queries],
            None if self.old is None else self.old[queries],
            {name: truth.take(queries) for name, truth in self.truths.items()},
            self.id_hash,
            None if self.groups is None else self.groups[queries],
            self.old_scale,
        )

    def sample(self, count: int, seed: int) -> I64:
        """At most `count` queries, uniformly, ascending."""
        size = min(count, len(self.new))
        return np.sort(np.random.default_rng([seed, 7]).choice(len(self.new), size=size, replace=False))

    def answerable(self, relevance: str) -> int:
        """Queries with a relevant item."""
        return int((self.truths[relevance].counts > 0).sum()) if relevance in self.truths else 0


def old_scale_of(old: F32 | None, new: F32, metric: str) -> float:
    """Spread of new scores over spread of old ones, (Q, N) each, excluded ones left out; 1 for cosine."""
    if old is None or metric == "cosine":
        return 1.0
    spread = float(old[np.isfinite(old)].std())
    return float(new[np.isfinite(new)].std()) / spread if spread > 0 else 1.0


MAX_PROXIES = 1000


def make_scene(items: Items, asked: Asked, metric: Metric) -> Scene:
    """Scores and relevances of one split; float64 vectors give float64 scores."""
    excluded = own_items(asked, len(items.new))
    new = scores_of(asked.new, items.new, metric, excluded)
    old = None if asked.old is None else scores_of(asked.old, items.old, metric, excluded)
    truths = {"new_model": Truth.top(new)}
    if asked.labels is not None and items.labels is not None:
        number = {label: i for i, label in enumerate(dict.fromkeys(asked.labels.tolist())) if label is not None}
        mine = np.array([number.get(label, -1) for label in asked.labels.tolist()], np.int64)
        theirs = np.array([number.get(label, -2) for label in items.labels.tolist()], np.int64)
        truths["label"] = Truth.of((mine[:, None] == theirs[None, :]) & ~excluded)
    if asked.judged is not None:
        judged = np.zeros(new.shape, bool)
        judged[asked.judged[:, 0], asked.judged[:, 1]] = True
        truths["qrels"] = Truth.of(judged & ~excluded)
    return Scene(new, old, truths, items.id_hash, asked.groups, old_scale_of(old, new, metric))


def own_items(asked: Asked, size: int) -> Bools:
    """(Q, N): where a query meets itself."""
    excluded = np.zeros((len(asked.new), size), bool)
    if asked.own is not None:
        rows = np.flatnonzero(asked.own >= 0)
        excluded[rows, asked.own[rows]] = True
    return excluded


def scores_of(queries: F32, items: F32, metric: Metric, excluded: Bools) -> F32:
    """Scores (Q, N) with excluded ones at -inf."""
    scores = similarity(queries, items, metric)
    scores[excluded] = -np.inf
    return scores


def proxies_of(
    view: str, train: Items, held_out: Items, aligned: F32, metric: Metric, *, norm: float, seed: int
) -> Proxies:
    """Proxy queries for `expected_gain` under one view of a map, without thresholds: a sample of the train pairs.

    Args:
        held_out: pairs that the map has not seen. aligned: (N, E) their aligned vectors, as the map gives them.
        norm: mean norm of new vectors.
    """
    drawn = np.random.default_rng([seed, 5]).permutation(len(train.new))[:MAX_PROXIES]
    return make_proxies(
        train.new[drawn],
        train.old[drawn],
        metric,
        items_new=held_out.new,
        items_old=held_out.old,
        items_aligned=aligned if map_of(view)[1] else match_norms(aligned, metric, norm),
    )


def make_view(
    items: Items,
    asked: Asked,
    aligned: F32,
    log_variance: F32,
    metric: Metric,
    *,
    norm: float | None,
    reference: Reference,
    policies: Sequence[Policy],
    seed: int,
) -> View:
    """One map on the split.

    Args:
        aligned: (N, E) as the map gives them. log_variance: (N,).
        norm: mean norm of new vectors that aligned ones are brought to; None leaves them as they are.
        reference: of the train pairs; thresholds of its proxies are measured here, on this split.
        policies: those whose priorities are wanted; `random` always comes too.
    """
    if norm is not None:
        aligned = match_norms(aligned, metric, norm)
    if reference.proxies is not None and "expected_gain" in policies:
        reference = replace(reference, proxies=with_thresholds(reference.proxies, items.old, aligned))
    priorities = {}
    for policy in dict.fromkeys((*policies, "random")):
        priority = priority_of(
            policy,
            reference,
            id_hash=items.id_hash,
            old=items.old,
            aligned=aligned,
            log_variance=log_variance,
            labels=items.labels,
            seed=seed,
        )
        if items.weights is not None:
            priority = weighted(policy, priority, items.weights, reference)
        priorities[str(policy)] = priority
    stale = scores_of(asked.new, aligned, metric, own_items(asked, len(items.new)))
    return View(stale, priorities)


def make_views(
    items: Items,
    asked: Asked,
    mapped: Mapping[str, tuple[F32, F32]],
    metric: Metric,
    *,
    norm: float,
    references: Mapping[str, Reference],
    policies: Sequence[Policy],
    seed: int,
) -> dict[str, View]:
    """Every view of several maps.

    Args:
        mapped: {method: aligned (N, E) as the map gives them, log-variance (N,)}.
        norm: mean norm of new vectors.
        references: by the name of the view.
    """
    return {
        view: make_view(
            items,
            asked,
            aligned,
            log_variance,
            metric,
            norm=None if map_of(view)[1] else norm,
            reference=references[view],
            policies=policies,
            seed=seed,
        )
        for method, (aligned, log_variance) in mapped.items()
        for view in views_of(method, metric)
    }


def fuse_scores(scene: Scene, stale: F32, weight: float) -> F32:
    """Scores of fused vectors (Q, N): weight * aligned + (1 - weight) * old_scale * old."""
    if weight == 1:
        return stale
    if scene.old is None:
        raise ValueError("the queries have no old vectors: only weight 1 can be served")
    old = np.float32((1 - weight) * scene.old_scale) * scene.old
    return old if weight == 0 else np.float32(weight) * stale + old
