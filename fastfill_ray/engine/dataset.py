"""A pass over units as one Ray Data execution: descriptors of groups in, receipts of units out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import ray.data

from fastfill_ray.engine.interface import Groups
from fastfill_ray.engine.units import original_errors, pack_error, raise_packed
from fastfill_ray.errors import FastfillError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

U = TypeVar("U", bound=Model)


def run_units(function: Callable[[Sequence[U]], Iterator[Receipt]], groups: Groups[U]) -> Iterator[Receipt]:
    """See ``Engine.run_units``. One task and one CPU per group."""
    if not groups:
        return
    items = [{"units": [unit.model_dump_json() for unit in group]} for group in groups]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        # What the function is bound to is serialised once, not once per task.
        _RunGroup(ray.put(function), type(groups[0][0])),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    with original_errors():
        for row in dataset.iter_rows():
            raise_packed(row["error"])
            yield Receipt.model_validate_json(row["receipt"])


class _RunGroup:
    def __init__(self, function: ray.ObjectRef, unit_type: type[Model]) -> None:
        self._function, self._unit_type = function, unit_type

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        units = [self._unit_type.model_validate_json(unit) for unit in batch.column("units")[0].as_py()]
        try:
            for receipt in ray.get(self._function)(units):
                yield _row(receipt.model_dump_json(), None)
        except FastfillError as error:
            yield _row(None, pack_error(error))


def _row(receipt: str | None, error: str | None) -> pa.Table:
    return pa.table({"receipt": pa.array([receipt], pa.string()), "error": pa.array([error], pa.string())})
