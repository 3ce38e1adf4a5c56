"""Digests of a row's values: what says that an item changed. However Arrow stores it, a value has one digest.

A value's digest is blake2b over a tag of its kind and its content; a nested value's content is the digests of what it
holds, so that no two values share an encoding. What is equal: text, bytes and whole numbers of any width; floats of
any precision (NaN is one value, -0.0 is not 0.0); decimals of any scale; times of any unit, and moments of any zone;
lists of any layout; structs whose fields stand in any order; tensors of one shape and the same numbers, of whichever
library. What is not: null and empty, text and bytes, 1 and 1.0 and true, a moment and a time without a zone.

Legend: N rows, M elements of all rows. Digests are (N, 16) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import (
    Tensor,
    bytes_of,
    is_bytes,
    is_list,
    is_text,
    is_variable_tensor,
    nulls_of,
    plain,
    plain_type,
    tensor_of,
    values_of,
)
from fastfill_ray.types import I64

_U8 = NDArray[np.uint8]

DIGEST_BYTES = 16
_TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY_S = 86_400
_SHORT_BYTES = 1024
# A list of whole numbers is hashed in the first of these that holds all of them: images as bytes, not as int64.
_WHOLE = [np.dtype(f"<{kind}{width}") for kind in "ui" for width in (1, 2, 4, 8)]


def payload_digests(table: pa.Table, columns: Sequence[str]) -> pa.FixedSizeBinaryArray:
    """A digest (N,) of 16 bytes per row over the named columns and their names, in this order; never null.

    A row that nobody can read, such as text that is not UTF-8, has the digest of its bytes.

    Raises:
        InputError: a type that no Parquet file holds, such as a union; names the column.
    """
    names = list(columns)
    return _column(_joined(_seed(b"row", names), [_column_digests(table, name) for name in names], table.num_rows))


def version_digests(table: pa.Table, column: str) -> pa.FixedSizeBinaryArray:
    """A digest (N,) of 16 bytes per row of the column's value, null where the value is.

    Raises: see ``payload_digests``.
    """
    digests = _column_digests(table, column)
    return _column(digests, null=(digests == _NULL).all(axis=1))


def _column(digests: _U8, null: np.ndarray | None = None) -> pa.FixedSizeBinaryArray:
    valid = None if null is None or not null.any() else pa.py_buffer(np.packbits(~null, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(digests))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(DIGEST_BYTES), len(digests), [valid, data])


def _column_digests(table: pa.Table, name: str) -> _U8:
    field = table.schema.field(name)
    parts = [_digests(chunk, field) for chunk in table.column(name).chunks]
    return np.concatenate([np.empty((0, DIGEST_BYTES), np.uint8), *parts])


def _digests(array: pa.Array, field: pa.Field) -> _U8:
    """Of each value of an array whose type, or the metadata of whose field, says what it is."""
    stored = array.storage if isinstance(array, pa.ExtensionArray) else array
    if isinstance(stored, pa.DictionaryArray):
        # Nothing is decoded: of a long text that many rows share there is one digest to make.
        of_values = _digests(stored.dictionary, field.with_type(stored.type.value_type))
        places = stored.indices.fill_null(0).to_numpy(zero_copy_only=False)
        digests = of_values[places] if len(of_values) else _nulls(len(stored))
    elif is_variable_tensor(field):
        digests = _variable_tensors(stored)
    elif (tensor := tensor_of(field)) is not None:
        digests = _tensors(stored, tensor)
    elif isinstance(stored, pa.ExtensionArray):  # one within another
        return _digests(stored, field.with_type(stored.type))
    else:
        digests = _plain_digests(stored, field)
    null = nulls_of(stored)
    return np.where(null[:, None], _NULL, digests) if null.any() else digests


def _plain_digests(array: pa.Array, field: pa.Field) -> _U8:
    """As ``_digests``; of null rows anything."""
    kind = array.type
    if is_text(kind) or is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        data, lengths = bytes_of(array)
        return _sliced(_seed(b"text" if is_text(kind) else b"bytes"), data, _ends(lengths))
    if pa.types.is_map(kind):
        return _maps(array)
    if is_list(kind):
        return _lists(*values_of(array), kind.value_field)
    if pa.types.is_struct(kind):
        # A stable order by name: of two fields of one name the first stays the first.
        order = sorted(range(kind.num_fields), key=lambda place: kind.field(place).name)
        parts = [_digests(array.field(place), kind.field(place)) for place in order]
        return _joined(_seed(b"struct", [kind.field(place).name for place in order]), parts, len(array))
    if pa.types.is_null(kind):
        return _nulls(len(array))
    if pa.types.is_decimal(kind):
        return _decimals(array)
    if pa.types.is_temporal(kind):
        return _times(array)
    if not _is_number(kind):
        raise InputError(f"column {field.name!r} holds {kind}, of which no digest can be made: cast it to another type")
    return _numbers(_flat(array))


# Single values


def _numbers(flat: np.ndarray) -> _U8:
    """Of each of M numbers or truth values."""
    if flat.dtype.kind == "f":
        values = flat.astype("<f8")
        values[np.isnan(values)] = np.nan
        return _fixed(_seed(b"float"), values)
    if flat.dtype == bool:
        return _fixed(_seed(b"bool"), flat)
    digests = _fixed(_seed(b"whole"), flat.astype("<i8"))
    if flat.dtype != np.dtype("<u8"):
        return digests
    return np.where(flat[:, None] < 1 << 63, digests, _fixed(_seed(b"beyond int64"), flat))


def _decimals(array: pa.Array) -> _U8:
    width, scale = array.type.bit_width // 8, array.type.scale
    data = _buffer(array, width).tobytes()
    texts = [
        _decimal_text(int.from_bytes(data[at : at + width], "little", signed=True), scale)
        for at in range(0, len(data), width)
    ]
    lengths = np.array([len(text) for text in texts], np.int64)
    return _sliced(_seed(b"decimal"), np.frombuffer("".join(texts).encode(), np.uint8), _ends(lengths))


def _decimal_text(unscaled: int, scale: int) -> str:
    """The number's digits without zeros at their end, and its exponent."""
    if unscaled == 0:
        return "0"
    digits = str(unscaled)
    kept = digits.rstrip("0")
    return f"{kept}e{len(digits) - len(kept) - scale}"


def _times(array: pa.Array) -> _U8:
    """As whole seconds and nanoseconds: the units of Arrow reach further than int64 does in nanoseconds."""
    kind = array.type
    if pa.types.is_interval(kind):
        return _fixed(_seed(b"interval"), _buffer(array, kind.bit_width // 8))
    if pa.types.is_date32(kind):
        ticks, per_s = _flat(array).astype("<i8") * _DAY_S, 1
    else:
        ticks, per_s = _flat(array).astype("<i8"), _TICKS_PER_S["ms" if pa.types.is_date64(kind) else kind.unit]
    seconds = ticks // per_s
    nanoseconds = (ticks - seconds * per_s) * (10**9 // per_s)
    if pa.types.is_timestamp(kind):
        name = b"time" if kind.tz is None else b"moment"
    else:
        name = b"date" if pa.types.is_date(kind) else b"time of day" if pa.types.is_time(kind) else b"duration"
    return _fixed(_seed(name), np.stack([seconds, nanoseconds], axis=1))


# Nested values


def _lists(values: pa.Array, lengths: I64, element: pa.Field) -> _U8:
    """Of each list: rows of numbers as their bytes, all others as the digests of their elements.

    Args:
        values: (M,) the elements of all lists, one after the other.
        lengths: (N,) of the lists.
    """
    ends = _ends(lengths)
    if not _is_number(plain_type(element.type)):
        return _sliced(_seed(b"list"), _digests(values, element), ends)
    values = plain(values)
    # By what a list holds, not by its type: an empty one, or one of nulls, is the same in every type.
    plainly = lengths > 0
    if values.null_count:
        plainly[plainly] = ~_of_rows(np.logical_or, nulls_of(values), ends, np.flatnonzero(plainly))
    digests = np.empty((len(lengths), DIGEST_BYTES), np.uint8)
    digests[plainly] = _number_lists(_flat(values), ends, np.flatnonzero(plainly))
    if not plainly.all():
        others = values.filter(pa.array(np.repeat(~plainly, lengths)))
        digests[~plainly] = _sliced(_seed(b"list"), _digests(others, element), _ends(lengths[~plainly]))
    return digests


def _number_lists(flat: np.ndarray, ends: I64, rows: I64) -> _U8:
    """Of the lists `rows` (R,), none of them empty or with a null, in the narrowest type that holds their numbers."""
    if flat.dtype == bool:
        return _pieces(_seed(b"bools"), flat, ends, rows)
    digests = np.empty((len(rows), DIGEST_BYTES), np.uint8)
    if flat.dtype.kind == "f":
        for dtype, chosen in _float_types(flat, ends, rows):
            with np.errstate(over="ignore"):  # of lists that were not chosen
                digests[chosen] = _pieces(_seed(b"floats", [dtype]), _one_nan(flat.astype(dtype)), ends, rows[chosen])
        return digests
    places = _narrowest(flat, ends, rows)
    for place in np.unique(places).tolist():
        dtype, chosen = _WHOLE[place], places == place
        seed = _seed(b"wholes", [dtype.str])
        digests[chosen] = _pieces(seed, flat.astype(dtype, copy=False), ends, rows[chosen])
    return digests


def _float_types(flat: np.ndarray, ends: I64, rows: I64) -> list[tuple[str, np.ndarray]]:
    """(Type, which of the lists `rows` (R,) it holds): float32 where that is exact, else float64."""
    if flat.dtype.itemsize <= 4:
        return [("<f4", np.ones(len(rows), bool))]
    with np.errstate(over="ignore"):  # beyond float32: inf, which is not the same number
        is_same = (flat.astype("<f4") == flat) | np.isnan(flat)
    fits = _of_rows(np.logical_and, is_same, ends, rows)
    return [("<f4", fits), ("<f8", ~fits)]


def _one_nan(values: np.ndarray) -> np.ndarray:
    """The same numbers, in place: NaN has many encodings."""
    values[np.isnan(values)] = np.nan
    return values


def _narrowest(flat: np.ndarray, ends: I64, rows: I64) -> np.ndarray:
    """Per list the place (R,) in ``_WHOLE`` of the first type that holds all of its numbers."""
    if flat.dtype == np.dtype("<u1") or not len(rows):
        return np.zeros(len(rows), np.int64)
    least, most = _of_rows(np.minimum, flat, ends, rows), _of_rows(np.maximum, flat, ends, rows)
    limits, bounds = np.iinfo(flat.dtype), [np.iinfo(dtype) for dtype in _WHOLE]
    # Bounds within what the numbers' own type holds: numpy compares no others exactly.
    holds = [
        (least >= flat.dtype.type(max(bound.min, limits.min))) & (most <= flat.dtype.type(min(bound.max, limits.max)))
        for bound in bounds
    ]
    return np.argmax(holds, axis=0)


def _of_rows(operation: np.ufunc, flat: np.ndarray, ends: I64, rows: I64) -> np.ndarray:
    """An operation over the elements of each of the lists `rows` (R,), none of them empty."""
    if not len(rows):
        return flat[:0]
    # Every second piece is a row; between them may lie rows that are not asked for.
    edges = np.stack([ends[rows], ends[rows + 1]], axis=1).ravel()
    edges = edges[:-1] if edges[-1] == len(flat) else edges
    return np.asarray(operation.reduceat(flat, edges)[::2])


def _maps(array: pa.Array) -> _U8:
    """Keys and values in their order."""
    entries, lengths = values_of(array)
    parts = [_digests(entries.field(place), entries.type.field(place)) for place in range(2)]
    return _sliced(_seed(b"map"), np.concatenate(parts, axis=1), _ends(lengths))


def _tensors(storage: pa.Array, tensor: Tensor) -> _U8:
    """Tensors of one shape, the elements in the order in which the items show them."""
    shape = [tensor.shape[axis] for axis in tensor.permutation]
    values, lengths = values_of(storage)
    if sorted(tensor.permutation) != list(tensor.permutation):
        order = tensor.of(np.arange(math.prod(tensor.shape))).ravel()
        starts = np.repeat(_ends(lengths)[:-1], lengths)
        within = np.arange(len(values)) - starts
        shaped = np.repeat(lengths == len(order), lengths)  # another length has no order
        within[shaped] = order[within[shaped]]
        values = values.take(pa.array(starts + within))
    shapes = _lists(*values_of(pa.array([shape], pa.list_(pa.int64()))), pa.field("axis", pa.int64()))
    parts = [np.repeat(shapes, len(storage), axis=0), _lists(values, lengths, storage.type.value_field)]
    return _joined(_seed(b"tensor"), parts, len(storage))


def _variable_tensors(storage: pa.Array) -> _U8:
    """Tensors that each have a shape of their own: struct<data, shape>."""
    kind = storage.type
    fields = [kind.field(kind.get_field_index(name)) for name in ("shape", "data")]
    return _joined(_seed(b"tensor"), [_digests(storage.field(each.name), each) for each in fields], len(storage))


# What they are made of


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _nulls(rows: int) -> _U8:
    return np.broadcast_to(_NULL, (rows, DIGEST_BYTES))


def _flat(array: pa.Array) -> np.ndarray:
    """Numbers, truth values or ticks (N,) as they are stored; of null rows anything."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False))
    letter = "f" if pa.types.is_floating(kind) else "u" if pa.types.is_unsigned_integer(kind) else "i"
    width = kind.bit_width // 8
    return _buffer(array, width).view(f"<{letter}{width}").ravel()


def _buffer(array: pa.Array, width: int) -> _U8:
    """The values (N, width) of a type of fixed width as their bytes."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros((len(array), width), np.uint8)
    return np.frombuffer(data, np.uint8, len(array) * width, array.offset * width).reshape(-1, width)


def _ends(lengths: I64) -> I64:
    """Where rows of these lengths begin, and where the last one ends (N + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _seed(kind: bytes, names: Sequence[str] = ()) -> blake2b:
    """A hash that has read what is to come; every part with its length before it."""
    seed = blake2b(digest_size=DIGEST_BYTES)
    for part in (kind, str(len(names)).encode(), *(name.encode() for name in names)):
        seed.update(len(part).to_bytes(8, "little") + part)
    return seed


def _joined(seed: blake2b, parts: Sequence[_U8], rows: int) -> _U8:
    """Of each row's digests, one of each part."""
    return _fixed(seed, np.concatenate([np.empty((rows, 0), np.uint8), *parts], axis=1))


def _fixed(seed: blake2b, values: np.ndarray) -> _U8:
    """Of each row of values (N, ...) of one width."""
    width = values.itemsize * (values.shape[1] if values.ndim > 1 else 1)
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return _sliced(seed, data, np.arange(len(values) + 1) * width)


def _sliced(seed: blake2b, values: np.ndarray, ends: I64) -> _U8:
    """Of values[ends[i] : ends[i + 1]] for each i; values (M,) or (M, width) uint8."""
    width = math.prod(values.shape[1:])
    return _hashed(seed, np.ascontiguousarray(values).reshape(-1), ends[:-1] * width, ends[1:] * width)


def _pieces(seed: blake2b, flat: np.ndarray, ends: I64, rows: I64) -> _U8:
    """Of the bytes of flat[ends[i] : ends[i + 1]] for each i of `rows` (R,)."""
    data = np.ascontiguousarray(flat).view(np.uint8)
    return _hashed(seed, data, ends[rows] * flat.itemsize, ends[rows + 1] * flat.itemsize)


def _hashed(seed: blake2b, data: np.ndarray, starts: I64, ends: I64) -> _U8:
    """Of data[starts[i] : ends[i]] for each i."""
    # Slices of bytes are copies; of a view they are not, but take longer to make than a short one to copy.
    source = data.tobytes() if len(data) <= _SHORT_BYTES * len(starts) else data.data
    copy, digests = seed.copy, []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        digest = copy()
        digest.update(source[start:end])
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


_NULL: _U8 = np.frombuffer(_seed(b"null").digest(), np.uint8)
