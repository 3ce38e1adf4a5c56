"""Tables and vectors: the right bytes or an error, the right rows or a reason."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import CorruptFile, FileMissing, InputError
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.storage.arrow import (
    id_array,
    keys_column,
    keys_of,
    read_table,
    stored_vectors,
    table_bytes,
    vector_column,
)
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
    assert stored_vectors(pa.table({"vector": column}), 3).tolist() == vectors.tolist()
    assert len(vector_column(np.empty((0, 3), np.float32))) == 0


def test_page_checksums_are_on_in_what_is_written() -> None:
    data = table_bytes(a_table())
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(1)
    inside = metadata.data_page_offset + metadata.total_compressed_size // 2
    with pytest.raises(CorruptFile, match=r"t\.parquet"):
        read_table(flip_bit(data, inside * 8), name="t.parquet")


@given(st.lists(st.integers(-9, 9), max_size=9), st.integers(0, 9))
def test_keys_come_back_from_a_column_its_slices_and_its_chunks(ids: list[int], start: int) -> None:
    keys = item_keys(ids)
    column = keys_column(keys)
    assert column.type == pa.binary(16)
    assert len(column) == len(ids)
    assert np.array_equal(keys_of(column), keys)
    assert np.array_equal(keys_of(column.slice(start)), keys[start:])
    assert np.array_equal(keys_of(pa.chunked_array([column[:start], column[start:]], pa.binary(16))), keys)
    stored = read_table(table_bytes(pa.table({"key": column})), name="items").column("key")
    assert np.array_equal(keys_of(stored), keys)


def test_a_column_of_keys_holds_the_bytes_of_the_hash() -> None:
    column = keys_column(item_keys(["a"]))
    assert column.to_pylist() == [hashlib.blake2b(b"a", digest_size=16).digest()]
