"""A pass over units as one Ray Data execution: descriptors in, receipts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import ray.data

from fastfill_ray.engine.units import attempt, original_errors, raise_packed
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

U = TypeVar("U", bound=Model)


def run_units(function: Callable[[U], Receipt], units: Sequence[U]) -> Iterator[Receipt]:
    """See ``Engine.run_units``. One block per unit, one CPU per task."""
    if not units:
        return
    items = [{"unit": unit.model_dump_json()} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        # What the function is bound to is serialised once, not once per task.
        _RunUnit(ray.put(function), type(units[0])),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    with original_errors():
        for row in dataset.iter_rows():
            raise_packed(row["error"])
            yield Receipt.model_validate_json(row["receipt"])


class _RunUnit:
    def __init__(self, function: ray.ObjectRef, unit_type: type[Model]) -> None:
        self._function, self._unit_type = function, unit_type

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = self._unit_type.model_validate_json(batch.column("unit")[0].as_py())
        receipt, error = attempt(lambda: ray.get(self._function)(unit))
        return pa.table({"receipt": pa.array([receipt], pa.string()), "error": pa.array([error], pa.string())})
