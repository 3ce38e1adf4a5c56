"""What a label can be in a user's file, and how it is read: single values that are compared by value, or lists of them.

Legend: N items.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import (
    chunks_of,
    is_bytes,
    is_list,
    is_text,
    is_utf8,
    is_uuid,
    nulls_of,
    plain_type,
    uuid_texts,
)
from fastfill_ray.types import Objects

# What values of each kind of label are stored as.
_STORED = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "null": pa.null(),
}
_TIMES = (pa.types.is_date, pa.types.is_time, pa.types.is_timestamp, pa.types.is_duration)
_EXACT = 1 << 53  # below it every whole float64 is an integer without doubt, and up to it float64 holds every integer


def value_kind(kind: pa.DataType) -> str | None:
    """What single values of an Arrow type are: "integer", "number", "boolean", "text" (also as UTF-8 bytes), "null".

    None for every other type. Dictionary-encoded values are what they stand for. Decimals of scale 0 are
    integers, others are numbers.
    """
    kind = plain_type(kind)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
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


def stored_label_type(kind: str | None) -> pa.DataType:
    """The Arrow type that labels of a kind (``label_kind``), or of none, are stored as."""
    if kind is not None and kind.startswith("list of "):
        return pa.list_(_STORED[kind.removeprefix("list of ")])
    return _STORED[kind or "null"]


def stored_labels(column: pa.ChunkedArray, kind: str | None, *, where: str, start: int) -> pa.ChunkedArray:
    """Labels (N,) as they are stored, null where there is none.

    Args:
        kind: of all files, see ``label_kind``. where, start: see ``labels_of``.

    Raises: what ``labels_of`` and ``check_stored`` raise.
    """
    stored = stored_label_type(kind)
    if (found := _as_stored(column, stored)) is not None:
        return found
    labels = labels_of(column, where=where, start=start)
    check_stored(labels, kind, where=where, start=start)
    return pa.chunked_array([pa.array(labels.tolist(), stored)])


def stored_groups(column: pa.ChunkedArray, *, where: str, start: int) -> pa.ChunkedArray:
    """Groups (N,) as they are stored, null where there is none; see ``groups_of``, also for what it raises."""
    if (found := _as_stored(column, pa.string())) is not None:
        return found
    return pa.chunked_array([pa.array(groups_of(column, where=where, start=start).tolist(), pa.string())])


def _as_stored(column: pa.ChunkedArray, stored: pa.DataType) -> pa.ChunkedArray | None:
    """Text or integers as Arrow can tell them; None where they have to be read one by one, or one is at fault."""
    kind = plain_type(column.type)
    column = pa.chunked_array(chunks_of(column), kind)
    if pa.types.is_signed_integer(kind) and (stored == pa.int64() or stored == pa.string()):
        return column.cast(stored)
    if not (is_text(kind) and stored == pa.string()):
        return None
    try:  # Arrow takes text at its word; from bytes to text it looks at every one
        return column.cast(pa.large_binary()).cast(stored)
    except pa.ArrowInvalid:
        return None


def check_stored(labels: Objects, kind: str | None, *, where: str, start: int) -> None:
    """Raises InputError for a label that ``stored_label_type`` of the whole column's kind cannot hold, by its row.

    Of one file it cannot be told: in another one may stand a float, and then integers become float64, too.

    Args:
        labels: (N,), see ``labels_of``; also for where and start.
        kind: of all files, see ``label_kind``.
    """
    if stored_label_type(kind) not in (pa.float64(), pa.list_(pa.float64())):
        return
    for row, label in enumerate(labels):
        for value in label if isinstance(label, tuple) else (label,):
            if isinstance(value, int) and abs(value) > _EXACT:
                raise InputError(
                    f"{where}: row {start + row} is {value}. Not all labels are integers, so they are stored as "
                    "float64, which holds integers up to 2^53 exactly: cast the column to string in all files."
                )


def check_group(field: pa.Field) -> None:
    """Raises InputError for values that cannot name a group: lists, structs, maps, bytes of one length, intervals."""
    kind = plain_type(field.type)
    if value_kind(kind) is not None or is_uuid(kind) or any(is_time(kind) for is_time in _TIMES):
        return
    cast = f"lower(hex({field.name}))" if pa.types.is_fixed_size_binary(kind) else f"CAST({field.name} AS VARCHAR)"
    raise InputError(
        f"column {field.name!r} is {field.type}: a group is a single value, such as a string. Cast it, for example "
        f"{cast}"
    )


def groups_of(column: pa.ChunkedArray, *, where: str = "the group column", start: int = 0) -> Objects:
    """Groups (N,) as text, None where there is none; see ``labels_of``. Of times the same moment is the same text.

    UUIDs (16 bytes) are their text. Raises InputError for dates and times of years that Arrow cannot write, too.
    """
    kind = plain_type(column.type)
    if is_uuid(kind):
        return _uuids(pa.chunked_array(chunks_of(column), kind))
    if value_kind(kind) is None:  # such as dates: Arrow writes what Python cannot hold, too
        column = _written(pa.chunked_array(chunks_of(column), kind), where, start)
    values = labels_of(column, where=where, start=start).tolist()
    return np.fromiter((None if value is None else str(value) for value in values), object, len(values))


def _uuids(column: pa.ChunkedArray) -> Objects:
    whole = column.combine_chunks()
    texts = np.full(len(whole), None)
    texts[~nulls_of(whole)] = uuid_texts(whole.drop_null())
    return texts


def _written(column: pa.ChunkedArray, where: str, start: int) -> pa.ChunkedArray:
    """Values as Arrow writes them; times in UTC where they have a zone, and without zeros at their end."""
    kind = column.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    if zoned:  # the same moment in UTC; Arrow finds what it cannot write only where there is no zone
        column = column.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))
    text = column.cast(pa.string())
    bad = np.flatnonzero(pc.starts_with(text, "<").fill_null(False).to_numpy())
    if len(bad):
        raise InputError(
            f"{where}: row {start + bad[0]} is {kind} {text[int(bad[0])].as_py()}, which cannot be written as a date "
            "or time: set it to null, or cast the column to string."
        )
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        text = pc.replace_substring_regex(text, r"\.0+$", "")
        text = pc.replace_substring_regex(text, r"(\.\d*[1-9])0+$", r"\1")
    return pc.binary_join_element_wise(text, "Z", "") if zoned else text


def _members_of(kind: pa.DataType) -> pa.DataType | None:
    """The type of a list's members, None for other types."""
    return kind.value_type if is_list(kind) else None


def labels_of(column: pa.ChunkedArray, *, where: str = "the label column", start: int = 0) -> Objects:
    """Labels (N,) as Python objects, None where there is none.

    Null and NaN are no label; whole floats are the int that they equal; bytes are text. A list is a tuple of its
    distinct members, None if it has none.

    Args:
        where, start: file and column, and the row in the file of the first one given; for messages.

    Raises:
        InputError: not a type of labels; text that is not UTF-8 (names its row); integers that do
            not fit into int64.
    """
    column = pa.chunked_array(chunks_of(column), plain_type(column.type))
    try:
        kind = label_kind(column.type)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if kind == "text":
        return _texts(column, where, start)
    if kind == "integer" and not column.null_count and pa.types.is_signed_integer(column.type):
        return column.to_numpy().astype(object)
    try:
        values = column.to_pylist()
        read = _label_set if kind.startswith("list of ") else _plain
        return np.fromiter(map(read, values), object, len(values))
    except UnicodeDecodeError:
        row = _first_unreadable(column, UnicodeDecodeError)
        raise InputError(
            f"{where}: row {start + row} holds a text in its list that is not UTF-8. Write it again as UTF-8."
        ) from None
    except OverflowError as error:
        row = _first_unreadable(column, OverflowError)
        raise InputError(
            f"{where}: row {start + row} is {error}, which does not fit into int64: cast the column to string."
        ) from None


def _texts(column: pa.ChunkedArray, where: str, start: int) -> Objects:
    try:
        return column.cast(pa.string()).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, UnicodeDecodeError):
        raw = column.cast(pa.binary()).to_pylist()
        row = next(row for row, value in enumerate(raw) if value is not None and not is_utf8(value))
        raise InputError(
            f"{where}: row {start + row} is {raw[row][:50]!r}, which is not UTF-8. Write the text again as UTF-8."
        ) from None


def _first_unreadable(column: pa.ChunkedArray, error: type[Exception]) -> int:
    """The first row that raises `error`; one of them does."""
    for row, scalar in enumerate(column):
        try:
            value = scalar.as_py()
            _label_set(value) if isinstance(value, list) else _plain(value)
        except error:
            return row
    raise AssertionError(f"no row raises {error}")


def _label_set(values: list[object] | None) -> tuple[object, ...] | None:
    members = dict.fromkeys(map(_plain, values or ()))
    members.pop(None, None)
    return tuple(members) or None


def _plain(value: object) -> object:
    """A label's value as what it is compared as. Raises OverflowError for an integer that int64 cannot hold."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise OverflowError(value)
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() and abs(value) < _EXACT else value
    return value
