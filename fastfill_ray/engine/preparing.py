"""Payloads made ready on CPUs that the pool's actors leave free, between reading and embedding.

Nothing is decided here: what could not be prepared, and what ended the process that prepared it, goes on as it was
read, and the actor, which holds faults to their rows, prepares it itself. Where such processes end again and again,
so does every block (``intake.Preparing``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.embedders.watchdog import build_limit_s, ends_process_after
from fastfill_ray.engine.intake import Turn, begin_preparing, end_preparing
from fastfill_ray.engine.interface import Prepare
from fastfill_ray.engine.tasks import result_of
from fastfill_ray.engine.units import pack_error, pack_table, unpack_tables
from fastfill_ray.errors import FastfillError
from fastfill_ray.types import Model

logger = logging.getLogger(__name__)

# How a process can end, for people.
_ENDS = "a crash, {}, no memory, or a lost node"
# What this process has built last: tasks of one step meet again in the same processes.
_built: tuple[str, Prepare[Any] | None] = ("", None)


def num_preparers(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]], *, grows: bool) -> int:
    """Processes that may prepare payloads at a time: as many as there are CPUs that no actor can hold.

    0 where actors can hold all of them: a process that asked for one would wait as long as the pool lasts. Then actors
    prepare for themselves.

    Args:
        nodes: {Ray's name of a resource: amount} of each node that is there.
        grows: whether the cluster can get more nodes: then there are as many processes per actor that may come.
    """
    _, most = resources.embed_actors
    free = [node.get("CPU", 0.0) for node in nodes]
    room = [_actors_on(node, resources) for node in nodes]
    actors = 0
    while actors < most and any(room):
        # Wherever Ray puts them: spread over the nodes they leave the fewest whole CPUs.
        node = max((number for number, left in enumerate(room) if left), key=lambda number: free[number])
        free[node] -= resources.cpus_per_actor
        room[node] -= 1
        actors += 1
    spare = sum(int(cpus) for cpus in free)
    if grows and actors:
        spare = spare * most // actors
    wanted = resources.prepare_workers
    if wanted == "auto":
        return spare
    return wanted if grows else min(wanted, spare)


def _actors_on(node: Mapping[str, float], resources: ResourcesConfig) -> int:
    """How many actors a node has room for; of actors that ask for nothing, all."""
    asked = {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}
    fits = [int(node.get(name, 0) // amount) for name, amount in asked.items() if amount > 0]
    return min(fits, default=resources.embed_actors[1])


class PrepareBlock:
    """A block in, the same block out, its payloads prepared as far as they can be.

    Args:
        build: see ``PoolWork.prepare``. embedder_of: see ``PoolWork``.
    """

    def __init__(
        self,
        build: Callable[[], Prepare[Any] | None],
        embedder_of: Callable[[Any], str],
        unit_type: type[Model],
        intake: Any,
        call_timeout_s: float,
    ) -> None:
        self._key = uuid4().hex
        self._build, self._embedder_of, self._unit_type = build, embedder_of, unit_type
        self._intake, self._call_timeout_s = intake, call_timeout_s

    def __call__(self, batch: pa.Table) -> pa.Table:
        if batch.column("error")[0].is_valid:
            return batch
        block = batch.column("first")[0].as_py()
        try:
            turn = begin_preparing(self._intake, block)
            if turn.ended:
                return _with(batch, "warning", pa.array([self._warning(batch, turn)], pa.string()))
            if not turn.begins:
                return batch
            payloads = self._prepared(batch)
        except FastfillError as fault:
            return _with(batch, "error", pa.array([pack_error(fault)], pa.string()))
        end_preparing(self._intake, block)
        return batch if payloads is None else _with(batch, "payloads", payloads)

    def _warning(self, batch: pa.Table, turn: Turn) -> str:
        units = self._units(batch)
        whose = f"the `preparer` of {self._embedder_of(units[0])}"
        if turn.gives_up:
            limit = f"no answer in {self._call_timeout_s:g} s (resources.call_timeout_s)"
            return (
                f"{whose} has ended {turn.ended} processes ({_ENDS.format(limit)}): from now on the actors prepare "
                "the payloads themselves. What it wrote is in the workers' logs. Mend it, or set "
                "resources.prepare_workers to 0."
            )
        more = f" and {len(units) - 1} more" if len(units) > 1 else ""
        return (
            f"{whose} has ended a process ({_ENDS.format('no answer')}) at unit {units[0]}{more}: the actor prepares "
            "this itself"
        )

    def _units(self, batch: pa.Table) -> list[Any]:
        return [self._unit_type.model_validate_json(text) for text in batch.column("units")[0].as_py()]

    def _prepared(self, batch: pa.Table) -> pa.Array | None:
        prepare = self.built()
        if prepare is None:
            return None
        tables = prepare(self._units(batch), unpack_tables(batch.column("payloads")[0]), self._call_timeout_s)
        return pa.array([list(map(pack_table, tables))], pa.list_(pa.large_binary()))

    def built(self) -> Prepare[Any] | None:
        """What prepares units, built once in this process; None where there is nothing to do."""
        global _built
        if _built[0] != self._key:
            # It asked for one CPU. Ray sets the like for OpenMP.
            os.environ.setdefault("RAYON_NUM_THREADS", "1")
            with ends_process_after(build_limit_s(self._call_timeout_s)):
                _built = (self._key, self._build())
        return _built[1]


def _with(batch: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return batch.set_column(batch.column_names.index(name), name, column)


def is_offered(step: PrepareBlock, embedders: Iterable[str], memory_bytes: int) -> bool:
    """Whether there is anything to prepare. Asked in a process where such work is done: it may import what a driver
    should not hold.

    Args:
        embedders: whose preparers `step` builds, for people.

    Raises:
        EmbedderError: what prepares cannot be built.
    """
    task: Any = ray.remote(_is_offered).options(num_cpus=1, memory=memory_bytes, max_retries=0, name="prepare")
    answered = result_of(lambda: task.remote(step))
    if answered is None:
        logger.warning(
            "the `preparer` of %s ended the process that was to build it, twice (%s): the actors prepare the payloads "
            "themselves. Mend it, or set resources.prepare_workers to 0.",
            " or ".join(dict.fromkeys(embedders)),
            _ENDS.format("not built in six times resources.call_timeout_s"),
        )
    return bool(answered)


def _is_offered(step: PrepareBlock) -> bool:
    return step.built() is not None
