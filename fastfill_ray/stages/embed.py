"""Units of embedding work in, receipts out. Everything that is ever embedded passes through here.

A unit is a fixed set of rows of one file. Its vectors are written by the worker that computed them and never come back
to the driver: the receipt does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fastfill_ray.config import NewModelConfig, OldModelConfig, QueriesConfig
from fastfill_ray.embedders.protocol import Embedder, Role, embed_rows, load_embedder
from fastfill_ray.engine.interface import PoolWork
from fastfill_ray.errors import EmbedderError, InputError
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, read_rows
from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.ordering.waves import wave_of
from fastfill_ray.storage.arrow import id_array, read_table, stored_vectors, table_bytes, vector_column
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import unit_output, unit_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, put_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import IdType, Model, fingerprint


class Unit(Model):
    """One unit of embedding work. Its rows are a slice of a file, or those that `offsets` or a wave select in it."""

    unit: str
    folder: str
    file: PinnedFile
    start: int
    length: int
    rows: int
    role: Literal["item", "query"]
    model: Literal["new", "old"]
    wave: int = 0
    offsets: tuple[int, ...] | None = None
    scores: FileRef | None = None


@dataclass(frozen=True)
class Space:
    """A model as the pool builds it: ``module:Class``, its kwargs, what it must return."""

    embedder: str
    kwargs: dict[str, Any] = field(repr=False)  # Ray Data shows the arguments of its operators
    dim: int
    metric: str
    batch_size: int


@dataclass(frozen=True)
class Models:
    """The models that a run can call: the new one, and the old one where it has an embedder."""

    new: NewModelConfig
    old: OldModelConfig

    def fingerprints(self) -> dict[str, str]:
        """{"new": ..., "old": ...}: names of the spaces that these models embed into."""
        named = {"new": fingerprint([self.new.embedder, self.new.kwargs, self.new.dim])}
        if self.old.embedder is not None:
            named["old"] = fingerprint([self.old.embedder, self.old.kwargs])
        return named

    def spaces(self, old_dim: int) -> dict[str, Space]:
        """The same models as the pool builds them."""
        new, old = self.new, self.old
        spaces = {"new": Space(new.embedder, dict(new.kwargs), new.dim, new.metric, new.batch_size)}
        if old.embedder is not None:
            spaces["old"] = Space(old.embedder, dict(old.kwargs), old_dim, new.metric, new.batch_size)
        return spaces


@dataclass(frozen=True)
class Job:
    """What every worker of the pool needs to know. thresholds: at which waves end, once there is a plan."""

    files: Files
    store: InputStore
    id_column: str
    id_type: IdType
    payload_columns: tuple[str, ...]
    query_payload_columns: tuple[str, ...]
    spaces: dict[str, Space]
    thresholds: tuple[int, ...] = ()

    def columns(self, role: Role) -> tuple[str | None, tuple[str, ...]]:
        """The id column (queries go by their row in the file) and the payload columns."""
        return (self.id_column, self.payload_columns) if role == "item" else (None, self.query_payload_columns)


def make_job(source: Source, files: Files, queries: QueriesConfig | None, models: Models) -> Job:
    """What the pool needs before there is a plan."""
    gallery = source.config
    return Job(
        files=files,
        store=source.store,
        id_column=gallery.id_column,
        id_type=source.id_type,
        payload_columns=gallery.payload_columns,
        query_payload_columns=queries.payload_columns if queries is not None else (),
        spaces=models.spaces(source.old_dim),
    )


def pool_work(job: Job) -> PoolWork[Unit]:
    """What the pool does with a unit. Its receipt is durable when it comes back, unless it has quarantined rows: then
    the driver decides, and calls ``keep_receipt``.
    """
    # Readers need no model: its kwargs, which may be secret, travel to the actors alone.
    return PoolWork(partial(read_unit, replace(job, spaces={})), partial(UnitEmbedder, job))


class UnitEmbedder:
    """Builds each model once, when a unit first asks for it.

    Raises:
        EmbedderError: the model cannot be built.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._models: dict[str, Embedder] = {}

    def __call__(self, unit: Unit, table: pa.Table) -> Receipt:
        if unit.model not in self._models:
            space = self._job.spaces[unit.model]
            self._models[unit.model] = load_embedder(space.embedder, space.kwargs)
        return embed_unit(self._job, unit, table, self._models[unit.model])


def read_unit(job: Job, unit: Unit) -> pa.Table:
    """The unit's rows: columns ``__row`` (row in the file), ``__id``, and the payload columns."""
    id_column, payload = job.columns(unit.role)
    columns = [*payload] if id_column is None else [id_column, *payload]
    table = read_rows(job.store, unit.file, columns, start=unit.start, rows=unit.length)
    offsets = np.arange(unit.length)
    if unit.offsets is not None:
        offsets = np.array(unit.offsets, dtype=np.int64)
    elif unit.scores is not None:
        offsets = np.flatnonzero(read_waves(job.files, unit.scores, job.thresholds) == unit.wave)
    if len(offsets) != unit.rows:
        raise InputError(
            f"{unit.folder}/{unit.unit}: found {len(offsets)} rows in {unit.file.path}, the plan says {unit.rows}"
        )
    rows = offsets + unit.start
    chosen = table.take(offsets) if len(offsets) < unit.length else table
    ids = pa.array(rows) if id_column is None else id_array(read_ids(chosen, id_column, job.id_type), job.id_type)
    fixed = {"__row": pa.array(rows), "__id": ids}
    return pa.table({**fixed, **{name: chosen.column(name) for name in payload}})


def read_waves(files: Files, scores: FileRef, thresholds: Sequence[int]) -> np.ndarray:
    """The wave (N,) of each row of a scored chunk."""
    table = read_table(get_verified(files, scores), name=scores.path, columns=["key", "is_pair"])
    return wave_of(table.column("key").to_numpy(), table.column("is_pair").to_numpy(zero_copy_only=False), thresholds)


def embed_unit(job: Job, unit: Unit, table: pa.Table, model: Embedder) -> Receipt:
    """Embed a unit's rows and write the vectors, then the receipt unless it has bad rows. Rows in = rows out + bad."""
    start = time.monotonic()
    space = job.spaces[unit.model]
    _, payload = job.columns(unit.role)
    vectors = np.empty((table.num_rows, space.dim), np.float32)
    unusable: dict[int, str] = {}
    for first in range(0, table.num_rows, space.batch_size):
        part = table.slice(first, space.batch_size)
        batch = {name: part.column(name).to_pylist() for name in payload}
        found, faults = embed_rows(model, batch, unit.role, space.dim, metric=space.metric)
        vectors[first : first + part.num_rows] = found
        unusable |= {first + row: reason for row, reason in faults.items()}
    ids, rows = table.column("__id").to_pylist(), table.column("__row").to_pylist()
    kept = np.array([i for i in range(table.num_rows) if i not in unusable], dtype=np.int64)
    outputs: tuple[FileRef, ...] = ()
    if len(kept):
        data = table_bytes(pa.table({"id": table.column("__id").take(kept), "vector": vector_column(vectors[kept])}))
        outputs = (put_content(job.files, partial(unit_output, unit.folder, unit.unit), data),)
    receipt = Receipt(
        unit=unit.unit,
        outputs=outputs,
        rows=len(kept),
        ids_digest=ids_digest(ids[i] for i in kept),
        quarantined=tuple(Quarantined(id=ids[i], row=rows[i], reason=reason) for i, reason in sorted(unusable.items())),
        seconds=time.monotonic() - start,
    )
    if receipt.rows + len(receipt.quarantined) != unit.rows:
        raise EmbedderError(f"{unit.folder}/{unit.unit}: {unit.rows} rows in, {receipt.rows} out, {len(unusable)} bad")
    # Whether bad rows can be lived with depends on the whole wave: such a receipt is put by the driver, if at all.
    return receipt if receipt.quarantined else keep_receipt(job.files, unit, receipt)


def keep_receipt(files: Files, unit: Unit, receipt: Receipt) -> Receipt:
    """Make a unit's receipt durable; the first one wins, a twin's is adopted."""
    return put_receipt(files, unit_receipt(unit.folder, unit.unit), receipt)


def read_vectors(files: Files, receipts: Iterable[Receipt], dim: int) -> tuple[list[Any], np.ndarray]:
    """Ids (N,) and vectors (N, dim) float32 that receipts vouch for, verified, in the receipts' order."""
    ids: list[Any] = []
    parts = [np.empty((0, dim), np.float32)]
    for receipt in receipts:
        for output in receipt.outputs:
            table = read_table(get_verified(files, output), name=output.path)
            ids.extend(table.column("id").to_pylist())
            parts.append(stored_vectors(table, dim))
    return ids, np.concatenate(parts)
