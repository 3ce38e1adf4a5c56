"""A unit's rows on their way to the model: as they were read, or prepared.

A prepared table has the columns that the embedder's preparer made in place of the payload, and the digests of the
payload. Where a row could not be prepared, its table keeps the payload as well, and the model gets that of the row.

Legend: n rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.embedders.prepared import Preparer, prepare_rows
from fastfill_ray.embedders.protocol import MAX_REASON_CHARS, Role
from fastfill_ray.inputs.changes import DIGEST_BYTES, payload_digests, version_digests
from fastfill_ray.inputs.payload import payload_values
from fastfill_ray.sanitize import one_line
from fastfill_ray.types import I64

_PREPARED, _PAYLOAD, _VERSION = "__prepared", "__payload_digest", "__version_digest"


@dataclass(frozen=True)
class Columns:
    """What units of a role are read with: the payload columns, and of items the version column if there is one."""

    payload: tuple[str, ...]
    version: str | None
    role: Role


def prepare_table(table: pa.Table, columns: Columns, preparer: Preparer, batch_rows: int) -> pa.Table:
    """The rows of `table` as the model takes them; `table` itself where no row could be prepared.

    Args:
        batch_rows: that the preparer gets at a time, at most.
    """
    pieces: list[pa.StructArray | None] = []
    for first in range(0, table.num_rows, batch_rows):
        rows = np.arange(first, min(first + batch_rows, table.num_rows))
        pieces.append(_prepare(table, columns, preparer, rows))
    kind = next((piece.type for piece in pieces if piece is not None), None)
    if kind is None:
        return table
    sizes = [min(batch_rows, table.num_rows - batch_rows * number) for number in range(len(pieces))]
    filled = [
        piece if piece is not None and piece.type == kind else pa.nulls(size, kind)
        for piece, size in zip(pieces, sizes, strict=True)
    ]
    try:
        prepared = pa.concat_arrays(filled)  # one piece, so that what reads slices of it need not copy
    except pa.ArrowInvalid:  # lists of 2^31 elements together
        return table
    made = table if prepared.null_count else table.select(["__row", "__id"])
    if columns.role == "item":
        payload, version = digests(table, columns)
        made = made.append_column(_PAYLOAD, payload).append_column(_VERSION, version)
    return made.append_column(_PREPARED, prepared)


def _prepare(table: pa.Table, columns: Columns, preparer: Preparer, rows: I64) -> pa.StructArray | None:
    """Of `rows`, null where they could not be prepared; None if none could."""
    batch, unreadable = read_payload(table, columns.payload, rows)
    if len(unreadable) == len(rows):
        return None
    made = prepare_rows(preparer, batch, columns.role)
    if made is None or not unreadable:
        return made
    is_bad = np.array([row in unreadable for row in rows.tolist()])
    return made.take(pa.array(np.cumsum(~is_bad) - 1, mask=is_bad))


def digests(table: pa.Table, columns: Columns) -> tuple[pa.Array, pa.Array]:
    """Digests (n,) of items' payloads, and of their versions, null where none is known: of a table as it was read, or
    of a prepared one.
    """
    if _PAYLOAD in table.column_names:
        return table.column(_PAYLOAD).combine_chunks(), table.column(_VERSION).combine_chunks()
    version = pa.nulls(table.num_rows, pa.binary(DIGEST_BYTES))
    if columns.version is not None:
        version = version_digests(table, columns.version)
    return payload_digests(table, columns.payload), version


def is_prepared(table: pa.Table) -> np.ndarray:
    """(n,) bool."""
    if _PREPARED not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return table.column(_PREPARED).is_valid().to_numpy()


def read_prepared(table: pa.Table, rows: I64) -> dict[str, pa.Array]:
    """The prepared columns of prepared rows, R > 0."""
    column, first = table.column(_PREPARED), int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        made = column.slice(first, len(rows))
    else:
        made = column.take(pa.array(rows))
    whole = made.chunk(0) if made.num_chunks == 1 else made.combine_chunks()
    return dict(zip([field.name for field in whole.type], whole.flatten(), strict=True))


def read_payload(table: pa.Table, names: Sequence[str], rows: I64) -> tuple[dict[str, list[object]], dict[int, str]]:
    """The payload columns of those of `rows` that can be read, as the embedder takes them, and {row: reason} of the
    others.
    """
    columns = {name: payload_values(table.column(name), table.schema.field(name), rows) for name in names}
    reasons: dict[int, str] = {}
    for name, (_, faults) in columns.items():
        for place, fault in faults.items():
            reasons.setdefault(int(rows[place]), one_line(f"payload column {name!r}: {fault}", MAX_REASON_CHARS))
    kept = [place for place, row in enumerate(rows.tolist()) if row not in reasons]
    return {name: [values[place] for place in kept] for name, (values, _) in columns.items()}, reasons


def longest_first(table: pa.Table, payload: Sequence[str]) -> I64:
    """All rows (n,) by the bytes of their texts and the lengths of their prepared lists, such as token ids: a batch is
    padded to its longest row. Without either, as they are.
    """
    lengths = np.zeros(table.num_rows, np.int64)
    columns = [table.column(name) for name in payload if name in table.column_names]
    if _PREPARED in table.column_names:
        prepared = table.column(_PREPARED)
        columns = [pc.struct_field(prepared, place) for place in range(prepared.type.num_fields)]
    for column in columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lengths += pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            lengths += pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    return np.argsort(-lengths, kind="stable")
