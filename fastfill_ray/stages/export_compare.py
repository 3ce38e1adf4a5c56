"""Which rows of what came a store lacks, and which ids of what went it is to take out, where both are many.

Ids are exchanged by their hash, so that no process holds more than those of one segment, or of one part of the hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.engine.interface import Engine
from fastfill_ray.log.records import FileRef, Segment
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.stages.export_changes import Changes, Portion, PortionReader, Upsert
from fastfill_ray.stages.progress import Progress
from fastfill_ray.types import I64, Model

# Ids of a part, of what came and of what went together: with the table that finds them some 100 bytes each.
_PART_IDS = 1 << 21


class _Part(Model):
    """Of the ids of one part of the hashes. rows: per portion that came. meets: (portion that came, portion that went)
    that share an id. deleted: ids that went and did not come.
    """

    rows: tuple[int, ...]
    meets: tuple[tuple[int, int], ...]
    deleted: FileRef | None
    deleted_rows: int


def compare(
    engine: Engine,
    reader: PortionReader,
    changed: tuple[Sequence[Portion], Sequence[Portion]],
    can_be_alike: Callable[[Segment, Segment], bool],
    put_deleted: Callable[[pa.Array], FileRef],
    progress: Progress,
) -> Changes:
    """What takes a store from what it holds to a version.

    Args:
        changed: portions that came, and that went, of ``changes_since``.
        can_be_alike: whether an item may be exported alike from a segment that came, and from one that went.
        put_deleted: makes some ids (C,) that a store is to take out durable; the same ones in the same file.

    Raises:
        CorruptFile, FileMissing: a file of either version is damaged or gone.
    """
    came, went = changed
    portions = [*came, *went]
    if not portions:
        return Changes(())
    count = sum(portion.rows for portion in portions)
    num_parts = max(2, -(-count // _PART_IDS))
    with progress.stage("compare ids", count, "ids") as bar:
        parts = engine.exchange(
            partial(_cut, reader, num_parts),
            partial(_join, len(came), put_deleted),
            portions,
            num_parts,
            lambda portion: bar.advance(portion.rows),
        )
    met: dict[int, list[Portion]] = {}
    for one, other in sorted({pair for part in parts for pair in part.meets}):
        met.setdefault(one, []).append(went[other])
    upserted = []
    for number, portion in enumerate(came):
        if rows := sum(part.rows[number] for part in parts):
            alike = tuple(each for each in met.get(number, []) if can_be_alike(portion.segment, each.segment))
            upserted.append(Upsert(portion=portion.model_copy(update={"rows": rows}), held=alike))
    deleted = tuple(part.deleted for part in parts if part.deleted is not None)
    return Changes(tuple(upserted), deleted, sum(part.deleted_rows for part in parts))


def _cut(reader: PortionReader, num_parts: int, portion: Portion) -> list[pa.Array]:
    """The ids of a portion's rows, by their hash."""
    ids = reader.ids(portion)
    part = hash_ids(ids) % np.uint64(num_parts)
    order = np.argsort(part, kind="stable")
    ends = np.searchsorted(part[order], np.arange(num_parts, dtype=np.uint64), side="right")
    # Copies: a slice would take all of the array with it to another process.
    return [ids.take(pa.array(rows)) for rows in np.split(order, ends[:-1])]


def _join(num_came: int, put_deleted: Callable[[pa.Array], FileRef], *ids: pa.Array) -> _Part:
    """ids: of one part, of every portion that came, then of every one that went. An id is once in either."""
    came, went = (pa.chunked_array(some, ids[0].type) for some in (ids[:num_came], ids[num_came:]))
    place = pc.index_in(came, value_set=went).fill_null(-1).to_numpy()  # (ids that came,), -1 where it did not go
    ends = np.array(list(accumulate(map(len, ids[num_came:]))), np.int64)
    meets: list[tuple[int, int]] = []
    start = 0
    for number, some in enumerate(ids[:num_came]):
        lies = place[start : start + len(some)]
        start += len(some)
        others: I64 = np.unique(np.searchsorted(ends, lies[lies >= 0], side="right"))
        meets += [(number, other) for other in others.tolist()]
    goes = np.ones(len(went), bool)
    goes[place[place >= 0]] = False
    deleted = went.filter(pa.array(goes)).combine_chunks()
    return _Part(
        rows=tuple(map(len, ids[:num_came])),
        meets=tuple(meets),
        deleted=put_deleted(deleted) if len(deleted) else None,
        deleted_rows=len(deleted),
    )
