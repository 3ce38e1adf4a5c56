"""Pin the gallery: files, id type, old dimension, chunks. Every row is checked before anything is embedded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.config import GalleryConfig, ResourcesConfig
from fastfill_ray.errors import CorruptFile, FileMissing, InputError, StorageError
from fastfill_ray.inputs.gallery import (
    NO_VECTOR,
    Source,
    item_groups,
    item_labels,
    item_weights,
    mapped_columns,
    mapped_vectors,
)
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.inputs.parquet import Span, read_spans
from fastfill_ray.inputs.table import Column, Role, TableInput, dim_of, pin
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.partition import Chunk, cut_chunks
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, snapshot_path
from fastfill_ray.storage.sealed import seal_file, unseal_file
from fastfill_ray.types import IdType, Model, fingerprint

IDS, OLD_VECTORS, SIDE_VECTORS = "gallery.id_column", "gallery.old_vector_column", "gallery.side_column"
LABELS, GROUPS, WEIGHTS = "gallery.label_column", "gallery.group_column", "gallery.weight_column"
VERSIONS = "gallery.version_column"
# Hashes of ids are compared partition by partition; one partition of this many is 32 MiB.
_PARTITION_ROWS = 1 << 22
_ID_GROUPS = 1000  # tasks that hash: partitions x groups objects are exchanged
_SHOWN = 5
_MOST_FOUND = 1000  # rows of repeated ids that are looked up in one file


class Snapshot(Model):
    """The pinned gallery. Chunks are cut by the first run and kept: later changes of ``resources`` do not move them."""

    fingerprint: str
    gallery: TableInput
    id_type: IdType
    old_dim: int
    chunk_rows: tuple[tuple[int, int, int], ...]
    side_dim: int | None = None

    def __str__(self) -> str:
        files = f"{len(self.gallery.files)} file{'s' if len(self.gallery.files) > 1 else ''}"
        return f"{self.rows:,} items in {files}; old vectors: {self.old_dim} x {self.gallery.kinds[OLD_VECTORS]}"

    @property
    def rows(self) -> int:
        return self.gallery.rows

    @property
    def label_kind(self) -> str | None:
        """Of the gallery's labels; None without any."""
        return self.gallery.kinds.get(LABELS)

    @property
    def cut(self) -> str:
        """Names the way in which it is cut into chunks: work that is done by chunks depends on it."""
        return fingerprint(self.chunk_rows)

    @cached_property
    def chunks(self) -> list[Chunk]:
        """In the order of the files. A chunk's unit is a hash of (file pin, start, rows): no other file has a say."""
        pins = [[file.path, file.size, file.tag] for file in self.gallery.files]
        return [
            Chunk(file, start, rows, chunk_unit(fingerprint([*pins[file], start, rows])))
            for file, start, rows in self.chunk_rows
        ]

    def file_starts(self) -> np.ndarray:
        """Global row number of each file's first row (files,)."""
        return np.cumsum([0, *(file.rows for file in self.gallery.files)])[:-1]


def gallery_columns(config: GalleryConfig) -> dict[str, Column]:
    """{config key: column} of every gallery column that a run reads. Files of new items may lack the old vectors."""
    dtype = config.vector_dtype
    columns = [
        Column(IDS, config.id_column, "id"),
        Column(OLD_VECTORS, config.old_vector_column, "vector", dtype, may_lack=True),
    ]
    columns += [Column(f"gallery.payload_columns[{i}]", name) for i, name in enumerate(config.payload_columns)]
    optional: list[tuple[str, str | None, Role]] = [
        (LABELS, config.label_column, "label"),
        (GROUPS, config.group_column, "group"),
        (WEIGHTS, config.weight_column, "weight"),
        (SIDE_VECTORS, config.side_column, "vector"),
        (VERSIONS, config.version_column, "version"),
    ]
    columns += [Column(key, name, role, dtype) for key, name, role in optional if name is not None]
    return {column.key: column for column in columns}


def old_space_of(config: GalleryConfig, old_dim: int) -> str:
    """The old vectors' space, as far as the gallery tells: their column and dimension."""
    return fingerprint([config.old_vector_column, old_dim])


def inspect_gallery(
    store: InputStore, files: Sequence[InputFile], config: GalleryConfig, resources: ResourcesConfig
) -> Snapshot:
    """Footers and a few rows: everything about the gallery that can be known without reading it. Writes nothing.

    Args:
        files: the gallery's, of ``InputStore.find``.

    Raises:
        ConfigError: a column of the config is missing.
        InputError: no Parquet, truncated, schemas that differ, an unusable id or vector type.
    """
    columns = gallery_columns(config)
    gallery = pin(store, files, list(columns.values()))
    if gallery.rows == 0:
        raise InputError(f"{gallery.files[0].path}: the gallery has no rows")
    chunks = cut_chunks(
        [(file.row_groups, file.read_bytes) for file in gallery.files],
        chunk_rows=resources.chunk_rows,
        chunk_bytes=resources.chunk_bytes,
    )
    old_dim = dim_of(store, gallery, columns[OLD_VECTORS])
    side = columns.get(SIDE_VECTORS)
    # The same bytes are other vectors where they are read as another type.
    read_as = [["vector_dtype", config.vector_dtype]] if config.vector_dtype is not None else []
    beside = [side.name] if side is not None else []
    # One of them may be a column that is read anyway; the snapshot says that its values were checked.
    checked = [[key, columns[key].name] for key in (LABELS, GROUPS, WEIGHTS) if key in columns]
    return Snapshot(
        fingerprint=fingerprint(
            [gallery.model_dump(mode="json"), config.id_column, config.old_vector_column, *beside, *read_as, *checked]
        ),
        gallery=gallery,
        id_type=gallery.id_type(IDS),
        old_dim=old_dim,
        chunk_rows=tuple(chunks),
        side_dim=dim_of(store, gallery, side) if side is not None else None,
    )


def read_snapshot(files: Files, name: str) -> Snapshot:
    """The stored snapshot of that fingerprint.

    Raises:
        CorruptFile: it is damaged or gone; no run for other input can make it again.
    """
    path = snapshot_path(name)
    try:
        return unseal_file(path, files.get(path), Snapshot)
    except StorageError as error:
        raise CorruptFile(
            f"{error} The root holds an unfinished plan of it, and the input is not the planned one any more. Restore "
            "the input or the file, or choose another output."
        ) from error


def take_snapshot(
    context: Context, snapshot: Snapshot, source: Source, *, limit: int, cut: str | None = None
) -> Snapshot:
    """The stored snapshot of the very files that were inspected, or this one, stored after every row was checked.

    Args:
        limit: most rows whose old or side vector may be unusable; rows without an old vector are none of them.
        cut: of the snapshot that the plan which goes on was made from; None if a new plan is to be made.

    Raises:
        InputError: null ids, ids that occur twice, more unusable vectors than `limit`, weights,
            labels or groups that cannot be read.
        CorruptFile: what is stored is damaged, or gone and cannot be had again.
    """
    files, path = context.files, snapshot_path(snapshot.fingerprint)
    try:
        return unseal_file(path, files.get(path), Snapshot)
    except FileMissing:
        pass
    if cut is not None:
        if cut != snapshot.cut:
            raise CorruptFile(
                f"{path}: was damaged or gone, and the gallery would be cut into other chunks than the plan was made "
                "from. Put resources.chunk_rows and chunk_bytes back to those of the first run, or restore the file."
            )
        context.progress.say(f"gone, made again: {path}")
    _check_rows(context, snapshot, source, limit)
    if not files.put_new(path, seal_file(path, snapshot)):
        return unseal_file(path, files.get(path), Snapshot)
    return snapshot


@dataclass(frozen=True)
class _Faults:
    """Rows with an unusable vector: how many, and the first ones in words."""

    count: int
    shown: tuple[str, ...]


_FileSpans = tuple[Span, ...]  # the chunks of one file


def _check_rows(context: Context, snapshot: Snapshot, source: Source, limit: int) -> None:
    """Every id present and unique, and vectors that can be used, before anything is computed.

    Tasks exchange hashes of ids by partition: no process ever holds all of them.
    """
    config = source.config
    gallery = [
        tuple(Span(snapshot.gallery.files[number], chunk.start, chunk.rows) for chunk in chunks)
        for number, chunks in itertools.groupby(snapshot.chunks, key=lambda chunk: chunk.file)
    ]
    partitions = max(2, -(-snapshot.rows // _PARTITION_ROWS))
    step = -(-len(gallery) // _ID_GROUPS)
    groups = [gallery[i : i + step] for i in range(0, len(gallery), step)]
    with context.progress.stage("snapshot", snapshot.rows, "items") as bar:
        *repeated, faults = context.engine.exchange(
            partial(_check_files, source, partitions),
            _join,
            groups,
            partitions + 1,
            lambda group: bar.advance(sum(span.rows for spans in group for span in spans)),
        )
    _check_unusable(faults, snapshot, config, limit)
    hashes = np.concatenate(repeated)
    if len(hashes) == 0:
        return
    # Rare path: look the rows up, so that the message names them, and so that a mere collision of hashes is forgiven.
    places: dict[int | str, list[str]] = {}
    find = partial(_find_ids, source=source, hashes=hashes)
    for spans, rows in context.engine.run_tasks(find, gallery, name="find duplicate ids", ordered=True):
        for row, value in rows:
            places.setdefault(value, []).append(f"{spans[0].file.path} row {row}")
    duplicates = {value: found for value, found in places.items() if len(found) > 1}
    if duplicates:
        shown = "; ".join(
            f"{value!r} at {' and '.join(found[:3])}" for value, found in list(duplicates.items())[:_SHOWN]
        )
        raise InputError(
            f"gallery.id_column {config.id_column!r}: {len(duplicates)} ids occur more than once: {shown}. "
            "Ids must be unique over all files: remove the duplicates."
        )


def _check_files(source: Source, parts: int, files: Sequence[_FileSpans]) -> list[np.ndarray | _Faults]:
    """The hashes of all ids of some files, cut into `parts` by value; and the rows with unusable vectors."""
    config = source.config
    spans = [span for file in files for span in file]
    beside = [name for name in (config.weight_column, config.label_column, config.group_column) if name is not None]
    columns = [config.id_column, *mapped_columns(config), *beside]
    hashes, count, shown = [], 0, list[str]()
    for span, table in zip(spans, read_spans(source.store, spans, columns), strict=True):
        ids = read_ids(table, config.id_column, source.id_type, path=span.file.path, start=span.start)
        hashes.append(hash_ids(ids))
        _check_beside(table, span, source)
        _, _, unusable = mapped_vectors(table, source)
        faults = {row: reason for row, reason in unusable.items() if reason != NO_VECTOR}
        count += len(faults)
        for row, reason in itertools.islice(faults.items(), _SHOWN - len(shown)):
            shown.append(f"{span.file.path} row {span.start + row} (id {ids[row : row + 1].tolist()[0]!r}): {reason}")
    hashed = np.concatenate(hashes)
    part = (hashed % np.uint64(parts)).astype(np.int64)
    return [*(hashed[part == i] for i in range(parts)), _Faults(count, tuple(shown))]


def _check_beside(table: pa.Table, span: Span, source: Source) -> None:
    """Raises InputError for a weight, label or group that cannot be read."""
    item_weights(table, source, span)
    item_labels(table, source, span)
    item_groups(table, source, span)


def _join(*pieces: Any) -> Any:
    """What ``_check_files`` gave for one part: the hashes that occur more than once, or all faults."""
    if isinstance(pieces[0], _Faults):
        shown = [text for piece in pieces for text in piece.shown]
        return _Faults(sum(piece.count for piece in pieces), tuple(shown[:_SHOWN]))
    ordered = np.sort(np.concatenate(pieces))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _check_unusable(faults: _Faults, snapshot: Snapshot, config: GalleryConfig, limit: int) -> None:
    if faults.count > limit:
        side = "" if config.side_column is None else f" and gallery.side_column {config.side_column!r}"
        raise InputError(
            f"gallery.old_vector_column {config.old_vector_column!r}{side}: {faults.count} of {snapshot.rows} rows "
            f"cannot be used, at most {limit} are allowed: {'; '.join(faults.shown)}. Mend them, or raise "
            "quarantine.max_rows."
        )


def _find_ids(spans: _FileSpans, *, source: Source, hashes: np.ndarray) -> list[tuple[int, int | str]]:
    """(Row, id) of at most 1000 rows whose id has one of the hashes."""
    column, found = source.config.id_column, list[tuple[int, int | str]]()
    for span, table in zip(spans, read_spans(source.store, spans, [column]), strict=True):
        ids = read_ids(table, column, source.id_type, path=span.file.path, start=span.start)
        rows = np.flatnonzero(np.isin(hash_ids(ids), hashes))
        found += [(span.start + int(row), ids[row] if source.id_type == "string" else int(ids[row])) for row in rows]
        if len(found) >= _MOST_FOUND:
            break
    return found[:_MOST_FOUND]
