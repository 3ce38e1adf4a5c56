"""Closed-form linear maps in numpy, float64 inside: ridge and orthogonal Procrustes. N rows, D in, E out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.errors import AlignmentFailed

Array = NDArray[Any]

# Strengths tried, as multiples of the mean eigenvalue of the inputs' scatter.
STRENGTHS = 10.0 ** np.arange(-5.0, 3.5, 0.5)
_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Affine:
    """y = x @ weight + bias: weight (D, E), bias (E,), float64; ``strength`` is ridge's lambda, 0 elsewhere."""

    weight: Array
    bias: Array
    strength: float = 0.0

    def __call__(self, x: Array) -> Array:
        return np.asarray(x, np.float64) @ self.weight + self.bias


def ridge(x: Array, y: Array) -> Affine:
    """Ridge regression with an unpenalised bias, its strength chosen by generalised cross-validation.

    GCV(lambda) = (RSS / N) / (1 - (tr H + 1) / N)^2 (Golub, Heath & Wahba, 1979; Eq. 1.4), the closed form of
    leave-one-out with averaged leverages; + 1 counts the bias. One eigendecomposition serves every lambda.

    Args:
        x: (N, D) inputs.
        y: (N, E) targets.
    """
    x_mean, y_mean = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    scatter, across, total = _products(x, y, x_mean, y_mean)
    eigenvalues, basis = np.linalg.eigh(scatter)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    scale = eigenvalues.mean()
    if scale == 0.0:
        return Affine(np.zeros((x.shape[1], y.shape[1])), y_mean)
    rotated = basis.T @ across
    alive = eigenvalues > eigenvalues[-1] * 1e-12
    explained = np.zeros_like(eigenvalues)
    explained[alive] = np.square(rotated[alive]).sum(axis=1) / eigenvalues[alive]

    def gcv(strength: float) -> float:
        shrinkage = eigenvalues / (eigenvalues + strength)
        residual = max(total - float(((2.0 - shrinkage) * shrinkage) @ explained), 0.0)
        freedom = 1.0 - (shrinkage.sum() + 1.0) / len(x)
        # Where the model can interpolate the score is 0 / 0 and says nothing: such a strength is not taken.
        return residual / freedom**2 if freedom > 1e-3 else np.inf

    strength = min((float(scale * s) for s in reversed(STRENGTHS)), key=gcv)
    weight = basis @ (rotated / (eigenvalues + strength)[:, None])
    return Affine(weight, y_mean - x_mean @ weight, strength)


def procrustes(x: Array, y: Array) -> Affine:
    """Centred orthogonal Procrustes for unequal dims, scaled so that the spread of y is kept.

    W = U V' from the thin SVD of Xc' Yc (Schönemann, 1966): the corner of the orthogonal solution for the narrower side
    padded with zeros. The scale is ||Yc|| / ||Xc W||: least squares would shrink aligned vectors towards their mean.

    Raises:
        AlignmentFailed: no direction of x says anything about y.
    """
    x_mean, y_mean = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    scatter, across, total = _products(x, y, x_mean, y_mean)
    left, _, right = np.linalg.svd(across, full_matrices=False)
    rotation = left @ right
    spread = float(np.sqrt(max(float((rotation * (scatter @ rotation)).sum()), 0.0)))  # ||Xc W||
    if spread == 0.0:
        raise AlignmentFailed(
            "alignment.method procrustes: the old vectors do not vary along any direction that is kept."
        )
    weight = rotation * (np.sqrt(total) / spread)
    return Affine(weight, y_mean - x_mean @ weight)


def _products(x: Array, y: Array, x_mean: Array, y_mean: Array) -> tuple[Array, Array, float]:
    """Xc' Xc (D, D), Xc' Yc (D, E) and ||Yc||^2 of the centred rows, a block at a time: no float64 copy of all."""
    scatter, across, total = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1])), 0.0
    for start in range(0, len(x), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        centered, targets = x[rows] - x_mean, y[rows] - y_mean
        scatter += centered.T @ centered
        across += centered.T @ targets
        total += float(np.square(targets).sum())
    return scatter, across, total
