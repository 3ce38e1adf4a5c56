"""Which row is embedded when: per row in the work files of a plan, per chunk in its work list.

Legend: n rows of a chunk, W waves. Waves are 0 (the pairs, and what is new already), 1..W, and W + 1 for the rest that
no wave reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.ids import combine_digests, keys_digest
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import units_path, work_path
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import I64, U64, Bools, Model

# Where a row's new vector is: to be embedded, or in a segment of the version that the plan begins with; from 0 on the
# number of the file that holds it.
DUE, SERVED = -1, -2


class VectorFile(Model):
    """The new vectors of a unit, and what is known of their items, row by row."""

    vectors: FileRef
    items: FileRef


KnownRows = Mapping[str, Mapping[int, tuple[VectorFile, int]]]
"""{unit of a chunk: {offset: the file that holds the row's new vector already, and the row in it}}"""


@dataclass(frozen=True)
class RowWork:
    """The rows of one chunk.

    wave: (n,) in which they are new. stale: (n,) whether they have a stale vector until then. source: (n,) DUE, SERVED,
    or the number of the file in `files` that holds the new vector already, in row source_row (n,).
    """

    wave: NDArray[np.int16]
    stale: Bools
    source: NDArray[np.int32]
    source_row: NDArray[np.int32]
    files: tuple[VectorFile, ...] = ()

    @classmethod
    def of_due(cls, wave: NDArray[np.int16], stale: Bools) -> RowWork:
        """Rows of which none is embedded."""
        nowhere = np.full(len(wave), DUE, np.int32)
        return cls(wave, stale, nowhere, nowhere)

    def with_known(self, known: Mapping[int, tuple[VectorFile, int]]) -> RowWork:
        """The same, where the vectors of some due rows {offset: (file, row)} are known."""
        source, source_row, files = self.source.copy(), self.source_row.copy(), list(self.files)
        for offset, (file, row) in known.items():
            if source[offset] == DUE:
                if file not in files:
                    files.append(file)
                source[offset], source_row[offset] = files.index(file), row
        return replace(self, source=source, source_row=source_row, files=tuple(files))

    def due(self, wave: int) -> Bools:
        """(n,) the rows that are to be embedded in a wave."""
        return (self.wave == wave) & (self.source == DUE)

    def known(self, wave: int) -> Bools:
        """(n,) the rows that become new in a wave with a vector that there is already."""
        return (self.wave == wave) & (self.source >= 0)

    def known_in(self, wave: int) -> Iterator[tuple[VectorFile, I64]]:
        """The files that hold vectors of ``known`` rows, and their rows in each."""
        chosen = self.known(wave)
        for number in np.unique(self.source[chosen]).tolist():
            yield self.files[number], self.source_row[chosen & (self.source == number)].astype(np.int64)


class ChunkWork(Model):
    """One chunk in the work list. Each tuple has an entry per wave, (W + 2,).

    file: the work file that holds its rows. due, known: rows, see ``RowWork``. absent, absent_digests: rows and ids of
    those that have no stale vector, and are not served before their wave.
    """

    unit: str
    bucket: int
    file: FileRef
    due: tuple[int, ...]
    known: tuple[int, ...]
    rows: tuple[int, ...]
    absent: tuple[int, ...]
    absent_digests: tuple[str, ...]

    def placed(self, *, bucket: int | None = None, file: FileRef | None = None) -> ChunkWork:
        """The same chunk in a bucket, or with its work file."""
        fresh = {"bucket": self.bucket if bucket is None else bucket, "file": self.file if file is None else file}
        return ChunkWork.model_construct(_FIELDS, **(self.__dict__ | fresh))


# A gallery has ten thousands of chunks: one set says which fields their entries have.
_FIELDS = set(ChunkWork.model_fields)
_OPEN = FileRef(path="open", size=0, sha256="")


@dataclass(frozen=True)
class WorkList:
    """A plan's chunks, in the order of the snapshot."""

    chunks: tuple[ChunkWork, ...]

    @property
    def wave_rows(self) -> tuple[int, ...]:
        """Rows per wave (W + 2,)."""
        return tuple(np.array([chunk.rows for chunk in self.chunks], np.int64).sum(axis=0).tolist())

    @property
    def due_rows(self) -> tuple[int, ...]:
        """Rows per wave that become new in it, embedded for it or known before (W + 2,)."""
        counts = [[*map(sum, zip(chunk.due, chunk.known, strict=True))] for chunk in self.chunks]
        return tuple(np.array(counts, np.int64).sum(axis=0).tolist())

    @property
    def known_rows(self) -> tuple[int, ...]:
        """Rows per wave whose new vector is there already (W + 2,)."""
        return tuple(np.array([chunk.known for chunk in self.chunks], np.int64).sum(axis=0).tolist())

    def absent(self, waves: Iterable[int]) -> tuple[int, str]:
        """Rows that are absent while none of `waves` is embedded, and the digest of their ids."""
        waves = list(waves)
        rows = sum(chunk.absent[wave] for chunk in self.chunks for wave in waves)
        digests = (chunk.absent_digests[wave] for chunk in self.chunks for wave in waves if chunk.absent[wave])
        return rows, combine_digests(digests)


def count_rows(unit: str, rows: RowWork, keys: Callable[[], U64], width: int) -> ChunkWork:
    """A chunk's entry in the work list, its file and its bucket left open.

    Args:
        keys: gives the keys (n, 2) of its items; asked for only where some are absent.
        width: W + 2.
    """
    absent = ~rows.stale & (rows.source != SERVED)
    digests = [""] * width
    for wave in np.unique(rows.wave[absent]).tolist():
        digests[wave] = keys_digest(keys()[absent & (rows.wave == wave)])

    # Most chunks have the same tuples of zeros: what is equal is held once.
    counts: dict[tuple[int, ...], tuple[int, ...]] = {}

    def per_wave(chosen: Bools) -> tuple[int, ...]:
        found = tuple(np.bincount(rows.wave[chosen], minlength=width).tolist())
        return counts.setdefault(found, found)

    return ChunkWork.model_construct(
        _FIELDS,
        unit=unit,
        bucket=0,
        file=_OPEN,
        due=per_wave(rows.source == DUE),
        known=per_wave(rows.source >= 0),
        rows=per_wave(np.ones(len(rows.wave), bool)),
        absent=per_wave(absent),
        absent_digests=tuple(digests),
    )


def put_rows(files: Files, plan: str, chunks: Sequence[tuple[ChunkWork, RowWork]]) -> list[ChunkWork]:
    """Store the rows of some chunks as one work file, and name it in their entries."""
    reference = put_work_file(files, plan, [(chunk.unit, rows) for chunk, rows in chunks])
    return [chunk.placed(file=reference) for chunk, _ in chunks]


def put_work_file(files: Files, plan: str, chunks: Sequence[tuple[str, RowWork]]) -> FileRef:
    """Store the rows of some chunks (unit, rows) as one work file."""
    table = pa.table(
        {
            "unit": [unit for unit, _ in chunks],
            "wave": pa.array([rows.wave for _, rows in chunks], pa.list_(pa.int16())),
            "stale": pa.array([rows.stale for _, rows in chunks], pa.list_(pa.bool_())),
            "source": pa.array([rows.source for _, rows in chunks], pa.list_(pa.int32())),
            "source_row": pa.array([rows.source_row for _, rows in chunks], pa.list_(pa.int32())),
            "files": pa.array([[file.model_dump() for file in rows.files] for _, rows in chunks], pa.list_(_VECTORS)),
        }
    )
    return put_content(files, partial(work_path, plan), table_bytes(table))


_FILE = pa.struct([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string()), ("tag", pa.string())])
_VECTORS = pa.struct([("vectors", _FILE), ("items", _FILE)])


# As which a work list is turned into objects at a time.
_CHUNKS_AT_A_TIME = 1 << 10

# The work file that this process read last, by its sha256: neighbouring chunks share one.
_last_read: dict[str, dict[str, RowWork]] = {}


def read_rows(files: Files, chunk: ChunkWork) -> RowWork:
    """The rows of a chunk."""
    return rows_in(files, chunk.file, chunk.unit)


def rows_in(files: Files, reference: FileRef, unit: str) -> RowWork:
    """The rows of a chunk in a work file."""
    if (known := _last_read.get(reference.sha256)) is None:
        table = read_table(get_verified(files, reference), name=reference.path)
        known = {row: _rows_at(table, place) for place, row in enumerate(table.column("unit").to_pylist())}
        _last_read.clear()
        _last_read[reference.sha256] = known
    return known[unit]


def _rows_at(table: pa.Table, place: int) -> RowWork:
    def values(name: str) -> np.ndarray:
        return table.column(name)[place].values.to_numpy(zero_copy_only=False)

    return RowWork(
        wave=values("wave"),
        stale=values("stale"),
        source=values("source"),
        source_row=values("source_row"),
        files=tuple(map(VectorFile.model_validate, table.column("files")[place].as_py())),
    )


def put_work_list(files: Files, plan: str, work: WorkList) -> FileRef:
    """Store a plan's work list."""
    chunks = work.chunks
    parts = [_listed(chunks[i : i + _CHUNKS_AT_A_TIME]) for i in range(0, len(chunks), _CHUNKS_AT_A_TIME)]
    data = table_bytes(pa.concat_tables(parts).combine_chunks())
    return put_content(files, partial(units_path, plan), data)


def _listed(chunks: Sequence[ChunkWork]) -> pa.Table:
    names = ("due", "known", "rows", "absent")
    columns: dict[str, object] = {
        "unit": [chunk.unit for chunk in chunks],
        "bucket": pa.array([chunk.bucket for chunk in chunks], pa.int64()),
        "file": pa.array([chunk.file.model_dump() for chunk in chunks], _FILE),
        **{name: pa.array([getattr(chunk, name) for chunk in chunks], pa.list_(pa.int64())) for name in names},
        "absent_digests": pa.array([chunk.absent_digests for chunk in chunks], pa.list_(pa.string())),
    }
    return pa.table(columns)


def read_work_list(files: Files, reference: FileRef) -> WorkList:
    """A plan's work list."""
    table = read_table(get_verified(files, reference), name=reference.path)
    # Most chunks have the same tuples of zeros, and some share a file: what is equal is held once.
    known: dict[Any, Any] = {}

    def shared(value: Any) -> Any:
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, dict):
            value = FileRef.model_validate(value)
        return known.setdefault(value, value)

    chunks: list[ChunkWork] = []
    for batch in table.to_batches(max_chunksize=_CHUNKS_AT_A_TIME):
        for row in batch.to_pylist():
            chunks.append(ChunkWork.model_construct(_FIELDS, **{name: shared(value) for name, value in row.items()}))
    return WorkList(tuple(chunks))
