"""The reverse map, new -> old, for queries: what old query vectors are made of once the old model is gone.

It is an alignment with the roles of the two models swapped, fitted on the same pairs. Searching the old index with
mapped queries, and nothing else, is Drift-Adapter (Vejendla, EMNLP 2025).

Legend: N items or queries, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastfill_ray.alignment.maps import Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import training_pairs
from fastfill_ray.alignment.training import fit_alignment
from fastfill_ray.experiment.items import PairedItems, Queries


def swapped(pairs: PairedItems) -> PairedItems:
    """The same items with the models' roles swapped: old (N, E), new (N, D).

    Side vectors and labels are left out: a query has neither.
    """
    return replace(pairs, old=pairs.new, new=pairs.old, labels=None, side=None)


def fit_reverse(
    train: PairedItems, method: Method, preset: PresetName, *, seed: int, queries: Queries | None = None
) -> Alignment:
    """A map from new vectors (N, E) to old ones (N, D).

    Queries are not like items. Those that both models embedded while the old one was there make the map better: asked
    of the old index, R@1 with it was 10.1 instead of 7.8 on docstrings, 31.8 instead of 26.2 on operations (kernel).

    Args:
        queries: further pairs, with old vectors; none that anything is measured by.

    Raises:
        AlignmentFailed: the pairs allow no such map.
        ValueError: the queries have no old vectors.
    """
    pairs = training_pairs(swapped(train), method, None)
    if queries is not None:
        if queries.old is None:
            raise ValueError("a reverse map cannot learn from queries without old vectors")
        pairs = replace(
            pairs, old=np.concatenate([pairs.old, queries.new]), new=np.concatenate([pairs.new, queries.old])
        )
    return fit_alignment(method, preset, pairs, seed=seed)
