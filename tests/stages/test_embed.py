"""A unit's rows: what is raised once is tried again, and what is raised always costs its own row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfill_ray.engine.interface import Attempt
from fastfill_ray.errors import EmbedderError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.stages import embed as stage
from fastfill_ray.stages.embed import Job, Space, Unit, UnitEmbedder, embed_unit
from tests.deadly import DIM, Deadly
from tests.faults import MemoryFiles


def job(batch_size: int, spec: str = "tests.deadly:Deadly", **kwargs: Any) -> Job:
    space = Space(spec, kwargs, DIM, "ip", batch_size)
    return Job(MemoryFiles(), InputStore(), "id", "int64", ("x",), (), {"new": space}, retry_delays_s=(0.5, 2.0, 8.0))


def unit(rows: Sequence[str]) -> tuple[Unit, pa.Table]:
    size = len(rows)
    file = PinnedFile.model_construct(path="gallery.parquet")
    numbers = pa.array(range(size))
    whole = Unit.model_construct(
        unit="c0", folder="pairs/f", file=file, start=0, length=size, rows=size, role="item", model="new", wave=0
    )
    return whole, pa.table({"__row": numbers, "__id": numbers, "x": list(rows)})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: waited.append(seconds) if seconds else None)
    return waited


class Moody:
    """Raises in its first `bad` calls, then embeds."""

    def __init__(self, bad: int) -> None:
        self.bad, self.calls = bad, 0

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        self.calls += 1
        if self.calls <= self.bad:
            raise ConnectionError("away")
        return np.ones((len(batch["x"]), DIM))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_whose_call_raises_once_is_embedded(batch_size: int, waits: list[float]) -> None:
    receipt = embed_unit(job(batch_size), *unit(list("0123")), Moody(1))
    assert (receipt.rows, receipt.quarantined) == (4, ())
    assert waits == ([0.5] if batch_size == 1 else []), "of a batch, the halves are the second try"


def test_what_is_away_for_a_while_is_waited_for_once_per_unit(waits: list[float]) -> None:
    model = Moody(8 + 8 + 8)
    receipt = embed_unit(job(1), *unit(list("01234567")), model)
    assert (receipt.rows, receipt.quarantined) == (8, ())
    assert waits == [0.5, 2, 8]
    assert model.calls == 4 * 8


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_raises_always_is_quarantined_after_three_more_tries_and_nothing_else_is(
    batch_size: int, waits: list[float]
) -> None:
    rows = ["0", "raise", "2", "KeyboardInterrupt", "SystemExit", "5", "GeneratorExit", "7"]
    receipt = embed_unit(job(batch_size), *unit(rows), Deadly())
    assert waits == [0.5, 2, 8]
    assert receipt.rows == 4
    assert {fault.row: fault.reason for fault in receipt.quarantined} == {
        1: "embedder raised ValueError: cannot be read",
        3: "embedder raised KeyboardInterrupt:",
        4: "embedder raised SystemExit: 0",
        6: "embedder raised GeneratorExit:",
    }


def test_vectors_that_cannot_be_used_are_not_asked_for_again(waits: list[float]) -> None:
    model = Moody(0)
    receipt = embed_unit(job(4), *unit(list("01")), lambda batch, role: model(batch, role) * np.nan)
    assert {fault.reason for fault in receipt.quarantined} == {"non_finite"}
    assert (model.calls, waits) == (1, [])


def test_an_embedder_that_says_that_it_cannot_go_on_ends_the_run() -> None:
    with pytest.raises(EmbedderError, match=r"^the key has expired$"):
        embed_unit(job(2), *unit(["0", "refuse"]), Deadly())


class BuiltAt:
    """Its constructor raises until it is called for the `number`-th time."""

    tries = 0

    def __init__(self, number: int) -> None:
        BuiltAt.tries += 1
        if BuiltAt.tries < number:
            raise ConnectionError("too many requests")

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return np.ones((len(batch["x"]), DIM))


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_constructor_that_raises_is_called_three_times(
    number: int, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuiltAt, "tries", 0)
    worker = UnitEmbedder(job(4, "tests.stages.test_embed:BuiltAt", number=number))
    if number > 3:
        with pytest.raises(EmbedderError, match=r"called with kwargs \['number'\], raised ConnectionError: too many"):
            worker(*unit(["0"]), Attempt())
    else:
        assert worker(*unit(["0"]), Attempt()).rows == 1
    assert BuiltAt.tries == min(number, 3)
    assert waits == [0.5, 2][: min(number, 3) - 1]
