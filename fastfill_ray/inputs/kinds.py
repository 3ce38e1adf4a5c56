"""What an id or a vector can be in a user's file, and how it is read into one type.

Legend: N items, d dimensions. Vectors are (N, d) float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.errors import InputError
from fastfill_ray.types import F32, I64, IdType

# Below this norm a direction is rounding noise: cosine similarity is not defined.
_MIN_NORM = 1e-12
_ELEMENT_TYPES = ("float16", "float32", "float64")


def element_type(field: pa.Field) -> str:
    """Element type of a vector column: of a fixed_size_binary one it is in the field's metadata (``dtype``, float32).

    Raises:
        InputError: not a column of float16, float32 or float64 vectors.
    """
    kind = field.type
    if pa.types.is_fixed_size_binary(kind):
        found = (field.metadata or {}).get(b"dtype", b"float32").decode(errors="replace")
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        found = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind.value_type), "")
    else:
        found = ""
    if found not in _ELEMENT_TYPES:
        raise InputError(
            f"column {field.name!r} is {kind}, expected vectors: list, large_list, fixed_size_list or "
            f"fixed_size_binary of {', '.join(_ELEMENT_TYPES)} (for binary, named by the field's metadata key 'dtype')."
        )
    return found


def vector_dim(field: pa.Field) -> int | None:
    """Dimensions of a vector column if its type fixes them, None for variable lists.

    Raises:
        InputError: not a vector column, or a binary width that is no multiple of the element size.
    """
    width = np.dtype(element_type(field)).itemsize
    if pa.types.is_fixed_size_binary(field.type):
        if field.type.byte_width % width:
            raise InputError(
                f"column {field.name!r}: {field.type.byte_width} bytes are not a whole number of elements."
            )
        return int(field.type.byte_width) // width
    return int(field.type.list_size) if pa.types.is_fixed_size_list(field.type) else None


def vectors_of(
    column: pa.ChunkedArray | pa.Array, dim: int, *, metric: str = "l2", binary_dtype: str = "float32"
) -> tuple[F32, dict[int, str]]:
    """The vectors of a column, and the rows that have none that can be used.

    Args:
        column: N vectors, of any type that ``element_type`` takes; slices and chunks are fine.
        metric: for "cosine" a vector without direction is unusable.
        binary_dtype: element type (little-endian) of a fixed_size_binary column, see ``element_type``.

    Returns:
        (N, dim) float32, rows that cannot be used are zeros, possibly a read-only view of the column; and
        {row: reason}, reason in "null_vector", "wrong_dim: found F, expected D", "non_finite" (an element, or the
        squared norm, is not finite in float32), "zero_norm".
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts: list[F32] = []
    reasons: dict[int, str] = {}
    start = 0
    for chunk in chunks:
        vectors, unusable = _chunk_vectors(chunk, dim, binary_dtype)
        parts.append(vectors)
        reasons.update({start + row: reason for row, reason in unusable.items()})
        start += len(vectors)
    vectors = parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, dim), np.float32), *parts])

    # One pass tells all: the squared norm is finite only if every element is.
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("nd,nd->n", vectors, vectors)
    suspect = ~np.isfinite(squared)
    if metric == "cosine":
        suspect |= squared < _MIN_NORM**2
    bad = [row for row in np.flatnonzero(suspect).tolist() if row not in reasons]
    if bad:
        reasons.update({row: "zero_norm" if np.isfinite(squared[row]) else "non_finite" for row in bad})
        vectors = vectors.copy()
        vectors[bad] = 0.0
    return vectors, dict(sorted(reasons.items()))


def _chunk_vectors(chunk: pa.Array, dim: int, binary_dtype: str) -> tuple[F32, dict[int, str]]:
    """One chunk as (n, dim) float32; null rows and rows of another length are zeros and get a reason."""
    rows = len(chunk)
    null = np.zeros(rows, bool) if not chunk.null_count else chunk.is_null().to_numpy(zero_copy_only=False)
    values, lengths = _flat(chunk, binary_dtype)
    usable = ~null & (lengths == dim)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is found later
        if usable.all():
            return values.astype(np.float32, copy=False).reshape(rows, dim), {}
        vectors = np.zeros((rows, dim), np.float32)
        # Null rows may occupy elements and ragged rows shift all that follow: drop exactly theirs.
        vectors[usable] = values[np.repeat(usable, lengths)].reshape(-1, dim)
    reasons = {
        row: "null_vector" if null[row] else f"wrong_dim: found {lengths[row]}, expected {dim}"
        for row in np.flatnonzero(~usable).tolist()
    }
    return vectors, reasons


def _flat(chunk: pa.Array, binary_dtype: str) -> tuple[NDArray[np.floating[Any]], I64]:
    """The elements of all rows, one after the other, and each row's number of elements; a null element is NaN."""
    rows, kind = len(chunk), chunk.type
    if pa.types.is_fixed_size_binary(kind):
        dtype, width = np.dtype(binary_dtype).newbyteorder("<"), int(kind.byte_width)
        buffer = chunk.buffers()[1]
        raw = (
            np.frombuffer(buffer, np.uint8, rows * width, chunk.offset * width)
            if rows and buffer
            else np.empty(0, "u1")
        )
        return raw.view(dtype), np.full(rows, width // dtype.itemsize if len(raw) else 0)
    if pa.types.is_fixed_size_list(kind):
        size = int(kind.list_size)
        elements = chunk.values.slice(chunk.offset * size, rows * size)
        lengths = np.full(rows, size)
    else:
        offsets = chunk.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        elements = chunk.values.slice(offsets[0], offsets[-1] - offsets[0])
        lengths = np.diff(offsets)
    return elements.to_numpy(zero_copy_only=False), lengths


def read_ids(table: pa.Table, column: str, id_type: IdType) -> np.ndarray:
    """Ids (N,) as int64, or as an object array of str; nulls must have been refused before."""
    values = table.column(column)
    if id_type == "int64":
        return values.cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)
    return values.cast(pa.string()).to_numpy(zero_copy_only=False).astype(object)
