"""The new vectors that there are: of which item, payload and version, in which file and row. Kept in partitions.

Whatever was embedded under this root, by a plan that is finished, abandoned or never made, is found here, so that it is
not embedded again. Legend: N known vectors.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.engine.interface import Engine
from fastfill_ray.log.records import FileRef
from fastfill_ray.stages.embed import items_file, vectors_file
from fastfill_ray.stages.work import VectorFile
from fastfill_ray.storage.arrow import keys_of, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import known_list_path, known_path, parse_unit_receipt
from fastfill_ray.storage.receipts import Receipt, find_receipts
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import I64, Model, canonical

# Where items are embedded. Old vectors and queries are elsewhere.
_PLACES = ("pairs", "vectors")
# What is compared at a time, by one process: about 60 bytes each.
PARTITION_ROWS = 1 << 22
# Items files that one task reads.
_FILES_PER_TASK = 256
# Files of a partition before it is written anew as one.
_MOST_FILES = 16
_BINARY = pa.binary(16)
KNOWN_SCHEMA = pa.schema(
    [
        ("key", _BINARY),
        ("payload", _BINARY),
        ("version", _BINARY),
        ("file", pa.int32()),
        ("row", pa.int32()),
    ]
)


class Known(Model):
    """All known vectors.

    partitions: by ``partition_of``, each as files with columns key, payload, version (null: none), file (its number in
    `files`), row; what came later is in a later file, also where it was known before. folders: whose receipts are in
    it, and which get no more of them. rows: of all partitions. unversioned: those without a version.
    """

    files: tuple[VectorFile, ...] = ()
    partitions: tuple[tuple[FileRef, ...], ...] = ()
    folders: tuple[str, ...] = ()
    rows: int = 0
    unversioned: int = 0


def partition_of(keys: pa.Array | pa.ChunkedArray, partitions: int) -> I64:
    """The partition (N,) of each key."""
    return (keys_of(keys)[:, 0] % np.uint64(partitions)).astype(np.int64)


def num_partitions(rows: int) -> int:
    """Partitions of so many rows; at least the two that an exchange needs."""
    return max(2, -(-rows // PARTITION_ROWS))


def gather_known(engine: Engine, files: Files, before: Known, space: str, open_folders: Set[str]) -> Known:
    """What is known, and what has been embedded since.

    Args:
        space: the new model's; what other models made is passed over.
        open_folders: whose receipts may still grow in number: they are looked at another time.
    """
    listed = {path.rpartition("/")[0] for place in _PLACES for path in files.list(place) if parse_unit_receipt(path)}
    folders = sorted(listed - {*before.folders, *open_folders})
    receipts = [receipt for folder in folders for _, receipt in sorted(find_receipts(files, folder).items())]
    there = {file.vectors.path for file in before.files}
    fresh = [file for receipt in receipts if (file := vector_file(receipt, space)) and file.vectors.path not in there]
    closed = tuple(sorted({*before.folders, *folders}))
    if not fresh:
        return before.model_copy(update={"folders": closed})
    rows = before.rows + sum(receipt.rows for receipt in receipts)
    parts = num_partitions(rows)
    # What is known is not written again for what comes, but for once in a while: a partition has few files.
    is_merged = len(before.partitions) != parts or any(len(partition) >= _MOST_FILES for partition in before.partitions)
    earlier = before.partitions if is_merged else ()
    work = [_Piece(None, tuple((0, reference) for reference in partition)) for partition in earlier]
    numbered = list(enumerate((file.items for file in fresh), start=len(before.files)))
    work += [
        _Piece("items", tuple(numbered[i : i + _FILES_PER_TASK])) for i in range(0, len(numbered), _FILES_PER_TASK)
    ]
    joined = engine.exchange(partial(_cut, files, parts), partial(_join, files), work, parts, lambda _: None)
    references, counts, unversioned = zip(*joined, strict=True)
    kept = before.partitions if not is_merged else ((),) * parts
    return Known(
        files=(*before.files, *fresh),
        partitions=tuple((*those, reference) for those, reference in zip(kept, references, strict=True)),
        folders=closed,
        rows=sum(counts) + (0 if is_merged else before.rows),
        unversioned=sum(unversioned) + (0 if is_merged else before.unversioned),
    )


def vector_file(receipt: Receipt, space: str) -> VectorFile | None:
    """What a receipt vouches for; None where it is nothing, or of another model."""
    vectors, items = vectors_file(receipt), items_file(receipt)
    if vectors is None or items is None or receipt.details.get("space") != space:
        return None
    return VectorFile(vectors=vectors, items=items)


@dataclass(frozen=True)
class _Piece:
    """Files to be cut: those of a partition as it was, or items files with their numbers."""

    kind: str | None
    files: tuple[tuple[int, FileRef], ...]


def _cut(files: Files, parts: int, piece: _Piece) -> Sequence[pa.Table]:
    tables = []
    for number, reference in piece.files:
        table = read_table(get_verified(files, reference), name=reference.path)
        if piece.kind is not None:
            table = table.append_column("file", pa.array(np.full(table.num_rows, number, np.int32)))
            table = table.append_column("row", pa.array(np.arange(table.num_rows, dtype=np.int32)))
        tables.append(table.select(KNOWN_SCHEMA.names).cast(KNOWN_SCHEMA))
    return cut_by_key(pa.concat_tables(tables), parts)


def cut_by_key(table: pa.Table, parts: int) -> list[pa.Table]:
    """The rows of each partition, by the column ``key``."""
    part = partition_of(table.column("key"), parts)
    return [table.take(pa.array(np.flatnonzero(part == number))) for number in range(parts)]


def _join(files: Files, *pieces: pa.Table) -> tuple[FileRef, int, int]:
    """One partition, stored; what is known twice is where it was known first, which work files may have named."""
    table = pa.concat_tables(pieces).group_by(["key", "payload", "version"], use_threads=False)
    once = table.aggregate([("file", "first"), ("row", "first")])
    once = once.rename_columns(KNOWN_SCHEMA.names).cast(KNOWN_SCHEMA)
    return put_content(files, known_path, table_bytes(once)), once.num_rows, once.column("version").null_count


def put_known(files: Files, known: Known) -> FileRef:
    """Store the list of all that is known; its partitions are stored already."""
    return put_content(files, known_list_path, canonical(known.model_dump(mode="json")))


def read_known(files: Files, reference: FileRef | None) -> Known:
    """What ``put_known`` stored; nothing without a reference.

    Raises:
        CorruptFile, FileMissing: it is damaged or gone.
    """
    return Known() if reference is None else Known.model_validate_json(get_verified(files, reference))


def read_partition(files: Files, known: Known, number: int) -> pa.Table:
    """One partition of ``num_partitions``: columns of ``KNOWN_SCHEMA``."""
    if not known.partitions:
        return KNOWN_SCHEMA.empty_table()
    return pa.concat_tables(read_table(get_verified(files, each), name=each.path) for each in known.partitions[number])
