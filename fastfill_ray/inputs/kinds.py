"""What an id, a vector, a weight and a payload can be in a user's file, and how each is read into one type.

Many Arrow types are one kind: a run compares kinds, never types, so the files of one table may be written by several
tools. A column of type null (no rows, or nothing but nulls) says nothing of its kind: None.

Legend: N items, d dimensions. Vectors are (N, d) float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import (
    as_float32,
    chunks_of,
    elements_of,
    extension_name,
    is_bytes,
    is_list,
    is_text,
    is_utf8,
    is_uuid,
    nulls_of,
    numpy_dtype,
    plain_type,
    tensor_of,
    uuid_column,
)
from fastfill_ray.types import F32, IdType, VectorDtype

# Below this norm a direction is rounding noise: cosine similarity is not defined.
_MIN_NORM = 1e-12
_NUMBERS = {
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    **{pa.type_for_alias(f"{sign}{bits}"): f"{sign}{bits}" for sign in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_DTYPES = (*_NUMBERS.values(), "bfloat16")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Errors about a field begin with the file that it is in."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


# Ids


def id_kind(field: pa.Field) -> IdType | None:
    """What the ids of a column are read as: integers as int64, text and UUIDs (16 bytes, as their text) as strings.

    Raises:
        InputError: nothing of these; names the cast to make.
    """
    kind = plain_type(field.type)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return "int64"
    if is_text(kind) or is_bytes(kind) or is_uuid(kind):
        return "string"
    cast = f"CAST({field.name} AS VARCHAR)"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        cast = f"CAST({field.name} AS BIGINT)"
    elif pa.types.is_fixed_size_binary(kind):
        cast = f"lower(hex({field.name}))"
    raise InputError(f"id column {field.name!r} is {field.type}: cast it to int64 or string, for example {cast}")


def read_ids(table: pa.Table, column: str, id_type: IdType, *, path: str = "", start: int = 0) -> np.ndarray:
    """Ids (N,) as int64, or as an object array of str; see ``read_id_column``."""
    found = read_id_column(table, column, id_type, path=path, start=start)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def read_id_column(
    table: pa.Table, column: str, id_type: IdType, *, path: str = "", start: int = 0
) -> pa.Int64Array | pa.StringArray:
    """Ids (N,) as int64 or string.

    Args:
        path, start: the file that the table is from, and the row in it of the table's first row; for errors.

    Raises:
        InputError: ids of the other kind; an id that is null, does not fit into int64, or is not UTF-8: names its row.
    """
    field = table.schema.field(column)
    if id_kind(field) not in (id_type, None):
        raise InputError(f"{path}: id column {column!r} is {field.type}, but the other ids are {id_type}")
    parts = [pa.array([], pa.int64() if id_type == "int64" else pa.string())]
    for chunk in chunks_of(table.column(column)):
        parts.append(_read_ids(chunk, id_type, f"id column {column!r}", path, start))
        start += len(chunk)
    return parts[1] if len(parts) == 2 else pa.concat_arrays(parts)


def _read_ids(chunk: pa.Array, id_type: IdType, name: str, path: str, start: int) -> pa.Array:
    if chunk.null_count:
        row = int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
        raise _bad_id(path, start + row, f"{name} is null. Every item needs an id: fill it in, or remove the row.")
    if pa.types.is_fixed_size_binary(chunk.type):
        return uuid_column(chunk)
    try:
        if id_type == "int64":
            return _widened(chunk).cast(pa.int64())
        # Arrow takes a string column at its word; from bytes to text it looks at every one.
        return chunk.cast(pa.large_binary()).cast(pa.large_string()).cast(pa.string())
    except pa.ArrowInvalid:
        readable = _fits_int64 if id_type == "int64" else is_utf8
        values = (chunk if id_type == "int64" else chunk.cast(pa.large_binary())).to_pylist()
        row, value = next((row, value) for row, value in enumerate(values) if not readable(value))
        if id_type == "int64":
            what = f"{name} holds {value}, which does not fit into int64: cast the column to string."
        else:
            what = f"{name} holds {value[:50]!r}, which is not UTF-8: mend it, or remove the row."
        raise _bad_id(path, start + row, what) from None


def _bad_id(path: str, row: int, what: str) -> InputError:
    return InputError(f"{path} row {row}: {what}".lstrip())


def _fits_int64(value: Any) -> bool:
    return -(1 << 63) <= int(value) < 1 << 63


def _widened(chunk: pa.Array) -> pa.Array:
    """Narrow decimals as decimal128: Arrow cannot cast those of 32 bits to int64."""
    if pa.types.is_decimal(chunk.type) and chunk.type.bit_width < 128:
        return chunk.cast(pa.decimal128(chunk.type.precision, chunk.type.scale))
    return chunk


# Vectors


@dataclass(frozen=True)
class VectorKind:
    """What the vectors of a column are.

    Attributes:
        dtype: of the elements: numpy's name, or bfloat16.
        dim: components, where the type fixes them.
        encoding: how they are stored.
    """

    dtype: str
    dim: int | None
    encoding: Literal["list", "tensor", "bytes"]

    def __str__(self) -> str:
        return f"{self.dtype} ({self.encoding})"


def vector_kind(field: pa.Field, stated: str | None = None) -> VectorKind | None:
    """What the vectors of a column are: lists of numbers, tensors with one axis, or little-endian bytes.

    Args:
        stated: element type of vectors that are stored as bytes (``vector_dtype``); the field's metadata key ``dtype``
            may state it, too. Elements that are numbers have a type of their own.

    Raises:
        InputError: no vectors; bytes of no stated type, of two, or of a width that is no whole number of elements;
            tensors with more than one axis above 1.
    """
    tensor, kind = tensor_of(field), plain_type(field.type)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_fixed_size_binary(kind):
        dtype = _bytes_dtype(field, None, stated)
        width = numpy_dtype(dtype).itemsize
        if kind.byte_width % width:
            raise InputError(
                f"column {field.name!r}: {kind.byte_width} bytes are not a whole number of {dtype} elements. State "
                "the element type that they have as vector_dtype."
            )
        return VectorKind(dtype, kind.byte_width // width, "bytes")
    if is_bytes(kind):
        return VectorKind(_bytes_dtype(field, None, stated), None, "bytes")
    if not is_list(kind):
        raise _no_vectors(field)
    element, dim = kind.value_field, int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None
    if tensor is not None:
        dim = math.prod(tensor.shape)
        if sum(axis > 1 for axis in tensor.shape) > 1 or not tensor.shape:
            raise InputError(
                f"column {field.name!r} holds tensors of shape {tensor.shape}; vectors have one axis: flatten them"
            )
    if pa.types.is_null(element.type):
        return None  # lists without elements
    if element.type in _NUMBERS:
        return VectorKind(_NUMBERS[element.type], dim, "list" if tensor is None else "tensor")
    stored = plain_type(element.type)
    if not pa.types.is_fixed_size_binary(stored):
        raise _no_vectors(field)
    dtype = _bytes_dtype(field, element, stated)
    if stored.byte_width != numpy_dtype(dtype).itemsize:
        raise InputError(f"column {field.name!r}: elements of {stored.byte_width} bytes are no {dtype}")
    return VectorKind(dtype, dim, "bytes")


def _no_vectors(field: pa.Field) -> InputError:
    return InputError(
        f"column {field.name!r} is {field.type}, expected vectors: lists of numbers ({', '.join(_NUMBERS.values())}), "
        "tensors with one axis, or bytes of a stated element type. Cast it, for example "
        f"CAST({field.name} AS FLOAT[])."
    )


def _bytes_dtype(field: pa.Field, element: pa.Field | None, stated: str | None) -> str:
    """The element type of vectors stored as bytes: said by the config, by the file, or by both alike."""
    written = (field.metadata or {}).get(b"dtype", b"").decode(errors="replace")
    if element is not None and extension_name(element) == "lance.bfloat16":
        written = "bfloat16"
    dtype = stated or written
    if not dtype:
        raise InputError(
            f"column {field.name!r} is {field.type}: vectors stored as bytes, and nothing states their element type. "
            f"Set gallery.vector_dtype or queries.vector_dtype to one of {', '.join(get_args(VectorDtype))}, or write "
            "the field's metadata key 'dtype'."
        )
    if dtype not in _DTYPES:
        raise InputError(
            f"column {field.name!r}: its metadata key 'dtype' is {dtype!r}; one of {', '.join(_DTYPES)} is expected"
        )
    if written not in ("", dtype):
        raise InputError(
            f"column {field.name!r}: vector_dtype is {dtype}, but the file says that its elements are {written}. "
            "Set vector_dtype to what they are, or leave it out."
        )
    return dtype


def common_dim(column: pa.ChunkedArray | pa.Array, kind: VectorKind | None) -> int | None:
    """The most frequent length of a column's vectors, in elements; None where every row is null or empty."""
    if kind is None:
        return None
    lengths = [np.empty(0, np.int64)]
    for chunk in chunks_of(column):
        elements = elements_of(chunk, kind.dtype)
        lengths.append(elements.lengths[~nulls_of(chunk)] // elements.unit)
    there = np.concatenate(lengths)
    values, counts = np.unique(there[there > 0], return_counts=True)
    return int(values[counts.argmax()]) if len(values) else None


def vectors_of(
    column: pa.ChunkedArray | pa.Array, dim: int, *, metric: str = "l2", kind: VectorKind | None
) -> tuple[F32, dict[int, str]]:
    """The vectors of a column, and the rows that have none that can be used.

    Args:
        column: N vectors; slices and chunks are fine.
        metric: for "cosine" a vector without direction is unusable.
        kind: of the column's field, see ``vector_kind``.

    Returns:
        (N, dim) float32, rows that cannot be used are zeros, possibly a read-only view of the column; and
        {row: reason}, reason in "null_vector", "wrong_dim: found F, expected D", "non_finite" (an element is null, or
        it or the squared norm is not finite in float32), "zero_norm".
    """
    parts: list[F32] = []
    reasons: dict[int, str] = {}
    start = 0
    for chunk in chunks_of(column):
        vectors, unusable = _chunk_vectors(chunk, dim, kind)
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


def _chunk_vectors(chunk: pa.Array, dim: int, kind: VectorKind | None) -> tuple[F32, dict[int, str]]:
    """One chunk as (n, dim) float32; null rows and rows of another length are zeros and get a reason."""
    rows, null = len(chunk), nulls_of(chunk)
    if pa.types.is_null(chunk.type):
        return np.zeros((rows, dim), np.float32), dict.fromkeys(range(rows), "null_vector")
    flat, lengths, unit, dtype = elements_of(chunk, kind.dtype if kind is not None else "float32")
    usable = ~null & (lengths == dim * unit)
    if usable.all():
        return as_float32(flat, dtype).reshape(rows, dim), {}
    vectors = np.zeros((rows, dim), np.float32)
    # Null rows may occupy elements and ragged rows shift all that follow: drop exactly theirs.
    vectors[usable] = as_float32(flat[np.repeat(usable, lengths)], dtype).reshape(-1, dim)
    reasons = {
        row: "null_vector" if null[row] else _wrong_dim(int(lengths[row]), dim, unit)
        for row in np.flatnonzero(~usable).tolist()
    }
    return vectors, reasons


def _wrong_dim(length: int, dim: int, unit: int) -> str:
    """unit: bytes of an element, 1 where the length counts elements."""
    if length % unit:
        return f"wrong_dim: found {length} bytes, expected {dim * unit}"
    return f"wrong_dim: found {length // unit}, expected {dim}"


# Weights


def weight_kind(field: pa.Field) -> Literal["number"] | None:
    """That the weights of a column are numbers.

    Raises:
        InputError: they are anything else, truth values and text among them.
    """
    kind = plain_type(field.type)
    if pa.types.is_null(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    raise InputError(
        f"column {field.name!r} is {field.type}; numbers are expected: cast it, for example "
        f"CAST({field.name} AS DOUBLE)"
    )


def weights_of(column: pa.ChunkedArray | pa.Array) -> F32:
    """The weights (N,) of a column of kind "number"; NaN for null."""
    parts = [np.empty(0, np.float32)]
    for chunk in chunks_of(column):
        number = chunk.cast(pa.float64()) if pa.types.is_decimal(chunk.type) or pa.types.is_null(chunk.type) else chunk
        with np.errstate(over="ignore"):  # becomes inf, which the caller looks for
            parts.append(number.to_numpy(zero_copy_only=False).astype(np.float32))
    return np.concatenate(parts)


def read_weights(table: pa.Table, column: str, *, key: str, path: str, start: int = 0) -> F32:
    """The weights (N,) float32 of a column.

    Args:
        key: of the config, for errors.
        path, start: the file that the table is from, and the row in it of the table's first row; for errors.

    Raises:
        InputError: a weight that is null, not a number, not finite or negative: names the file and the row in it.
    """
    with naming(path):
        weight_kind(table.schema.field(column))
    weights = weights_of(table.column(column))
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{path} row {start + row}: {key} {column!r} is {table.column(column)[row].as_py()!r} there, and "
            f"{len(bad)} of the rows that were read are like it; finite numbers of at least 0 are expected. Fill them "
            "in, or leave the column out."
        )
    return weights


# Payload


def check_payload(field: pa.Field) -> None:
    """Anything that Arrow can give Python is a payload.

    Raises:
        InputError: tensors whose shape cannot be read, also within lists and structs.
    """
    tensor_of(field)
    kind = plain_type(field.type)
    if pa.types.is_nested(kind):
        for place in range(kind.num_fields):
            check_payload(kind.field(place))


def check_version(field: pa.Field) -> None:
    """Raises InputError for what is no single value: lists, structs, maps, tensors."""
    if pa.types.is_nested(plain_type(field.type)):
        raise InputError(
            f"column {field.name!r} is {field.type}: a version is a single value, such as a time, a number or text. "
            "Name a column that holds one."
        )
