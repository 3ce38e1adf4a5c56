"""The ways in which Arrow stores one and the same value, undone: extension types, dictionaries, views, tensors.

An extension type is an Arrow type only where a library has registered it in this process; elsewhere its name stands in
the field's metadata. What a column holds must not depend on what else is imported, so both are looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.types import F32, I64

_NAME, _PARAMETERS = b"ARROW:extension:name", b"ARROW:extension:metadata"
_FIXED_SHAPE = ("arrow.fixed_shape_tensor", "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_VARIABLE_SHAPE = ("ray.data.arrow_variable_shaped_tensor",)
_UUID_BYTES = 16
# 32 hex digits, with a hyphen before digits 8, 12, 16 and 20.
_UUID_TEXT = 36
_UUID_DIGITS = [place for place in range(_UUID_TEXT) if place not in (8, 13, 18, 23)]
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without the extension type or the dictionary around it."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    return plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def plain(array: pa.Array) -> pa.Array:
    """The same values as an array of ``plain_type``; of views in a dictionary, as large_string or large_binary."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if isinstance(array, pa.DictionaryArray):
        values = plain(array.dictionary)
        # Arrow cannot take from views.
        if pa.types.is_string_view(values.type):
            values = values.cast(pa.large_string())
        elif pa.types.is_binary_view(values.type):
            values = values.cast(pa.large_binary())
        return values.take(array.indices)
    return array


def chunks_of(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    """The chunks of a column as ``plain`` arrays."""
    return [plain(chunk) for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]


def take_rows(table: pa.Table, rows: Sequence[int] | I64) -> pa.Table:
    """``table.take(rows)`` for every type, those with views inside among them. Fields keep their metadata."""
    try:
        return table.take(pa.array(rows, pa.int64()))
    except pa.ArrowNotImplementedError:
        return pa.concat_tables([table.slice(0, 0), *(table.slice(start, length) for start, length in runs_of(rows))])


def runs_of(rows: Sequence[int] | I64) -> list[tuple[int, int]]:
    """(first, length) of each run of consecutive numbers, in the order given."""
    places = np.asarray(rows, np.int64)
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1) if len(places) else []
    return [(int(run[0]), len(run)) for run in runs]


def extension_name(field: pa.Field) -> str:
    """The name of the extension type that a field has or was written with, "" for none."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    return str((field.metadata or {}).get(_NAME, b"").decode(errors="replace"))


def is_variable_tensor(field: pa.Field) -> bool:
    """Whether it holds tensors whose shape differs from row to row: struct<data: list, shape: list<int>>."""
    return extension_name(field) in _VARIABLE_SHAPE


@dataclass(frozen=True)
class Tensor:
    """What all items of a column of tensors share.

    shape: axes as they are stored. permutation: the order in which the item shows them.
    """

    shape: tuple[int, ...]
    permutation: tuple[int, ...]

    def of(self, elements: np.ndarray) -> np.ndarray:
        """One item from its elements in the order in which they are stored."""
        return elements.reshape(self.shape).transpose(self.permutation)


def tensor_of(field: pa.Field) -> Tensor | None:
    """The tensors that a field holds, in Arrow's own type or in one of Ray's; None where it holds none.

    Raises:
        InputError: it does, but their shape cannot be read.
    """
    name = extension_name(field)
    if name not in _FIXED_SHAPE:
        return None
    if isinstance(field.type, pa.BaseExtensionType):
        shape, order = field.type.shape, getattr(field.type, "permutation", None)
    else:
        shape, order = _written_shape(field, name)
    return Tensor(tuple(map(int, shape)), tuple(order) if order is not None else tuple(range(len(shape))))


def _written_shape(field: pa.Field, name: str) -> tuple[list[int], list[int] | None]:
    try:
        written = json.loads((field.metadata or {}).get(_PARAMETERS, b""))
        values = written if isinstance(written, dict) else {"shape": written}
        shape, order = values["shape"], values.get("permutation")
        if all(isinstance(axis, int) for axis in [*shape, *(order or [])]):
            return list(shape), order
    except (ValueError, KeyError, TypeError):
        pass
    # Ray 2.49 to 2.54 pickled it, and what comes from a file is never unpickled.
    raise InputError(
        f"column {field.name!r} is {name}, and its shape cannot be read: it is not JSON. Write the column again with "
        "Ray 2.55 or newer, or as lists."
    )


def is_list(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's lists."""
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's strings."""
    return any(getattr(pa.types, f"is_{name}")(kind) for name in ("string", "large_string", "string_view"))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether it is bytes of any length."""
    return any(getattr(pa.types, f"is_{name}")(kind) for name in ("binary", "large_binary", "binary_view"))


def is_utf8(value: bytes) -> bool:
    """Whether bytes are text."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_uuid(kind: pa.DataType) -> bool:
    """Whether it is as wide as a UUID that is stored as bytes."""
    return bool(pa.types.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES)


def uuid_texts(chunk: pa.Array) -> np.ndarray:
    """See ``uuid_column``: (N,) objects."""
    return np.asarray(uuid_column(chunk).to_numpy(zero_copy_only=False))


def uuid_column(chunk: pa.Array) -> pa.StringArray:
    """UUIDs (N,) of 16 bytes, none of them null, as text, as uuid.UUID writes them."""
    values = bytes_of(chunk)[0].reshape(-1, _UUID_BYTES)
    texts = np.full((len(values), _UUID_TEXT), ord("-"), np.uint8)
    texts[:, _UUID_DIGITS] = _HEX[np.stack([values >> 4, values & 15], axis=2).reshape(len(values), 2 * _UUID_BYTES)]
    offsets = np.arange(len(values) + 1, dtype=np.int32) * _UUID_TEXT
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(texts))


def nulls_of(array: pa.Array) -> np.ndarray:
    """Which rows (N,) are null."""
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


class Elements(NamedTuple):
    """The elements of all rows, one after the other: numbers, or the bytes of numbers.

    flat: numbers, NaN for null; or uint8. lengths: of each row, in elements of `flat`; a null row's may be above 0.
    unit: elements of `flat` per number. dtype: of the numbers that the bytes are; "" where `flat` holds numbers.
    """

    flat: np.ndarray
    lengths: I64
    unit: int
    dtype: str


def elements_of(array: pa.Array, dtype: str) -> Elements:
    """The elements of an array of lists or bytes, as ``plain`` gives it. Nothing is copied but list views.

    Args:
        dtype: element type of bytes: numpy's name, or bfloat16.
    """
    if pa.types.is_fixed_size_binary(array.type) or is_bytes(array.type):
        flat, lengths = bytes_of(array)
        return Elements(flat, lengths, numpy_dtype(dtype).itemsize, dtype)
    values, lengths = values_of(array)
    if pa.types.is_fixed_size_binary(values.type) or isinstance(values, pa.ExtensionArray):
        values = plain(values)
        numbers = as_float32(bytes_of(values)[0], dtype)
        return Elements(np.where(nulls_of(values), np.float32(np.nan), numbers), lengths, 1, "")
    if pa.types.is_null(values.type):
        values = values.cast(pa.float32())
    return Elements(values.to_numpy(zero_copy_only=False), lengths, 1, "")


def numpy_dtype(dtype: str) -> np.dtype:
    """Of little-endian elements; of bfloat16, which numpy does not know, its bits."""
    return np.dtype("<u2") if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")


def as_float32(flat: np.ndarray, dtype: str) -> F32:
    """Numbers as float32; of bytes, the numbers of `dtype` that they are. A view where nothing changes."""
    values = flat.view(numpy_dtype(dtype)) if dtype else flat
    if dtype == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is found later
        return np.require(values.astype(np.float32, copy=False), requirements="A")


def bytes_of(array: pa.Array) -> tuple[np.ndarray, I64]:
    """All bytes (B,) uint8 and the bytes of each row (N,), of any of Arrow's bytes or strings."""
    rows, first = len(array), array.offset
    if pa.types.is_fixed_size_binary(array.type):
        width, data = int(array.type.byte_width), array.buffers()[1]
        if not rows or data is None:
            return np.empty(0, np.uint8), np.zeros(rows, np.int64)
        return _read_only(data)[first * width : (first + rows) * width], np.full(rows, width)
    if pa.types.is_binary_view(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.large_binary())
        first = array.offset
    _, places, data = array.buffers()
    if not rows or data is None or places is None:
        return np.empty(0, np.uint8), np.zeros(rows, np.int64)
    width = 8 if pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type) else 4
    offsets = np.frombuffer(places, f"<i{width}", rows + 1, first * width).astype(np.int64)
    return _read_only(data)[offsets[0] : offsets[-1]], np.diff(offsets)


def _read_only(data: pa.Buffer) -> np.ndarray:
    return np.frombuffer(memoryview(data).toreadonly(), np.uint8)


def values_of(array: pa.Array) -> tuple[pa.Array, I64]:
    """The elements of all lists, one after the other, and the elements of each row (N,)."""
    rows = len(array)
    if pa.types.is_fixed_size_list(array.type):
        size = int(array.type.list_size)
        return array.values.slice(array.offset * size, rows * size), np.full(rows, size)
    offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        # Rows may lie in any order. (Arrow's own cast to lists gives an invalid array where a row is null.)
        lengths = np.where(nulls_of(array), 0, array.sizes.to_numpy(zero_copy_only=False)).astype(np.int64)
        starts = offsets[:rows] - np.cumsum(lengths) + lengths
        places = np.repeat(starts, lengths) + np.arange(lengths.sum())
        return array.values.take(pa.array(places, pa.int64())), lengths
    return array.values.slice(offsets[0], offsets[-1] - offsets[0]), np.diff(offsets)
