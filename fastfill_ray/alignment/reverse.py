"""The reverse map, new -> old, for queries: what old query vectors are made of once the old model is gone.

It is an alignment with the roles of the two models swapped, fitted on the same pairs. Searching the old index with
mapped queries, and nothing else, is Drift-Adapter (Vejendla, EMNLP 2025).

Legend: N items or queries, D old dim, E new dim.
"""

from __future__ import annotations

from dataclasses import replace

from fastfill_ray.alignment.maps import Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import training_pairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.experiment.items import PairedItems


def swapped(pairs: PairedItems) -> PairedItems:
    """The same items with the models' roles swapped: old (N, E), new (N, D).

    Side vectors and labels are left out: a query has neither.
    """
    return replace(pairs, old=pairs.new, new=pairs.old, labels=None, side=None)


def fit_reverse(train: PairedItems, method: Method, preset: PresetName, *, seed: int) -> Alignment:
    """A map from new vectors (N, E) to old ones (N, D).

    Raises:
        AlignmentFailed: the pairs allow no such map.
    """
    fit = Fit(method, preset, training_pairs(swapped(train), method, None), seed=seed)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()
