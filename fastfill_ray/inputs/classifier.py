"""The new model's own classifier, read from the user's .npz file."""

from __future__ import annotations

import zipfile

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.ordering.classifier import Classifier


def read_classifier(store: InputStore, path: str, *, dim: int) -> Classifier:
    """The new model's own classifier, weight (C, dim) and bias (C,); its labels are the numbers of its rows.

    Raises:
        ConfigError: no such file, no such arrays, or shapes that do not fit.
    """
    try:
        with store.open(path) as handle, np.load(handle, allow_pickle=False) as arrays:
            weight, bias = arrays["weight"].astype(np.float32), arrays["bias"].astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"new_model.classifier {path}: an .npz with arrays weight and bias is expected: {error}"
        ) from error
    if weight.ndim != 2 or weight.shape[1] != dim or bias.shape != weight.shape[:1]:
        raise ConfigError(
            f"new_model.classifier {path}: weight is {weight.shape}, bias {bias.shape}; expected (C, {dim}) and (C,)"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ConfigError(f"new_model.classifier {path}: weight or bias holds values that are not finite")
    return Classifier.of_class_numbers(weight, bias)
