"""Reading the user's Parquet files: footers pinned at planning, slices read and checked against the pin later.

Nothing is written. What a table of several files is, ``inputs.table`` says.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import IO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.errors import InputChanged, InputError
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.types import I64, Model

T = TypeVar("T")

# What a folder's name, such as label=7, says of a column of its files; None for no value.
PartitionValue = int | str | None

_FOOTER_BYTES = 64 << 10  # most footers are smaller: one read from the store
# Behind the footer of a file with encrypted columns that can itself be read: a nonce and a tag of AES-GCM.
_SIGNATURE_BYTES = 12 + 16
# Read from the store at a time and per column, where a row group is larger than this.
_BUFFER_BYTES = 8 << 20


class PinnedFile(Model):
    """One input file as it was at planning.

    read_bytes: uncompressed, of the columns that are read. constants: (column, value in every row) of columns that are
    not in the file, but in the names of its folders.
    """

    path: str
    size: int
    tag: str
    row_groups: tuple[int, ...]
    read_bytes: int
    constants: tuple[tuple[str, PartitionValue], ...] = ()

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    @cached_property
    def row_ends(self) -> tuple[int, ...]:
        """The row after the last one of each row group (groups,)."""
        return tuple(itertools.accumulate(self.row_groups))


class Footer(NamedTuple):
    """What a file's footer says."""

    metadata: pq.FileMetaData
    schema: pa.Schema


def read_footer(store: InputStore, file: InputFile) -> Footer:
    """A file's footer.

    Raises:
        InputError: it is not Parquet, is truncated, holds encrypted columns, or cannot be read.
    """
    try:
        with store.open(file.path) as handle:
            tail = _tail(handle, _FOOTER_BYTES)
            length = int.from_bytes(tail[-8:-4], "little")
            if len(tail) < length + 8:
                tail = _tail(handle, length + 8)
        reader = pq.ParquetFile(pa.BufferReader(tail))
        footer = Footer(reader.metadata, reader.schema_arrow)
    except ValueError as error:  # of a library whose extension types are registered in this process
        if isinstance(error, pa.ArrowException):
            raise _not_parquet(file, error) from error
        raise InputError(
            f"{file.path}: its columns' types cannot be read ({_first_line(error)}). Write the file again with plain "
            "types, such as lists, or with a newer release of the library that wrote it."
        ) from error
    except pa.ArrowException as error:
        raise _not_parquet(file, error) from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({_first_line(error)})") from error
    if length - footer.metadata.serialized_size == _SIGNATURE_BYTES:
        # Arrow ends the process when it is asked what such a column takes.
        raise InputError(f"{file.path}: holds encrypted columns. Write it again without encryption.")
    return footer


def _tail(handle: IO[bytes], length: int) -> bytes:
    """The last bytes of a file, at most `length`."""
    end = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, end - length))
    return handle.read(length)


def _not_parquet(file: InputFile, error: pa.ArrowException) -> InputError:
    return InputError(
        f"{file.path}: not a readable Parquet file of {file.size} bytes ({_first_line(error)}). "
        "It is truncated or of another format. Write it again as Parquet, or leave it out of the input."
    )


@dataclass(frozen=True)
class Span:
    """Rows [start, start + rows) of a pinned file."""

    file: PinnedFile
    start: int
    rows: int

    @property
    def row_group(self) -> int | None:
        """The row group that it is a part of; None if it is all of one, or of several."""
        ends = self.file.row_ends
        group = bisect.bisect_right(ends, self.start)
        end = self.start + self.rows
        is_part = group < len(ends) and end <= ends[group] and self.rows < self.file.row_groups[group]
        return group if is_part else None


def in_one_pass(items: Iterable[T], span_of: Callable[[T], Span]) -> list[list[T]]:
    """The items in their order, in groups that are best read together: neighbours whose spans share a row group."""
    groups: list[list[T]] = []
    before: tuple[PinnedFile, int | None] | None = None
    for item in items:
        span = span_of(item)
        place = (span.file, span.row_group)
        if place == before and place[1] is not None:
            groups[-1].append(item)
        else:
            groups.append([item])
        before = place
    return groups


def read_spans(store: InputStore, spans: Iterable[Span], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of each span, one table after the other. A column that a file does not have is null, or its constant.

    A run of spans of one file, in the order of its rows, costs one pass: each row group that they touch is decoded
    once, a batch at a time, whatever its size. Spans that share no row group with another can as well be read alone.
    Small spans are read a few at a time, since each look whether the file is still the same is a round trip.

    Raises:
        InputChanged: a file is not the pinned one any more; no table of another one is ever given.
        InputError: its bytes cannot be decoded.
    """
    for _, run in itertools.groupby(spans, key=lambda span: span.file):
        yield from _read_run(store, list(run), list(dict.fromkeys(columns)))


def read_rows(
    store: InputStore, file: PinnedFile, columns: Sequence[str], *, start: int = 0, rows: int | None = None
) -> pa.Table:
    """One span, see ``read_spans``."""
    return next(read_spans(store, [Span(file, start, file.rows - start if rows is None else rows)], columns))


def read_around(
    store: InputStore, file: PinnedFile, rows: I64, columns: Sequence[str]
) -> Iterator[tuple[int, pa.Table, I64]]:
    """Some rows of a file, of any size, and what lies around them: (first row, table, the wanted rows' places in it).

    Args:
        rows: row numbers, ascending.
    """
    step = max(1, _BUFFER_BYTES * file.rows // max(1, file.read_bytes))
    runs = [list(run) for _, run in itertools.groupby(rows.tolist(), key=lambda row: row // step)]
    spans = [Span(file, run[0], run[-1] + 1 - run[0]) for run in runs]
    for span, run, table in zip(spans, runs, read_spans(store, spans, columns), strict=True):
        yield span.start, table, np.array(run, np.int64) - span.start


def _read_run(store: InputStore, spans: Sequence[Span], columns: list[str]) -> Iterator[pa.Table]:
    file = spans[0].file
    check_pin(store, file)
    largest = file.read_bytes * max(file.row_groups, default=0) // max(1, file.rows)
    reading, unchecked = spans[0], deque[pa.Table]()
    try:
        with store.open(file.path) as handle:
            # Small row groups are fetched in one go. Of large ones a whole column may be gigabytes: it is fetched in
            # parts, as it is decoded.
            reader = pq.ParquetFile(
                handle,
                page_checksum_verification=True,
                pre_buffer=largest <= _BUFFER_BYTES,
                buffer_size=_BUFFER_BYTES,
            )
            rows = _ForwardReader(reader, file, columns, max(span.rows for span in spans))
            held = 0  # bytes as they are decoded: values that repeat are next to nothing in the file
            for reading in spans:
                unchecked.append(rows.read(reading.start, reading.rows))
                held += unchecked[-1].nbytes
                if held < _BUFFER_BYTES and reading is not spans[-1]:
                    continue
                check_pin(store, file)  # it may be replaced while it is read
                while unchecked:
                    yield unchecked.popleft()
                held = 0
    except FileNotFoundError as error:
        raise _vanished(file) from error
    except (pa.ArrowException, OSError) as error:
        check_pin(store, file)
        yield from unchecked
        raise InputError(
            f"{file.path}: rows {reading.start}..{reading.start + reading.rows} cannot be read ({_first_line(error)})"
        ) from error


class _ForwardReader:
    """The rows of a file in ascending order, decoded batch by batch; what lies between is decoded and dropped."""

    def __init__(self, reader: pq.ParquetFile, file: PinnedFile, columns: list[str], batch_rows: int) -> None:
        self._reader, self._columns, self._batch_rows = reader, columns, batch_rows
        self._there = [name for name in columns if name in reader.schema_arrow.names]
        self._ends, self._constants = file.row_ends, dict(file.constants)
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._start = 0  # of the batch

    def read(self, start: int, rows: int) -> pa.Table:
        parts = []
        end = start + rows
        while start < end:
            batch = self._at(start)
            part = batch.slice(start - self._start, end - start)
            parts.append(part)
            start += len(part)
        schema = parts[0].schema if parts else self._reader.schema_arrow
        table = pa.Table.from_batches(parts, schema)
        for name in self._columns:
            if name not in table.column_names:
                value = self._constants.get(name)
                table = table.append_column(name, pa.nulls(rows) if value is None else pa.array([value] * rows))
        return table.select(self._columns)

    def _at(self, row: int) -> pa.RecordBatch:
        """The batch that holds a row."""
        while self._batch is None or not self._start <= row < self._start + len(self._batch):
            group = bisect.bisect_right(self._ends, row)
            if group != self._group or (self._batch is not None and row < self._start):
                self._group, self._batch = group, None
                self._start = self._ends[group - 1] if group else 0
                self._batches = self._reader.iter_batches(
                    self._batch_rows, row_groups=[group], columns=self._there, use_threads=False
                )
            else:
                self._start += len(self._batch) if self._batch is not None else 0
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise pa.ArrowInvalid(f"row group {group} ends before row {row}")
        return self._batch


def check_pin(store: InputStore, file: PinnedFile) -> None:
    """Raise InputChanged unless size and tag (etag or mtime) are the pinned ones, InputError if that is not known."""
    try:
        now = store.find(file.path)[0]
    except InputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise  # the store is at fault: nobody knows whether the file changed
        raise _vanished(file) from error
    if (now.size, now.tag) != (file.size, file.tag):
        raise InputChanged(
            f"{file.path}: changed after planning: size {now.size}, tag {now.tag}; pinned: {file.size}, {file.tag}. "
            "The same command goes on with the file as it is now."
        )


def _vanished(file: PinnedFile) -> InputChanged:
    return InputChanged(f"{file.path}: vanished after planning. The same command goes on without it.")


def leaf_columns(schema: pa.Schema, names: Set[str]) -> list[int]:
    """The numbers of the Parquet columns that the columns `names` of a file are stored as."""
    leaves: list[int] = []
    count = 0
    for field in schema:
        width = _num_leaves(field.type)
        if field.name in names:
            leaves += range(count, count + width)
        count += width
    return leaves


def _num_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    return sum(_num_leaves(kind.field(i).type) for i in range(kind.num_fields)) if pa.types.is_nested(kind) else 1


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
