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
# Rows whose kernel is held at a time: at most 32 MiB, whatever the number of rows.
_BLOCK_ROWS = 1024
# Columns of the normal matrix that are added up at a time.
_TILE = 512
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
    """k(x, landmarks) (N, M); beside it nothing as large is held."""
    kernel: Array = x @ (2 * gamma * landmarks).T
    kernel -= gamma * np.square(landmarks).sum(axis=1)
    kernel -= gamma * np.square(x).sum(axis=1)[:, None]
    np.minimum(kernel, 0.0, out=kernel)
    return np.exp(kernel, out=kernel)


def kernel_ridge(
    x: Array, y: Array, *, seed: int, max_landmarks: int = MAX_LANDMARKS, left_out: Array | None = None
) -> tuple[Kernel, Array]:
    """Fit on N rows; the landmarks are a uniform sample of them.

    Memory beside x and y: one matrix of M^2 float64, and some blocks.

    Args:
        x: (N, D) inputs.
        y: (N, E) targets.
        left_out: (R,) rows that are also predicted without themselves; None for all.

    Returns:
        The map, and its leave-one-out predictions (R, E) in the type of y: y - (y - f(x)) / (1 - H_ii), the closed
        form for any ridge regression (Golub, Heath & Wahba, 1979), H the whole map from targets to fitted values, the
        mean included. Landmarks carry no target, so keeping a row's own one is no leak.
    """
    drawn = generator(seed, Stream.LANDMARKS).permutation(len(x))
    few = np.sort(drawn[:_CHOOSE_ROWS])
    gamma, strength = _choose(np.asarray(x[few], np.float64), np.asarray(y[few], np.float64))
    landmarks = np.asarray(x[np.sort(drawn[:max_landmarks])], np.float64)
    bias = y.mean(axis=0, dtype=np.float64)

    def seen(rows: Array | slice) -> torch.Tensor:
        """k(x, landmarks) of some rows."""
        return torch.from_numpy(gaussian(np.asarray(x[rows], np.float64), landmarks, gamma))

    normal = torch.empty(len(landmarks), len(landmarks), dtype=torch.float64)  # its upper triangle alone is kept up
    for part in _blocks(len(landmarks)):
        normal[part] = torch.from_numpy(gaussian(landmarks[part], landmarks, gamma)).mul_(strength)
    targets = torch.zeros(len(landmarks), y.shape[1], dtype=torch.float64)
    total = torch.zeros(len(landmarks), 1, dtype=torch.float64)
    for rows in _blocks(len(x)):
        kernel = seen(rows)
        _add_products(normal, kernel)
        targets += kernel.T @ torch.from_numpy(y[rows] - bias)
        total += kernel.sum(dim=0)[:, None]
    normal.diagonal().add_(_JITTER * float(normal.diagonal().mean()))
    # By columns, as LAPACK reads it, the upper triangle is the lower one: so it is factorised where it stands.
    factor = normal.T
    torch.linalg.cholesky(factor, out=factor)
    weight, of_constant = _solved(factor, targets), _solved(factor, total)[:, 0]
    asked = np.arange(len(x)) if left_out is None else left_out
    predicted = np.empty((len(asked), y.shape[1]), np.result_type(y, np.float32))
    for part in _blocks(len(asked)):
        kernel, truth = seen(asked[part]), y[asked[part]]
        residual = truth - bias - (kernel @ weight).numpy()
        # The bias is the targets' mean, so a row also counts through it, less what the kernel explains of a constant.
        leverage = (1 - kernel @ of_constant) / len(x)
        whitened = torch.linalg.solve_triangular(factor, kernel.T, upper=False, out=kernel.T)
        leverage += whitened.square_().sum(dim=0)
        stays = np.maximum(1 - leverage.numpy(), _LEAST_FREEDOM)[:, None]
        predicted[part] = truth - residual / stays
    return Kernel(landmarks, gamma, weight.numpy(), bias, strength), predicted


def _add_products(normal: torch.Tensor, kernel: torch.Tensor) -> None:
    """kernel (N, M) -> normal += kernel.T @ kernel in the upper triangle, which takes half the multiplications."""
    for start in range(0, len(normal), _TILE):
        normal[start : start + _TILE, start:].addmm_(kernel[:, start : start + _TILE].T, kernel[:, start:])


def _solved(factor: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """x of factor @ factor.T @ x = targets; torch.cholesky_solve copies the factor first."""
    half = torch.linalg.solve_triangular(factor, targets, upper=False)
    return torch.linalg.solve_triangular(factor.T, half, upper=True)


def _blocks(rows: int) -> list[slice]:
    return [slice(start, start + _BLOCK_ROWS) for start in range(0, rows, _BLOCK_ROWS)]


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
