"""The ids that are deleted, against a plain set; and what a damaged file does."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.index import deletions as module
from fastfill_ray.index.deletions import Deleted, hash_ids, write_ids
from fastfill_ray.log.records import Delete, Undelete
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import put_file
from tests.faults import MemoryFiles, flip_bit

SALT = "0123456789abcdef" * 2
NAMES = st.sets(st.text(max_size=3), min_size=1, max_size=8)
NUMBERS = st.sets(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 3), min_size=1, max_size=8)


def record(files: Files, ids: set[str] | set[int], kind: type[Delete] | type[Undelete] = Delete) -> Delete | Undelete:
    return kind(ids=write_ids(files, pa.array(sorted(ids)), SALT), rows=len(ids), salt=SALT)


@given(st.lists(st.tuples(st.sampled_from([Delete, Undelete]), NAMES), max_size=6), st.lists(st.text(max_size=3)))
def test_what_is_in_force_is_what_a_set_would_hold(
    steps: list[tuple[type[Delete] | type[Undelete], set[str]]], ids: list[str]
) -> None:
    files, expected, records = MemoryFiles(), set[str](), []
    for kind, named in steps:
        expected = expected | named if kind is Delete else expected - named
        records.append(record(files, named, kind))
    deleted = Deleted.read(files, records)
    assert len(deleted) == len(expected)
    asked = [*ids, *expected]
    assert deleted.rows_of(pa.array(asked, pa.string())).tolist() == [
        row for row, name in enumerate(asked) if name in expected
    ]
    again = Deleted.read(files, [record(files, expected)] if expected else [])
    assert deleted.fingerprint == again.fingerprint, "named by what is in force, not by how it came about"


@given(NUMBERS, NUMBERS)
def test_integer_ids_are_found_by_row(deleted_ids: set[int], others: set[int]) -> None:
    files = MemoryFiles()
    deleted = Deleted.read(files, [record(files, deleted_ids)])
    asked = sorted(deleted_ids | others)
    rows = deleted.rows_of(pa.array(asked, pa.int64()))
    assert rows.dtype == np.int64
    assert rows.tolist() == [row for row, number in enumerate(asked) if number in deleted_ids]


@given(NAMES, st.sets(st.text(max_size=3)))
def test_kept_prefixes_find_the_same_rows_also_where_they_are_equal(deleted_ids: set[str], others: set[str]) -> None:
    files = MemoryFiles()
    deleted = Deleted.read(files, [record(files, deleted_ids)])
    ids = pa.array(sorted(deleted_ids | others), pa.string())
    prefixes = deleted.prefixes_of(ids)
    assert (prefixes.dtype, prefixes.shape) == (np.uint64, (len(ids),))
    expected = deleted.rows_of(ids).tolist()
    assert deleted.rows_of(ids, prefixes).tolist() == expected
    one = deleted.prefixes_of(pa.array(sorted(deleted_ids)[:1]))
    of_another = np.where(np.isin(np.arange(len(ids)), expected), prefixes, one)
    assert deleted.rows_of(ids, of_another).tolist() == expected


def test_a_hash_is_blake2b_of_the_ids_text_with_the_salt_as_its_key() -> None:
    expected = [hashlib.blake2b(text, key=bytes.fromhex(SALT), digest_size=16).digest() for text in (b"7", b"-1")]
    assert (
        hash_ids(pa.array([7, -1]), SALT).to_pylist() == expected == hash_ids(pa.array(["7", "-1"]), SALT).to_pylist()
    )
    assert hash_ids(pa.array(["7"]), "0" * 32).to_pylist() != expected[:1]


def test_the_file_holds_sorted_unique_hashes_under_a_name_of_their_content() -> None:
    files = MemoryFiles()
    file = write_ids(files, pa.array(["b", "a", "b"]), SALT)
    assert file == write_ids(files, pa.array(["a", "b"]), SALT)
    assert file.path == f"deletions/{file.sha256[:16]}.parquet"
    hashes = read_table(files.get(file.path), name="file").column("hash").to_pylist()
    assert hashes == sorted(set(hash_ids(pa.array(["a", "b"]), SALT).to_pylist()))


def test_where_nothing_is_deleted_nothing_is_read_or_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = MemoryFiles()
    undone = Deleted.read(files, [record(files, {"a"}), record(files, {"a", "b"}, Undelete)])
    monkeypatch.delattr(module, "hash_ids")
    for deleted in (Deleted.read(files, ()), undone):
        assert (len(deleted), deleted.fingerprint, deleted.rows_of(pa.array(["a"])).tolist()) == (0, "", [])


def test_a_file_that_is_damaged_or_gone_is_an_error_by_name_and_comes_back_with_the_same_delete() -> None:
    files = MemoryFiles()
    deletion = record(files, {"a", "b"})
    path = deletion.ids.path
    files.put_data(path, flip_bit(files.get(path), 500))
    with pytest.raises(CorruptFile, match=rf"{path}.*Run `fastfill-ray delete` again with the same ids"):
        Deleted.read(files, [deletion])
    files.delete(path)
    with pytest.raises(FileMissing, match=rf"{path}.*Run `fastfill-ray delete` again with the same ids"):
        Deleted.read(files, [deletion])
    assert record(files, {"a", "b"}) == deletion
    assert len(Deleted.read(files, [deletion])) == 2


@pytest.mark.parametrize(
    ("column", "rows"),
    [(pa.array([b"0" * 16], pa.binary(16)), 2), (pa.array([b"0" * 15], pa.binary(15)), 1), (pa.array([1]), 1)],
)
def test_a_file_that_does_not_hold_what_its_record_says_is_refused(column: pa.Array, rows: int) -> None:
    files = MemoryFiles()
    file = put_file(files, "deletions/f.parquet", table_bytes(pa.table({"hash": column})))
    with pytest.raises(CorruptFile, match=r"deletions/f.parquet: holds 1 hashes of type .*, the log says"):
        Deleted.read(files, [Delete(ids=file, rows=rows, salt=SALT)])
