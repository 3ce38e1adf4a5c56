"""What a label can be in a file, and as what it is compared: by value, whatever Arrow type holds it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.labels import (
    check_group,
    comparable_labels,
    groups_of,
    label_kind,
    labels_of,
    stored_groups,
    stored_label_type,
    stored_labels,
)

TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
KINDS: dict[str, Sequence[pa.DataType]] = {
    "text": (*TEXTS, pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    "integer": (
        *(pa.int8(), pa.int64(), pa.uint16(), pa.uint64(), pa.dictionary(pa.int32(), pa.int64())),
        *(pa.decimal32(9, 0), pa.decimal128(38, 0), pa.decimal256(76, 0)),
    ),
    "number": (pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2)),
    "boolean": (pa.bool_(),),
}
TYPES = [(kind, found) for kind, several in KINDS.items() for found in several]


def lists_of(member: pa.DataType) -> list[pa.DataType]:
    return [pa.list_(member), pa.large_list(member), pa.list_(member, 2)]


def column(values: list[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """The values in two chunks; the first is sliced out of a longer array."""
    whole = pa.array([*values[:1], *values], kind)
    return pa.chunked_array([whole[1:2], whole[2:]], kind)


@pytest.mark.parametrize(("kind", "found"), TYPES, ids=str)
def test_every_encoding_of_a_kind_is_called_by_it(kind: str, found: pa.DataType) -> None:
    assert label_kind(found) == kind
    for listed in lists_of(found):
        assert label_kind(listed) == f"list of {kind}"
        assert comparable_labels(label_kind(listed), kind)


VALUES: dict[str, Any] = {
    "text": st.text(max_size=3),
    "integer": st.integers(0, 100),
    "number": st.integers(-400, 400).map(lambda value: value / 4),
    "boolean": st.booleans(),
}


def given_as(kind: str, found: pa.DataType, value: Any) -> Any:
    """A plain value as Arrow takes it into a column of this type."""
    if isinstance(value, list):
        return [given_as(kind, found, member) for member in value]
    if value is None or kind not in ("text", "number"):
        return value
    if kind == "text":
        return value.encode() if "binary" in str(found) else value
    return Decimal(str(value)) if pa.types.is_decimal(found) else np.float16(value) if found == pa.float16() else value


@pytest.mark.parametrize(("kind", "found"), TYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_labels_are_read_by_value_and_stored_labels_come_back(kind: str, found: pa.DataType, data: Any) -> None:
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=6))
    labels = labels_of(column([given_as(kind, found, value) for value in values], found))
    assert labels.dtype == object
    assert labels.tolist() == values
    stored = pa.chunked_array([pa.array(labels.tolist(), stored_label_type(label_kind(found)))])
    assert labels_of(stored).tolist() == values
    assert {type(label) for label in labels} <= {str, int, float, bool, type(None)}


@pytest.mark.parametrize(("kind", "found"), TYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_list_is_its_distinct_members_and_an_empty_one_no_label(kind: str, found: pa.DataType, data: Any) -> None:
    members = st.lists(st.none() | VALUES[kind], max_size=4)
    values = data.draw(st.lists(st.none() | members, min_size=1, max_size=5))
    expected = [tuple(dict.fromkeys(m for m in value or () if m is not None)) or None for value in values]
    for listed in (pa.list_(found), pa.large_list(found)):
        labels = labels_of(column([given_as(kind, found, value) for value in values], listed))
        assert labels.shape == (len(values),)
        assert labels.tolist() == expected
        stored = pa.chunked_array([pa.array(labels.tolist(), stored_label_type(label_kind(listed)))])
        assert labels_of(stored).tolist() == expected


def test_numbers_are_what_they_equal_and_nan_is_no_label() -> None:
    labels = labels_of(column([3.0, math.nan, None, 2.5, math.inf, 1e300, -0.0], pa.float64()))
    assert labels.tolist() == [3, None, None, 2.5, math.inf, 1e300, 0]
    assert [type(label) for label in labels[:4]] == [int, type(None), type(None), float], "a class 3.0 is called 3"
    assert labels_of(column([[math.nan, 3.0], [math.nan]], pa.list_(pa.float64()))).tolist() == [(3,), None]
    wide = pa.decimal128(38, 0)
    for big in (
        column([2**64 - 1, None], pa.uint64()),
        column([[2**63]], pa.list_(pa.uint64())),
        column([Decimal(2**63)], wide),
    ):
        with pytest.raises(InputError, match="does not fit into int64: cast the column to string"):
            labels_of(big)
    assert labels_of(column([Decimal(2**63 - 1), None], wide)).tolist() == [2**63 - 1, None]
    assert labels_of(pa.chunked_array([pa.nulls(2)])).tolist() == [None, None]
    assert labels_of(pa.chunked_array([], pa.string())).tolist() == []


def test_lists_of_one_length_are_no_matrix() -> None:
    labels = labels_of(column([["a", "b"], ["b", "c"]], pa.list_(pa.string(), 2)))
    assert labels.shape == (2,)
    assert labels.tolist() == [("a", "b"), ("b", "c")]


@pytest.mark.parametrize(
    "found",
    [
        pa.timestamp("us"),
        pa.date32(),
        pa.struct({"a": pa.int64()}),
        pa.map_(pa.string(), pa.int64()),
        pa.list_(pa.list_(pa.string())),
        pa.list_(pa.struct({"a": pa.int64()})),
        pa.duration("s"),
        pa.binary(16),
    ],
    ids=str,
)
def test_what_cannot_be_a_label_is_refused_with_the_cast_to_make(found: pa.DataType) -> None:
    with pytest.raises(InputError, match=r"cannot be a label: .* Cast it to one of them, such as a string"):
        label_kind(found)
    with pytest.raises(InputError, match=r"a\.parquet: column 'x': .* cannot be a label"):
        labels_of(pa.chunked_array([], found), where="a.parquet: column 'x'")


def test_kinds_compare_by_what_their_values_can_equal() -> None:
    assert comparable_labels("integer", "number")
    assert comparable_labels("list of number", "integer")
    assert comparable_labels("null", "list of text")
    assert not comparable_labels("integer", "text")
    assert not comparable_labels("list of text", "list of number")
    assert not comparable_labels("boolean", "integer")


def raw(kind: pa.DataType) -> pa.Array:
    """The bytes of two texts, the second of them Latin-1, under a type that says nothing about it."""
    texts = pa.array([b"good", b"caf\xe9"], pa.binary())
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(pa.array([0, 1], kind.index_type), raw(kind.value_type))
    if pa.types.is_binary(kind):
        return texts
    if pa.types.is_large_string(kind):
        return pa.Array.from_buffers(kind, 2, pa.array([b"good", b"caf\xe9"], pa.large_binary()).buffers())
    return pa.Array.from_buffers(kind, 2, texts.buffers())


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_a_text_that_is_not_utf8_is_refused_by_row(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match=r"f: row 1 is b'caf\\xe9', which is not UTF-8"):
        labels_of(pa.chunked_array([raw(kind)]), where="f")
    listed = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), raw(kind))
    with pytest.raises(InputError, match=r"f: .* not UTF-8"):
        labels_of(pa.chunked_array([listed]), where="f")


def test_a_row_of_a_list_that_is_not_utf8_and_an_integer_that_is_too_large_are_named() -> None:
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"caf\xe9"]).buffers())
    lists = pa.chunked_array([pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)])
    with pytest.raises(InputError, match=r"a\.parquet: row 42 holds a text in its list that is not UTF-8"):
        labels_of(lists, where="a.parquet", start=40)
    numbers = pa.chunked_array([pa.array([1, 2**63], pa.uint64())])
    with pytest.raises(InputError, match=r"a\.parquet: row 41 is 9223372036854775808, which does not fit into int64"):
        labels_of(numbers, where="a.parquet", start=40)


def test_one_moment_is_one_group_whatever_its_zone_and_unit() -> None:
    seconds = [1_700_000_000, 1_700_000_001]
    kinds = [("s", "UTC", 1), ("ms", "Europe/Zurich", 10**3), ("us", "+05:30", 10**6), ("ns", "America/Lima", 10**9)]
    for unit, zone, factor in kinds:
        column = pa.chunked_array([pa.array([s * factor for s in seconds] + [None], pa.timestamp(unit, zone))])
        assert groups_of(column).tolist() == ["2023-11-14 22:13:20Z", "2023-11-14 22:13:21Z", None]
    halves = [pa.array([1_500], pa.time32("ms")), pa.array([1_500_000_000], pa.time64("ns"))]
    assert [groups_of(pa.chunked_array([half])).tolist() for half in halves] == [["00:00:01.5"]] * 2
    local = pa.chunked_array([pa.array([seconds[0] * 10**6 + 20], pa.timestamp("us"))])
    assert groups_of(local).tolist() == ["2023-11-14 22:13:20.00002"], "without a zone it is another thing"


@pytest.mark.parametrize("kind", [pa.binary(16), pa.uuid(), pa.dictionary(pa.int8(), pa.binary(16))], ids=str)
def test_uuids_are_groups_by_their_text(kind: pa.DataType) -> None:
    values = [uuid.UUID(int=1), None, uuid.UUID(int=2**127 + 5), uuid.UUID(int=2**127 + 5)]
    raw = pa.array([value and value.bytes for value in values], pa.binary(16))
    if pa.types.is_dictionary(kind):
        raw = raw.dictionary_encode().cast(kind)
    elif kind == pa.uuid():
        raw = pa.ExtensionArray.from_storage(kind, raw)
    check_group(pa.field("g", kind))
    column = pa.chunked_array([raw[:1], raw[1:]])
    assert groups_of(column).tolist() == [None if value is None else str(value) for value in values]
    assert groups_of(pa.chunked_array([], kind)).tolist() == []


@pytest.mark.parametrize(
    ("kind", "cast"),
    [
        (pa.binary(4), r"lower\(hex\(g\)\)"),
        (pa.month_day_nano_interval(), r"CAST\(g AS VARCHAR\)"),
        (pa.run_end_encoded(pa.int32(), pa.string()), r"CAST\(g AS VARCHAR\)"),
        (pa.list_(pa.string()), r"CAST\(g AS VARCHAR\)"),
        (pa.struct({"a": pa.string()}), r"CAST\(g AS VARCHAR\)"),
    ],
    ids=str,
)
def test_what_cannot_be_a_group_is_refused_with_the_cast_to_make(kind: pa.DataType, cast: str) -> None:
    with pytest.raises(InputError, match=rf"column 'g' is .*: a group is a single value.* {cast}"):
        check_group(pa.field("g", kind))


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("us"), pa.timestamp("s")),
        *(pa.timestamp("us", "UTC"), pa.timestamp("ns", "Asia/Tokyo"), pa.null(), pa.bool_(), pa.decimal128(38, 0)),
        *(pa.dictionary(pa.int8(), pa.date32()), pa.float16(), pa.binary_view()),
    ],
    ids=str,
)
def test_what_passes_as_a_group_can_be_read(kind: pa.DataType) -> None:
    check_group(pa.field("g", kind))
    assert groups_of(pa.chunked_array([pa.nulls(2, kind)])).tolist() == [None, None]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.date32(), 2**31 - 1),
        (pa.timestamp("us"), 2**63 - 1),
        (pa.timestamp("us"), -(2**63)),
        (pa.timestamp("s", "UTC"), 2**62),
        (pa.time32("s"), 100_000),
    ],
    ids=str,
)
def test_a_date_or_time_that_cannot_be_written_is_refused_by_row(kind: pa.DataType, value: int) -> None:
    number = pa.int32() if kind.bit_width == 32 else pa.int64()
    column = pa.chunked_array([pa.array([0, None], number).cast(kind), pa.array([value], number).cast(kind)])
    with pytest.raises(InputError, match=r"f: row 42 is .* cannot be written as a date or time: set it to null"):
        groups_of(column, where="f", start=40)


STORED: dict[str, list[Any]] = {
    "text": ["a", "", None, "\u00e9"],
    "integer": [1, 0, None, 7],
    "number": [1, 2, None, 3],
    "boolean": [True, None, False, True],
}


@pytest.mark.parametrize(("kind", "found"), TYPES, ids=str)
def test_what_is_stored_is_what_is_read(kind: str, found: pa.DataType) -> None:
    values = [value.encode() if value is not None and pa.types.is_binary(found) else value for value in STORED[kind]]
    given = column([Decimal(v) if v is not None and pa.types.is_decimal(found) else v for v in values], found)
    stored = stored_labels(given, kind, where="f", start=0)
    assert stored.type == stored_label_type(kind)
    assert stored.to_pylist() == labels_of(given).tolist()
    groups = stored_groups(given, where="f", start=0)
    assert groups.type == pa.string()
    assert groups.to_pylist() == groups_of(given).tolist()


@pytest.mark.parametrize("found", [pa.binary(), pa.string(), pa.large_string()], ids=str)
def test_what_is_stored_is_utf8(found: pa.DataType) -> None:
    stored = pa.large_binary() if found == pa.large_string() else pa.binary()
    given = pa.chunked_array([pa.array([b"ok", b"caf\xe9"], stored).view(found)])
    for read in (partial(stored_labels, kind="text"), stored_groups):
        with pytest.raises(InputError, match=r"f: row 4 is b'caf.*not UTF-8"):
            read(given, where="f", start=3)
