"""Fused vectors: the old vector and the aligned one in one, searched with a query's old and new vectors in one.

With items [a o ; b h] and queries [a q_o ; b q_n], inner products and squared distances add up (design, stale modes):

    score = a^2 score(q_o, o) + b^2 score(q_n, h)

so any index of D + E dims searches them. Under cosine both halves have norm 1 and a^2 + b^2 = 1: the whole has norm 1.

Legend: N items or queries, D old dim, E new dim.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.types import F32, Metric, Model


def fusion_of(weight: float, metric: Metric, old_scale: float = 1.0) -> Fusion:
    """The factors under which fused scores are (1 - weight) * old_scale * old score + weight * aligned score.

    Args:
        weight: share of the aligned score, from 0 (old vectors alone) to 1 (aligned ones alone).
        old_scale: above 0; brings old scores to the spread of aligned ones. Not read for cosine: there it is 1.

    Raises:
        ValueError: a weight or an old_scale out of range.
    """
    if not 0 <= weight <= 1 or not 0 < old_scale < math.inf:
        raise ValueError(f"weight is {weight}, old_scale is {old_scale}; 0 <= weight <= 1 and 0 < old_scale expected")
    scale = 1.0 if metric == "cosine" else old_scale
    return Fusion(old=math.sqrt((1 - weight) * scale), new=math.sqrt(weight))


def fused_dim(fusion: Fusion, old_dim: int, new_dim: int) -> int:
    """Dims of fused vectors: a half whose factor is 0 is left out."""
    return (old_dim if fusion.old > 0 else 0) + (new_dim if fusion.new > 0 else 0)


def fuse(old: F32 | None, new: F32 | None, fusion: Fusion, metric: Metric) -> F32:
    """Fused vectors of items, or of queries.

    Args:
        old: (N, D); None is allowed where ``fusion.old`` is 0.
        new: (N, E): the aligned vectors of items, the new ones of queries; None is allowed where ``fusion.new`` is 0.
        metric: for cosine the rows of both are scaled to norm 1 first.

    Returns:
        (N, ``fused_dim``) float32, C-contiguous.

    Raises:
        ValueError: a half is missing, the halves differ in rows, or the factors do not suit cosine.
    """
    if metric == "cosine" and not math.isclose(fusion.old**2 + fusion.new**2, 1, abs_tol=1e-6):
        raise ValueError(f"factors {fusion.old} and {fusion.new}: for cosine their squares must sum to 1")
    halves = []
    for name, factor, vectors in (("old", fusion.old, old), ("new", fusion.new, new)):
        if factor > 0:
            if vectors is None:
                raise ValueError(f"the {name} vectors are missing: their factor is {factor}, so they are needed")
            halves.append(np.float32(factor) * (unit_rows(vectors) if metric == "cosine" else vectors))
    if len({len(half) for half in halves}) > 1:
        raise ValueError(
            f"the halves have {[len(half) for half in halves]} rows; as many of one as of the other expected"
        )
    return np.ascontiguousarray(np.concatenate(halves, axis=1), dtype=np.float32)


class Fusion(Model):
    """The factors (a, b) of fused vectors [a old ; b aligned]; a factor of 0 leaves its half out."""

    old: float = Field(ge=0)
    new: float = Field(ge=0)

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.old == 0 and self.new == 0:
            raise ValueError("a fused vector needs one factor above 0")
        return self
