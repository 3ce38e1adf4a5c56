"""A value has one digest, however Arrow stores it, and two values have two."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.changes import payload_digests, version_digests
from tests.inputs.test_any_schema import galleries
from tests.inputs.test_kinds import cut

Encode = Callable[[Sequence[Any]], pa.Array]
UNITS = ("s", "ms", "us", "ns")


def typed(*kinds: pa.DataType) -> list[Encode]:
    return [lambda values, kind=kind: pa.array(values, kind) for kind in kinds]


def encoded(kind: pa.DataType) -> Encode:
    return lambda values: pa.array(values, kind).dictionary_encode()


def ticks(kind: pa.DataType, per_s: int) -> Encode:
    """Whole seconds as a time."""
    bits = pa.int32() if kind.bit_width == 32 else pa.int64()
    return lambda values: pa.array([None if v is None else v * per_s for v in values], bits).view(kind)


def with_null_dictionary(values: Sequence[Any]) -> pa.Array:
    """Null by a value of the dictionary, not by the index."""
    return pa.DictionaryArray.from_arrays(pa.array(range(len(values)), pa.int32()), pa.array(values, pa.string()))


def views(kind: pa.DataType) -> Encode:
    """Rows that lie backwards in their elements; Arrow makes no list views of values itself."""

    def encode(values: Sequence[Any]) -> pa.Array:
        lists = [value or [] for value in values]
        flat = pa.array([element for value in reversed(lists) for element in value], kind)
        starts = list(itertools.accumulate((len(value) for value in reversed(lists)), initial=0))[: len(lists)][::-1]
        null = pa.array([value is None for value in values], pa.bool_())
        sizes = pa.array([len(value) for value in lists], pa.int32())
        return pa.ListViewArray.from_arrays(pa.array(starts, pa.int32()), sizes, flat, mask=null)

    return encode


def whole_ms(moment: dt.datetime) -> dt.datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def wrong_way_round(values: Sequence[Any]) -> pa.Array:
    """The fields of a struct in another order."""
    return pa.array(values, pa.struct([("b", pa.large_list(pa.int64())), ("a", pa.large_string())]))


WHOLE = st.integers(-100, 100)
WORD = st.text(max_size=4)
FLOAT = st.sampled_from([0.0, -0.0, 0.5, -1.25, 3.0, math.inf, -math.inf, math.nan])
SECONDS = st.integers(0, 86_399)
DAYS = st.integers(-10_000, 10_000)

# {kind: (its values, what they can be written as)}
KINDS: dict[str, tuple[st.SearchStrategy[Any], list[Encode]]] = {
    "text": (
        WORD,
        [
            *typed(pa.string(), pa.large_string(), pa.string_view()),
            encoded(pa.string()),
            with_null_dictionary,
        ],
    ),
    "bytes": (
        st.binary(min_size=3, max_size=3),
        [*typed(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)), encoded(pa.binary())],
    ),
    "whole numbers": (
        WHOLE,
        [*typed(*(pa.type_for_alias(f"int{bits}") for bits in (8, 16, 32, 64))), encoded(pa.int16())],
    ),
    "large numbers": (st.integers(0, 2**63 - 1), typed(pa.int64(), pa.uint64())),
    "floats": (FLOAT, [*typed(pa.float16(), pa.float32(), pa.float64()), encoded(pa.float32())]),
    "truth values": (st.booleans(), [*typed(pa.bool_()), encoded(pa.bool_())]),
    "decimals": (
        st.decimals(-999, 999, places=2),
        typed(pa.decimal32(5, 2), pa.decimal64(9, 3), pa.decimal128(20, 2), pa.decimal256(70, 9)),
    ),
    "moments": (
        SECONDS,
        [ticks(pa.timestamp(unit, zone), 1000**i) for i, unit in enumerate(UNITS) for zone in ("UTC", "Europe/Berlin")],
    ),
    "times": (SECONDS, [ticks(pa.timestamp(unit), 1000**i) for i, unit in enumerate(UNITS)]),
    "durations": (SECONDS, [ticks(pa.duration(unit), 1000**i) for i, unit in enumerate(UNITS)]),
    "times of day": (
        SECONDS,
        [
            *(ticks(pa.time32(unit), 1000**i) for i, unit in enumerate(UNITS[:2])),
            *(ticks(pa.time64(unit), 1000**i) for i, unit in enumerate(UNITS[2:], 2)),
        ],
    ),
    "dates": (DAYS, [ticks(pa.date32(), 1), ticks(pa.date64(), 86_400_000)]),
    "lists of numbers": (
        st.lists(st.none() | WHOLE, max_size=4),
        [
            *typed(pa.list_(pa.int8()), pa.large_list(pa.int64()), pa.list_(pa.field("element", pa.int32()))),
            *typed(pa.list_(pa.dictionary(pa.int8(), pa.int16()))),
            views(pa.int32()),
        ],
    ),
    "lists of large numbers": (
        st.lists(st.integers(0, 2**40) | st.integers(0, 255), max_size=3),
        typed(pa.list_(pa.int64()), pa.large_list(pa.uint64())),
    ),
    "lists of floats": (
        st.lists(st.none() | FLOAT, max_size=3),
        [*typed(pa.list_(pa.float16()), pa.list_(pa.float32()), pa.large_list(pa.float64())), views(pa.float64())],
    ),
    "lists of one length": (
        st.lists(WHOLE, min_size=2, max_size=2),
        typed(pa.list_(pa.int16(), 2), pa.list_(pa.int64()), pa.large_list(pa.int8())),
    ),
    "lists of truth values": (
        st.lists(st.none() | st.booleans(), max_size=3),
        [*typed(pa.list_(pa.bool_()), pa.large_list(pa.bool_())), views(pa.bool_())],
    ),
    "lists of text": (
        st.lists(st.none() | WORD, max_size=3),
        [
            *typed(pa.list_(pa.string()), pa.large_list(pa.string_view())),
            *typed(pa.list_(pa.dictionary(pa.int8(), pa.large_string()))),
            views(pa.large_string()),
        ],
    ),
    "lists of lists": (
        st.lists(st.none() | st.lists(st.none() | WHOLE, max_size=2), max_size=3),
        [
            *typed(pa.list_(pa.list_(pa.int8())), pa.large_list(pa.large_list(pa.int64()))),
            views(pa.list_(pa.int16())),
        ],
    ),
    "structs": (
        st.builds(lambda a, b: {"a": a, "b": b}, st.none() | WORD, st.none() | st.lists(WHOLE, max_size=2)),
        [*typed(pa.struct([("a", pa.string()), ("b", pa.list_(pa.int8()))])), wrong_way_round],
    ),
    "maps": (
        st.lists(st.tuples(WORD, st.none() | WHOLE), max_size=3),
        typed(pa.map_(pa.string(), pa.int8()), pa.map_(pa.large_string(), pa.int64())),
    ),
}


def digests(column: pa.Array | pa.ChunkedArray, **metadata: str) -> list[bytes]:
    field = pa.field("x", column.type, metadata=metadata or None)
    found = payload_digests(pa.Table.from_arrays([column], schema=pa.schema([field])), ["x"])
    assert found.type == pa.binary(16)
    assert found.null_count == 0
    return list(found.to_pylist())


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_one_value_has_one_digest_in_every_type_and_two_have_two(kind: str, data: st.DataObject) -> None:
    strategy, encodings = KINDS[kind]
    values = data.draw(st.lists(st.none() | strategy, max_size=6))
    columns = [cut(data, encode(values)) for encode in encodings]
    expected = digests(columns[0])
    for column in columns[1:]:
        assert digests(column) == expected, column.type
    for one, other in itertools.combinations(range(len(values)), 2):
        # Their texts tell 0.0 from -0.0, and NaN from nothing.
        assert (expected[one] == expected[other]) == (repr(values[one]) == repr(values[other]))


ONE_OF_EACH: list[tuple[pa.DataType, Sequence[Any]]] = [
    (pa.null(), [None]),
    (pa.string(), ["", "a", "ab", "1", "None"]),
    (pa.binary(), [b"", b"a", b"ab", b"\0"]),
    (pa.int64(), [0, 1, -1, 255, 256, -(2**63), 2**63 - 1]),
    (pa.uint64(), [2**63, 2**64 - 1]),
    (pa.float64(), [0.0, -0.0, 1.0, 1e300, 0.1, math.nan, math.inf]),
    (pa.float32(), [0.1]),
    (pa.bool_(), [False, True]),
    (pa.decimal128(9, 2), [Decimal(0), Decimal(1), Decimal("0.10"), Decimal("0.01"), Decimal(-1), Decimal(10)]),
    (pa.timestamp("ns"), [0, 1, -1, 10**9]),
    (pa.timestamp("s"), [2**62]),
    (pa.timestamp("us", "UTC"), [0, 1]),
    (pa.date32(), [0, 1]),
    (pa.time64("us"), [0, 1]),
    (pa.duration("us"), [0, 1]),
    (pa.month_day_nano_interval(), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]),
    (
        pa.list_(pa.int64()),
        [[], [None], [0], [1], [1, None], [0, 0], [1, 256], [256, 1], [-1], [255], [65535], [2**63 - 1]],
    ),
    (pa.list_(pa.uint64()), [[2**63]]),
    (pa.list_(pa.float64()), [[0.0], [-0.0], [1.0], [0.1], [1e300], [math.nan], [math.inf], [1.0, None]]),
    (pa.list_(pa.float32()), [[0.1]]),
    (pa.list_(pa.bool_()), [[False], [True], [True, False]]),
    (pa.list_(pa.string()), [[""], ["a"], ["a", "b"], ["ab"], ["ab", ""], ["", "ab"]]),
    (pa.list_(pa.list_(pa.int8())), [[[]], [[], []], [[1], [2]], [[1, 2]], [[1, 2], []], [[[1]][0], None]]),
    (pa.struct([("a", pa.int8())]), [{"a": None}, {"a": 1}]),
    (pa.struct([("b", pa.int8())]), [{"b": None}, {"b": 1}]),
    (pa.struct([("a", pa.int8()), ("b", pa.int8())]), [{"a": 1, "b": None}, {"a": None, "b": 1}]),
    (pa.map_(pa.string(), pa.int8()), [[], [("a", None)], [("a", 1)], [("a", 1), ("b", 1)], [("b", 1), ("a", 1)]]),
]


def test_values_of_different_kinds_differ() -> None:
    seen: dict[bytes, str] = {}
    for kind, values in ONE_OF_EACH:
        for value, digest in zip(values, digests(pa.array(values, kind)), strict=True):
            text = f"{value!r} as {kind}"
            # No type says what an empty list holds, or one that holds nothing but nulls. A map is another thing.
            assert digest not in seen, f"{text} is {seen[digest]}"
            seen[digest] = text


def test_what_holds_no_value_is_the_same_in_every_type() -> None:
    assert len({digests(pa.nulls(1, kind))[0] for kind, _ in ONE_OF_EACH}) == 1
    elements = (pa.int8(), pa.float64(), pa.bool_(), pa.string(), pa.null(), pa.list_(pa.int8()), pa.struct([]))
    for values in ([[]], [[None]], [[None, None]]):
        assert len({digests(pa.array(values, pa.list_(kind)))[0] for kind in elements}) == 1


def test_what_lies_under_a_null_says_nothing() -> None:
    under = pa.array([1, 2, 3, 4])
    mask = pa.array([True, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4]), under, mask=mask)
    structs = pa.StructArray.from_arrays([pa.array(["x", "y"])], ["a"], mask=mask)
    assert digests(lists) == digests(pa.array([None, [3, 4]]))
    assert digests(structs) == digests(pa.array([None, {"a": "y"}]))


# {a narrow type: (a wide one, values of both)}
LEAVES: list[tuple[pa.DataType, pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), pa.large_string(), WORD),
    (pa.binary(), pa.large_binary(), st.binary(max_size=3)),
    (pa.int8(), pa.int64(), WHOLE),
    (pa.float32(), pa.float64(), FLOAT),
    (pa.bool_(), pa.bool_(), st.booleans()),
    (
        pa.timestamp("ms"),
        pa.timestamp("ns"),
        st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(1999, 1, 1)).map(whole_ms),
    ),
    (pa.decimal128(5, 2), pa.decimal256(60, 4), st.decimals(-9, 9, places=2)),
    (pa.null(), pa.null(), st.none()),
]


@st.composite
def nested(draw: st.DrawFn, depth: int = 3) -> tuple[pa.DataType, pa.DataType, st.SearchStrategy[Any]]:
    """Values that lie as deep as `depth`, and two types for them."""
    shape = draw(st.sampled_from(["leaf", "list", "pair", "struct", "map"] if depth else ["leaf"]))
    if shape == "leaf":
        return draw(st.sampled_from(LEAVES))
    narrow, wide, values = draw(nested(depth=depth - 1))
    values = st.none() | values
    if shape == "list":
        return pa.list_(narrow), pa.large_list(wide), st.lists(values, max_size=3)
    if shape == "pair":
        return pa.list_(narrow, 2), pa.list_(wide), st.lists(values, min_size=2, max_size=2)
    if shape == "map":
        entries = st.lists(st.tuples(WORD, values), max_size=2)
        return pa.map_(pa.string(), narrow), pa.map_(pa.large_string(), wide), entries
    other_narrow, other_wide, others = draw(nested(depth=depth - 1))
    both = st.fixed_dictionaries({"a": values, "b": st.none() | others})
    return (
        pa.struct([("a", narrow), ("b", other_narrow)]),
        pa.struct([("b", other_wide), ("a", wide)]),
        both,
    )


@given(nested(), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_values_within_values_have_one_digest_in_every_type_and_in_every_slice(kinds: Any, data: st.DataObject) -> None:
    narrow, wide, strategy = kinds
    values = data.draw(st.lists(st.none() | strategy, max_size=5))
    array = pa.array(values, narrow)
    expected = digests(array)
    assert digests(cut(data, array)) == expected
    assert digests(cut(data, pa.array(values, wide))) == expected
    texts = [repr(value) for value in array.to_pylist()]
    for one, other in itertools.combinations(range(len(values)), 2):
        assert (expected[one] == expected[other]) == (texts[one] == texts[other])


# Tensors


def ray_tensors(images: np.ndarray, shape: Sequence[int]) -> tuple[pa.Array, dict[str, str]]:
    """As they are read where Ray is not imported."""
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": json.dumps(list(shape))}
    return pa.array(images.reshape(len(images), -1).tolist(), pa.list_(pa.from_numpy_dtype(images.dtype))), metadata


def variable_tensors(images: Sequence[np.ndarray]) -> tuple[pa.Array, dict[str, str]]:
    kind = pa.from_numpy_dtype(images[0].dtype)
    rows = [{"data": image.ravel().tolist(), "shape": list(image.shape)} for image in images]
    metadata = {"ARROW:extension:name": "ray.data.arrow_variable_shaped_tensor", "ARROW:extension:metadata": "2"}
    return pa.array(rows, pa.struct([("data", pa.large_list(kind)), ("shape", pa.list_(pa.int64()))])), metadata


@given(st.lists(st.integers(0, 255), min_size=12, max_size=12), st.sampled_from(["u1", "i2", "u8", "f2", "f4", "f8"]))
@settings(max_examples=50, deadline=None)
def test_a_tensor_has_one_digest_whoever_wrote_it(numbers: list[int], dtype: str) -> None:
    images = np.array(numbers, dtype).reshape(2, 2, 3)
    arrow = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    expected = digests(arrow)
    wide = images.astype("f8" if dtype[0] == "f" else "i8")
    assert digests(pa.FixedShapeTensorArray.from_numpy_ndarray(wide)) == expected
    for array, metadata in (ray_tensors(images, (2, 3)), variable_tensors(list(images))):
        assert digests(array, **metadata) == expected
        assert digests(array.slice(1), **metadata) == expected[1:]
    turned = pa.FixedShapeTensorArray.from_numpy_ndarray(images.transpose(0, 2, 1))
    assert turned.type.permutation == [1, 0]
    as_shown = np.ascontiguousarray(images.transpose(0, 2, 1))
    assert digests(turned) == digests(pa.FixedShapeTensorArray.from_numpy_ndarray(as_shown))
    assert digests(turned.slice(1)) == digests(turned)[1:]
    assert set(digests(turned)).isdisjoint(expected), "another shape"
    lists, _ = ray_tensors(images, (2, 3))
    assert set(digests(lists)).isdisjoint(expected), "no tensor"


def test_tensors_may_be_null_or_lie_in_structs() -> None:
    images, metadata = ray_tensors(np.arange(12, dtype=np.uint8).reshape(2, 6), (2, 3))
    fixed = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    within = [
        pa.StructArray.from_arrays([images], fields=[pa.field("a", images.type, metadata=metadata)]),
        pa.StructArray.from_arrays([fixed], names=["a"]),
    ]
    assert digests(within[0]) == digests(within[1])
    gaps = pa.array([None, [1, 2], None], pa.list_(pa.int8(), 2))
    arrow = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int8(), [2]), gaps)
    found = digests(arrow)
    assert found[0] == found[2] == digests(pa.nulls(1))[0]
    assert found[1] == digests(pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1, 2]])))[0]


# Rows of several columns


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_columns_count_by_name_and_in_the_order_of_the_config() -> None:
    both = table(a=["x"], b=["y"])
    found = {
        "".join(f"{name}{t.column(name)[0]}" for name in names): payload_digests(t, names)[0].as_py()
        for t in (both, table(a=["y"], b=["x"]), table(a=["xy"], b=[""]), table(a=[None], b=["xy"]))
        for names in (["a"], ["b"], ["a", "b"], ["b", "a"])
    }
    assert len(set(found.values())) == len(found)
    assert payload_digests(both.select(["b", "a"]), ["a", "b"]) == payload_digests(both, ["a", "b"])


def test_digests_never_change() -> None:
    """They are compared with those of years ago: a change of the encoding embeds whole galleries again."""
    rows = table(text=["a", None, ""], size=[1, 2, 3], list=[[1.5], [], None])
    assert [each.hex() for each in payload_digests(rows, ["text", "size", "list"]).to_pylist()] == [
        "e575c94c922ac772b6b3fbe54687eddc",
        "fbfb01cdcbc83ceb3d954aa1390665cb",
        "2a02f9f56234d57b18e0ffa4f5d34442",
    ]
    of_each = [digest for kind, values in ONE_OF_EACH for digest in digests(pa.array(values, kind))]
    assert (
        hashlib.sha256(b"".join(of_each)).hexdigest()
        == "68174a128265685c6efd0bab34ea95c7cf6f4f03b2ff577334f0f259fd01e9a0"
    )


def test_a_table_without_rows_has_no_digests() -> None:
    for kind, _ in ONE_OF_EACH:
        empty = table(x=pa.array([], kind))
        assert len(payload_digests(empty, ["x"])) == 0
        assert len(version_digests(empty, "x")) == 0
    assert len(payload_digests(table(x=pa.chunked_array([], pa.string())), ["x"])) == 0


@given(galleries())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_gallery_is_written_as_its_rows_have_digests_by_value(gallery: Any) -> None:
    rows, files, _ = gallery
    texts = [digest for file in files for digest in payload_digests(file, ["text"]).to_pylist()]
    for one, other in itertools.combinations(range(len(rows)), 2):
        assert (texts[one] == texts[other]) == (rows[one]["text"] == rows[other]["text"])
    for file in files:
        assert len(payload_digests(file, file.column_names)) == file.num_rows
        for name in file.column_names:
            assert version_digests(file, name).is_null() == file.column(name).combine_chunks().is_null()


def bad_text(values: Sequence[bytes]) -> pa.Array:
    """Text that nobody checked, as a file may hold it."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_rows_that_cannot_be_read_have_digests_of_their_bytes() -> None:
    bad = bad_text([b"a", b"caf\xe9", b"\xff"])
    years = pa.array([2**62, 2**61, 0], pa.timestamp("us"))
    shape = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": "[2, 2]"}
    lists = pa.array([[1, 2, 3], [1, 2, 4], None])
    for array, metadata in ((bad, {}), (bad.cast(pa.string_view()), {}), (years, {}), (lists, shape)):
        assert len(set(digests(array, **metadata))) == 3
    assert digests(bad) == digests(bad.cast(pa.string_view())) == digests(bad.dictionary_encode())
    assert digests(bad)[0] == digests(pa.array(["a"]))[0]


def test_a_type_that_no_file_holds_is_refused_by_name() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(InputError, match=r"column 'x' holds sparse_union<.*>, of which no digest can be made"):
        digests(union)


# Versions


@given(st.lists(st.none() | st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1))))
@settings(deadline=None)
def test_a_version_is_null_where_the_value_is_and_else_its_own(values: list[dt.datetime | None]) -> None:
    plain = pa.array(values, pa.timestamp("us"))
    for column in (plain, plain.cast(pa.timestamp("ns")), plain.dictionary_encode()):
        found = version_digests(table(v=column), "v")
        found.validate(full=True)
        assert found.type == pa.binary(16)
        assert [value is None for value in found.to_pylist()] == [value is None for value in values]
        for one, other in itertools.combinations(range(len(values)), 2):
            assert found[one].equals(found[other]) == (values[one] == values[other])
