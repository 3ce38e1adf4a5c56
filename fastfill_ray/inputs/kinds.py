"""What an id, a vector or a label can be in a user's file, and how it is read into one type.

Legend: N items, d dimensions. Vectors are (N, d) float32.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.errors import InputError
from fastfill_ray.types import F32, I64, IdType, Objects

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


_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, *_BYTES)
# What values of each kind of label are stored as.
_LABEL_TYPES = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "null": pa.null(),
}
_EXACT = 1 << 53  # below it every whole float64 is an integer without doubt


def value_kind(kind: pa.DataType) -> str | None:
    """What single values of an Arrow type are: "integer", "number", "boolean", "text" (also as UTF-8 bytes), "null".

    None for every other type. Dictionary-encoded values are what they stand for. Decimals without a fraction that fit
    into int64 are integers, others are numbers.
    """
    if pa.types.is_dictionary(kind):
        return value_kind(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return value_kind(kind.storage_type)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0 and kind.precision <= 18):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if any(is_text(kind) for is_text in _TEXTS):
        return "text"
    return "null" if pa.types.is_null(kind) else None


def label_kind(kind: pa.DataType) -> str:
    """What labels of an Arrow type are: as ``value_kind`` says, or "list of" that. Lists of X compare with X.

    Raises:
        InputError: values of this type cannot be labels.
    """
    members = _members_of(kind)
    found = value_kind(kind if members is None else members)
    if found is None:
        raise InputError(
            f"{kind} cannot be a label: integers, floats, booleans, text, or lists of one of these are expected. Cast "
            "it to one of them, such as a string"
        )
    return found if members is None else f"list of {found}"


def comparable_labels(one: str, other: str) -> bool:
    """Whether labels of two kinds (``label_kind``) can be equal."""
    kinds = {kind.removeprefix("list of ").replace("integer", "number") for kind in (one, other)}
    return len(kinds - {"null"}) <= 1


def label_type(kind: pa.DataType) -> pa.DataType:
    """The Arrow type that ``labels_of`` a column of this type are stored as: one for all types of a kind."""
    if (members := _members_of(kind)) is not None:
        return pa.list_(label_type(members))
    if pa.types.is_uint64(kind.value_type if pa.types.is_dictionary(kind) else kind):
        return pa.uint64()
    return _LABEL_TYPES[label_kind(kind)]


def _members_of(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's members, None for other types."""
    return kind.value_type if any(is_list(kind) for is_list in _LISTS) else None


def labels_of(column: pa.ChunkedArray, *, where: str = "the label column") -> Objects:
    """Labels (N,) as Python objects, None where there is none.

    Null and NaN are no label; whole floats are the int that they equal; bytes are text. A list is a tuple of its
    distinct members, None if it has none.

    Args:
        where: file and column, for messages.

    Raises:
        InputError: not a type of labels; text that is not UTF-8 (names the row among those given).
    """
    try:
        kind = label_kind(column.type)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if kind == "text":
        return _texts(column, where)
    if kind == "integer" and not column.null_count and pa.types.is_integer(column.type):
        return column.to_numpy().astype(object)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        raise InputError(f"{where}: a text in a list is not UTF-8. Write it again as UTF-8.") from None
    if kind.startswith("list of "):
        return np.fromiter((_label_set(value, where) for value in values), object, len(values))
    return np.fromiter(map(_plain, values), object, len(values))


def _texts(column: pa.ChunkedArray, where: str) -> Objects:
    try:
        return column.cast(pa.string()).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, UnicodeDecodeError):
        raw = column.cast(pa.binary()).to_pylist()
        row = next(row for row, value in enumerate(raw) if value is not None and not _is_utf8(value))
        raise InputError(
            f"{where}: row {row} of those read is {raw[row]!r}, which is not UTF-8. Write the text again as UTF-8."
        ) from None


def _is_utf8(value: bytes) -> bool:
    return value.decode(errors="replace").encode() == value


def _label_set(values: list[object] | None, where: str) -> tuple[object, ...] | None:
    try:
        members = dict.fromkeys(map(_plain, values or ()))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {error.object!r} is not UTF-8. Write the text again as UTF-8.") from None
    members.pop(None, None)
    return tuple(members) or None


def _plain(value: object) -> object:
    """A label's value as what it is compared as."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value() and abs(value) < 1 << 63
        value = int(value) if whole else float(value)
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() and abs(value) < _EXACT else value
    return value
