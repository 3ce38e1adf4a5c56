"""The new model's own classifier, read from the user's .npz file."""

from __future__ import annotations

import zipfile

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.inputs.locate import InputStore


def read_classifier(store: InputStore, path: str, *, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """weight (C, dim) and bias (C,) of the new model's own classifier.

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
    return weight, bias
