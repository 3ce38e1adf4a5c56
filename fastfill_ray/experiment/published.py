"""The published evaluation of FastFill, for comparison: nothing is chosen, nothing is calibrated.

Legend: Q queries, N items, E new dim.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastfill_ray.experiment.curves import Backfill, Curve, FittedCalibrations, published_cutoffs
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Shadow, Unseen, scores_of
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.types import F32


def published_curve(
    items: PairedItems,
    shadow: Shadow,
    aligned: F32,
    log_variance: F32,
    *,
    policy: Literal["random", "uncertainty"],
    seed: int,
    queries: Queries | None = None,
) -> Curve:
    """Raw scores by L2, items re-embedded by descending priority, 22 cutoffs (Jaeckle et al., ICLR 2023).

    Args:
        items: N of them, with vectors as they are. shadow: of these items and the queries, by L2.
        aligned: (N, E) as the map gives them. log_variance: (N,).
        queries: that the shadow was made with; None where the items are the queries, every one.
    """
    users = items.as_queries() if queries is None else queries
    stale = scores_of(users.new, aligned.astype(shadow.new.dtype), "l2", Unseen.of(items, users))
    priority = log_variance if policy == "uncertainty" else random_priority(items.id_hash, seed)
    order = np.argsort(-priority, kind="stable")
    return Backfill(shadow, stale, order).trace(FittedCalibrations(), published_cutoffs(len(order)))
