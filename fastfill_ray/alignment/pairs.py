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
from fastfill_ray.errors import AlignmentFailed, ConfigError
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.types import F32, I64, Objects

MIN_PAIRS = 16
_BLOCK_ROWS = 2048
# L2 penalty of the fitted softmax classifier, on vectors of unit rms per dimension.
CLASSIFIER_PENALTY = 0.03


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
        mean, total, spread = vectors.mean(axis=0, dtype=np.float64), 0.0, 0.0
        for start in range(0, rows, _BLOCK_ROWS):  # a float64 copy of all would be the largest array of a training
            part = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
            total += float(np.square(part).sum())
            spread += float(np.square(part - mean).sum())
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


def training_pairs(train: PairedItems, method: str, classifier: Classifier | None) -> TrainingPairs:
    """What one map is fitted on: the train pairs in the order of their ids' hashes, so that no file's order counts.

    `fastfill` learns from the labelled pairs alone, if there are enough of them; the others read no label.

    Args:
        classifier: the new model's own, whose row numbers the labels then are; None where it is not given.

    Raises:
        ConfigError: a classifier is given, and labels are lists, or one is no number.
    """
    part = train.by_hash()
    if method != "fastfill":
        return TrainingPairs(part.old, part.new, side=part.side)
    _check_classes(part, classifier)
    part = part.labelled()
    numbers = None if part.labels is None else _class_numbers(part.labels, given=classifier is not None)
    return TrainingPairs(part.old, part.new, numbers, classifier if numbers is not None else None, part.side)


def _check_classes(train: PairedItems, given: Classifier | None) -> None:
    if given is not None and train.has_label_lists:
        raise ConfigError(
            "the new model's classifier needs one class per item, but the labels here are lists; name a column of "
            "single class numbers, or leave the classifier out."
        )


def _class_numbers(labels: Objects, *, given: bool) -> I64:
    """Labels (N,) as integers: as they are where a classifier defines them, else numbered in sorted order."""
    if not given:
        return np.unique(labels.astype(str), return_inverse=True)[1].astype(np.int64)
    try:
        return np.array([int(label) for label in labels.tolist()], np.int64)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a label is no class number: {error}. With the new model's classifier labels are the numbers of its rows; "
            "mend the label column, or leave the classifier out."
        ) from error


def softmax_classifier(vectors: Array, labels: Array, classes: int) -> tuple[F32, F32]:
    """A linear softmax classifier by L-BFGS from zero: mean cross-entropy + penalty / 2 * ||W||^2.

    Args:
        vectors: (N, E) scaled to unit rms per dimension.
        labels: (N,) in [0, classes).

    Returns:
        weight (C, E) and bias (C,), on vectors of that scale.
    """
    x, y = torch.from_numpy(np.asarray(vectors, np.float32)), torch.from_numpy(labels.astype(np.int64))
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(x @ weight.T + bias, y) + 0.5 * CLASSIFIER_PENALTY * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach().numpy(), bias.detach().numpy()


def classifier_for(given: Classifier | None, train: PairedItems) -> Classifier | None:
    """The classifier that orders read, on new vectors in the model's own units: the model's own, else one fitted.

    Args:
        given: the new model's own, or None.
        train: pairs; their labels may be of any type, None where unknown.

    Returns:
        None where none is given and labels say too little: one class only, hardly two items per class, or lists.

    Raises:
        ConfigError: a classifier is given, and labels are lists.
    """
    _check_classes(train, given)
    if given is not None or train.classes is None:
        return given
    part = train.by_hash()
    labels = train.classes[:0] if part.classes is None else part.classes
    known = np.array([label is not None for label in labels.tolist()], bool)
    classes, numbers = np.unique(labels[known].astype(str), return_inverse=True)
    if len(classes) < 2 or 2 * len(classes) > len(numbers):
        return None
    scale = float(np.sqrt(np.square(part.new, dtype=np.float64).mean()))
    weight, bias = softmax_classifier(part.new[known] / scale, numbers, len(classes))
    return Classifier((weight / scale).astype(np.float32), bias.astype(np.float32), classes)
