"""Reading the user's Parquet files: footers pinned at planning, slices read and checked against the pin later.

A *table input* is one Parquet file or a folder of them: the gallery, the queries, the judgements. Nothing is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.errors import ConfigError, InputChanged, InputError
from fastfill_ray.inputs.kinds import VectorKind, common_dim, naming, vector_kind, vectors_of
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.types import I64, IdType, Model

T = TypeVar("T")

_FOOTER_THREADS = 16
_SAMPLE_ROWS = 256
# Read from the store at a time and per column, where a row group is larger than this.
_BUFFER_BYTES = 8 << 20


class PinnedFile(Model):
    """One input file as it was at planning."""

    path: str
    size: int
    tag: str
    row_groups: tuple[int, ...]
    read_bytes: int

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    @cached_property
    def row_ends(self) -> I64:
        """The row after the last one of each row group (groups,)."""
        return np.cumsum(self.row_groups, dtype=np.int64)


class TableInput(Model):
    """A pinned table input. ``types`` maps the columns that are read to their Arrow types."""

    files: tuple[PinnedFile, ...]
    types: dict[str, str]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def pin(store: InputStore, path: str, columns: dict[str, str]) -> TableInput:
    """Read every footer and pin the files.

    Args:
        path: a Parquet file or a folder of them.
        columns: {config key: column name} of the columns that will be read; the key is for messages.

    Raises:
        ConfigError: a column is missing in the first file.
        InputError: a file is not Parquet or truncated, or differs from the first one's schema.
    """
    found = store.find(path)
    names = sorted(set(columns.values()))
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(partial(_footer, store), found))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    first = schemas[0]
    for file, schema in zip(found, schemas, strict=True):
        for key, name in columns.items():
            if schema.names.count(name) > 1:
                raise InputError(f"{file.path}: there is more than one column {name!r} ({key}); rename all but one")
    for key, name in columns.items():
        if name not in first.names:
            raise ConfigError(f"{key}: column {name!r} is not in {found[0].path}; found {', '.join(first.names)}")
    pinned = []
    for file, footer, schema in zip(found, footers, schemas, strict=True):
        for name in names:
            here = schema.field(name).type if name in schema.names else None
            if here != first.field(name).type:
                raise InputError(
                    f"{file.path}: column {name!r} is {here or 'missing'}, but {first.field(name).type} in "
                    f"{found[0].path}. All files must have one schema: rewrite this one, or move it out of the folder."
                )
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        wanted = {i for i in range(footer.num_columns) if footer.schema.column(i).path.split(".")[0] in names}
        pinned.append(
            PinnedFile(
                path=file.path,
                size=file.size,
                tag=file.tag,
                row_groups=tuple(group.num_rows for group in groups),
                read_bytes=sum(group.column(i).total_uncompressed_size for group in groups for i in wanted),
            )
        )
    return TableInput(files=tuple(pinned), types={name: str(first.field(name).type) for name in names})


def columns_of(store: InputStore, path: str) -> list[str]:
    """The column names of the files at a path, each once: what only some files have is named, too."""
    return list(dict.fromkeys(name for file in store.find(path) for name in _schema(store, file).names))


def column_type(store: InputStore, pinned: TableInput, column: str) -> pa.DataType:
    """The Arrow type of a column, as the first file that has rows says."""
    file = next((file for file in pinned.files if file.rows), pinned.files[0])
    return _schema(store, InputFile(file.path, file.size, file.tag)).field(column).type


def _schema(store: InputStore, file: InputFile) -> pa.Schema:
    return _footer(store, file).schema.to_arrow_schema()


def _footer(store: InputStore, file: InputFile) -> pq.FileMetaData:
    try:
        with store.open(file.path) as handle:
            return pq.ParquetFile(handle).metadata
    except (pa.ArrowInvalid, pa.ArrowException) as error:
        raise InputError(
            f"{file.path}: not a readable Parquet file of {file.size} bytes ({_first_line(error)}). "
            "It is truncated or of another format: write it again, or move it out of the folder."
        ) from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read ({_first_line(error)})") from error


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
        group = int(np.searchsorted(ends, self.start, side="right"))
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
    """The rows of each span, one table after the other.

    A run of spans of one file, in the order of its rows, costs one pass: each row group that they touch is decoded
    once, a batch at a time, whatever its size. Spans that share no row group with another can as well be read alone.

    Raises:
        InputChanged: a file is not the pinned one any more.
        InputError: its bytes cannot be decoded.
    """
    for _, run in itertools.groupby(spans, key=lambda span: span.file):
        yield from _read_run(store, list(run), list(dict.fromkeys(columns)))


def read_rows(
    store: InputStore, file: PinnedFile, columns: Sequence[str], *, start: int = 0, rows: int | None = None
) -> pa.Table:
    """One span, see ``read_spans``."""
    return next(read_spans(store, [Span(file, start, file.rows - start if rows is None else rows)], columns))


def _read_run(store: InputStore, spans: Sequence[Span], columns: list[str]) -> Iterator[pa.Table]:
    file = spans[0].file
    check_pin(store, file)
    largest = file.read_bytes * max(file.row_groups, default=0) // max(1, file.rows)
    reading = spans[0]
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
            for reading in spans:
                yield rows.read(reading.start, reading.rows)
    except FileNotFoundError as error:
        raise InputChanged(f"{file.path}: vanished after planning. Put it back, or start a new output root.") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file.path}: rows {reading.start}..{reading.start + reading.rows} cannot be read ({_first_line(error)})"
        ) from error


class _ForwardReader:
    """The rows of a file in ascending order, decoded batch by batch; what lies between is decoded and dropped."""

    def __init__(self, reader: pq.ParquetFile, file: PinnedFile, columns: list[str], batch_rows: int) -> None:
        self._reader, self._columns, self._batch_rows = reader, columns, batch_rows
        self._ends = file.row_ends
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
        return pa.Table.from_batches(parts, schema).select(self._columns)

    def _at(self, row: int) -> pa.RecordBatch:
        """The batch that holds a row."""
        while self._batch is None or not self._start <= row < self._start + len(self._batch):
            group = int(np.searchsorted(self._ends, row, side="right"))
            if group != self._group or (self._batch is not None and row < self._start):
                self._group, self._batch = group, None
                self._start = int(self._ends[group - 1]) if group else 0
                self._batches = self._reader.iter_batches(
                    self._batch_rows, row_groups=[group], columns=self._columns, use_threads=False
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
        raise InputChanged(f"{file.path}: vanished after planning. Put it back, or start a new output root.") from error
    if (now.size, now.tag) != (file.size, file.tag):
        raise InputChanged(
            f"{file.path}: changed after planning: size {now.size}, tag {now.tag}; pinned: {file.size}, {file.tag}. "
            "Restore the file, or start a new output root for the changed gallery."
        )


def id_type_of(gallery: TableInput, column: str) -> IdType:
    """Whether ids are integers or strings. Raises InputError for another type."""
    name = gallery.types[column]
    if name in {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"}:
        return "int64"
    if name in {"string", "large_string", "string_view"}:
        return "string"
    raise InputError(f"{gallery.files[0].path}: id column {column!r} is {name}; int64 or string is expected")


def vector_dim_of(store: InputStore, gallery: TableInput, column: str, stated: str | None = None) -> int:
    """The dimension alone of ``vectors_in``."""
    return vectors_in(store, gallery, column, stated)[0]


def vectors_in(
    store: InputStore, gallery: TableInput, column: str, stated: str | None = None
) -> tuple[int, tuple[VectorKind, ...]]:
    """The dimension of the vectors, and their kind in each file with rows: from the type, or for what leaves the
    dimension open from the first rows.

    Args:
        stated: see ``kinds.vector_kind``.

    Raises:
        InputError: not a vector type, files that disagree, or a file whose first rows hold no usable vector.
    """
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        files = [file for file in gallery.files if file.rows]
        if not files:
            raise InputError(f"{gallery.files[0].path}: the gallery has no rows")
        found = list(pool.map(lambda file: _vectors_in_file(store, file, column, stated), files))
    dims, kinds = zip(*found, strict=True)
    for file, dim in zip(files, dims, strict=True):
        if dim != dims[0]:
            raise InputError(
                f"{file.path}: column {column!r} holds vectors of {dim} dims, expected {dims[0]} as in {files[0].path}"
            )
    return dims[0], kinds


def _vectors_in_file(store: InputStore, file: PinnedFile, column: str, stated: str | None) -> tuple[int, VectorKind]:
    with store.open(file.path) as handle:
        reader = pq.ParquetFile(handle)
        with naming(file.path):
            kind = vector_kind(reader.schema_arrow.field(column), stated)
        if kind is not None and kind.dim is not None:
            return kind.dim, kind
        try:
            sample = next(reader.iter_batches(batch_size=_SAMPLE_ROWS, columns=[column]), None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.path}: its first rows cannot be read ({_first_line(error)})") from error
    dim = None if sample is None else common_dim(sample.column(0), kind)
    if kind is None or sample is None or dim is None:
        raise InputError(f"{file.path}: the first {_SAMPLE_ROWS} rows of column {column!r} are all null")
    _, unusable = vectors_of(sample.column(0), dim, kind=kind)
    if len(unusable) == sample.num_rows:
        raise InputError(
            f"{file.path}: none of the first {sample.num_rows} rows of column {column!r} is a usable vector: "
            f"{next(iter(unusable.values()))}"
        )
    return dim, kind


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]
