"""Rules that give each item one priority; larger = re-embed earlier. Pure functions of columns and pair statistics.

Legend: N items of a chunk, P reference pairs (the train split), E new dim.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.core.calibration import similarity
from fastfill_ray.core.plan import seeded_hash

Floats = NDArray[np.float32]

_ROWS_AT_A_TIME = 1024


def random_priority(id_hash: NDArray[np.uint64], seed: int) -> Floats:
    """Uniform in [0, 1) from the id and the seed (N,): the order that costs nothing and promises nothing."""
    return ((seeded_hash(id_hash, seed) >> np.uint64(40)) / np.float32(1 << 24)).astype(np.float32)


def uncertainty(log_variance: Floats) -> Floats:
    """FastFill's order: the alignment's own log-variance of its error (Jaeckle et al., ICLR 2023, section 3.3)."""
    return log_variance


def class_margin(
    aligned: Floats, labels: NDArray[np.object_], reference: Floats, reference_labels: NDArray[np.object_]
) -> Floats:
    """How much nearer another class is: min squared distance to the own class minus min to the others, over the pairs.

    Reads the gallery's labels, so it suits a relevance that is that label, and no other.

    Args:
        aligned: (N, E) mapped vectors.
        labels: (N,) class of each item; None where unknown.
        reference: (P, E) new vectors of the train pairs.
        reference_labels: (P,) their classes; None is no class, neither an item's own nor another.

    Returns:
        (N,) float32; an item whose class no pair has is as uncertain as the worst distance seen.
    """
    priority = np.empty(len(aligned), np.float32)
    # Class numbers instead of objects: N x P comparisons. None is -1 in the reference and -2 among the items.
    number = {label: i for i, label in enumerate(dict.fromkeys(reference_labels.tolist())) if label is not None}
    classes = np.array([number.get(label, -1) for label in reference_labels.tolist()])
    mine = np.array([number.get(label, -2) for label in labels.tolist()])
    known = classes >= 0
    for start in range(0, len(aligned), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        distances = -similarity(aligned[part], reference, "l2")
        same = mine[part, None] == classes[None, :]
        worst = distances.max(axis=1)
        own = np.where(same & known, distances, np.inf).min(axis=1)
        other = np.where(~same & known, distances, np.inf).min(axis=1)
        priority[part] = np.where(np.isinf(own), worst, own) - np.where(np.isinf(other), worst, other)
    return priority
