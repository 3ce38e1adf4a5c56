"""A pool of actors as one Ray Data execution.

Units travel in blocks: a block is one row that carries their payloads, and leaves as their receipts. What a worker
computes is written by the worker and never comes back to the driver.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray.data
from pydantic import TypeAdapter

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.intake import Intake, Journal, Withdrawn, admit, way_of
from fastfill_ray.engine.interface import Attempt, Blocks, Finish, PoolWork
from fastfill_ray.engine.preparing import PrepareBlock, is_offered
from fastfill_ray.engine.resources import at_most_a_node
from fastfill_ray.engine.units import original_errors, pack_error, pack_table, raise_packed, unpack_tables
from fastfill_ray.errors import EmbedderError, FastfillError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

logger = logging.getLogger(__name__)

U = TypeVar("U", bound=Model)

# Read tasks in flight ahead of the pool, at least; one per actor in larger pools. They ask for memory, which an
# autoscaler sees, and for no CPU: at half a CPU beside actors that hold every core the pipeline starved, and at the
# actors' own resources Ray fuses them into the actor and nothing overlaps.
_READERS = 2
# Of a read task: the libraries (300 to 490 MB were seen), and a block's payload as it is read, as a table, as Arrow
# IPC, and as a block of Ray's.
_READER_BYTES, _PAYLOAD_COPIES = 512 << 20, 4
# Of the blocks that an actor has, one is computed while another one is unpacked, or written. No more than these two:
# their payloads wait in memory.
_BLOCKS_PER_ACTOR = 2
# Older releases of Ray take it as an option of the actors, newer ones warn of that.
_IS_NAMED = "max_concurrent_calls_per_actor" in inspect.signature(ray.data.ActorPoolStrategy).parameters
_OF_POOL: dict[str, Any] = {"max_concurrent_calls_per_actor": _BLOCKS_PER_ACTOR} if _IS_NAMED else {}
_OF_ACTORS: dict[str, Any] = {} if _IS_NAMED else {"max_concurrency": _BLOCKS_PER_ACTOR}
# What came of suspect units is to be with the driver before the actor begins what may end it.
_REPLY_S = 0.5


class RayPool(Generic[U]):
    """See ``engine.interface.Pool``. preparers: processes between reading and embedding, at most; see ``preparing``."""

    def __init__(self, work: PoolWork[U], groups: Blocks[U], resources: ResourcesConfig, preparers: int = 0) -> None:
        self._intake = Intake() if groups else None
        self._stream = _run(work, groups, resources, preparers, self._intake)
        self._left = sum(len(block) for group in groups for block in group)

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
    work: PoolWork[U], groups: Blocks[U], resources: ResourcesConfig, preparers: int, intake: Intake | None
) -> Generator[tuple[U, Receipt]]:
    if intake is None or intake.drained:
        return
    low, high = resources.embed_actors
    units = [unit for group in groups for block in group for unit in block]
    num_blocks = sum(map(len, groups))
    pool = ray.data.ActorPoolStrategy(
        min_size=low,
        max_size=max(low, min(high, num_blocks)),
        max_tasks_in_flight_per_actor=_BLOCKS_PER_ACTOR,
        **_OF_POOL,
        enable_true_multi_threading=True,
    )
    firsts = itertools.accumulate((sum(map(len, group)) for group in groups), initial=0)
    unit_type = type(units[0])
    as_json = TypeAdapter(list[list[unit_type]])  # type: ignore[valid-type]  # known only here
    descriptors = [
        {"first": first, "blocks": as_json.dump_json([list(block) for block in group])}
        for first, group in zip(firsts, groups, strict=False)
    ]
    memory = at_most_a_node(_READER_BYTES + _PAYLOAD_COPIES * resources.chunk_bytes)
    payloads = ray.data.from_items(descriptors, override_num_blocks=len(descriptors)).map_batches(
        _Read(work.read, unit_type),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(len(groups), max(_READERS, high))),
        num_cpus=0,
        memory=memory,
    )
    if preparers and work.prepare is not None:
        step = PrepareBlock(work.prepare, work.embedder_of, unit_type, intake.handle, resources.call_timeout_s)
        if is_offered(step, map(work.embedder_of, units), memory):
            # Each asks for a CPU that no actor can hold, and for other resources than both its neighbours, so that Ray
            # fuses it with none of them.
            payloads = payloads.map_batches(
                step,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(preparers, num_blocks)),
                num_cpus=1,
                memory=memory,
            )
    dataset = payloads.map_batches(
        _Actor,
        fn_constructor_args=(work.worker, unit_type, intake.handle, resources.call_timeout_s),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        **_OF_ACTORS,
    )
    with original_errors():
        for row in dataset.iter_rows():
            raise_packed(row["error"])
            first, receipts = row["first"], list(map(Receipt.model_validate_json, row["receipts"]))
            intake.seen(range(first, first + row["count"]))
            if row["warning"] is not None:
                logger.warning("%s", row["warning"])
            _say_deaths(receipts, row["attempts"])
            yield from zip(units[first : first + len(receipts)], receipts, strict=True)
            if intake.drained:
                return


def _say_deaths(receipts: Sequence[Receipt], attempts: Sequence[int]) -> None:
    """Of a block's units, which were in most processes when they ended; the others only were beside them."""
    tries = {receipt.unit: attempt for receipt, attempt in zip(receipts, attempts, strict=False)}
    most = max(tries.values(), default=1)
    guilty = [unit for unit, attempt in tries.items() if attempt == most]
    if most > 1:
        logger.warning(
            "unit %s%s ended %d process%s (crash, no answer, no memory, or a lost node)",
            guilty[0],
            f" or one of the {len(guilty) - 1} that were embedded with it" if len(guilty) > 1 else "",
            most - 1,
            "es" * (most > 2),
        )


class _Read:
    """A group in, its blocks out, a row each, with their payloads as Arrow IPC; the first error ends it."""

    def __init__(self, read: Callable[[Sequence[Any]], Iterator[pa.Table]], unit_type: type[Model]) -> None:
        self._read, self._unit_type = read, unit_type

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        as_json = TypeAdapter(list[list[self._unit_type]])  # type: ignore[name-defined]  # known only here
        first, blocks = batch.column("first")[0].as_py(), as_json.validate_json(batch.column("blocks")[0].as_py())
        payloads = self._read([unit for block in blocks for unit in block])
        for block in blocks:
            read: list[bytes] = []
            try:
                for _ in block:
                    read.append(pack_table(next(payloads)))
            except FastfillError as fault:
                yield _payload_row(first, block[: len(read)], read, None)  # what could be read is embedded
                yield _payload_row(first + len(read), block[len(read) :], [], pack_error(fault))
                return
            yield _payload_row(first, block, read, None)
            first += len(block)


def _payload_row(first: int, units: Sequence[Any], payloads: Sequence[bytes], error: str | None) -> pa.Table:
    columns = {
        "payloads": pa.array([payloads], pa.list_(pa.large_binary())),
        "warning": pa.array([None], pa.string()),  # what the driver says when the block comes back
        "error": pa.array([error], pa.string()),
    }
    units_json = pa.array([[unit.model_dump_json() for unit in units]], pa.list_(pa.string()))
    return pa.table({"first": [first], "units": units_json, **columns})


class _Actor:
    """An actor of the pool. One thread computes, block after block; Ray's own unpack and write beside it."""

    def __init__(self, worker: Callable[[], Any], unit_type: type[Model], intake: Any, call_timeout_s: float) -> None:
        self._unit_type = unit_type
        self._computing = ThreadPoolExecutor(1)
        self._worker = self._computing.submit(worker).result()
        self._intake, self._call_timeout_s = intake, call_timeout_s
        self._quiet_until = 0.0

    def __call__(self, batch: pa.Table) -> pa.Table:
        first, texts = batch.column("first")[0].as_py(), batch.column("units")[0].as_py()
        units = [self._unit_type.model_validate_json(text) for text in texts]
        receipts: list[Receipt] = []
        attempts: list[int] = []
        error = batch.column("error")[0].as_py()
        try:
            if error is None:
                tables = unpack_tables(batch.column("payloads")[0])
                finish = self._computing.submit(self._compute, first, units, tables, receipts, attempts).result()
                receipts += finish()
        except Withdrawn:
            logger.info("the run has stopped: an attempt at a suspect unit was given up")
        except FastfillError as fault:
            error = pack_error(fault)
        columns = {
            "receipts": pa.array([[receipt.model_dump_json() for receipt in receipts]], pa.list_(pa.string())),
            "attempts": pa.array([attempts], pa.list_(pa.int64())),
            "warning": batch.column("warning"),
            "error": pa.array([error], pa.string()),
        }
        return pa.table({"first": [first], "count": [len(units)], **columns})

    def _compute(
        self,
        first: int,
        units: Sequence[Any],
        tables: Sequence[pa.Table],
        receipts: list[Receipt],
        attempts: list[int],
    ) -> Finish:
        """All units together; or, where one of them may have ended a process, one after the other to the end, in order,
        until none may begin.
        """
        if not units:
            return tuple
        time.sleep(max(0.0, self._quiet_until - time.monotonic()))
        began = admit(self._intake, range(first, first + len(units)))
        if began == 0:
            return tuple
        if began == 1:
            attempts += [began] * len(units)
            return self._begin(units, tables, began)
        for place, unit in enumerate(units):
            began = began if len(units) == 1 else admit(self._intake, [first + place])
            if began == 0:
                break
            attempts.append(began)
            receipts += self._begin([unit], [tables[place]], began)()
        self._quiet_until = time.monotonic() + _REPLY_S
        return tuple

    def _begin(self, units: Sequence[Any], tables: Sequence[pa.Table], began: int) -> Finish:
        way = way_of(began)
        if way == "hopeless":
            raise EmbedderError(
                f"unit {units[0]}: it has ended {began - 1} processes, at last ones that only watched "
                "over the model's. Give the nodes more memory, lower new_model.batch_size, or mend the embedder."
            )
        journal = Journal(self._intake) if way == "isolated" else None
        finish: Finish = self._worker(units, tables, Attempt(self._call_timeout_s, journal, again=began > 1))
        return finish
