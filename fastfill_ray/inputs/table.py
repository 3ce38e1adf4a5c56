"""The user's tables, pinned: their files, their rows, and what the columns hold that a run reads.

A *table input* is a Parquet file, a folder, or a list of both: the gallery, the queries, the judgements. Its files may
be written by several tools: their columns must be of one kind (``inputs.kinds``), not of one Arrow type. A file of no
rows says nothing of kinds. Nothing is written.
"""

from __future__ import annotations

import difflib
import itertools
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.kinds import (
    check_payload,
    check_version,
    common_dim,
    id_kind,
    naming,
    vector_kind,
    weight_kind,
)
from fastfill_ray.inputs.labels import check_group, label_kind
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.inputs.parquet import Footer, PartitionValue, PinnedFile, Span, leaf_columns, read_footer, read_spans
from fastfill_ray.types import IdType, Model

Role = Literal["id", "vector", "label", "group", "weight", "payload", "version"]
# A partition's folder is called so where the column is null.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_THREADS = 16
# Read at a time where vectors are looked for: at first, and at most.
_SAMPLE_ROWS = 256
_MAX_SPAN_ROWS = 1 << 16


@dataclass(frozen=True)
class Column:
    """A column that will be read.

    key: of the config, for messages. stated: see ``kinds.vector_kind``. may_lack: a file may be without it, and its
    rows then are without a value. optional: all files may be without it.
    """

    key: str
    name: str
    role: Role = "payload"
    stated: str | None = None
    may_lack: bool = False
    optional: bool = False


class FileVectors(Model):
    """What a file's footer says of a vector column.

    dim: where the type fixes it. first_row: no row before it holds a vector; the file's rows where none does.
    """

    dim: int | None
    first_row: int


class TableInput(Model):
    """A pinned table.

    kinds: {config key: what the column holds}, of the columns that say it. vectors: {config key: one per file}, of the
    vector columns. absent: config keys of optional columns that no file has.
    """

    files: tuple[PinnedFile, ...]
    kinds: dict[str, str]
    vectors: dict[str, tuple[FileVectors, ...]]
    absent: tuple[str, ...] = ()

    def id_type(self, key: str) -> IdType:
        """What the ids of a column are read as; where all are null, reading them refuses them."""
        return "int64" if self.kinds.get(key) == "int64" else "string"

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def pin(store: InputStore, found: Sequence[InputFile], columns: Sequence[Column]) -> TableInput:
    """Read every footer and pin the files.

    Args:
        found: of ``InputStore.find``.

    Raises:
        ConfigError: a column is in no file.
        InputError: a file is not Parquet or truncated, lacks a column that others have, or holds another kind than the
            others; a column cannot be what the config says that it is.
    """
    return pin_by(read_footers(store, found), found, columns)


def read_footers(store: InputStore, found: Sequence[InputFile]) -> list[Footer]:
    """The footer of each file.

    Raises:
        InputError: as ``read_footer``.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(partial(read_footer, store), found))


def pin_by(footers: Sequence[Footer], found: Sequence[InputFile], columns: Sequence[Column]) -> TableInput:
    """``pin``, of files whose footers are read."""
    schemas = [footer.schema for footer in footers]
    written = {name for schema in schemas for name in schema.names}
    absent = [column.key for column in columns if column.optional and column.name not in written]
    columns = [column for column in columns if column.key not in absent]
    names = {column.name for column in columns}
    partitions = partition_values([file.path for file in found], names)
    files = [
        _pinned(file, footer, names, constants)
        for file, footer, constants in zip(found, footers, partitions, strict=True)
    ]
    for file, schema in zip(files, schemas, strict=True):
        with naming(file.path):
            _check_unique(schema, columns)
    telling = [(file, schema) for file, schema in zip(files, schemas, strict=True) if file.rows]
    telling = telling or list(zip(files, schemas, strict=True))
    kinds = {column.key: _kind_of(column, telling) for column in columns}
    vectors = {
        column.key: tuple(map(partial(_vectors_by_footer, column), files, footers))
        for column in columns
        if column.role == "vector"
    }
    return TableInput(
        files=tuple(files),
        kinds={key: kind for key, kind in kinds.items() if kind is not None},
        vectors=vectors,
        absent=tuple(absent),
    )


def _pinned(file: InputFile, footer: Footer, names: Set[str], constants: Mapping[str, PartitionValue]) -> PinnedFile:
    groups = [footer.metadata.row_group(i) for i in range(footer.metadata.num_row_groups)]
    leaves = leaf_columns(footer.schema, names)
    return PinnedFile(
        path=file.path,
        size=file.size,
        tag=file.tag,
        row_groups=tuple(group.num_rows for group in groups),
        read_bytes=sum(group.column(i).total_uncompressed_size for group in groups for i in leaves),
        constants=tuple(sorted((n, value) for n, value in constants.items() if n not in footer.schema.names)),
    )


def _check_unique(schema: pa.Schema, columns: Sequence[Column]) -> None:
    for column in columns:
        if schema.names.count(column.name) > 1:
            raise InputError(f"there is more than one column {column.name!r} ({column.key}); rename all but one")


def _kind_of(column: Column, files: Sequence[tuple[PinnedFile, pa.Schema]]) -> str | None:
    """What a column holds in all the files, None if none of them says it."""
    if not any(column.name in schema.names or column.name in dict(file.constants) for file, schema in files):
        file, schema = files[0]
        raise ConfigError(
            f"{column.key}: column {column.name!r} is not in {file.path}; found {', '.join(schema.names)}"
            + (_hint(column.name, schema) or _candidates(column, file, schema))
        )
    common: str | None = None
    first = ""  # the file that told it
    for file, schema in files:
        if column.name not in schema.names and column.name not in dict(file.constants):
            if column.may_lack:
                continue
            raise InputError(
                f"{file.path}: column {column.name!r} ({column.key}) is missing, but other files have it. Add it, or "
                "leave the file out of the input."
            )
        with naming(file.path):
            kind = _kind_in(column, file, schema)
        if kind is None:
            continue
        if common is None:
            common, first = kind, file.path
        elif (joined := _joined(column.role, common, kind)) is None:
            found = schema.field(column.name).type if column.name in schema.names else "a partition's value"
            raise InputError(
                f"{file.path}: column {column.name!r} ({column.key}) is {found}, so {kind}, but {common} in {first}. "
                "All files must hold one kind: cast the column in one of them."
            )
        else:
            common = joined
    return common


def _kind_in(column: Column, file: PinnedFile, schema: pa.Schema) -> str | None:
    """What a column of one file holds."""
    if column.name not in schema.names:
        return _constant_kind(column, dict(file.constants)[column.name])
    field = schema.field(column.name)
    if column.role == "id":
        return id_kind(field)
    if column.role == "vector":
        found = vector_kind(field, column.stated)
        return None if found is None else str(found)
    if column.role == "weight":
        return weight_kind(field)
    if column.role == "payload":
        check_payload(field)
        return None
    if column.role == "group":
        check_group(field)
        return None
    if column.role == "version":
        check_version(field)
        return None
    with naming(f"column {column.name!r} ({column.key})"):
        kind = label_kind(field.type)
    return None if kind in ("null", "list of null") else kind


def _joined(role: Role, one: str, other: str) -> str | None:
    """The kind of values of two kinds, None if they cannot stand in one column.

    All vectors become float32. Whole numbers and others are compared by value.
    """
    if one == other or role == "vector":
        return one
    return "number" if {one, other} == {"integer", "number"} else None


def _hint(name: str, schema: pa.Schema) -> str:
    """Where the column may be, if it is a part of another one."""
    outer, dot, inner = name.partition(".")
    if not dot or outer not in schema.names:
        return ""
    return f". {inner!r} is a part of the column {outer!r}: give {outer!r}, and take the part out in the embedder"


def _candidates(column: Column, file: PinnedFile, schema: pa.Schema) -> str:
    """The columns that could be ids, or vectors, and the line to write; those whose name says so first. Of others the
    one whose name is nearly the same.
    """
    if column.role not in ("id", "vector"):
        close = difflib.get_close_matches(column.name, schema.names, n=1)
        return f". Did you mean {close[0]}?" if close else ""
    fit = []
    for name in dict.fromkeys(schema.names):
        with suppress(InputError, ConfigError):
            if schema.names.count(name) == 1 and _kind_in(replace(column, name=name), file, schema) is not None:
                fit.append(name)
    words = ("id", "key", "name") if column.role == "id" else ("vec", "emb")
    fit.sort(key=lambda name: not any(word in name.lower() for word in words))  # stable
    if not fit:
        return f". None of them can hold {column.role}s"
    section, dot, key = column.key.partition(".")
    mend = f"Write, in the section {section}, {key}: {fit[0]}" if dot else f"Call the right one {column.name!r}"
    return f". These could hold {column.role}s: {', '.join(fit)}. {mend}"


# Columns of a partition: label=7/part-0.parquet


def partition_values(paths: Sequence[str], names: Set[str]) -> list[dict[str, PartitionValue]]:
    """Per file the values that its folders' names give to the columns `names`, as Hive and Spark write them.

    Values are integers where all files have integers there, else text.
    """
    found = [dict(_partitions(path, names)) for path in paths]
    for name in names:
        values = [values[name] for values in found if values.get(name) is not None]
        if values and all(_is_integer(value) for value in values):
            found = [{**each, name: int(str(each[name]))} if each.get(name) is not None else each for each in found]
    return found


def _partitions(path: str, names: Set[str]) -> Iterator[tuple[str, PartitionValue]]:
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        name = urllib.parse.unquote(name)
        if equals and name in names:
            yield name, None if value == _NO_VALUE else urllib.parse.unquote(value)


def _is_integer(value: PartitionValue) -> bool:
    """Whether it is an int64 as one writes it: "07" is a text."""
    text = str(value)
    return re.fullmatch(r"-?\d{1,19}", text) is not None and str(int(text)) == text and abs(int(text)) < 1 << 63


def _constant_kind(column: Column, value: PartitionValue) -> str | None:
    if column.role in ("id", "vector"):
        raise InputError(f"column {column.name!r} ({column.key}) is only in the folder's name; a column is expected")
    if value is None or column.role in ("payload", "group", "version"):
        return None
    if column.role == "weight":
        if isinstance(value, str):
            raise InputError(f"column {column.name!r} ({column.key}) is {value!r} in the folder's name, not a number")
        return "number"
    return "integer" if isinstance(value, int) else "text"


# Dimensions


def dim_of(store: InputStore, table: TableInput, column: Column) -> int:
    """The dimension of a vector column: in the type, or the most frequent length in the first rows that hold vectors.

    Raises:
        InputError: no rows, no vector at all, or files that disagree.
    """
    files = [file for file in table.files if file.rows]
    if not files:
        raise InputError(f"{table.files[0].path}: there are no rows")
    with ThreadPoolExecutor(_THREADS) as pool:
        dims = list(pool.map(partial(_dim_in_file, store, column), table.files, table.vectors[column.key]))
    dim_of_file = [(file, dim) for file, dim in zip(table.files, dims, strict=True) if dim is not None]
    if not dim_of_file:
        raise InputError(
            f"{files[0].path}: column {column.name!r} ({column.key}) holds no vector in any row of {len(files)} files"
        )
    first, expected = dim_of_file[0]
    for file, dim in dim_of_file:
        if dim != expected:
            raise InputError(
                f"{file.path}: column {column.name!r} holds vectors of {dim} dims, expected {expected} as in "
                f"{first.path}"
            )
    return expected


def _vectors_by_footer(column: Column, file: PinnedFile, footer: Footer) -> FileVectors:
    if not file.rows or column.name not in footer.schema.names:
        return FileVectors(dim=None, first_row=file.rows)
    with naming(file.path):
        kind = vector_kind(footer.schema.field(column.name), column.stated)
    if kind is None:
        return FileVectors(dim=None, first_row=file.rows)
    if kind.dim:
        return FileVectors(dim=kind.dim, first_row=0)
    leaves, metadata = leaf_columns(footer.schema, {column.name}), footer.metadata
    empty = itertools.takewhile(partial(_is_null_group, metadata, leaves), range(metadata.num_row_groups))
    return FileVectors(dim=None, first_row=sum(file.row_groups[group] for group in empty))


def _is_null_group(metadata: pq.FileMetaData, leaves: Sequence[int], group: int) -> bool:
    """Whether the statistics say that a row group holds no element of a column; False where there are none."""
    chunks = [metadata.row_group(group).column(leaf) for leaf in leaves]
    return all(
        (statistics := chunk.statistics) is not None
        and statistics.has_null_count
        and statistics.null_count == chunk.num_values
        for chunk in chunks
    )


def _dim_in_file(store: InputStore, column: Column, file: PinnedFile, vectors: FileVectors) -> int | None:
    """None where no row of the file has a vector."""
    if vectors.dim is not None:
        return vectors.dim
    for spans in _growing_spans(file, vectors.first_row):
        for table in read_spans(store, spans, [column.name]):
            with naming(file.path):
                kind = vector_kind(table.schema.field(column.name), column.stated)
            if (dim := common_dim(table.column(column.name), kind)) is not None:
                return dim
    return None


def _growing_spans(file: PinnedFile, start: int) -> Iterator[list[Span]]:
    """The rows from `start` on, in spans to be read together.

    The first rows nearly always tell, so few are read; each span costs a request, so those behind them are larger.
    Small ones are read alone: a pass decodes as many rows at a time as its largest span has.
    """
    rows = _SAMPLE_ROWS
    while start < file.rows and rows < _MAX_SPAN_ROWS:
        yield [Span(file, start, min(rows, file.rows - start))]
        start += rows
        rows *= 4
    yield [Span(file, at, min(rows, file.rows - at)) for at in range(start, file.rows, rows)]
