"""Units of embedding work in, receipts out. Everything that is ever embedded passes through here.

A unit is a fixed set of rows of one file. Its vectors are written by the worker that computed them and never come back
to the driver: the receipt does. Of items the worker also writes the digests of what it read: later they tell whether an
item changed.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fastfill_ray.config import NewModelConfig, OldModelConfig, QueriesConfig
from fastfill_ray.embedders.isolated import IsolatedEmbedder
from fastfill_ray.embedders.prepared import Preparer, load_preparer, num_tokens
from fastfill_ray.embedders.protocol import Embedder, Role, load_embedder
from fastfill_ray.embedders.watchdog import Limited, Watched, build_limit_s, ends_process_after
from fastfill_ray.engine.interface import Attempt, Finish, PoolWork
from fastfill_ray.errors import EmbedderError, InputError
from fastfill_ray.inputs.changes import DIGEST_BYTES
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, Span, in_one_pass, read_around, read_spans
from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.ids import item_keys, keys_digest
from fastfill_ray.stages.batches import Space, embed_tables
from fastfill_ray.stages.busy import Embedding
from fastfill_ray.stages.prepare import Columns, digests, prepare_table
from fastfill_ray.stages.work import rows_in
from fastfill_ray.storage.arrow import id_array, keys_column, read_table, stored_vectors, table_bytes, vector_column
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import overlapped, read_ahead
from fastfill_ray.storage.paths import items_output, unit_output, unit_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import F32, I64, U64, IdType, Model, fingerprint

# Waits before rows whose call raised are embedded again: the network, a device or a service may be back by then.
RETRY_DELAYS_S: tuple[float, ...] = (0.5, 2.0, 8.0)
_BUILDS = 3


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
    work: FileRef | None = None

    @property
    def span(self) -> Span:
        """What is read to get its rows."""
        return Span(self.file, self.start, self.length)

    def __str__(self) -> str:
        return f"{self.folder}/{self.unit}"


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
    """What every worker of the pool needs to know.

    new_space: fingerprint of the new model. retry_delays_s: waits before what raised is tried again.
    """

    files: Files
    store: InputStore
    id_column: str
    id_type: IdType
    payload_columns: tuple[str, ...]
    query_payload_columns: tuple[str, ...]
    spaces: dict[str, Space]
    new_space: str = ""
    retry_delays_s: tuple[float, ...] = ()
    version_column: str | None = None

    def payload(self, role: Role) -> tuple[str, ...]:
        """The columns that the embedder reads."""
        return self.payload_columns if role == "item" else self.query_payload_columns

    def columns(self, role: Role) -> Columns:
        """What the units of a role are read with."""
        return Columns(self.payload(role), self.version_column if role == "item" else None, role)

    @property
    def item_columns(self) -> tuple[str, ...]:
        """What is kept of an item's row beside its id: the payload columns, and the version column."""
        return self.payload_columns if self.version_column is None else (*self.payload_columns, self.version_column)


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
        new_space=models.fingerprints()["new"],
        retry_delays_s=RETRY_DELAYS_S,
        version_column=gallery.version_column,
    )


def pool_work(job: Job) -> PoolWork[Unit]:
    """What the pool does with a unit. Its receipt is durable when it comes back, unless it has quarantined rows: then
    the driver decides, and calls ``keep_receipt``.
    """
    # Readers need no model: its kwargs, which may be secret, travel to where it, or its preparer, is built.
    return PoolWork(
        partial(read_units, replace(job, spaces={})),
        partial(UnitEmbedder, job),
        partial(unit_preparer, job),
        partial(_embedder_of, {name: space.embedder for name, space in job.spaces.items()}),
    )


def _embedder_of(specs: Mapping[str, str], unit: Unit) -> str:
    return f"{unit.model}_model.embedder {specs[unit.model]!r}"


def unit_preparer(job: Job) -> UnitPreparer | None:
    """What prepares units for their models; None where no model offers a preparer.

    Raises:
        EmbedderError: one cannot be built.
    """
    delays_s = job.retry_delays_s[: _BUILDS - 1]
    offered = {
        name: load_preparer(space.embedder, space.kwargs, retry_delays_s=delays_s) for name, space in job.spaces.items()
    }
    preparers = {name: preparer for name, preparer in offered.items() if preparer is not None}
    return UnitPreparer(job, preparers) if preparers else None


class UnitPreparer:
    """Does what models' preparers do for units' rows, {model: its preparer}."""

    def __init__(self, job: Job, preparers: Mapping[str, Preparer]) -> None:
        self._job, self._preparers = job, preparers

    def __call__(
        self, units: Sequence[Unit], tables: Sequence[pa.Table], call_timeout_s: float | None
    ) -> Sequence[pa.Table]:
        """Each unit's table, prepared as far as it can be. A call that takes longer than the limit ends the process."""
        made = list[pa.Table]()
        for unit, table in zip(units, tables, strict=True):
            preparer = self._preparers.get(unit.model)
            if preparer is not None:
                limited = Limited(preparer, call_timeout_s)
                table = prepare_table(
                    table, self._job.columns(unit.role), limited, self._job.spaces[unit.model].batch_size
                )
            made.append(table)
        return made


class UnitEmbedder:
    """Builds each model once, when a unit first asks for it; anew, in a process of its own, for a suspect unit.

    Raises:
        EmbedderError: the model cannot be built.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._models: dict[str, Embedder] = {}

    def __call__(self, units: Sequence[Unit], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        """Embeds units of one model together; what it returns writes them."""
        if attempt.again and all(done := [self._receipt_of(unit) for unit in units]):
            return lambda: [receipt for receipt in done if receipt is not None]
        space, limit_s = self._job.spaces[units[0].model], attempt.call_timeout_s
        if attempt.journal is not None and limit_s is not None:
            self._give_up_models()
            with IsolatedEmbedder(str(units[0]), space.embedder, space.kwargs, limit_s, attempt.journal) as isolated:
                return embed_units(self._job, units, tables, isolated)
        if units[0].model not in self._models:
            self._models[units[0].model] = build_model(self._job, space, limit_s)
        return embed_units(self._job, units, tables, Watched(self._models[units[0].model], limit_s))

    def _receipt_of(self, unit: Unit) -> Receipt | None:
        """Of a unit that was finished in a process that ended with the units beside it."""
        return read_receipt(self._job.files, unit_receipt(unit.folder, unit.unit))

    def _give_up_models(self) -> None:
        """Twice the same model may be more than the device holds."""
        self._models.clear()
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def loads(job: Job, units: Sequence[Unit], actors: int) -> str:
    """What a pool does before the first of `units` can come back, for people."""
    models = dict.fromkeys(job.spaces[unit.model].embedder for unit in units)
    return f"loading {' and '.join(models)} in {actors} actor{'' if actors == 1 else 's'} ..."


def build_model(job: Job, space: Space, call_timeout_s: float | None) -> Embedder:
    """The model; a constructor that raises is called again, and one that hangs ends the process.

    Raises:
        EmbedderError: it cannot be built.
    """
    with ends_process_after(None if call_timeout_s is None else build_limit_s(call_timeout_s)):
        return load_embedder(space.embedder, space.kwargs, retry_delays_s=job.retry_delays_s[: _BUILDS - 1])


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units in their order, in groups that a task of the pool reads in one pass."""
    runs = (list(run) for _, run in itertools.groupby(units, key=lambda unit: (unit.folder, unit.role)))
    return [group for run in runs for group in in_one_pass(run, lambda unit: unit.span)]


def read_units(job: Job, units: Sequence[Unit]) -> Iterator[pa.Table]:
    """Each unit's rows: columns ``__row`` (row in the file), ``__id``, the payload columns, items' version column.

    Args:
        units: of one role.
    """
    if units[0].role == "query":  # a sample of a file of any size; queries go by their row in it
        for unit in units:
            yield _sampled_rows(job, unit)
        return
    columns = [job.id_column, *job.item_columns]
    for unit, table in zip(units, read_spans(job.store, (unit.span for unit in units), columns), strict=True):
        yield _rows_of(job, unit, table)


def _offsets(job: Job, unit: Unit) -> I64:
    """Which rows of its span are the unit's, ascending."""
    offsets = np.arange(unit.length)
    if unit.offsets is not None:
        offsets = np.array(unit.offsets, dtype=np.int64)
    elif unit.work is not None:
        offsets = np.flatnonzero(rows_in(job.files, unit.work, unit.unit).due(unit.wave))
    if len(offsets) != unit.rows:
        raise InputError(f"{unit}: found {len(offsets)} rows in {unit.file.path}, the plan says {unit.rows}")
    return offsets


def _sampled_rows(job: Job, unit: Unit) -> pa.Table:
    """The rows of queries."""
    rows, payload = _offsets(job, unit) + unit.start, job.query_payload_columns
    parts = [take_rows(table, places) for _, table, places in read_around(job.store, unit.file, rows, payload)]
    numbers = pa.array(rows)
    return _payload_table(numbers, numbers, pa.concat_tables(parts), payload)


def _rows_of(job: Job, unit: Unit, table: pa.Table) -> pa.Table:
    """The unit's rows of what was read for it."""
    offsets = _offsets(job, unit)
    chosen = take_rows(table, offsets) if len(offsets) < unit.length else table
    ids = id_array(read_ids(chosen, job.id_column, job.id_type), job.id_type)
    return _payload_table(pa.array(offsets + unit.start), ids, chosen, job.item_columns)


def _payload_table(rows: pa.Array, ids: pa.Array, table: pa.Table, columns: Sequence[str]) -> pa.Table:
    fields = [table.schema.field(name) for name in dict.fromkeys(columns)]  # their metadata may say what they hold
    return pa.Table.from_arrays(
        [rows, ids, *(table.column(field.name) for field in fields)],
        schema=pa.schema([pa.field("__row", pa.int64()), pa.field("__id", ids.type), *fields]),
    )


def embed_units(job: Job, units: Sequence[Unit], tables: Sequence[pa.Table], model: Embedder) -> Finish:
    """Embed the rows of units of one model and role together. Rows in = rows out + bad.

    What it returns writes each unit's vectors, of items also what is known of them, then its receipt unless it has bad
    rows; a few units at a time: a fast model makes small ones quicker than a store takes them one after the other.
    """
    start, began_s, before = time.monotonic(), time.time(), num_tokens(model)
    unit = units[0]
    embedded = embed_tables(
        tables, job.payload(unit.role), job.spaces[unit.model], unit.role, model, retry_delays_s=job.retry_delays_s
    )
    took_s, rows = time.monotonic() - start, sum(table.num_rows for table in tables)
    after = num_tokens(model)
    tokens = None if before is None or after is None else after - before
    times = [Embedding.here(began_s, began_s + took_s, table.num_rows / max(1, rows), tokens) for table in tables]
    writes = [
        partial(_write, job, unit, table, of_unit, took)
        for unit, table, of_unit, took in zip(units, tables, embedded, times, strict=True)
    ]
    return lambda: list(overlapped(writes))


def _write(job: Job, unit: Unit, table: pa.Table, embedded: tuple[F32, dict[int, str]], times: Embedding) -> Receipt:
    start = time.monotonic()
    vectors, unusable = embedded
    ids, rows = table.column("__id").to_pylist(), table.column("__row").to_pylist()
    kept = np.array([i for i in range(table.num_rows) if i not in unusable], dtype=np.int64)
    keys = item_keys([ids[i] for i in kept])
    outputs: tuple[FileRef, ...] = ()
    if len(kept):
        data = table_bytes(pa.table({"id": table.column("__id").take(kept), "vector": vector_column(vectors[kept])}))
        outputs = (put_content(job.files, partial(unit_output, unit.folder, unit.unit), data),)
        if unit.role == "item":
            items = table_bytes(_items(job, table, kept, keys))
            outputs += (put_content(job.files, partial(items_output, unit.folder, unit.unit), items),)
    receipt = Receipt(
        unit=unit.unit,
        outputs=outputs,
        rows=len(kept),
        ids_digest=keys_digest(keys),
        quarantined=tuple(Quarantined(id=ids[i], row=rows[i], reason=reason) for i, reason in sorted(unusable.items())),
        seconds=times.busy_s + time.monotonic() - start,
        details=times.details() | ({"space": job.new_space} if unit.role == "item" else {}),
    )
    if receipt.rows + len(receipt.quarantined) != unit.rows:
        raise EmbedderError(f"{unit}: {unit.rows} rows in, {receipt.rows} out, {len(unusable)} bad")
    # Whether bad rows can be lived with depends on the whole wave: such a receipt is put by the driver, if at all.
    return receipt if receipt.quarantined else keep_receipt(job.files, unit, receipt)


def _items(job: Job, table: pa.Table, kept: I64, keys: U64) -> pa.Table:
    """Of the rows `kept` (N,), whose keys are (N, 2): the digests of what was read of them."""
    payload, version = digests(table, job.columns("item"))
    return pa.table({"key": keys_column(keys), "payload": payload.take(kept), "version": version.take(kept)})


def keep_receipt(files: Files, unit: Unit, receipt: Receipt) -> Receipt:
    """Make a unit's receipt durable; the first one wins, a twin's is adopted."""
    return put_receipt(files, unit_receipt(unit.folder, unit.unit), receipt)


def vectors_file(receipt: Receipt) -> FileRef | None:
    """A unit's vectors: columns ``id`` and ``vector``. None where no row could be embedded."""
    return receipt.outputs[0] if receipt.outputs else None


def items_file(receipt: Receipt) -> FileRef | None:
    """Digests of a unit's items in the order of its vectors: columns ``key``, ``payload``, and ``version``, which is
    null where no version is known. None where no row could be embedded, and of queries.
    """
    return receipt.outputs[1] if len(receipt.outputs) > 1 else None


def read_items(files: Files, receipts: Iterable[Receipt]) -> pa.Table:
    """The items files (N rows) that receipts vouch for, verified, in the receipts' order."""
    references = [reference for receipt in receipts if (reference := items_file(receipt)) is not None]
    empty = pa.schema([(name, pa.binary(DIGEST_BYTES)) for name in ("key", "payload", "version")]).empty_table()

    def read(reference: FileRef) -> pa.Table:
        return read_table(get_verified(files, reference), name=reference.path)

    return pa.concat_tables([empty, *read_ahead(read, references)])


def read_vectors(files: Files, receipts: Iterable[Receipt], dim: int) -> tuple[list[Any], np.ndarray]:
    """Ids (N,) and vectors (N, dim) float32 that receipts vouch for, verified, in the receipts' order."""
    ids: list[Any] = []
    parts = [np.empty((0, dim), np.float32)]
    outputs = filter(None, map(vectors_file, receipts))
    for here, vectors in read_ahead(partial(read_vectors_file, files, dim=dim), outputs):
        ids.extend(here)
        parts.append(vectors)
    return ids, np.concatenate(parts)


def read_vectors_file(files: Files, reference: FileRef, dim: int) -> tuple[list[Any], F32]:
    """Ids (N,) and vectors (N, dim) float32 of one unit, verified."""
    table = read_table(get_verified(files, reference), name=reference.path)
    return table.column("id").to_pylist(), stored_vectors(table, dim)
