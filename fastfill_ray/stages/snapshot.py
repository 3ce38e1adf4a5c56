"""Pin the gallery: files, id type, old dimension, chunks. Ids are checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np

from fastfill_ray.config import GalleryConfig, ResourcesConfig
from fastfill_ray.errors import CorruptFile, FileMissing, InputError, StorageError
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, TableInput, id_type_of, pin, read_rows, vector_dim_of, vectors_in
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.partition import Chunk, cut_chunks
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, snapshot_path
from fastfill_ray.storage.sealed import seal_file, unseal_file
from fastfill_ray.types import IdType, Model, fingerprint

# Hashes of ids are compared partition by partition; one partition of this many is 32 MiB.
_PARTITION_ROWS = 1 << 22
_ID_GROUPS = 1000  # tasks that hash: partitions x groups objects are exchanged
_SHOWN = 5


class Snapshot(Model):
    """The pinned gallery. Chunks are cut by the first run and kept: later changes of ``resources`` do not move them."""

    fingerprint: str
    gallery: TableInput
    id_type: IdType
    old_dim: int
    chunk_rows: tuple[tuple[int, int, int], ...]
    side_dim: int | None = None
    old_kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = f"{len(self.gallery.files)} file{'s' if len(self.gallery.files) > 1 else ''}"
        return f"{self.rows:,} items in {files}; old vectors: {self.old_dim} x {', '.join(self.old_kinds)}"

    @property
    def rows(self) -> int:
        return self.gallery.rows

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


def gallery_columns(config: GalleryConfig) -> dict[str, str]:
    """{config key: column} of every gallery column that a run reads."""
    columns = {"gallery.id_column": config.id_column, "gallery.old_vector_column": config.old_vector_column}
    columns |= {f"gallery.payload_columns[{i}]": name for i, name in enumerate(config.payload_columns)}
    optional = {
        "gallery.label_column": config.label_column,
        "gallery.group_column": config.group_column,
        "gallery.weight_column": config.weight_column,
        "gallery.side_column": config.side_column,
    }
    return columns | {key: name for key, name in optional.items() if name is not None}


def old_space_of(config: GalleryConfig, old_dim: int) -> str:
    """The old vectors' space, as far as the gallery tells: their column and dimension."""
    return fingerprint([config.old_vector_column, old_dim])


def inspect_gallery(store: InputStore, config: GalleryConfig, resources: ResourcesConfig) -> Snapshot:
    """Footers and a few rows: everything about the gallery that can be known without reading it. Writes nothing.

    Raises:
        ConfigError: a column of the config is missing.
        InputError: no Parquet, truncated, schemas that differ, an unusable id or vector type.
    """
    gallery = pin(store, config.path, gallery_columns(config))
    chunks = cut_chunks(
        [(file.row_groups, file.read_bytes) for file in gallery.files],
        chunk_rows=resources.chunk_rows,
        chunk_bytes=resources.chunk_bytes,
    )
    side, dtype = [config.side_column] if config.side_column is not None else [], config.vector_dtype
    old_dim, kinds = vectors_in(store, gallery, config.old_vector_column, dtype)
    # The same bytes are other vectors where they are read as another type.
    read_as = [*side, *([["vector_dtype", dtype]] if dtype is not None else [])]
    return Snapshot(
        fingerprint=fingerprint(
            [gallery.model_dump(mode="json"), config.id_column, config.old_vector_column, *read_as]
        ),
        gallery=gallery,
        id_type=id_type_of(gallery, config.id_column),
        old_dim=old_dim,
        old_kinds=tuple(dict.fromkeys(map(str, kinds))),
        chunk_rows=tuple(chunks),
        side_dim=vector_dim_of(store, gallery, side[0], dtype) if side else None,
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


def take_snapshot(context: Context, snapshot: Snapshot, config: GalleryConfig, cut: str | None = None) -> Snapshot:
    """The stored snapshot of the very files that were inspected, or this one, stored after every id was checked.

    Args:
        cut: of the snapshot that the plan which goes on was made from; None if a new plan is to be made.

    Raises:
        InputError: null ids, and ids that occur twice.
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
    _check_ids(context, snapshot, config)
    if not files.put_new(path, seal_file(path, snapshot)):
        return unseal_file(path, files.get(path), Snapshot)
    return snapshot


def _check_ids(context: Context, snapshot: Snapshot, config: GalleryConfig) -> None:
    """Every id present and unique. Tasks exchange hashes by partition: no process ever holds all of them."""
    gallery = [file for file in snapshot.gallery.files if file.rows]
    partitions = max(2, -(-snapshot.rows // _PARTITION_ROWS))
    step = -(-len(gallery) // _ID_GROUPS)
    groups = [gallery[i : i + step] for i in range(0, len(gallery), step)]
    cut = partial(_hash_group, context.store, config.id_column, snapshot.id_type, partitions)
    with context.progress.stage("snapshot", snapshot.rows, "items") as bar:
        repeated = np.concatenate(
            context.engine.exchange(
                cut, _repeated, groups, partitions, lambda group: bar.advance(sum(file.rows for file in group))
            )
        )
    if len(repeated) == 0:
        return
    # Rare path: look the rows up, so that the message names them, and so that a mere collision of hashes is forgiven.
    places: dict[int | str, list[str]] = {}
    find = partial(_find_ids, store=context.store, column=config.id_column, id_type=snapshot.id_type, hashes=repeated)
    for file, rows in context.engine.run_tasks(find, gallery, name="find duplicate ids", ordered=True):
        for row, value in rows:
            places.setdefault(value, []).append(f"{file.path} row {row}")
    duplicates = {value: found for value, found in places.items() if len(found) > 1}
    if duplicates:
        shown = "; ".join(
            f"{value!r} at {' and '.join(found[:3])}" for value, found in list(duplicates.items())[:_SHOWN]
        )
        raise InputError(
            f"gallery.id_column {config.id_column!r}: {len(duplicates)} ids occur more than once: {shown}. "
            "Ids must be unique over all files: remove the duplicates."
        )


def _hash_group(
    store: InputStore, column: str, id_type: IdType, parts: int, files: Sequence[PinnedFile]
) -> list[np.ndarray]:
    """The hashes of all ids of some files, cut into `parts` by value."""
    hashes = []
    for file in files:
        table = read_rows(store, file, [column])
        values = table.column(column)
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"{file.path} row {row}: column {column!r} is null ({values.null_count} such rows in this file). "
                "Every item needs an id: fill them in, or remove the rows."
            )
        hashes.append(hash_ids(read_ids(table, column, id_type, path=file.path)))
    hashed = np.concatenate(hashes)
    part = (hashed % np.uint64(parts)).astype(np.int64)
    return [hashed[part == i] for i in range(parts)]


def _repeated(*hashes: np.ndarray) -> np.ndarray:
    ordered = np.sort(np.concatenate(hashes))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _find_ids(
    file: PinnedFile, *, store: InputStore, column: str, id_type: IdType, hashes: np.ndarray
) -> Sequence[tuple[int, int | str]]:
    ids = read_ids(read_rows(store, file, [column]), column, id_type, path=file.path)
    rows = np.flatnonzero(np.isin(hash_ids(ids), hashes))
    return [(int(row), ids[row] if id_type == "string" else int(ids[row])) for row in rows[:1000]]
