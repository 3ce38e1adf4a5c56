"""Pin the gallery: files, id type, old dimension, chunks and parts, by its footers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from fastfill_ray.config import BackfillConfig, GalleryConfig, ResourcesConfig
from fastfill_ray.errors import ConfigError, CorruptFile, InputError, StorageError
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.locate import InputFile, InputStore
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.inputs.table import Column, Role, TableInput, dim_of, pin
from fastfill_ray.ordering.partition import Chunk, cut_chunks, cut_parts
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, snapshot_path
from fastfill_ray.storage.sealed import unseal_file
from fastfill_ray.types import IdType, Model, fingerprint

IDS, OLD_VECTORS, SIDE_VECTORS = "gallery.id_column", "gallery.old_vector_column", "gallery.side_column"
LABELS, GROUPS, WEIGHTS = "gallery.label_column", "gallery.group_column", "gallery.weight_column"
PRIORITIES = "gallery.priority_column"
VERSIONS = "gallery.version_column"


class Snapshot(Model):
    """The pinned gallery. Chunks are cut by the first run and kept: later changes of ``resources`` do not move them.

    chunk_rows, parts: (file, start, rows) of each chunk and of each part of the ledger, see ``stages.ledger``. ledger:
    the folder of what is known of the parts; ids_digest: of all ids. Both are "" until every row was checked.
    """

    fingerprint: str
    gallery: TableInput
    id_type: IdType
    old_dim: int
    chunk_rows: tuple[tuple[int, int, int], ...]
    parts: tuple[tuple[int, int, int], ...]
    side_dim: int | None = None
    ledger: str = ""
    ids_digest: str = ""

    def __str__(self) -> str:
        files = f"{len(self.gallery.files)} file{'s' if len(self.gallery.files) > 1 else ''}"
        kind = self.gallery.kinds.get(OLD_VECTORS)
        old = "no old vectors" if kind is None else f"old vectors: {self.old_dim} x {kind}"
        return f"{self.rows:,} items in {files}; {old}"

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
        files = self.gallery.files
        return [Chunk(file, start, rows, unit_of(files[file], start, rows)) for file, start, rows in self.chunk_rows]

    def file_starts(self) -> np.ndarray:
        """Global row number of each file's first row (files,)."""
        return np.cumsum([0, *(file.rows for file in self.gallery.files)])[:-1]


def unit_of(file: PinnedFile, start: int, rows: int) -> str:
    """The unit of rows [start, start + rows) of a file."""
    return chunk_unit(fingerprint([*_pin_of(file), start, rows]))


def _pin_of(file: PinnedFile) -> tuple[str, int, str]:
    return file.path, file.size, file.tag


def gallery_columns(config: GalleryConfig) -> dict[str, Column]:
    """{config key: column} of every gallery column that a run reads. Files of new items may lack the old vectors."""
    dtype = config.vector_dtype
    columns = [
        Column(IDS, config.id_column, "id"),
    ]
    if config.old_vector_column is not None:
        columns.append(Column(OLD_VECTORS, config.old_vector_column, "vector", dtype, may_lack=True))
    columns += [Column(f"gallery.payload_columns[{i}]", name) for i, name in enumerate(config.payload_columns)]
    optional: list[tuple[str, str | None, Role]] = [
        (LABELS, config.label_column, "label"),
        (GROUPS, config.group_column, "group"),
        (WEIGHTS, config.weight_column, "weight"),
        (PRIORITIES, config.priority_column, "weight"),
        (SIDE_VECTORS, config.side_column, "vector"),
        (VERSIONS, config.version_column, "version"),
    ]
    columns += [Column(key, name, role, dtype) for key, name, role in optional if name is not None]
    return {column.key: column for column in columns}


def source_of(store: InputStore, config: BackfillConfig, inspected: Snapshot) -> Source:
    """How workers read the gallery."""
    return Source(
        store,
        config.gallery,
        inspected.id_type,
        inspected.old_dim,
        config.new_model.metric,
        inspected.side_dim,
        inspected.label_kind,
    )


def old_space_of(config: GalleryConfig, old_dim: int) -> str:
    """The old vectors' space, as far as the gallery tells: their column and dimension."""
    return fingerprint([config.old_vector_column, old_dim])


def inspect_gallery(
    store: InputStore,
    files: Sequence[InputFile],
    config: GalleryConfig,
    resources: ResourcesConfig,
    before: Snapshot | None = None,
) -> Snapshot:
    """Footers and a few rows: everything about the gallery that can be known without reading it. Writes nothing.

    Args:
        files: the gallery's, of ``InputStore.find``.
        before: an earlier snapshot: files that it has pinned alike are cut into chunks as it has cut them.

    Raises:
        ConfigError: a column of the config is missing.
        InputError: no Parquet, truncated, schemas that differ, an unusable id or vector type.
    """
    columns = gallery_columns(config)
    gallery = pin(store, files, list(columns.values()))
    if gallery.rows == 0:
        raise InputError(f"{gallery.files[0].path}: the gallery has no rows")
    chunks = _cut(gallery, resources, before)
    if OLD_VECTORS in columns:
        old_dim = dim_of(store, gallery, columns[OLD_VECTORS])
    elif before is not None:
        old_dim = before.old_dim
    else:
        raise ConfigError("gallery.old_vector_column is null, but nothing is served yet: name the old vectors' column")
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
        parts=tuple(cut_parts(chunks, [file.row_groups for file in gallery.files])),
        side_dim=dim_of(store, gallery, side) if side is not None else None,
    )


def _cut(gallery: TableInput, resources: ResourcesConfig, before: Snapshot | None) -> list[tuple[int, int, int]]:
    """The chunks (file, start, rows) of all files. What is done is named by chunks: those of a file that is pinned as
    before stay as they are, whatever ``resources`` says by now.
    """
    known: dict[tuple[str, int, str], list[tuple[int, int]]] = {}
    if before is not None:
        for file, start, rows in before.chunk_rows:
            known.setdefault(_pin_of(before.gallery.files[file]), []).append((start, rows))
    fresh = cut_chunks(
        [(file.row_groups, file.read_bytes) for file in gallery.files],
        chunk_rows=resources.chunk_rows,
        chunk_bytes=resources.chunk_bytes,
    )
    chunks: list[tuple[int, int, int]] = []
    for file, run in itertools.groupby(fresh, key=lambda chunk: chunk[0]):
        kept = known.get(_pin_of(gallery.files[file]))
        chunks += list(run) if kept is None else [(file, start, rows) for start, rows in kept]
    return chunks


def read_snapshot(files: Files, name: str) -> Snapshot:
    """The stored snapshot of that fingerprint.

    Raises:
        CorruptFile: it is damaged or gone; only a run for the same gallery can make it again.
    """
    path = snapshot_path(name)
    try:
        return unseal_file(path, files.get(path), Snapshot)
    except StorageError as error:
        raise CorruptFile(
            f"{error} A plan was made of it. It is made again while the gallery is the one of the plan; else restore "
            "it, or choose another output.",
            path,
        ) from error
