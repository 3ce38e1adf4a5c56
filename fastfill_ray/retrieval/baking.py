"""Calibration written into vectors and queries: an inner product over one column is then the served score, anywhere.

A stale item of wave w is served at s * score + o + slope * u, u the place of its wave in the order (0: re-embedded
first). The scale s is in the item, o and slope are in the query: when they change, no item does. With a and b the
factors of fused vectors and al the aligned vector, items and queries are

    aligned, cosine or ip:  [s x ; 1 ; u]                       [q ; o ; slope]
    aligned, l2:            [2 s x ; -s |x|^2 ; -s ; 1 ; u]     [q ; 1 ; |q|^2 ; o ; slope]
    fused, cosine or ip:    [s a^2 old ; s b^2 al ; 1 ; u]      [q_old ; q_new ; o ; slope]
    fused, l2:              [2 s a^2 old ; 2 s b^2 al ; -s (a^2 |old|^2 + b^2 |al|^2) ; -s a^2 ; -s b^2 ; 1 ; u]
                            [q_old ; q_new ; 1 ; |q_old|^2 ; |q_new|^2 ; o ; slope]

A new item is aligned with s = 1, its last two numbers are 0, and beside fused ones a = 0 and b = 1. Under cosine every
vector has norm 1 first. Under l2 both spaces are moved so that their centre is about 0, which changes no distance:
squares of large numbers would cancel.

Legend: N items or queries, D old dim, E new dim, B baked dims.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.types import F32, Metric, Model


class Baking(Model):
    """How the items and queries of one version are baked; a manifest stores it."""

    metric: Metric
    new_dim: int = Field(gt=0)
    old_dim: int = Field(default=0, ge=0, description="of stale items' fused old vectors, 0 where none is fused")
    old_centre: tuple[float, ...] = Field(default=(), description="of l2: what is subtracted from old vectors")
    new_centre: tuple[float, ...] = Field(default=(), description="of l2: what is subtracted from new and aligned ones")
    scale: float = Field(default=1.0, gt=0, description="s: in the stale items")
    offset: float = Field(default=0.0, description="o: in the queries")
    slope: float = Field(default=0.0, description="in the queries")

    @model_validator(mode="after")
    def _centres_are_of_their_spaces(self) -> Self:
        for centre, dim in ((self.old_centre, self.old_dim), (self.new_centre, self.new_dim)):
            if centre and len(centre) != dim:
                raise ValueError(f"a centre has {len(centre)} dims, its space {dim}")
        return self

    @property
    def dim(self) -> int:
        """B."""
        squares = (2 + (self.old_dim > 0)) if self.metric == "l2" else 0
        return self.old_dim + self.new_dim + squares + 2

    def items(self, vectors: F32, place: float | None = None, fusion: Fusion | None = None) -> F32:
        """Baked vectors (N, B) float32 of items of one wave.

        Args:
            vectors: (N, E), or (N, ``fused_dim``) as ``fuse`` makes them.
            place: u of stale items; None for new ones.
            fusion: the factors of fused vectors, None for new or aligned ones.

        Raises:
            ValueError: vectors of other dims, or fused with old vectors that this baking has no room for.
        """
        factors = Fusion(old=0, new=1) if fusion is None else fusion
        of_old, of_new = (self.old_dim if factors.old > 0 else 0), (self.new_dim if factors.new > 0 else 0)
        if vectors.shape[1] != of_old + of_new or (factors.old > 0 and self.old_dim == 0):
            raise ValueError(f"vectors are {vectors.shape}, expected {of_old} old and {of_new} new dims")
        scale, is_l2 = 1.0 if place is None else self.scale, self.metric == "l2"
        baked, start = np.zeros((len(vectors), self.dim), np.float32), 0
        weights, squares = [], np.zeros(len(vectors))
        for factor, dim, centre, part in (
            (factors.old, self.old_dim, self.old_centre, vectors[:, :of_old]),
            (factors.new, self.new_dim, self.new_centre, vectors[:, of_old:]),
        ):
            if dim == 0:
                continue
            weight, block = scale * factor**2, baked[:, start : start + dim]
            start += dim
            weights.append(-weight)
            if factor == 1 and not is_l2:
                np.multiply(part, weight, out=block, dtype=np.float64, casting="same_kind")
            elif factor > 0:
                half = part.astype(np.float64) / factor - self._centre(centre)
                block[:] = half * (weight * (2 if is_l2 else 1))
                squares -= weight * _squares(half)[:, 0]
        if is_l2:
            baked[:, start] = squares
            baked[:, start + 1 : start + 1 + len(weights)] = weights
        baked[:, -2:] = (0.0, 0.0) if place is None else (1.0, place)
        return baked

    def queries(self, new: F32, old: F32 | None = None) -> F32:
        """Baked queries (N, B) float32.

        Args:
            new: (N, E) of the new model; normalised here for cosine. old: (N, D) of the old model, where D is above 0.

        Raises:
            ValueError: vectors of other dims, or `old` is missing.
        """
        of_old = [("old", old, self.old_dim, self.old_centre)] if self.old_dim else []
        halves, squares = [], []
        for model, vectors, dim, centre in [*of_old, ("new", new, self.new_dim, self.new_centre)]:
            if vectors is None:
                raise ValueError(f"queries of the {model} model are missing: stale items are fused with old vectors")
            array = np.asarray(vectors, np.float32)
            if array.ndim != 2 or array.shape[1] != dim or len(array) != len(new):
                raise ValueError(f"queries of the {model} model are {array.shape}, expected ({len(new)}, {dim})")
            half = (unit_rows(array) if self.metric == "cosine" else array).astype(np.float64) - self._centre(centre)
            halves.append(half)
            squares.append(_squares(half))
        last = np.full((len(new), 2), (self.offset, self.slope))
        return _joined(*halves, *([np.ones((len(new), 1)), *squares] if self.metric == "l2" else []), last)

    def _centre(self, values: tuple[float, ...]) -> np.ndarray:
        return np.array(values or 0.0)


def _squares(vectors: np.ndarray) -> np.ndarray:
    """Squared norms (N, 1)."""
    squared: np.ndarray = np.einsum("nd,nd->n", vectors, vectors)
    return squared[:, None]


def _joined(*parts: np.ndarray) -> F32:
    return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)
