"""What is new already of a gallery's chunks: served by the version that a plan begins with, known, or due.

Legend: n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.log.records import FileRef
from fastfill_ray.stages.compare import Compared
from fastfill_ray.stages.known import Known, vector_file
from fastfill_ray.stages.ledger import LedgerPart, ledger_parts, read_keys
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import DUE, SERVED, RowWork, VectorFile, put_work_file, rows_in
from fastfill_ray.storage.arrow import read_table
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import U64, Bools


@dataclass(frozen=True)
class ChunkHistory:
    """What the plans from the base's on have made of a chunk whose file is pinned as before.

    entries: per plan its work file, and its receipts by wave. newest: the last wave of the first plan that is new in
    the base.
    """

    entries: tuple[tuple[FileRef, Mapping[int, Receipt]], ...]
    newest: int


@dataclass(frozen=True)
class StandingChunk:
    """A chunk of the new snapshot, and where to look up what is new of it.

    part, start: the part of the ledger that it is in, and its first row there. history: None where its file came.
    """

    unit: str
    first_row: int
    rows: int
    part: LedgerPart
    start: int
    history: ChunkHistory | None

    def keys(self, files: Files) -> U64:
        """The keys (n, 2) of its items."""
        return read_keys(files, self.part)[self.start : self.start + self.rows]


class Differences(NamedTuple):
    """Rows (n,) whose payload is not that of the base, and rows that are new in the base under another label."""

    changed: Bools
    relabelled: Bools


@dataclass(frozen=True)
class Standing:
    """What tasks need to know to tell what is new of a chunk. space: the new model's."""

    files: Files
    space: str
    compared: Compared
    known: Known

    def of_group(self, chunks: Sequence[StandingChunk]) -> Iterator[tuple[StandingChunk, RowWork, Differences]]:
        """Per chunk what is served, known or due of it, and what differs from the base.

        Waves and stale vectors are those of the base's plan; where the file came, waves are 0 and nothing is stale.
        """
        numbers = self.compared.numbers
        came = _read_items(self.files, self.compared, {numbers[c.part.unit] for c in chunks if c.history is None})
        for chunk in chunks:
            if chunk.history is not None:
                rows = _of_history(self.files, self.space, chunk, chunk.history)
                yield chunk, rows, Differences(np.zeros(chunk.rows, bool), np.zeros(chunk.rows, bool))
            else:
                items = came[numbers[chunk.part.unit]].slice(chunk.start, chunk.rows)
                changed, relabelled = (items.column(name).to_numpy() for name in Differences._fields)
                yield chunk, _of_items(self.known, items), Differences(changed, relabelled)


def standing_chunks(snapshot: Snapshot, histories: Mapping[str, ChunkHistory]) -> list[StandingChunk]:
    """The chunks of a snapshot in its order.

    Args:
        histories: {unit: history} of the chunks whose files are pinned as before.
    """
    chunks, result = iter(snapshot.chunks), []
    for part in ledger_parts(snapshot):
        here = [next(chunks) for _ in part.chunk_rows]
        # A part is compared as a whole: one that was cut in another way came, like one of another file.
        stayed = all(chunk.unit in histories for chunk in here)
        for chunk in here:
            history = histories[chunk.unit] if stayed else None
            result.append(StandingChunk(chunk.unit, chunk.start, chunk.rows, part, chunk.start - part.start, history))
    return result


def _of_history(files: Files, space: str, chunk: StandingChunk, history: ChunkHistory) -> RowWork:
    (first, receipts), *later = history.entries
    rows = rows_in(files, first, chunk.unit)
    served = (rows.source == SERVED) | ((rows.source >= 0) & (rows.wave <= history.newest))
    result = _Sources(rows)
    for wave, receipt in sorted(receipts.items()):
        embedded = _embedded(rows, wave, chunk, receipt)
        if wave <= history.newest:
            served[embedded] = True
        else:
            result.add(vector_file(receipt, space), embedded)
    for file, receipts in later:
        there = rows_in(files, file, chunk.unit)
        result.take(there)
        for wave, receipt in sorted(receipts.items()):
            result.add(vector_file(receipt, space), _embedded(there, wave, chunk, receipt))
    result.source[served] = SERVED
    return RowWork(rows.wave, rows.stale, result.source, result.source_row, tuple(result.files))


def _embedded(rows: RowWork, wave: int, chunk: StandingChunk, receipt: Receipt) -> np.ndarray:
    """The rows that a receipt vouches for, in the order of its vectors."""
    bad = [fault.row - chunk.first_row for fault in receipt.quarantined]
    embedded = np.setdiff1d(np.flatnonzero(rows.due(wave)), bad)
    # Pairs that were known by then are not in the receipt: they are found by their digests.
    return embedded if len(embedded) == receipt.rows else np.empty(0, np.int64)


class _Sources:
    """Where new vectors of the rows of a chunk are: the first that is found stays."""

    def __init__(self, rows: RowWork) -> None:
        self.source, self.source_row, self.files = rows.source.copy(), rows.source_row.copy(), list(rows.files)

    def add(self, file: VectorFile | None, rows: np.ndarray) -> None:
        """Rows [0, len(rows)) of `file` are the vectors of `rows`."""
        if file is None:
            return
        free = np.flatnonzero(self.source[rows] == DUE)
        if len(free):
            self.source[rows[free]], self.source_row[rows[free]] = len(self.files), free
            self.files.append(file)

    def take(self, other: RowWork) -> None:
        """What another plan knew of the same rows."""
        taken = (self.source == DUE) & (other.source >= 0)
        self.source[taken] = other.source[taken] + len(self.files)
        self.source_row[taken] = other.source_row[taken]
        if taken.any():
            self.files += other.files


def _of_items(known: Known, items: pa.Table) -> RowWork:
    """The rows of a chunk whose file came, by what the comparison found."""
    source = items.column("source").to_numpy().copy()
    used, place = np.unique(source[source >= 0], return_inverse=True)
    source[source >= 0] = place
    nothing = np.zeros(len(source), bool)
    files = tuple(known.files[number] for number in used.tolist())
    return RowWork(nothing.astype(np.int16), nothing, source, items.column("source_row").to_numpy(), files)


def _read_items(files: Files, compared: Compared, parts: set[int]) -> dict[int, pa.Table]:
    """{number of a part that came: what the comparison found of its items, in their order}."""
    if not parts:
        return {}
    wanted = pa.array(sorted(parts), pa.int32())
    found = []
    for reference in compared.items:
        table = read_table(get_verified(files, reference), name=reference.path)
        found.append(table.filter(pc.is_in(table.column("part"), wanted)))
    table = pa.concat_tables(found).sort_by([("part", "ascending"), ("offset", "ascending")])
    numbers = table.column("part").to_numpy()
    ends = {part: np.searchsorted(numbers, [part, part + 1]).tolist() for part in parts}
    return {part: table.slice(start, end - start) for part, (start, end) in ends.items()}


def put_standing(standing: Standing, plan: str, chunks: Sequence[StandingChunk]) -> dict[str, FileRef]:
    """{unit: work file that says what of it is new already}: for a plan whose order is made anew."""
    rows = [(chunk.unit, rows) for chunk, rows, _ in standing.of_group(chunks)]
    reference = put_work_file(standing.files, plan, rows)
    return {unit: reference for unit, _ in rows}
