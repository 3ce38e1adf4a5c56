"""Two snapshots compared, and what is known laid beside them: which items came, changed and went.

Only files that are not pinned as before are looked at: their payloads (or versions) are read once and kept as digests,
part by part. Everything else is compared by keys, partition by partition: no process ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.index.deletion_vector import read_deletion
from fastfill_ray.inputs.changes import payload_digests
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.log.records import Changes, FileRef, Segment
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.digests import Digests, digest_parts, with_rows
from fastfill_ray.stages.known import KNOWN_SCHEMA, PARTITION_ROWS, Known, cut_by_key, num_partitions
from fastfill_ray.stages.ledger import LedgerPart, read_keys
from fastfill_ray.stages.work import DUE, SERVED
from fastfill_ray.storage.arrow import keys_column, keys_of, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import compared_path
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import I64, U64, Bools

_BINARY = pa.binary(16)


@dataclass(frozen=True)
class Compared:
    """What the comparison found, in files, one per partition.

    items: of the parts that came: columns part (its number in `parts`), offset, source and source_row as in
    ``stages.work.RowWork``, changed, relabelled (new in the base, under another label or group). dead: of the base's
    segments: segment (its number), row.
    """

    parts: tuple[LedgerPart, ...] = ()
    items: tuple[FileRef, ...] = ()
    dead: tuple[FileRef, ...] = ()
    changes: Changes = field(default_factory=lambda: Changes(added=0, changed=0, removed=0))

    @property
    def numbers(self) -> dict[str, int]:
        """{unit of a part that came: its number}."""
        return {part.unit: number for number, part in enumerate(self.parts)}


@dataclass(frozen=True)
class _Work:
    """Something to be cut into partitions: exactly one of them is set.

    came: (number, part, its digests). went: a part. segment: (number, segment). known: a file of a partition.
    """

    came: tuple[int, LedgerPart, FileRef] | None = None
    went: LedgerPart | None = None
    segment: tuple[int, Segment] | None = None
    known: FileRef | None = None


_Kind = Literal["came", "went", "segment", "known"]
_CAME = pa.schema(
    [
        ("key", _BINARY),
        ("payload", _BINARY),
        ("version", _BINARY),
        ("beside", _BINARY),
        ("part", pa.int32()),
        ("offset", pa.int32()),
    ]
)
_WENT = pa.schema([("key", _BINARY)])
_SEGMENT = pa.schema(
    [
        ("key", _BINARY),
        ("s_payload", _BINARY),
        ("s_version", _BINARY),
        ("s_beside", _BINARY),
        ("new", pa.bool_()),
        ("segment", pa.int32()),
        ("row", pa.int32()),
    ]
)


def compare(
    context: Context,
    source: Source,
    parts: tuple[Sequence[LedgerPart], Sequence[LedgerPart]],
    segments: Sequence[Segment],
    known: Known,
) -> Compared:
    """What came and what went, against the base's segments and everything that is known.

    Args:
        parts: that came, and that went.
    """
    came, went = parts
    if not came and not went:
        return Compared()
    digests = digest_parts(context, came, Digests(source, payloads=known.unversioned > 0))
    work = [
        *(_Work(came=(number, part, digests[part.unit])) for number, part in enumerate(came)),
        *(_Work(went=part) for part in went),
        *(_Work(segment=(number, segment)) for number, segment in enumerate(segments)),
        *(_Work(known=reference) for partition in known.partitions for reference in partition),
    ]
    rows = known.rows + sum(part.rows for part in (*came, *went))
    with context.progress.timed("compare"):
        cut = partial(_cut, context.files, num_partitions(rows), _put_wanted(context.files, (*came, *went)))
        found = context.engine.exchange(cut, partial(_join, context.files), work, num_partitions(rows), lambda _: None)
    items, dead, changes = zip(*found, strict=True)
    return Compared(
        parts=tuple(came),
        items=items,
        dead=dead,
        changes=Changes(
            added=sum(each.added for each in changes),
            changed=sum(each.changed for each in changes),
            removed=sum(each.removed for each in changes),
        ),
    )


def _put_wanted(files: Files, parts: Sequence[LedgerPart]) -> FileRef | None:
    """The keys of all parts, as a file with their high halves, ascending; None where one process should not hold them.

    Nothing else of the segments, or of what is known, can matter.
    """
    if sum(part.rows for part in parts) > PARTITION_ROWS:
        return None
    highs = np.unique(np.concatenate([read_keys(files, part)[:, 0] for part in parts]))
    return put_content(files, compared_path, table_bytes(pa.table({"high": highs})))


# The wanted keys that this process read last, by the file's sha256.
_last_wanted: dict[str, U64] = {}


def _is_wanted(files: Files, wanted: FileRef | None, keys: U64) -> Bools:
    """Whether each of the keys (N, 2) is wanted; true for a few more than those."""
    if wanted is None:
        return np.ones(len(keys), bool)
    if wanted.sha256 not in _last_wanted:
        table = read_table(get_verified(files, wanted), name=wanted.path)
        _last_wanted.clear()
        _last_wanted[wanted.sha256] = table.column("high").to_numpy()
    highs = _last_wanted[wanted.sha256]
    place = np.minimum(np.searchsorted(highs, keys[:, 0]), len(highs) - 1)
    found: Bools = highs[place] == keys[:, 0]
    return found


def _cut(files: Files, parts: int, wanted: FileRef | None, work: _Work) -> list[tuple[_Kind, pa.Table]]:
    if work.came is not None:
        number, part, digests = work.came
        table = read_table(get_verified(files, digests), name=digests.path)
        table = table.append_column("key", keys_column(read_keys(files, part)))
        table = table.append_column("part", pa.array(np.full(part.rows, number, np.int32)))
        table = table.append_column("offset", pa.array(np.arange(part.rows, dtype=np.int32)))
        return _tagged("came", table.select(_CAME.names).cast(_CAME), parts)
    if work.went is not None:
        return _tagged("went", pa.table({"key": keys_column(read_keys(files, work.went))}), parts)
    if work.segment is not None:
        return _tagged("segment", _segment_rows(files, wanted, *work.segment), parts)
    assert work.known is not None
    known = read_table(get_verified(files, work.known), name=work.known.path)
    return _tagged("known", known.filter(pa.array(_is_wanted(files, wanted, keys_of(known.column("key"))))), parts)


def _tagged(kind: _Kind, table: pa.Table, parts: int) -> list[tuple[_Kind, pa.Table]]:
    return [(kind, part) for part in cut_by_key(table, parts)]


def _segment_rows(files: Files, wanted: FileRef | None, number: int, segment: Segment) -> pa.Table:
    """The rows of a segment that are of its plan, and wanted: what DELETE hides is among them."""
    table = read_table(get_verified(files, segment.ids), name=segment.ids.path)
    keys = item_keys(table.column("id").to_pylist())
    chosen = _is_wanted(files, wanted, keys)
    vector = read_deletion(files, segment)
    chosen[vector.rows[~vector.deleted]] = False
    rows = np.flatnonzero(chosen)
    table = table.take(pa.array(rows))
    beside = [name for name in ("label", "group") if name in table.column_names]
    count, is_new = len(rows), segment.state == "new"
    return pa.table(
        {
            "key": keys_column(keys[rows]),
            "s_payload": table.column("payload") if is_new else pa.nulls(count, _BINARY),
            "s_version": table.column("version") if is_new else pa.nulls(count, _BINARY),
            "s_beside": payload_digests(with_rows({name: table.column(name) for name in beside}, count), beside),
            "new": pa.array(np.full(count, is_new)),
            "segment": pa.array(np.full(count, number, np.int32)),
            "row": pa.array(rows, pa.int32()),
        }
    ).cast(_SEGMENT)


def _join(files: Files, *pieces: tuple[_Kind, pa.Table]) -> tuple[FileRef, FileRef, Changes]:
    """One partition: what becomes of the items that came, and of the base's rows."""
    schemas: dict[_Kind, pa.Schema] = {"came": _CAME, "went": _WENT, "segment": _SEGMENT, "known": KNOWN_SCHEMA}
    came, went, segment, known = (
        pa.concat_tables([schema.empty_table(), *(table for tag, table in pieces if tag == kind)])
        for kind, schema in schemas.items()
    )
    served = segment.filter(segment.column("new"))
    matched = came.join(served, "key", join_type="left outer")
    same = _is_same(matched, "s_")
    is_kept = pc.and_(same, pc.equal(matched.column("beside"), matched.column("s_beside")).fill_null(False))
    kept = matched.filter(is_kept)
    others = matched.filter(pc.invert(is_kept))
    changed = pc.and_(pc.is_valid(others.column("row")), pc.invert(_is_same(others, "s_")))
    relabelled = _is_same(others, "s_")
    placed = find_known(others.append_column("changed", changed).append_column("relabelled", relabelled), known)
    items = pa.concat_tables(
        [
            placed,
            pa.table(
                {
                    "part": kept.column("part"),
                    "offset": kept.column("offset"),
                    "source": pa.array(np.full(kept.num_rows, SERVED, np.int32)),
                    "source_row": pa.array(np.zeros(kept.num_rows, np.int32)),
                    "changed": pa.array(np.zeros(kept.num_rows, bool)),
                    "relabelled": pa.array(np.zeros(kept.num_rows, bool)),
                }
            ),
        ]
    ).sort_by([("part", "ascending"), ("offset", "ascending")])
    gone = segment.join(went, "key", join_type="inner")
    gone = gone.join(kept.select(["segment", "row"]), ["segment", "row"], join_type="left anti")
    dead = gone.select(["segment", "row"]).sort_by([("segment", "ascending"), ("row", "ascending")])
    both = came.select(["key"]).join(went, "key", join_type="inner").num_rows
    changes = Changes(
        added=came.num_rows - both, changed=int(pc.sum(changed).as_py() or 0), removed=went.num_rows - both
    )
    stored = [put_content(files, compared_path, table_bytes(table)) for table in (items, dead)]
    return stored[0], stored[1], changes


def _is_same(table: pa.Table, prefix: str) -> pa.ChunkedArray:
    """Whether the payload is known to be that of the other side."""
    return same_payload(table, prefix).fill_null(False)


def same_payload(table: pa.Table, prefix: str) -> pa.ChunkedArray:
    """Whether the payload is that of the other side, whose columns have the prefix: by version where both have one,
    else by digest; null where one side has neither.
    """
    by_version = pc.equal(table.column("version"), table.column(f"{prefix}version"))
    by_payload = pc.equal(table.column("payload"), table.column(f"{prefix}payload"))
    return pc.coalesce(by_version, by_payload)


def rows_of_segment(files: Files, references: Sequence[FileRef], number: int) -> I64:
    """The rows (H,) that files with columns segment and row, such as ``Compared.dead``, name of one segment."""
    found = [np.empty(0, np.int64)]
    for reference in references:
        table = read_table(get_verified(files, reference), name=reference.path)
        found.append(table.filter(pc.equal(table.column("segment"), number)).column("row").to_numpy().astype(np.int64))
    return np.concatenate(found)


def find_known(items: pa.Table, known: pa.Table) -> pa.Table:
    """Where the new vectors of items are; DUE where there is none. What `items` says of a row as changed or
    relabelled is kept."""
    known = known.rename_columns(["key", "k_payload", "k_version", "file", "file_row"])
    wanted = items.select(["key", "payload", "version", "part", "offset"])
    matched = wanted.join(known, "key", join_type="inner")
    matched = matched.filter(_is_same(matched, "k_")).sort_by(
        [("part", "ascending"), ("offset", "ascending"), ("file", "ascending")]
    )
    best = matched.group_by(["part", "offset"], use_threads=False).aggregate([("file", "first"), ("file_row", "first")])
    kept = [name for name in ("changed", "relabelled") if name in items.column_names]
    placed = items.select(["part", "offset", *kept]).join(best, ["part", "offset"], join_type="left outer")
    return pa.table(
        {
            "part": placed.column("part"),
            "offset": placed.column("offset"),
            "source": placed.column("file_first").fill_null(DUE),
            "source_row": placed.column("file_row_first").fill_null(0),
            **{name: placed.column(name) for name in kept},
        }
    )
