"""A pool of actors as one Ray Data execution.

A unit travels as one row that carries its payload, and leaves as its receipt: what a worker
computes is written by the worker and never comes back to the driver.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray.data

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.intake import Intake, Journal, Withdrawn, admit, way_of
from fastfill_ray.engine.interface import Attempt, Groups, PoolWork
from fastfill_ray.engine.resources import at_most_a_node
from fastfill_ray.engine.units import original_errors, pack_error, raise_packed
from fastfill_ray.errors import EmbedderError, FastfillError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

logger = logging.getLogger(__name__)

U = TypeVar("U", bound=Model)

# Read tasks in flight ahead of the pool, at least; one per actor in larger pools. They ask for memory, which an
# autoscaler sees, and for no CPU: at half a CPU beside actors that hold every core the pipeline starved, and at the
# actors' own resources Ray fuses them into the actor and nothing overlaps.
_READERS = 2
# Of a read task: the libraries, and a unit's payload as it is read, as a table, as Arrow IPC, and as a block.
_READER_BYTES, _PAYLOAD_COPIES = 128 << 20, 4
# Payload waits in the object store, so the pool is kept two units ahead and no more.
_UNITS_PER_ACTOR = 2


class RayPool(Generic[U]):
    """See ``engine.interface.Pool``."""

    def __init__(self, work: PoolWork[U], groups: Groups[U], resources: ResourcesConfig) -> None:
        self._intake = Intake() if groups else None
        self._stream = _run(work, groups, resources, self._intake)
        self._left = sum(map(len, groups))

    def __iter__(self) -> Iterator[tuple[U, Receipt]]:
        return self

    def __next__(self) -> tuple[U, Receipt]:
        received = next(self._stream)
        self._left -= 1
        if not self._left:
            # Nobody need ask for more: the actors, and in time their nodes, go while the last version is built.
            self._stream.close()
        return received

    @property
    def has_begun(self) -> bool:
        """It holds actors, or did."""
        return inspect.getgeneratorstate(self._stream) != inspect.GEN_CREATED

    @property
    def has_ended(self) -> bool:
        """It holds no actors any more."""
        return inspect.getgeneratorstate(self._stream) == inspect.GEN_CLOSED

    def stop(self) -> None:
        if self._intake is not None:
            self._intake.close()

    @property
    def drained(self) -> bool:
        """It is stopped, and nothing that had begun is in flight."""
        return self._intake is None or self._intake.drained

    def close(self) -> None:
        self._stream.close()


def _run(
    work: PoolWork[U], groups: Groups[U], resources: ResourcesConfig, intake: Intake | None
) -> Generator[tuple[U, Receipt]]:
    if intake is None or intake.drained:
        return
    low, high = resources.embed_actors
    units = [unit for group in groups for unit in group]
    pool = ray.data.ActorPoolStrategy(
        min_size=low, max_size=max(low, min(high, len(units))), max_tasks_in_flight_per_actor=_UNITS_PER_ACTOR
    )
    first = itertools.accumulate((len(group) for group in groups), initial=0)
    descriptors = [
        {"first": number, "units": [unit.model_dump_json() for unit in group]}
        for number, group in zip(first, groups, strict=False)
    ]
    unit_type = type(units[0])
    dataset = (
        ray.data.from_items(descriptors, override_num_blocks=len(descriptors))
        .map_batches(
            _Read(work.read, unit_type),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=min(len(groups), max(_READERS, high))),
            num_cpus=0,
            memory=at_most_a_node(_READER_BYTES + _PAYLOAD_COPIES * resources.chunk_bytes),
        )
        .map_batches(
            _Actor,
            fn_constructor_args=(work.worker, unit_type, intake.handle, resources.call_timeout_s),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor,
        )
    )
    with original_errors():
        for row in dataset.iter_rows():
            raise_packed(row["error"])
            intake.seen(row["number"])
            if row["receipt"] is not None:
                receipt = Receipt.model_validate_json(row["receipt"])
                if row["attempt"] > 1:
                    logger.warning(
                        "unit %s ended %d processes (crash, no answer, no memory, or a lost node)",
                        receipt.unit,
                        row["attempt"] - 1,
                    )
                yield units[row["number"]], receipt
            if intake.drained:
                return


class _Read:
    """A group in, its units out, a row each, with their payloads as Arrow IPC; the first error ends it."""

    def __init__(self, read: Callable[[Sequence[Any]], Iterator[pa.Table]], unit_type: type[Model]) -> None:
        self._read, self._unit_type = read, unit_type

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        number, texts = batch.column("first")[0].as_py(), batch.column("units")[0].as_py()
        units = [self._unit_type.model_validate_json(text) for text in texts]
        done = 0
        try:
            for payload in self._read(units):
                yield _payload_row(number + done, texts[done], _ipc(payload), None)
                done += 1
        except FastfillError as fault:
            yield _payload_row(number + done, texts[done], None, pack_error(fault))


def _payload_row(number: int, unit: str, payload: bytes | None, error: str | None) -> pa.Table:
    columns = {"payload": pa.array([payload], pa.large_binary()), "error": pa.array([error], pa.string())}
    return pa.table({"number": [number], "unit": [unit], **columns})


class _Actor:
    """An actor of the pool."""

    def __init__(self, worker: Callable[[], Any], unit_type: type[Model], intake: Any, call_timeout_s: float) -> None:
        self._worker, self._unit_type = worker(), unit_type
        self._intake, self._call_timeout_s = intake, call_timeout_s

    def __call__(self, batch: pa.Table) -> pa.Table:
        number = batch.column("number")[0].as_py()
        receipt, error = None, batch.column("error")[0].as_py()
        began = 0
        try:
            began = admit(self._intake, number) if error is None else 0
            if began:
                unit = self._unit_type.model_validate_json(batch.column("unit")[0].as_py())
                table = pa.ipc.open_stream(batch.column("payload")[0].as_buffer()).read_all()
                receipt = self._work(unit, table, began).model_dump_json()
        except Withdrawn:
            logger.info("the run has stopped: an attempt at a suspect unit was given up")
        except FastfillError as fault:
            error = pack_error(fault)
        columns = {"receipt": pa.array([receipt], pa.string()), "error": pa.array([error], pa.string())}
        return pa.table({"number": [number], "attempt": [began], **columns})

    def _work(self, unit: Any, table: pa.Table, began: int) -> Receipt:
        way = way_of(began)
        if way == "hopeless":
            raise EmbedderError(
                f"unit {str(unit)[:200]}: it has ended {began - 1} processes, at last ones that only watched "
                "over the model's. Give the nodes more memory, lower new_model.batch_size, or mend the embedder."
            )
        journal = Journal(self._intake) if way == "isolated" else None
        receipt: Receipt = self._worker(unit, table, Attempt(self._call_timeout_s, journal))
        return receipt


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
