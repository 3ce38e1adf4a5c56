"""Vectors of queries as people give them: arrays, lists, or something else by mistake, which is said by row.

Legend: Q queries, d dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastfill_ray.errors import UnusableQueries
from fastfill_ray.types import F32


def query_matrix(name: str, given: ArrayLike, dim: int) -> NDArray[Any]:
    """Numbers (Q, d), d not yet compared with `dim`, which is expected.

    Args:
        name: of the argument, for messages.

    Raises:
        UnusableQueries: not a matrix of numbers.
    """
    try:
        array = np.asarray(given)
    except (ValueError, TypeError):  # rows of several lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu" or array.ndim != 2:
        raise UnusableQueries(f"{name}: expected numbers of shape (Q, {dim}); {_fault(given, array, dim)}")
    return array


def finite_queries(name: str, array: NDArray[Any]) -> F32:
    """Numbers (Q, d) as float32.

    Raises:
        UnusableQueries: one is not finite; names the row.
    """
    with np.errstate(over="ignore"):
        vectors = np.asarray(array, np.float32)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        row = int(np.argmin(finite))
        value = array[row][~np.isfinite(vectors[row])][0]
        raise UnusableQueries(f"{name}: row {row} holds {value}, expected numbers that are finite in float32")
    return vectors


def _fault(given: ArrayLike, array: NDArray[Any], dim: int) -> str:
    """What is wrong with what is no matrix of numbers: its first such row, or its shape where all rows are alike."""
    if array.dtype.kind not in "fiu" and isinstance(given, Sequence | np.ndarray) and not isinstance(given, str):
        for number, row in enumerate(given):
            try:
                vector = np.asarray(row)
            except (ValueError, TypeError):
                return f"row {number} is no list of numbers"
            if vector.dtype.kind not in "fiu" or vector.shape != (dim,):
                return f"row {number} is {vector.dtype} of shape {vector.shape}"
    return f"found {array.dtype} of shape {array.shape}"
