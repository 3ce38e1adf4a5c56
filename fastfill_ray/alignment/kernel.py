"""Kernel ridge regression with a Gaussian kernel on landmarks (Nyström): a smooth non-linear map in closed form.

h(x) = sum_c k(x, c) w_c + b over M landmarks c, k(x, c) = exp(-gamma ||x - c||^2) (Williams & Seeger, NeurIPS 2000).

N rows, D in, E out, M landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastfill_ray.alignment.linear import STRENGTHS, Array
from fastfill_ray.ordering.streams import Stream, generator

# Landmarks: mapping an item costs M (D + E) multiplications; the fit N M^2.
MAX_LANDMARKS = 4096
# Widths tried, as gamma times the mean squared distance of two inputs.
WIDTHS = (0.5, 1.0, 2.0)
# Width and strength are chosen on so many rows, where every row is a landmark: with fewer landmarks than rows
# generalised cross-validation takes a kernel that is too wide.
_CHOOSE_ROWS = 1000
_JITTER = 1e-9
_LEAST_FREEDOM = 1e-3


@dataclass(frozen=True)
class Kernel:
    """y = k(x, landmarks) @ weight + bias: landmarks (M, D), weight (M, E), bias (E,), float64."""

    landmarks: Array
    gamma: float
    weight: Array
    bias: Array
    strength: float = 0.0

    def __call__(self, x: Array) -> Array:
        return gaussian(np.asarray(x, np.float64), self.landmarks, self.gamma) @ self.weight + self.bias


def gaussian(x: Array, landmarks: Array, gamma: float) -> Array:
    """k(x, landmarks) (N, M)."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(landmarks).sum(axis=1)[None, :]
    distances = squares - 2 * (x @ landmarks.T)
    kernel: Array = np.exp(-gamma * np.maximum(distances, 0.0))
    return kernel


def kernel_ridge(x: Array, y: Array, *, seed: int, max_landmarks: int = MAX_LANDMARKS) -> tuple[Kernel, Array]:
    """Fit on N rows; the landmarks are a uniform sample of them.

    Args:
        x: (N, D) inputs.
        y: (N, E) targets.

    Returns:
        The map, and its leave-one-out predictions (N, E): y - (y - f(x)) / (1 - H_ii), the closed form for any ridge
        regression (Golub, Heath & Wahba, 1979), H the whole map from targets to fitted values, the mean included.
        Landmarks carry no target, so keeping a row's own one is no leak.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    drawn = generator(seed, Stream.LANDMARKS).permutation(len(x))
    gamma, strength = _choose(x[np.sort(drawn[:_CHOOSE_ROWS])], y[np.sort(drawn[:_CHOOSE_ROWS])])
    landmarks, bias = x[np.sort(drawn[:max_landmarks])], y.mean(axis=0)
    among = torch.from_numpy(gaussian(landmarks, landmarks, gamma))
    rows = torch.from_numpy(gaussian(x, landmarks, gamma))
    normal = rows.T @ rows + strength * among
    normal.diagonal().add_(_JITTER * float(normal.diagonal().mean()))
    factor = torch.linalg.cholesky(normal)
    weight = torch.cholesky_solve(rows.T @ torch.from_numpy(y - bias), factor).numpy()
    leverage = torch.linalg.solve_triangular(factor, rows.T, upper=False).square().sum(dim=0)
    # The bias is the targets' mean, so a row also counts through it, less what the kernel then explains of a constant.
    explained = rows @ torch.cholesky_solve(rows.sum(dim=0)[:, None], factor)[:, 0]
    leverage = (leverage + (1 - explained) / len(x)).numpy()
    residual = (y - bias - rows.numpy() @ weight) / np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
    return Kernel(landmarks, gamma, weight, bias, strength), y - residual


def _choose(x: Array, y: Array) -> tuple[float, float]:
    """gamma and strength of least generalised cross-validation error (Golub, Heath & Wahba, 1979; Eq. 1.4)."""
    spread = 2 * float(np.square(x - x.mean(axis=0)).sum(axis=1).mean()) or 1.0
    targets = y - y.mean(axis=0)
    best = (np.inf, 1.0, 1.0)
    for width in WIDTHS:
        values, basis = torch.linalg.eigh(torch.from_numpy(gaussian(x, x, width / spread)))
        eigenvalues = np.maximum(values.numpy(), 0.0)
        energy = np.square(basis.numpy().T @ targets).sum(axis=1)
        for strength in eigenvalues.mean() * STRENGTHS:
            kept = strength / (eigenvalues + strength)  # share of each direction that stays residual
            freedom = (kept.sum() - 1.0) / len(x)
            error = float(np.square(kept) @ energy) / freedom**2 if freedom > _LEAST_FREEDOM else np.inf
            best = min(best, (error, width / spread, float(strength)))
    return best[1:]
