"""The deletion vector of a segment: a small file of the rows that readers skip, beside the files that never change.

N rows of a segment, H hidden ones.
"""

from __future__ import annotations

import uuid
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.records import Deletion, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.storage.arrow import _RESTORE, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import deletion_vector_path
from fastfill_ray.storage.refs import get_verified, put_file, tagged
from fastfill_ray.types import I64, Bools


class DeletionVector(NamedTuple):
    """Hidden rows (H,) int64, ascending; and (H,) whether a DELETE hides the row: an UNDELETE brings it back."""

    rows: I64
    deleted: Bools


NO_ROWS = DeletionVector(np.empty(0, np.int64), np.empty(0, bool))


def fresh_path(plan: str, epoch: int, segment: Segment) -> str:
    """A path for another deletion vector of a segment, which nobody has written yet."""
    return deletion_vector_path(plan, segment.wave, segment.bucket, segment.state, epoch, uuid.uuid4().hex)


def read_ids(files: Files, segment: Segment) -> pa.Array:
    """The ids (N,) of a segment, in the order of its rows.

    Raises:
        FileMissing: the file is absent.
        CorruptFile: it is not the recorded one; names the file.
    """
    table = read_table(get_verified(files, segment.ids), name=segment.ids.path, columns=["id"])
    return table.column("id").combine_chunks()


def put_deletion(files: Files, path: str, vector: DeletionVector, ids: pa.Array) -> Deletion:
    """Store the deletion vector of a segment and read it back; durable when this returns.

    Args:
        path: of ``fresh_path``; never written before.
        vector: at least one row.
        ids: (N,) of the segment, see ``read_ids``.

    Raises:
        ValueError: no rows, rows that are not of the segment, or that are not ascending.
    """
    rows, deleted = vector
    if (fault := _fault(rows, len(ids))) is not None or len(rows) == 0:
        raise ValueError(f"{path}: {fault or 'no row is hidden'}")
    table = pa.table({"row": pa.array(rows, pa.int32()), "deleted": pa.array(deleted, pa.bool_())})
    return Deletion(
        file=tagged(files, put_file(files, path, table_bytes(table))),
        rows=len(rows),
        ids_digest=ids_digest(ids.take(pa.array(rows))),
        deleted_rows=int(deleted.sum()),
        deleted_ids_digest=ids_digest(ids.take(pa.array(rows[deleted]))),
    )


def superseding(files: Files, segment: Segment, rows: I64, path: str) -> Segment:
    """The segment with a new deletion vector over `rows` (H,), none of which a DELETE hides; see ``put_deletion``."""
    vector = DeletionVector(rows, np.zeros(len(rows), bool))
    return segment.model_copy(update={"deletion": put_deletion(files, path, vector, read_ids(files, segment))})


def read_deletion(files: Files, segment: Segment) -> DeletionVector:
    """What a segment hides; empty where it has no deletion vector.

    Raises:
        FileMissing: the file is absent.
        CorruptFile: it is not the recorded one, or not a deletion vector of this segment; names the file.
    """
    if (deletion := segment.deletion) is None:
        return NO_ROWS
    name = f"{files.root}/{deletion.file.path}"
    table = read_table(get_verified(files, deletion.file), name=name, columns=["row", "deleted"])
    row, deleted = table.column("row"), table.column("deleted")
    if (
        not pa.types.is_integer(row.type)
        or not pa.types.is_boolean(deleted.type)
        or row.null_count + deleted.null_count
    ):
        raise CorruptFile(
            f"{name}: its columns are row {row.type} and deleted {deleted.type} with "
            f"{row.null_count + deleted.null_count} nulls, expected int32 and bool without a null. {_RESTORE}",
            deletion.file.path,
        )
    vector = DeletionVector(row.to_numpy().astype(np.int64), deleted.to_numpy())
    if (fault := _fault(vector.rows, segment.rows)) is not None:
        raise CorruptFile(f"{name}: {fault}. {_RESTORE}", deletion.file.path)
    if (counts := (len(vector.rows), int(vector.deleted.sum()))) != (deletion.rows, deletion.deleted_rows):
        raise CorruptFile(
            f"{name}: hides {counts[0]:,} rows, {counts[1]:,} of them by DELETE, the record says {deletion.rows:,} and "
            f"{deletion.deleted_rows:,}. {_RESTORE}",
            deletion.file.path,
        )
    return vector


def hidden_rows(files: Files, segment: Segment) -> I64:
    """The rows (H,) of ``read_deletion``, whatever hides them."""
    return read_deletion(files, segment).rows


def _fault(rows: I64, count: int) -> str | None:
    """Why these cannot be hidden rows of a segment of so many; None if they can."""
    if len(rows) == 0:
        return None
    if rows.min() < 0 or rows.max() >= count:
        return f"hides rows {rows.min():,} to {rows.max():,}, the segment has rows 0 to {count - 1:,}"
    falls = np.flatnonzero(np.diff(rows) <= 0)
    if len(falls):
        return f"row {rows[falls[0] + 1]:,} follows row {rows[falls[0]]:,}, ascending rows are expected"
    return None
