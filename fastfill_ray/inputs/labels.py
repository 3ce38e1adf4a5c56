"""What a label can be in a user's file, and how it is read: single values that are compared by value, or lists of them.

Legend: N items.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import is_bytes, is_list, is_text, plain_type
from fastfill_ray.types import Objects

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
    kind = plain_type(kind)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0 and kind.precision <= 18):
        return "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if is_text(kind) or is_bytes(kind):
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
    if pa.types.is_uint64(plain_type(kind)):
        return pa.uint64()
    return _LABEL_TYPES[label_kind(kind)]


def _members_of(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's members, None for other types."""
    return kind.value_type if is_list(kind) else None


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
