"""The log-variance of maps that do not learn one themselves, and a second opinion beside one that was learnt.

Ridge regression from cheap features of (old vector, aligned vector) to the logarithm of the mean squared residual,
fitted on pairs that the map has not seen. N pairs, D old dim, E new dim, P features; everything in scaled units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastfill_ray.alignment.linear import Array, ridge

# Below this many held-out pairs a regression has nothing to learn from: the log-variance is one constant.
MIN_HELD_OUT = 32
# The least squared residual per dimension that is told apart, against unit rms: a perfect map must not give log 0.
FLOOR = 1e-8


class ResidualModel(nn.Module):
    """Predicts log mean_d (h - new)^2 of an item from its old and aligned vector, within the range seen in fitting."""

    weight: Tensor
    constants: Tensor

    def __init__(self, old_dim: int, new_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(2 * old_dim + new_dim + 2))
        self.register_buffer("constants", torch.zeros(3))  # bias, least and largest value

    def forward(self, old: Tensor, aligned: Tensor) -> Tensor:
        """Scaled old (N, D) and aligned (N, E) vectors -> log-variance (N,)."""
        value = _features(old, aligned) @ self.weight + self.constants[0]
        return torch.clamp(value, min=self.constants[1], max=self.constants[2])


def fit_residual_model(old: Array, aligned: Array, new: Array) -> ResidualModel:
    """Fit on held-out pairs.

    Args:
        old: (N, D) scaled old vectors.
        aligned: (N, E) their aligned vectors, by a map that was fitted without them.
        new: (N, E) scaled new vectors.
    """
    model = ResidualModel(old.shape[1], new.shape[1])
    residuals = np.maximum(np.square(np.asarray(aligned, np.float64) - new).mean(axis=1), FLOOR)
    level = float(np.log(residuals.mean()))
    weight, constants = np.zeros(len(model.weight)), np.full(3, level)
    if len(residuals) >= MIN_HELD_OUT:
        features = _features(_tensor(old), _tensor(aligned)).double().numpy()
        center, spread = features.mean(axis=0), features.std(axis=0)
        spread[spread < 1e-6] = np.inf  # a constant feature says nothing
        target = np.log(residuals)
        fitted = ridge((features - center) / spread, target[:, None])
        weight = fitted.weight[:, 0] / spread
        predicted = np.clip(features @ weight + fitted.bias[0] - center @ weight, target.min(), target.max())
        # The regression estimates E log r; the shift makes it a log-variance: mean exp(prediction) = mean r.
        shift = level - np.log(np.exp(predicted).mean())
        constants = np.array([fitted.bias[0] - center @ weight, target.min(), target.max()]) + shift
    model.weight.copy_(_tensor(weight))
    model.constants.copy_(_tensor(constants))
    return model.eval()


def _features(old: Tensor, aligned: Tensor) -> Tensor:
    """[old, old^2, aligned, log mean old^2, log mean aligned^2]: (N, 2 D + E + 2)."""
    squares = old.square()
    norms = [torch.log(x.mean(dim=1, keepdim=True) + FLOOR) for x in (squares, aligned.square())]
    return torch.cat([old, squares, aligned, *norms], dim=1)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
