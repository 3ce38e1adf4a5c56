"""The file that says which rows of a segment are skipped: it comes back as it was, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fastfill_ray.errors import CorruptFile
from fastfill_ray.index.deletion_vector import DeletionVector, hidden_rows, put_deletion, read_deletion
from fastfill_ray.log.records import Deletion, FileRef, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.storage.arrow import table_bytes
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.refs import put_file
from tests.faults import MemoryFiles

PATH, NOTHING = "index/p/b.deletion.parquet", FileRef(path="index/s.faiss", size=0, sha256="")


def segment(rows: int, deletion: Deletion | None = None) -> Segment:
    return Segment(
        bucket=0, wave=0, state="new", space="new", dim=2, rows=rows, ids_digest=ids_digest(range(rows)),
        index=NOTHING, ids=NOTHING, deletion=deletion,
    )  # fmt: skip


@given(
    rows=st.integers(1, 50).flatmap(
        lambda n: st.tuples(st.just(n), st.dictionaries(st.integers(0, n - 1), st.booleans(), min_size=1))
    )
)
def test_hidden_rows_come_back_as_they_were(rows: tuple[int, dict[int, bool]]) -> None:
    count, hidden = rows
    vector = DeletionVector(np.array(sorted(hidden)), np.array([hidden[row] for row in sorted(hidden)]))
    files = MemoryFiles()
    made = segment(count, put_deletion(files, PATH, vector, pa.array(range(count))))
    back = read_deletion(files, made)
    np.testing.assert_array_equal(back.rows, vector.rows)
    np.testing.assert_array_equal(back.deleted, vector.deleted)
    assert hidden_rows(files, made).dtype == np.int64
    deleted = {row for row, by_delete in hidden.items() if by_delete}
    assert made.live_rows == count - len(hidden)
    assert made.plan_rows == count - len(hidden) + len(deleted)
    assert made.plan_ids_digest == ids_digest(set(range(count)) - (set(hidden) - deleted))
    assert made.deletion is not None
    assert (made.deletion.rows, made.deletion.deleted_rows) == (len(hidden), len(deleted))
    assert made.deletion.ids_digest == ids_digest(hidden)
    assert made.deletion.deleted_ids_digest == ids_digest(deleted)


def test_a_segment_without_a_deletion_vector_hides_nothing_and_reads_nothing() -> None:
    plain = segment(3)
    assert hidden_rows(MemoryFiles(), plain).tolist() == []
    assert (plain.live_rows, plain.plan_rows, plain.plan_ids_digest) == (3, 3, plain.ids_digest)
    assert plain.files == (plain.index, plain.ids)


@pytest.mark.parametrize("rows", [[], [3], [-1], [1, 1], [2, 1]])
def test_rows_that_a_segment_cannot_hide_are_not_written(rows: list[int]) -> None:
    files = MemoryFiles()
    vector = DeletionVector(np.array(rows, np.int64), np.zeros(len(rows), bool))
    with pytest.raises(ValueError, match=PATH):
        put_deletion(files, PATH, vector, pa.array([5, 6, 7]))
    assert files.list("") == []


def recorded(files: Files, columns: dict[str, Any], **record: Any) -> Segment:
    """A segment of 5 rows whose deletion vector has these columns."""
    rows = {"rows": 2, "deleted_rows": 1, **record}
    file = put_file(files, PATH, table_bytes(pa.table(columns)))
    return segment(5, Deletion(file=file, ids_digest="", deleted_ids_digest="", **rows))


FLAGS = pa.array([True, False])


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"row": pa.array([1, 5])}, "no column 'deleted'"),
        ({"row": pa.array([1, 5]), "deleted": FLAGS}, "hides rows 1 to 5, the segment has rows 0 to 4"),
        ({"row": pa.array([-1, 1]), "deleted": FLAGS}, "hides rows -1 to 1"),
        ({"row": pa.array([3, 1]), "deleted": FLAGS}, "row 1 follows row 3, ascending rows are expected"),
        ({"row": pa.array([3, 3]), "deleted": FLAGS}, "row 3 follows row 3"),
        ({"row": pa.array([1, None]), "deleted": FLAGS}, "with 1 nulls, expected int32 and bool"),
        ({"row": pa.array(["1", "2"]), "deleted": FLAGS}, "row string and deleted bool"),
        ({"row": pa.array([1, 2]), "deleted": pa.array([1, 0])}, "row int64 and deleted int64"),
        ({"row": pa.array([1]), "deleted": pa.array([True])}, "hides 1 rows, 1 of them by DELETE, .* 2 and 1"),
        ({"row": pa.array([1, 2]), "deleted": pa.array([True, True])}, "hides 2 rows, 2 of them"),
    ],
)
def test_a_file_that_is_no_deletion_vector_of_the_segment_is_refused_by_name(
    tmp_path: Path, columns: dict[str, Any], why: str
) -> None:
    files = open_files(str(tmp_path))
    with pytest.raises(CorruptFile, match=rf"{PATH}: .*{why}"):
        hidden_rows(files, recorded(files, columns))


def test_a_record_that_hides_more_than_there_is_is_refused() -> None:
    whole = Deletion(file=NOTHING, rows=4, ids_digest="", deleted_rows=0, deleted_ids_digest="")
    with pytest.raises(ValidationError, match="hides more rows than the 3"):
        segment(3, whole)
    with pytest.raises(ValidationError, match="deleted_rows is 5, at most rows, 4, is expected"):
        Deletion.model_validate({**whole.model_dump(), "deleted_rows": 5})
