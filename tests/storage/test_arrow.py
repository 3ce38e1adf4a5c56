"""Tables and vectors: the right bytes or an error, the right rows or a reason."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import CorruptFile, FileMissing, InputError
from fastfill_ray.inputs.kinds import element_type, vector_dim, vectors_of
from fastfill_ray.storage.arrow import id_array, read_table, table_bytes, vector_column
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import get_verified, put_content, put_file, sha256_hex
from tests.faults import MemoryFiles, flip_bit

DIM = 3


def a_table(rows: int = 500) -> pa.Table:
    vectors = np.random.default_rng(0).standard_normal((rows, DIM), dtype=np.float32)
    return pa.table({"id": pa.array([f"item-{row}" for row in range(rows)]), "vector": vector_column(vectors)})


def test_a_file_put_is_verified_when_it_is_read(files: Files) -> None:
    ref = put_file(files, "vectors/a.parquet", b"some bytes")
    assert (ref.path, ref.size, ref.sha256) == ("vectors/a.parquet", 10, sha256_hex(b"some bytes"))
    assert (
        put_content(files, lambda digest: f"vectors/{digest}.parquet", b"some bytes").path
        == f"vectors/{ref.sha256}.parquet"
    )
    assert files.get(f"vectors/{ref.sha256}.parquet") == b"some bytes"
    assert get_verified(files, ref) == b"some bytes"


@given(st.integers(0, 79))
def test_every_flipped_bit_of_a_file_is_found_by_name(bit: int) -> None:
    files = MemoryFiles()
    ref = put_file(files, "vectors/a.parquet", b"some bytes")
    files.put_data(ref.path, flip_bit(b"some bytes", bit))
    with pytest.raises(CorruptFile, match=r"vectors/a\.parquet: sha256"):
        get_verified(files, ref)


@pytest.mark.parametrize("found", [b"", b"some byte", b"some bytes "])
def test_a_truncated_or_longer_file_is_refused_with_both_sizes(found: bytes) -> None:
    files = MemoryFiles()
    ref = put_file(files, "vectors/a.parquet", b"some bytes")
    files.put_data(ref.path, found)
    with pytest.raises(CorruptFile, match=f"found {len(found)} bytes, expected 10"):
        get_verified(files, ref)


def test_a_file_that_vanished_is_missing_by_name() -> None:
    files = MemoryFiles()
    ref = put_file(files, "vectors/a.parquet", b"some bytes")
    files.delete(ref.path)
    with pytest.raises(FileMissing, match="vectors/a"):
        get_verified(files, ref)


def test_a_table_written_is_the_table_read_and_the_same_table_gives_the_same_bytes() -> None:
    table = a_table()
    data = table_bytes(table)
    assert read_table(data, name="t") == table
    assert table_bytes(a_table()) == data
    assert read_table(data, name="t", columns=["vector", "id"]) == table.select(["vector", "id"])


def test_a_missing_column_is_named_with_the_ones_that_are_there() -> None:
    with pytest.raises(CorruptFile, match=r"t\.parquet: no column 'ids', found \['id', 'vector'\]"):
        read_table(table_bytes(a_table()), name="t.parquet", columns=["ids"])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_in_a_table_is_refused_and_never_wrong_data(data: st.DataObject) -> None:
    table = a_table()
    good = table_bytes(table)
    pages_end = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    bad = flip_bit(good, data.draw(st.integers(0, pages_end * 8 - 1)))
    try:
        found = read_table(bad, name="t.parquet")
    except CorruptFile:
        return
    assert found == table


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_every_truncated_table_is_refused(data: st.DataObject) -> None:
    good = table_bytes(a_table(20))
    with pytest.raises(CorruptFile, match=r"t\.parquet"):
        read_table(good[: data.draw(st.integers(0, len(good) - 1))], name="t.parquet")


@pytest.mark.parametrize("ids", [[1, 2], np.array([1, 2], np.int32), pa.chunked_array([[1], [2]], pa.uint8())])
def test_integers_of_any_width_become_int64_ids(ids: Any) -> None:
    assert id_array(ids, "int64") == pa.array([1, 2], pa.int64())


@pytest.mark.parametrize(
    "ids",
    [
        ["a", "b"],
        np.array(["a", "b"]),
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
    ],
)
def test_strings_of_any_kind_become_string_ids(ids: Any) -> None:
    assert id_array(ids, "string") == pa.array(["a", "b"])


@pytest.mark.parametrize("id_type", ["int64", "string"])
def test_no_ids_at_all_are_ids(id_type: Any) -> None:
    assert len(id_array([], id_type)) == len(id_array(pa.chunked_array([], pa.int64()), id_type)) == 0


@pytest.mark.parametrize(
    ("ids", "id_type", "why"),
    [
        ([1, None], "int64", "position 1 is null"),
        (["a"], "int64", "ids are string, expected int64"),
        ([7], "string", "ids are int64, expected string"),
        ([1.0], "int64", "ids are double"),
        ([True], "int64", "ids are bool"),
        ([1, "a"], "int64", "cannot be read as int64"),
        (np.array([2**63], np.uint64), "int64", "cannot be read as int64"),
    ],
)
def test_ids_of_another_kind_are_refused_with_the_reason(ids: Any, id_type: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        id_array(ids, id_type)


def test_a_column_of_vectors_shares_memory_with_the_array_and_comes_back_equal() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = vector_column(vectors)
    assert np.shares_memory(column.values.to_numpy(), vectors)
    back, unusable = vectors_of(column, 3)
    assert np.shares_memory(back, vectors)
    assert (back.tolist(), unusable) == (vectors.tolist(), {})
    assert len(vector_column(np.empty((0, 3), np.float32))) == 0


LIST_TYPES = {
    "list": lambda element: pa.list_(element),
    "large_list": lambda element: pa.large_list(element),
    "fixed_size_list": lambda element: pa.list_(element, DIM),
}
element = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([float("nan"), float("inf"), None, 60_000.0]))
ragged_row = st.one_of(st.none(), st.lists(element, min_size=DIM, max_size=DIM), st.lists(element, max_size=5))
even_row = st.one_of(st.none(), st.lists(element, min_size=DIM, max_size=DIM), st.just([0.0] * DIM))


def expected(rows: list[list[float | None] | None], metric: str) -> tuple[np.ndarray, dict[int, str]]:
    """The plain reference: one row at a time."""
    vectors, reasons = np.zeros((len(rows), DIM), np.float32), {}
    for number, row in enumerate(rows):
        if row is None:
            reasons[number] = "null_vector"
        elif len(row) != DIM:
            reasons[number] = f"wrong_dim: found {len(row)}, expected {DIM}"
        elif any(value is None or not np.isfinite(value) for value in row):
            reasons[number] = "non_finite"
        elif metric == "cosine" and not any(row):
            reasons[number] = "zero_norm"
        else:
            vectors[number] = row
    return vectors, reasons


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_vectors_of_any_list_column_equal_a_row_by_row_reading(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(LIST_TYPES)))
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    type_ = LIST_TYPES[kind](data.draw(st.sampled_from([pa.float16(), pa.float32(), pa.float64()])))
    rows = data.draw(st.lists(even_row if kind == "fixed_size_list" else ragged_row, max_size=12))
    array = pa.array(rows, type_)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    middle = data.draw(st.integers(start, stop))
    column = pa.chunked_array([array.slice(start, middle - start), array.slice(middle, stop - middle)], type_)
    vectors, unusable = vectors_of(column, DIM, metric=metric)
    wanted, reasons = expected(rows[start:stop], metric)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert (vectors.tolist(), unusable) == (wanted.tolist(), reasons)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_of_a_sliced_binary_column_are_read_by_its_element_type(dtype: str) -> None:
    values = np.arange(12).reshape(4, DIM).astype(np.dtype(dtype).newbyteorder("<"))
    rows = [row.tobytes() for row in values]
    rows[2] = None
    column = pa.array(rows, pa.binary(values.itemsize * DIM)).slice(1)
    vectors, unusable = vectors_of(column, DIM, binary_dtype=dtype)
    assert (vectors.tolist(), unusable) == ([[3, 4, 5], [0, 0, 0], [9, 10, 11]], {1: "null_vector"})


def test_null_rows_that_occupy_elements_do_not_shift_the_rows_behind_them() -> None:
    values = pa.array(np.arange(9, dtype=np.float32))
    column = pa.ListArray.from_arrays(pa.array([0, 3, 6, 9], pa.int32()), values, mask=pa.array([False, True, False]))
    vectors, unusable = vectors_of(column, DIM)
    assert (vectors.tolist(), unusable) == ([[0, 1, 2], [0, 0, 0], [6, 7, 8]], {1: "null_vector"})


def test_what_overflows_float32_is_not_finite() -> None:
    column = pa.array([[1e39, 0, 0], [1e30, 0, 0], [1e15, 0, 0]], pa.list_(pa.float64()))
    assert vectors_of(column, DIM)[1] == {0: "non_finite", 1: "non_finite"}


def test_a_fixed_size_column_of_another_size_has_no_usable_row() -> None:
    column = pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    assert vectors_of(column, DIM)[1] == {0: "wrong_dim: found 2, expected 3", 1: "null_vector"}


def test_a_column_without_rows_or_chunks_has_no_vectors() -> None:
    for type_ in (pa.list_(pa.float32()), pa.list_(pa.float32(), DIM), pa.binary(12)):
        assert vectors_of(pa.chunked_array([], type_), DIM)[0].shape == (0, DIM)
        assert vectors_of(pa.array([], type_), DIM)[0].shape == (0, DIM)
        assert vectors_of(pa.nulls(2, type_), DIM)[1] == {0: "null_vector", 1: "null_vector"}


def test_a_million_vectors_with_bad_rows_are_read_in_seconds() -> None:
    rows, dim = 1_000_000, 16
    values = pa.array(np.ones(rows * dim, np.float32))
    offsets = pa.array(np.arange(0, rows * dim + 1, dim, dtype=np.int32))
    column = pa.ListArray.from_arrays(offsets, values, mask=pa.array(np.arange(rows) % 1000 == 3))
    start = time.perf_counter()
    _, unusable = vectors_of(column, dim, metric="cosine")
    assert len(unusable) == 1000
    assert time.perf_counter() - start < 5  # a loop over rows takes far longer


@pytest.mark.parametrize(
    ("field", "dim", "dtype"),
    [
        (pa.field("v", pa.list_(pa.float16())), None, "float16"),
        (pa.field("v", pa.large_list(pa.float64())), None, "float64"),
        (pa.field("v", pa.list_(pa.float32(), 64)), 64, "float32"),
        (pa.field("v", pa.binary(256)), 64, "float32"),
        (pa.field("v", pa.binary(256), metadata={"dtype": "float16"}), 128, "float16"),
    ],
)
def test_a_vector_type_tells_its_dimension_and_element_type(field: pa.Field, dim: int | None, dtype: str) -> None:
    assert (vector_dim(field), element_type(field)) == (dim, dtype)


@pytest.mark.parametrize(
    "field",
    [
        pa.field("v", pa.string()),
        pa.field("v", pa.binary()),
        pa.field("v", pa.list_(pa.int64())),
        pa.field("v", pa.list_(pa.list_(pa.float32()))),
        pa.field("v", pa.float32()),
        pa.field("v", pa.binary(255)),
        pa.field("v", pa.binary(256), metadata={"dtype": "object"}),
        pa.field("v", pa.fixed_shape_tensor(pa.float32(), [4])),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused_by_name(field: pa.Field) -> None:
    with pytest.raises(InputError, match="column 'v'"):
        vector_dim(field)


def test_page_checksums_are_on_in_what_is_written() -> None:
    data = table_bytes(a_table())
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(1)
    inside = metadata.data_page_offset + metadata.total_compressed_size // 2
    with pytest.raises(CorruptFile, match=r"t\.parquet"):
        read_table(flip_bit(data, inside * 8), name="t.parquet")
