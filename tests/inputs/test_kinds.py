"""Ids, vectors, weights and payloads in every Arrow encoding: one value, however it is stored."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.kinds import (
    VectorKind,
    check_payload,
    common_dim,
    id_kind,
    read_ids,
    vector_kind,
    vectors_of,
    weight_kind,
    weights_of,
)
from fastfill_ray.inputs.payload import payload_values

INT64 = st.integers(-(2**63), 2**63 - 1)
Encode = Callable[[list[Any]], pa.Array]


def field(kind: pa.DataType, **metadata: str) -> pa.Field:
    return pa.field("x", kind, metadata=metadata or None)


def column(array: pa.Array, **metadata: str) -> pa.Table:
    return pa.Table.from_arrays([array], schema=pa.schema([field(array.type, **metadata)]))


def cut(data: st.DataObject, array: pa.Array) -> pa.ChunkedArray:
    """The same rows in chunks that begin and end anywhere, the array itself a part of a longer one."""
    padded = pa.concat_arrays([array[:1], array, array[-1:]])
    array = padded.slice(1 if len(array) else 0, len(array))
    ends = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=3)))
    places = zip([0, *ends], [*ends, len(array)], strict=True)
    return pa.chunked_array([array[start:end] for start, end in places], array.type)


# Ids


def decimals(bits: int, digits: int) -> Encode:
    make = {32: pa.decimal32, 64: pa.decimal64, 128: pa.decimal128, 256: pa.decimal256}[bits]
    return lambda values: pa.array([Decimal(value) for value in values], make(digits, 0))


def typed(kind: pa.DataType) -> Encode:
    return lambda values: pa.array(values, kind)


def encoded(encode: Encode) -> Encode:
    return lambda values: encode(values).dictionary_encode()


def dictionary_of_views(kind: pa.DataType) -> Encode:
    def encode(values: list[Any]) -> pa.Array:
        known = list(dict.fromkeys(values))
        return pa.DictionaryArray.from_arrays(
            pa.array([known.index(value) for value in values], pa.int32()), pa.array(known, kind)
        )

    return encode


INTEGERS: dict[str, tuple[Encode, int, int]] = {
    **{f"int{b}": (typed(pa.type_for_alias(f"int{b}")), -(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (8, 16, 32, 64)},
    **{f"uint{b}": (typed(pa.type_for_alias(f"uint{b}")), 0, min(2**b, 2**63) - 1) for b in (8, 16, 32, 64)},
    "decimal32": (decimals(32, 9), -(10**9) + 1, 10**9 - 1),
    "decimal64": (decimals(64, 18), -(10**18) + 1, 10**18 - 1),
    "decimal128": (decimals(128, 38), -(2**63), 2**63 - 1),
    "decimal256": (decimals(256, 60), -(2**63), 2**63 - 1),
    "dictionary": (encoded(typed(pa.int32())), -(2**31), 2**31 - 1),
}


@pytest.mark.parametrize("encoding", INTEGERS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_integers_of_any_encoding_are_read_as_int64(encoding: str, data: st.DataObject) -> None:
    encode, low, high = INTEGERS[encoding]
    values = data.draw(st.lists(st.integers(low, high) | st.sampled_from([low, high]), max_size=6))
    table = pa.table({"x": cut(data, encode(values))})
    assert id_kind(table.schema.field("x")) == "int64"
    found = read_ids(table, "x", "int64")
    assert found.dtype == np.int64
    assert found.tolist() == values


TEXTS: dict[str, Encode] = {
    **{str(kind): typed(kind) for kind in (pa.string(), pa.large_string(), pa.string_view())},
    **{
        str(kind): lambda values, kind=kind: pa.array([value.encode() for value in values], kind)
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    },
    "dictionary": encoded(typed(pa.string())),
    "dictionary of bytes": encoded(lambda values: pa.array([value.encode() for value in values], pa.binary())),
    "dictionary of views": dictionary_of_views(pa.string_view()),
}


@pytest.mark.parametrize("encoding", TEXTS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_text_of_any_encoding_is_read_as_it_is(encoding: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=6))
    table = pa.table({"x": cut(data, TEXTS[encoding](values))})
    assert id_kind(table.schema.field("x")) == "string"
    found = read_ids(table, "x", "string")
    assert found.dtype == object
    assert found.tolist() == values


@given(st.data(), st.lists(st.uuids(), max_size=6))
@settings(max_examples=30, deadline=None)
def test_uuids_are_read_as_their_text(data: st.DataObject, values: list[uuid.UUID]) -> None:
    plain = pa.array([value.bytes for value in values], pa.binary(16))
    for array in (plain, plain.dictionary_encode(), pa.ExtensionArray.from_storage(pa.uuid(), plain)):
        table = pa.table({"x": cut(data, array)})
        assert id_kind(table.schema.field("x")) == "string"
        assert read_ids(table, "x", "string").tolist() == [str(value) for value in values]


@pytest.mark.parametrize(
    ("kind", "cast"),
    [
        (pa.float64(), "CAST(x AS BIGINT)"),
        (pa.decimal128(9, 2), "CAST(x AS BIGINT)"),
        (pa.bool_(), "CAST(x AS VARCHAR)"),
        (pa.timestamp("us"), "CAST(x AS VARCHAR)"),
        (pa.date32(), "CAST(x AS VARCHAR)"),
        (pa.struct([("a", pa.int64())]), "CAST(x AS VARCHAR)"),
        (pa.list_(pa.int64()), "CAST(x AS VARCHAR)"),
        (pa.binary(20), "lower(hex(x))"),
    ],
    ids=str,
)
def test_what_cannot_be_an_id_is_refused_with_the_cast_to_make(kind: pa.DataType, cast: str) -> None:
    with pytest.raises(InputError, match="cast it to int64 or string, for example") as caught:
        id_kind(field(kind))
    assert str(caught.value).endswith(cast)


def test_null_types_say_nothing_of_any_kind() -> None:
    for kind in (pa.null(), pa.dictionary(pa.int32(), pa.null())):
        assert (id_kind(field(kind)), vector_kind(field(kind)), weight_kind(field(kind))) == (None, None, None)
    assert vector_kind(field(pa.list_(pa.null()))) is None
    empty = pa.table({"x": pa.nulls(0)})
    assert read_ids(empty, "x", "int64").dtype == np.int64
    assert read_ids(empty, "x", "string").dtype == object


def text_of(raw: Sequence[bytes], kind: pa.DataType | None = None) -> pa.Array:
    """A string column with these very bytes, whatever they are."""
    kind = kind or pa.string()
    stored = pa.binary() if pa.types.is_string(kind) else pa.large_binary()
    return pa.Array.from_buffers(kind, len(raw), pa.array(raw, stored).buffers())


BAD_TEXT = [b"a", b"b", b"caf\xe9", b"d"]


@pytest.mark.parametrize(
    ("array", "id_type", "what"),
    [
        (text_of(BAD_TEXT), "string", r"b'caf\\xe9', which is not UTF-8"),
        (text_of(BAD_TEXT, pa.large_string()), "string", "not UTF-8"),
        (pa.array(BAD_TEXT), "string", "not UTF-8"),
        (pa.array(BAD_TEXT, pa.binary_view()), "string", "not UTF-8"),
        (text_of(BAD_TEXT).cast(pa.string_view()), "string", "not UTF-8"),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), text_of(BAD_TEXT)), "string", "not UTF-8"),
        (pa.array([1, 2, 2**63, 4], pa.uint64()), "int64", f"holds {2**63}, which does not fit into int64"),
        (pa.array([Decimal(value) for value in (1, 2, -(2**63) - 1)]), "int64", "does not fit into int64"),
        (pa.array([1, 2, None]), "int64", "is null. Every item needs an id"),
        (pa.DictionaryArray.from_arrays(pa.array([0, 0, 1]), pa.array(["a", None])), "string", "is null"),
        (pa.nulls(3)[:0], "int64", ""),
    ],
)
def test_an_id_that_cannot_be_read_is_named_by_file_and_row(array: pa.Array, id_type: Any, what: str) -> None:
    chunks = pa.chunked_array([array[:1], array[1:]], array.type)
    table = pa.table({"x": chunks})
    if not what:
        assert len(read_ids(table, "x", id_type)) == 0
        return
    with pytest.raises(InputError, match=rf"^g/a\.parquet row 102: id column 'x' .*{what}"):
        read_ids(table, "x", id_type, path="g/a.parquet", start=100)


def test_ids_of_the_other_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"a\.parquet: id column 'x' is int64, but the other ids are string"):
        read_ids(pa.table({"x": [1]}), "x", "string", path="a.parquet")


# Vectors

DTYPES = [
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
LISTS: dict[str, Callable[[pa.DataType, int], pa.DataType]] = {
    "list": lambda kind, dim: pa.list_(kind),
    "large_list": lambda kind, dim: pa.large_list(kind),
    "fixed_size_list": lambda kind, dim: pa.list_(kind, dim),
    "list_view": lambda kind, dim: pa.list_view(kind),
    "large_list_view": lambda kind, dim: pa.large_list_view(kind),
    "not null": lambda kind, dim: pa.list_(pa.field("item", kind, nullable=False)),
}
BYTES: dict[str, Callable[[int], pa.DataType]] = {
    "fixed_size_binary": pa.binary,
    "binary": lambda width: pa.binary(),
    "large_binary": lambda width: pa.large_binary(),
    "binary_view": lambda width: pa.binary_view(),
}


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 that lose nothing: (N, d) uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def rows_with_nulls(data: st.DataObject, dim: int) -> tuple[np.ndarray, list[bool]]:
    """Small integers, which every element type holds, and which rows are null."""
    rows = data.draw(st.integers(0, 6))
    seed = data.draw(st.integers(0, 99))
    null = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    return np.random.default_rng(seed).integers(0, 100, (rows, dim)), null


def assert_read(table: pa.Table, values: np.ndarray, null: list[bool], stated: str | None = None) -> VectorKind:
    kind = vector_kind(table.schema.field("x"), stated)
    assert kind is not None
    assert kind.dim in (None, values.shape[1])
    vectors, unusable = vectors_of(table.column("x"), values.shape[1], metric="ip", kind=kind)
    assert vectors.dtype == np.float32
    assert unusable == {row: "null_vector" for row, is_null in enumerate(null) if is_null}
    np.testing.assert_array_equal(vectors, np.where(np.array(null, bool)[:, None], 0, values))
    assert common_dim(table.column("x"), kind) == (None if all(null) else values.shape[1])
    return kind


@pytest.mark.parametrize("encoding", LISTS)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), dim=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_lists_of_any_numbers_are_read_as_float32(encoding: str, data: st.DataObject, dtype: str, dim: int) -> None:
    values, null = rows_with_nulls(data, dim)
    plain = [None if is_null else list(row.astype(dtype)) for row, is_null in zip(values, null, strict=True)]
    array = pa.array(plain, LISTS[encoding](pa.from_numpy_dtype(dtype), dim))
    kind = assert_read(pa.table({"x": cut(data, array)}), values, null)
    assert kind == VectorKind(dtype, dim if encoding == "fixed_size_list" else None, "list")


@pytest.mark.parametrize("encoding", BYTES)
@given(data=st.data(), dtype=st.sampled_from([*DTYPES, "bfloat16"]), dim=st.integers(1, 4), in_file=st.booleans())
@settings(max_examples=40, deadline=None)
def test_bytes_are_read_as_the_type_that_config_or_file_state(
    encoding: str, data: st.DataObject, dtype: str, dim: int, in_file: bool
) -> None:
    values, null = rows_with_nulls(data, dim)
    stored = bfloat16(values) if dtype == "bfloat16" else values.astype(np.dtype(dtype).newbyteorder("<"))
    plain = [None if is_null else row.tobytes() for row, is_null in zip(stored, null, strict=True)]
    array = cut(data, pa.array(plain, BYTES[encoding](dim * stored.itemsize)))
    said = {"dtype": dtype} if in_file else {}
    table = pa.Table.from_arrays([array], schema=pa.schema([field(array.type, **said)]))
    kind = assert_read(table, values, null, None if in_file else dtype)
    assert kind == VectorKind(dtype, dim if encoding == "fixed_size_binary" else None, "bytes")
    assert vector_kind(table.schema.field("x"), dtype) == kind
    if not in_file:
        with pytest.raises(InputError, match=r"nothing states their element type\. Set gallery\.vector_dtype"):
            vector_kind(table.schema.field("x"))


def tensors(values: np.ndarray, shape: tuple[int, ...], name: str) -> pa.Table:
    """What is read of Ray's tensors where Ray is not imported: storage, and the rest in the field's metadata."""
    inner = pa.from_numpy_dtype(values.dtype)
    kind = pa.list_(inner) if name == "ray.data.arrow_tensor" else pa.large_list(inner)
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": json.dumps(shape)}
    return column(pa.array([row.tolist() for row in values], kind), **metadata)


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"])
def test_unregistered_tensors_are_vectors_if_they_have_one_axis(name: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for shape in ((4,), (1, 4), (4, 1)):
        kind = assert_read(tensors(values, shape, name), values, [False] * 3)
        assert kind == VectorKind("float32", 4, "tensor")
    for wrong in ((2, 2), (1, 2, 2), ()):
        with pytest.raises(InputError, match=r"holds tensors of shape .*vectors have one axis"):
            vector_kind(tensors(values, wrong, name).schema.field("x"))


def test_tensors_of_arrow_are_vectors_if_they_have_one_axis() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for shape in ((3, 4), (3, 1, 4)):
        array = pa.FixedShapeTensorArray.from_numpy_ndarray(values.reshape(shape))
        kind = assert_read(pa.table({"x": array}), values, [False] * 3)
        assert kind == VectorKind("float32", 4, "tensor")
    with pytest.raises(InputError, match="vectors have one axis"):
        vector_kind(field(pa.FixedShapeTensorArray.from_numpy_ndarray(values.reshape(3, 2, 2)).type))


def test_a_pickled_shape_is_refused_and_never_unpickled() -> None:
    pickled = field(
        pa.list_(pa.float32()),
        **{"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": "\x80\x05K\x04\x85."},
    )
    for check in (vector_kind, check_payload):
        with pytest.raises(InputError, match=r"its shape cannot be read: it is not JSON.*Ray 2\.55"):
            check(pickled)


def test_lists_of_two_bytes_are_bfloat16_where_lance_wrote_them() -> None:
    values = np.array([[1.5, -2], [4, 0.25]])
    raw = [[element.tobytes() for element in row] for row in bfloat16(values)]
    named = pa.field("item", pa.binary(2), metadata={"ARROW:extension:name": "lance.bfloat16"})
    for item, stated in ((named, None), (named, "bfloat16"), (pa.field("item", pa.binary(2)), "bfloat16")):
        table = pa.table({"x": pa.array(raw, pa.list_(item, 2))})
        assert assert_read(table, values, [False] * 2, stated) == VectorKind("bfloat16", 2, "bytes")
    with pytest.raises(InputError, match="vector_dtype is float16, but the file says that its elements are bfloat16"):
        vector_kind(field(pa.list_(named, 2)), "float16")
    holed = pa.array([[raw[0][0], None], raw[1]], pa.list_(named, 2))
    _, unusable = vectors_of(holed, 2, kind=vector_kind(field(holed.type)))
    assert unusable == {0: "non_finite"}


@pytest.mark.parametrize(
    ("made", "stated", "message"),
    [
        (field(pa.binary(5)), "float32", "5 bytes are not a whole number of float32 elements"),
        (field(pa.binary(8), dtype="float16"), "float32", "vector_dtype is float32, but the file says .* float16"),
        (field(pa.binary(8), dtype="f2"), None, "'dtype' is 'f2'; one of float16, .* is expected"),
        (field(pa.list_(pa.binary(4))), "float16", "elements of 4 bytes are no float16"),
        (field(pa.float32()), "float32", "expected vectors"),
        (field(pa.string()), None, r"expected vectors.*CAST\(x AS FLOAT\[\]\)"),
        (field(pa.list_(pa.string())), None, "expected vectors"),
        (field(pa.list_(pa.bool_())), None, "expected vectors"),
        (field(pa.list_(pa.list_(pa.float32()))), None, "expected vectors"),
        (field(pa.list_(pa.decimal128(9, 2))), None, "expected vectors"),
    ],
)
def test_what_cannot_be_a_vector_is_refused(made: pa.Field, stated: str | None, message: str) -> None:
    with pytest.raises(InputError, match=f"column 'x'.*{message}"):
        vector_kind(made, stated)


def test_a_stated_type_means_nothing_to_elements_that_are_numbers() -> None:
    assert vector_kind(field(pa.list_(pa.float64())), "int8") == VectorKind("float64", None, "list")


def test_rows_that_cannot_be_used_are_zeros_with_a_reason() -> None:
    lists = pa.array([[1.0, 2.0], [1.0], None, [1.0, None], [0.0, 0.0], [1e300, 0.0], []], pa.list_(pa.float64()))
    vectors, unusable = vectors_of(lists, 2, metric="cosine", kind=vector_kind(field(lists.type)))
    assert unusable == {
        1: "wrong_dim: found 1, expected 2",
        2: "null_vector",
        3: "non_finite",
        4: "zero_norm",
        5: "non_finite",
        6: "wrong_dim: found 0, expected 2",
    }
    assert vectors.tolist() == [[1, 2], *[[0, 0]] * 6]
    raw = pa.array([np.ones(2, "<f4").tobytes(), b"12345", b"", None, np.ones(3, "<f4").tobytes()])
    _, unusable = vectors_of(raw, 2, kind=vector_kind(field(raw.type), "float32"))
    assert unusable == {
        1: "wrong_dim: found 5 bytes, expected 8",
        2: "wrong_dim: found 0, expected 2",
        3: "null_vector",
        4: "wrong_dim: found 3, expected 2",
    }
    integers = pa.array([[1, None], [3, 4]], pa.list_(pa.int8()))
    vectors, unusable = vectors_of(integers, 2, kind=vector_kind(field(integers.type)))
    assert (vectors.tolist(), unusable) == ([[0, 0], [3, 4]], {0: "non_finite"})


def test_a_file_of_nulls_has_no_vector_in_any_row() -> None:
    for array in (pa.nulls(3), pa.nulls(3, pa.list_(pa.null())), pa.nulls(3, pa.list_(pa.float32(), 2))):
        kind = vector_kind(field(array.type))
        vectors, unusable = vectors_of(array, 2, kind=kind)
        assert (vectors.shape, unusable) == ((3, 2), dict.fromkeys(range(3), "null_vector"))
        assert common_dim(array, kind) is None


def test_nulls_that_occupy_elements_shift_nobody() -> None:
    elements = pa.array([9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0], pa.float32())
    mask = pa.array([True, False, True, False])
    for array in (
        pa.ListArray.from_arrays(pa.array([0, 2, 4, 6, 8], pa.int32()), elements, mask=mask),
        pa.FixedSizeListArray.from_arrays(elements, 2, mask=mask),
    ):
        vectors, unusable = vectors_of(array, 2, kind=vector_kind(field(array.type)))
        assert vectors.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
        assert set(unusable) == {0, 2}


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.binary(8)], ids=str)
def test_float32_is_not_copied(kind: pa.DataType) -> None:
    values = np.arange(8, dtype="<f4").reshape(4, 2)
    rows = [row.tobytes() for row in values] if pa.types.is_fixed_size_binary(kind) else list(values)
    array = pa.array(rows, kind)[1:]
    vectors, _ = vectors_of(array, 2, metric="ip", kind=vector_kind(field(kind), "float32"))
    assert vectors.tolist() == values[1:].tolist()
    assert not vectors.flags.owndata
    assert not vectors.flags.writeable


# Weights


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, None, 2**60], pa.int64()),
        pa.array([1, None, 2**60], pa.uint64()),
        pa.array([1.0, None, 2.0**60], pa.float32()),
        pa.array([Decimal(1), None, Decimal(2**60)], pa.decimal128(38, 3)),
        pa.array([1.0, None, 2.0**60], pa.float64()).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_weights_of_any_number_type_are_float32(array: pa.Array) -> None:
    assert weight_kind(field(array.type)) == "number"
    found = weights_of(pa.chunked_array([array[:1], array[1:]]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1, np.nan, 2**60], np.float32))


def test_small_decimals_are_weights() -> None:
    for kind in (pa.decimal32(5, 2), pa.decimal64(12, 2), pa.decimal256(50, 2)):
        assert weights_of(pa.array([Decimal("0.25"), Decimal("12.50")], kind)).tolist() == [0.25, 12.5]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.string(), pa.list_(pa.float32()), pa.timestamp("us")], ids=str)
def test_weights_that_are_no_numbers_are_refused_at_the_footer(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match=r"column 'x' is .*; numbers are expected: .*CAST\(x AS DOUBLE\)"):
        weight_kind(field(kind))


# Payload


def payload(table: pa.Table, rows: Sequence[int] | None = None) -> tuple[list[Any], dict[int, str]]:
    check_payload(table.schema.field("x"))
    return payload_values(table.column("x"), table.schema.field("x"), rows)


PLAIN: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), st.text(max_size=5)),
    "string_view": (pa.string_view(), st.text(max_size=5)),
    "bytes": (pa.large_binary(), st.binary(max_size=5)),
    "struct": (
        pa.struct([("a", pa.string_view()), ("b", pa.int8())]),
        st.fixed_dictionaries({"a": st.text(max_size=3), "b": st.integers(0, 9)}),
    ),
    "lists of views": (pa.list_(pa.string_view()), st.lists(st.text(max_size=3), max_size=3)),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", "é"])),
}


@pytest.mark.parametrize("encoding", PLAIN)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_payload_is_what_was_stored_row_by_row(encoding: str, data: st.DataObject) -> None:
    kind, strategy = PLAIN[encoding]
    values = data.draw(st.lists(st.none() | strategy, max_size=6))
    table = pa.table({"x": cut(data, pa.array(values, kind))})
    assert payload(table) == (values, {})
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=6)) if values else []
    expected = [values[row] for row in rows]
    assert payload(table, rows) == (expected, {})
    assert payload(take_rows(table, rows)) == (expected, {})


def test_rows_that_cannot_be_read_have_a_reason_and_cost_no_other_row() -> None:
    bad = text_of(BAD_TEXT)
    good = ["a", "b", None, "d"]
    for array, expected in (
        (bad, good),
        (text_of(BAD_TEXT, pa.large_string()), good),
        (bad.cast(pa.string_view()), good),
        (pa.StructArray.from_arrays([bad], ["s"]), [value and {"s": value} for value in good]),
        (pa.ListArray.from_arrays([0, 1, 2, 3, 4], bad), [value and [value] for value in good]),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), bad), good),
    ):
        assert payload(pa.table({"x": array})) == (expected, {2: "not UTF-8"})
        assert payload(pa.table({"x": array}), [3, 2, 0]) == ([expected[3], None, expected[0]], {1: "not UTF-8"})


@pytest.mark.parametrize(
    "array",
    [
        pa.array([0, 253_402_300_800], pa.timestamp("s")),
        pa.array([0, 253_402_300_800_000_000], pa.timestamp("us", "UTC")),
        pa.array([0, -719_163], pa.date32()),
        pa.array([0, 2_932_897], pa.date32()),
        pa.array([0, 2**62], pa.duration("s")),
    ],
    ids=lambda array: str(array.type),
)
def test_a_time_that_python_does_not_know_has_a_reason(array: pa.Array) -> None:
    values, unreadable = payload(pa.table({"x": array}))
    assert values == [array[0].as_py(), None]
    assert list(unreadable) == [1]
    assert unreadable[1].startswith("cannot be read: OverflowError: ")
    assert "\n" not in unreadable[1]


def test_tensors_are_arrays_of_the_items_shape() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"):
        table = tensors(images.reshape(2, 12), (3, 4), name)
        values, unreadable = payload(table, [1, 0])
        assert unreadable == {}
        assert values[0].dtype == np.uint8
        np.testing.assert_array_equal(np.stack(values), images[::-1])
        values[0][:] = 0  # its own copy
        np.testing.assert_array_equal(payload(table)[0][1], images[1])
    arrow = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    np.testing.assert_array_equal(np.stack(payload(pa.table({"x": arrow}))[0]), images)
    turned = pa.FixedShapeTensorArray.from_numpy_ndarray(images.transpose(0, 2, 1))
    assert turned.type.permutation == [1, 0]
    np.testing.assert_array_equal(np.stack(payload(pa.table({"x": turned}))[0]), images.transpose(0, 2, 1))


def test_a_tensor_whose_shape_is_not_its_length_has_a_reason() -> None:
    table = tensors(np.zeros((2, 3)), (2, 2), "ray.data.arrow_tensor")
    values, unreadable = payload(table)
    assert values == [None, None]
    assert set(unreadable.values()) == {
        "cannot be read: ValueError: cannot reshape array of size 3 into shape (2,2)",
    }


def test_tensors_whose_shape_is_pickled_are_no_payload_within_other_values_either() -> None:
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": "gASVBw=="}
    tensor = pa.field("image", pa.list_(pa.uint8()), metadata=metadata)
    for kind in (pa.struct([tensor]), pa.list_(tensor), pa.map_(pa.string(), tensor)):
        with pytest.raises(InputError, match=r"column '.*' is ray\.data\.arrow_tensor, and its shape cannot be read"):
            check_payload(field(kind))


def test_tensors_of_various_shapes_are_arrays_of_their_own_shape() -> None:
    stored = pa.array(
        [{"data": [1, 2, 3, 4], "shape": [2, 2]}, None, {"data": [5, 6], "shape": [1, 2]}],
        pa.struct([("data", pa.large_list(pa.uint8())), ("shape", pa.list_(pa.int64()))]),
    )
    name = {"ARROW:extension:name": "ray.data.arrow_variable_shaped_tensor", "ARROW:extension:metadata": "2"}
    values, unreadable = payload(column(stored, **name))
    assert unreadable == {}
    assert [None if value is None else value.tolist() for value in values] == [[[1, 2], [3, 4]], None, [[5, 6]]]
    assert values[0].dtype == np.uint8
    # Not Ray's: what anybody else keeps in such a struct stays what it is.
    assert payload(column(stored))[0][2] == {"data": [5, 6], "shape": [1, 2]}


@given(rows=st.lists(st.integers(0, 9), max_size=12))
def test_rows_are_taken_from_views_as_from_anything_else(rows: list[int]) -> None:
    plain = pa.table({"x": [f"row {i}" for i in range(10)], "y": range(10)})
    views = plain.set_column(
        0, pa.field("x", pa.string_view(), metadata={"a": "b"}), plain.column("x").cast(pa.string_view())
    )
    found = take_rows(views, rows)
    assert found.to_pylist() == plain.take(pa.array(rows, pa.int64())).to_pylist()
    assert found.schema.equals(views.schema, check_metadata=True)
