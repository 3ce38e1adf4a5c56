"""The shadow galleries of a plan: held-out pairs in every state that its versions show.

Legend: N items of a split, Q queries, W waves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.experiment.curves import stand_for_first
from fastfill_ray.experiment.items import MAX_QUERIES, PairedItems, Queries, asking
from fastfill_ray.experiment.shadow import Unseen, make_shadow, scores_of
from fastfill_ray.experiment.versions import ShadowVersions
from fastfill_ray.ordering.waves import order_wave, wave_middles
from fastfill_ray.retrieval.fusion import Fusion, fuse
from fastfill_ray.stages.score import Scorer
from fastfill_ray.types import Split


@dataclass(frozen=True)
class ShadowPlan:
    """What the states of a shadow gallery follow from, beside its items and queries.

    thresholds: order keys at which waves end. fractions: at which they end, of all items. first_share: of the gallery,
    new from version 0 on; sought_share: the same of the known items that queries seek. keys: {id: order key} of the
    pairs, as the score files hold them. fusion: of fused stale vectors, else None.
    """

    thresholds: Sequence[int]
    fractions: Sequence[float]
    first_share: float
    sought_share: float
    keys: Mapping[int | str, int]
    fusion: Fusion | None


def shadow_versions(
    pairs: PairedItems, split: Split, queries: Queries, scorer: Scorer, plan: ShadowPlan
) -> ShadowVersions:
    """The shadow gallery of one split, searched by the queries; by its own items where the queries are items.

    Held-out splits stay apart: the calibration items search the calibration shadow, the audit items the audit one. Few
    queries measure, but what is fitted to them would be chance: items search the calibration shadow then, too. The
    order of the pairs is read from the score files, so that an item is in the wave that its real twin is in.
    """
    part, metric = pairs.part(split), scorer.source.metric
    users = queries
    if queries.are_items or split == "calibration":
        users = asking(None if queries.are_items else queries, part)
    if users is not queries:
        users = users.sample(MAX_QUERIES, scorer.seed)
    aligned, _ = scorer.align(part.old, part.side)
    searched, items = users.new, aligned
    if plan.fusion is not None:
        searched = fuse(users.old, users.new, plan.fusion, metric)
        items = fuse(part.old, aligned, plan.fusion, metric)
    keys = np.array([plan.keys[value] for value in part.ids.tolist()], np.uint64)
    return ShadowVersions(
        shadow=make_shadow(part, users, metric),
        stale=scores_of(searched, items, metric, Unseen.of(part, users)),
        waves=order_wave(keys, plan.thresholds),
        middles=wave_middles(plan.fractions, plan.first_share),
        sampled=stand_for_first(part, plan.first_share, pairs.carried_part, scorer.seed),
        sought_share=plan.sought_share,
    )
