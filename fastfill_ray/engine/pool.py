"""A pool of actors as one Ray Data execution.

A unit travels as one row that carries its payload, and leaves as its receipt: what a worker
computes is written by the worker and never comes back to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray.data

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.intake import Intake, admit
from fastfill_ray.engine.interface import PoolWork
from fastfill_ray.engine.units import attempt, original_errors, pack_error, raise_packed
from fastfill_ray.errors import FastfillError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

U = TypeVar("U", bound=Model)

# Read tasks in flight ahead of the pool, at least; one per actor in larger pools. They ask for no CPU: at half a CPU
# beside actors that hold every core the pipeline starved, and at the actors' own resources Ray fuses them into the
# actor and nothing overlaps.
_READERS = 2
# Payload waits in the object store, so the pool is kept two units ahead and no more.
_UNITS_PER_ACTOR = 2


class RayPool(Generic[U]):
    """See ``engine.interface.Pool``."""

    def __init__(self, work: PoolWork[U], units: Sequence[U], resources: ResourcesConfig, *, may_stop: bool) -> None:
        self._intake = Intake() if may_stop and units else None
        self._stream = _run(work, units, resources, self._intake)

    def __iter__(self) -> Iterator[tuple[U, Receipt]]:
        return self

    def __next__(self) -> tuple[U, Receipt]:
        return next(self._stream)

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
    work: PoolWork[U], units: Sequence[U], resources: ResourcesConfig, intake: Intake | None
) -> Generator[tuple[U, Receipt]]:
    if not units or (intake is not None and intake.drained):
        return
    low, high = resources.embed_actors
    pool = ray.data.ActorPoolStrategy(
        min_size=low, max_size=max(low, min(high, len(units))), max_tasks_in_flight_per_actor=_UNITS_PER_ACTOR
    )
    descriptors = [{"number": number, "unit": unit.model_dump_json()} for number, unit in enumerate(units)]
    unit_type = type(units[0])
    dataset = (
        ray.data.from_items(descriptors, override_num_blocks=len(descriptors))
        .map_batches(
            _Read(work.read, unit_type),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=max(_READERS, high)),
            num_cpus=0,
        )
        .map_batches(
            _Actor,
            fn_constructor_args=(work.worker, unit_type, intake.handle if intake is not None else None),
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
            if intake is not None:
                intake.seen(row["number"])
            if row["receipt"] is not None:
                yield units[row["number"]], Receipt.model_validate_json(row["receipt"])
            if intake is not None and intake.drained:
                return


class _Read:
    """One row in, the same row with its payload as Arrow IPC out."""

    def __init__(self, read: Callable[[Any], pa.Table], unit_type: type[Model]) -> None:
        self._read, self._unit_type = read, unit_type

    def __call__(self, batch: pa.Table) -> pa.Table:
        payload, error = None, None
        try:
            payload = _ipc(self._read(self._unit_type.model_validate_json(batch.column("unit")[0].as_py())))
        except FastfillError as fault:
            error = pack_error(fault)
        columns = {name: batch.column(name) for name in ("number", "unit")}
        return pa.table(
            {**columns, "payload": pa.array([payload], pa.large_binary()), "error": pa.array([error], pa.string())}
        )


class _Actor:
    """An actor of the pool."""

    def __init__(self, worker: Callable[[], Any], unit_type: type[Model], intake: Any) -> None:
        self._worker, self._unit_type, self._intake = worker(), unit_type, intake

    def __call__(self, batch: pa.Table) -> pa.Table:
        number = batch.column("number")[0].as_py()
        receipt, error = None, batch.column("error")[0].as_py()
        if error is None and (self._intake is None or admit(self._intake, number)):
            unit = self._unit_type.model_validate_json(batch.column("unit")[0].as_py())
            table = pa.ipc.open_stream(batch.column("payload")[0].as_buffer()).read_all()
            receipt, error = attempt(lambda: self._worker(unit, table))
        return pa.table(
            {"number": [number], "receipt": pa.array([receipt], pa.string()), "error": pa.array([error], pa.string())}
        )


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
