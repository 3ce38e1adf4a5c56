"""What the engines' tests let tasks and actors do, in a module that a new process imports in no time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from fastfill_ray.engine.interface import Attempt, Finish, PoolWork
from fastfill_ray.errors import EmbedderError, InputError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model


class Number(Model):
    """A unit of work."""

    value: int


def pairs_of(count: int) -> list[list[Number]]:
    """The numbers below `count` in groups of two; the last one may be alone."""
    return [[Number(value=value) for value in range(first, min(first + 2, count))] for first in range(0, count, 2)]


def square(value: int) -> int:
    return value * value


def refuse_three(value: int) -> int:
    if value == 3:
        raise InputError("3 cannot be used")
    return value


def refuse_or_write(folder: Path, value: int) -> int:
    if value == 0:
        raise InputError("0 cannot be used")
    time.sleep(2)
    (folder / "written").touch()
    return value


def its_limit(attempt: Attempt) -> tuple[float | None]:
    return (attempt.call_timeout_s,)


def refuse(attempt: Attempt) -> None:
    raise EmbedderError("it cannot be built")


def die(attempt: Attempt) -> int:
    os._exit(1)


def by_remainder(parts: int, values: np.ndarray) -> list[np.ndarray]:
    if 13 in values:
        raise InputError("13 cannot be used")
    return [values[values % parts == part] for part in range(parts)]


def total(*pieces: np.ndarray) -> int:
    return int(sum(piece.sum() for piece in pieces))


def receipts_of(offset: int, units: Sequence[Number]) -> Iterator[Receipt]:
    for unit in units:
        if unit.value + offset == 99:
            raise InputError("99 cannot be used")
        yield Receipt(unit=f"c{unit.value:08d}", rows=unit.value + offset)


def payloads(units: Sequence[Number]) -> Iterator[pa.Table]:
    for unit in units:
        if unit.value == 99:
            raise InputError("99 cannot be read")
        yield pa.table({"x": list(range(unit.value))})


class Summer:
    """Leaves a line in `built` for each time that it is built, and one in `begun` for each unit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leave("built", "one")

    def __call__(self, units: Sequence[Number], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        for unit in units:
            self._leave("begun", str(unit.value))
            if unit.value == 98:
                raise EmbedderError("98 cannot be embedded")
        return lambda: [
            Receipt(unit=f"c{unit.value:08d}", rows=sum(table.column("x").to_pylist()))
            for unit, table in zip(units, tables, strict=True)
        ]

    def _leave(self, name: str, line: str) -> None:
        with (self._folder / name).open("a") as file:
            file.write(f"{line}\n")


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().split()


def work(folder: Path) -> PoolWork[Number]:
    return PoolWork(payloads, partial(Summer, folder))


class Napper:
    """Leaves a file per process, and is busy for a while."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, units: Sequence[Number], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        (self._folder / str(os.getpid())).touch()
        time.sleep(0.2)
        return lambda: [Receipt(unit=f"c{unit.value:08d}", rows=0) for unit in units]


def ten_times(units: Sequence[Number], tables: Sequence[pa.Table], limit_s: float | None) -> list[pa.Table]:
    if units[0].value == 99:
        raise EmbedderError("99 cannot be prepared")
    if units[0].value == 98:
        raise KeyError(98)
    return [
        table.set_column(0, "x", pc.multiply(table.column("x"), 10)) if table.num_rows else table for table in tables
    ]


def no_preparer() -> None:
    return None


def built() -> Any:
    return ten_times


def refuses() -> Any:
    raise EmbedderError("the tokeniser is not there")


def asked(_: int) -> dict[str, float]:
    return dict(ray.get_runtime_context().get_assigned_resources())


def asked_in_parts(_: int) -> list[dict[str, float]]:
    return [asked(0), asked(0)]


def list_of(*pieces: dict[str, float]) -> list[dict[str, float]]:
    return list(pieces)
