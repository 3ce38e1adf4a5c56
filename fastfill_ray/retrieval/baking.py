"""Calibration written into the vectors: an inner product over one column is then the served score, in any store.

With o the offset and s the scale of an item's calibration, a and b the factors of its fusion, al its aligned vector:

    aligned, cosine or ip:  item [s x ; o]                                    query [q ; 1]
    aligned, l2:            item [2 s x ; o - s |x|^2 ; -s]                   query [q ; 1 ; |q|^2]
    fused, cosine or ip:    item [s a^2 old ; s b^2 al ; o]                   query [q_old ; q_new ; 1]
    fused, l2:              item [2 s a^2 old ; 2 s b^2 al ; o - s (a^2 |old|^2 + b^2 |al|^2) ; -s a^2 ; -s b^2]
                            query [q_old ; q_new ; 1 ; |q_old|^2 ; |q_new|^2]

A new item has s = 1 and o = 0, and among fused ones a = 0 and b = 1. Under cosine every vector has norm 1 first. Under
l2 both spaces are moved so that their centre is 0, which changes no distance: squares of large numbers would cancel.

Legend: N items or queries, D old dim, E new dim, B baked dims.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.types import F32, Metric, Model

_AS_IT_IS = Calibration()


class Baking(Model):
    """How the items and queries of one version are baked; a manifest stores it.

    old_dim: D where a stale item is fused with its old vector, so that queries need one; 0 where none is.
    """

    metric: Metric
    new_dim: int = Field(gt=0)
    old_dim: int = Field(default=0, ge=0)
    old_centre: tuple[float, ...] = Field(default=(), description="of l2: what is subtracted from old vectors")
    new_centre: tuple[float, ...] = Field(default=(), description="of l2: what is subtracted from new and aligned ones")

    @property
    def dim(self) -> int:
        """B."""
        squares = (1 + (self.old_dim > 0)) if self.metric == "l2" else 0
        return self.old_dim + self.new_dim + 1 + squares

    def items(self, vectors: F32, calibration: Calibration = _AS_IT_IS, fusion: Fusion | None = None) -> F32:
        """Baked vectors (N, B) float32 of items of one segment.

        Args:
            vectors: (N, E), or (N, ``fused_dim``) as ``fuse`` makes them. fusion: the factors of these, None for new or
                aligned vectors.

        Raises:
            ValueError: vectors of other dims, or fused with old vectors that this baking has no room for.
        """
        factors = Fusion(old=0, new=1) if fusion is None else fusion
        of_old = self.old_dim if factors.old > 0 else 0
        of_new = self.new_dim if factors.new > 0 else 0
        if vectors.shape[1] != of_old + of_new or (factors.old > 0 and self.old_dim == 0):
            raise ValueError(f"vectors are {vectors.shape}, expected {of_old} old and {of_new} new dims")
        old = np.zeros((len(vectors), self.old_dim), np.float64)
        new = np.zeros((len(vectors), self.new_dim), np.float64)
        if of_old:
            old = vectors[:, :of_old].astype(np.float64) / factors.old
        if of_new:
            new = vectors[:, of_old:].astype(np.float64) / factors.new
        old_weight, new_weight = calibration.scale * factors.old**2, calibration.scale * factors.new**2
        offset = np.full((len(vectors), 1), calibration.offset)
        if self.metric != "l2":
            return _joined(old_weight * old, new_weight * new, offset)
        old, new = old - np.array(self.old_centre or 0.0), new - np.array(self.new_centre or 0.0)
        offset -= (old_weight * _squares(old) if of_old else 0.0) + (new_weight * _squares(new) if of_new else 0.0)
        weights = [np.full((len(vectors), 1), -weight) for weight in (old_weight, new_weight)]
        squares = weights if self.old_dim else weights[1:]
        return _joined(2 * old_weight * old, 2 * new_weight * new, offset, *squares)

    def queries(self, new: F32, old: F32 | None = None) -> F32:
        """Baked queries (N, B) float32.

        Args:
            new: (N, E) of the new model; normalised here for cosine. old: (N, D) of the old model, where D is above 0.

        Raises:
            ValueError: vectors of other dims, or `old` is missing.
        """
        of_old = [("old", old, self.old_dim, self.old_centre)] if self.old_dim else []
        halves = [*of_old, ("new", new, self.new_dim, self.new_centre)]
        parts, squares = [], []
        for model, vectors, dim, centre in halves:
            if vectors is None:
                raise ValueError(f"queries of the {model} model are missing: stale items are fused with old vectors")
            array = np.asarray(vectors, np.float32)
            if array.ndim != 2 or array.shape[1] != dim or len(array) != len(new):
                raise ValueError(f"queries of the {model} model are {array.shape}, expected ({len(new)}, {dim})")
            part = (unit_rows(array) if self.metric == "cosine" else array).astype(np.float64)
            if self.metric == "l2":
                part = part - np.array(centre or 0.0)
                squares.append(_squares(part))
            parts.append(part)
        return _joined(*parts, np.ones((len(new), 1)), *squares)


def _squares(vectors: np.ndarray) -> np.ndarray:
    """Squared norms (N, 1)."""
    squared: np.ndarray = np.einsum("nd,nd->n", vectors, vectors)
    return squared[:, None]


def _joined(*parts: np.ndarray) -> F32:
    return np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)
