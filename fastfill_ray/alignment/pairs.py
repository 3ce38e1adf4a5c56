"""The pairs an alignment is fitted on: what they hold, what makes them unusable, and a classifier where none is given.

N pairs, D old dim, E new dim, S dim of the side vectors, C classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fastfill_ray.alignment.linear import Array
from fastfill_ray.errors import AlignmentFailed
from fastfill_ray.ordering.classifier import Head

MIN_PAIRS = 16
# L2 penalty of the fitted softmax head, on vectors of unit rms per dimension.
HEAD_PENALTY = 0.03


@dataclass(frozen=True)
class Classifier:
    """The new model's own classifier: logits = new @ weight.T + bias, weight (C, E), bias (C,)."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class TrainingPairs:
    """Old (N, D) and new (N, E) vectors of the same items; labels (N,) int, class indices if a classifier is given.

    side: (N, S) cheap features of the items in any units, which a map may read beside the old vectors.
    The order of the rows is part of the input: the same pairs in another order give another alignment.
    """

    old: Array
    new: Array
    labels: Array | None = None
    classifier: Classifier | None = None
    side: Array | None = None


def check_pairs(pairs: TrainingPairs) -> None:
    """Refuse pairs that no map can be fitted on.

    Raises:
        AlignmentFailed: shapes that do not fit together, fewer than 16 pairs, values that are not finite, a space in
            which all vectors are the same, a classifier of another dim, labels outside its classes.
    """
    rows = len(pairs.old)
    if pairs.old.ndim != 2 or pairs.new.ndim != 2 or len(pairs.new) != rows:
        raise AlignmentFailed(
            f"pairs: old vectors are {pairs.old.shape}, new ones {pairs.new.shape}; expected (N, D), (N, E)."
        )
    if rows < MIN_PAIRS:
        raise AlignmentFailed(f"{rows} training pairs are too few, at least {MIN_PAIRS} are needed: raise pairs.count.")
    spaces = {"old": pairs.old, "new": pairs.new}
    if pairs.side is not None:
        if pairs.side.ndim != 2 or len(pairs.side) != rows:
            raise AlignmentFailed(f"pairs: side vectors are {pairs.side.shape}, expected ({rows}, S).")
        spaces["side"] = pairs.side
    for space, vectors in spaces.items():
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise AlignmentFailed(
                f"pairs: the {space} vector in row {int(np.argmin(finite))} holds values that are not finite."
            )
        total = np.square(vectors, dtype=np.float64).sum()
        spread = np.square(vectors - vectors.mean(axis=0, dtype=np.float64)).sum()
        if not 0.0 < total < np.inf or spread <= 1e-12 * total:
            source = "gallery.side_column" if space == "side" else f"the {space} model"
            raise AlignmentFailed(f"pairs: the {space} vectors of all {rows} pairs are the same; check {source}.")
    labels, classifier = pairs.labels, pairs.classifier
    if labels is not None and (labels.shape != (rows,) or not np.issubdtype(labels.dtype, np.integer)):
        raise AlignmentFailed(f"pairs: labels are {labels.dtype} {labels.shape}, expected integers ({rows},).")
    if classifier is None:
        return
    classes, dim = len(classifier.weight), pairs.new.shape[1]
    if classifier.weight.shape != (classes, dim) or classifier.bias.shape != (classes,):
        raise AlignmentFailed(
            f"classifier: weight is {classifier.weight.shape}, bias {classifier.bias.shape}; "
            f"expected (C, {dim}) and (C,)."
        )
    if not (np.isfinite(classifier.weight).all() and np.isfinite(classifier.bias).all()):
        raise AlignmentFailed("classifier: weight or bias holds values that are not finite.")
    if labels is not None and not (labels.min() >= 0 and labels.max() < classes):
        raise AlignmentFailed(
            f"pairs: labels run from {labels.min()} to {labels.max()}, the classifier has classes 0 to {classes - 1}: "
            "labels must be its class indices, or leave the classifier out."
        )


def pairs_digest(pairs: TrainingPairs, *settings: object) -> bytes:
    """sha256 of the pairs in their order and of the settings: 32 bytes."""
    digest = hashlib.sha256(repr(settings).encode())
    classifier = pairs.classifier
    classes = (classifier.weight, classifier.bias) if classifier else ()
    for array in (pairs.old, pairs.new, pairs.labels, *classes, pairs.side):
        if array is not None:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def softmax_head(vectors: Array, labels: Array, classes: int) -> Classifier:
    """A linear softmax classifier by L-BFGS from zero: mean cross-entropy + penalty / 2 * ||W||^2.

    Args:
        vectors: (N, E) scaled to unit rms per dimension.
        labels: (N,) in [0, classes).
    """
    x, y = torch.from_numpy(np.asarray(vectors, np.float32)), torch.from_numpy(labels.astype(np.int64))
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(x @ weight.T + bias, y) + 0.5 * HEAD_PENALTY * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return Classifier(weight.detach().numpy(), bias.detach().numpy())


def head_of(given: tuple[Array, Array] | None, new: Array, labels: Array | None) -> Head | None:
    """The classifier that orders read, on new vectors in the model's own units: the model's own, else one fitted.

    Args:
        given: weight (C, E) and bias (C,) of the model's own, whose row numbers are the labels.
        new: (N, E) of pairs. labels: (N,) of any type, None where unknown.

    Returns:
        None where none is given and labels say too little: one class only, or hardly two items per class.
    """
    if given is not None:
        return Head(*given, classes=np.arange(len(given[0])).astype(str))
    if labels is None:
        return None
    known = np.array([label is not None for label in labels.tolist()], bool)
    if not known.any():
        return None
    classes, numbers = np.unique(labels[known].astype(str), return_inverse=True)
    if len(classes) < 2 or 2 * len(classes) > len(numbers):
        return None
    scale = float(np.sqrt(np.square(new, dtype=np.float64).mean()))
    head = softmax_head(new[known] / scale, numbers, len(classes))
    return Head((head.weight / scale).astype(np.float32), head.bias.astype(np.float32), classes)
