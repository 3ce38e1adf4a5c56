"""Where payloads are prepared beside the pool, and what becomes of a block whose process ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import preparing
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.engine.intake import Preparing, Turn
from fastfill_ray.engine.interface import Engine, PoolWork
from fastfill_ray.engine.preparing import PrepareBlock, num_preparers
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.engine.units import pack_table, unpack_tables
from fastfill_ray.errors import EmbedderError
from tests.engine.workers import (
    Number,
    Summer,
    built,
    lines,
    no_preparer,
    pairs_of,
    payloads,
    refuses,
    ten_times,
)

LAPTOP, GPU_NODE, CPU_NODE = {"CPU": 2.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 8.0}


def resources(*actors: int, cpus: float = 1, gpus: float = 0, workers: Any = "auto") -> ResourcesConfig:
    return ResourcesConfig(embed_actors=(1, *actors), cpus_per_actor=cpus, gpus_per_actor=gpus, prepare_workers=workers)


@pytest.mark.parametrize(
    ("wanted", "nodes", "grows", "expected"),
    [
        (resources(8), [LAPTOP], False, 0),  # actors can hold every core
        (resources(1), [LAPTOP], False, 1),
        (resources(2, cpus=0.5), [LAPTOP], False, 1),
        (resources(2, cpus=0.75), [LAPTOP, LAPTOP], False, 2),  # 1.25 are left of either node: one process each
        (resources(8, cpus=5), [CPU_NODE, {"CPU": 0.0}], False, 3),
        (resources(8, gpus=1), [GPU_NODE], False, 15),
        (resources(8, gpus=1, cpus=16), [GPU_NODE], False, 0),
        (resources(8, gpus=1), [GPU_NODE, CPU_NODE], False, 23),
        (resources(8, gpus=1), [GPU_NODE], True, 120),  # as many for each of the nodes that may come
        (resources(8), [CPU_NODE], True, 0),
        (resources(64), [CPU_NODE], True, 0),
        (resources(3, cpus=0), [LAPTOP], False, 2),  # actors that only wait for a service
        (resources(8, gpus=1, workers=4), [GPU_NODE], False, 4),
        (resources(8, workers=4), [LAPTOP], False, 0),  # asked for, and never to be had
        (resources(8, workers=4), [CPU_NODE], True, 4),
        (resources(1, workers=0), [LAPTOP], False, 0),
        (resources(1), [], True, 0),
    ],
)
def test_as_many_prepare_as_there_are_cpus_that_no_actor_can_hold(
    wanted: ResourcesConfig, nodes: list[dict[str, float]], grows: bool, expected: int
) -> None:
    assert num_preparers(wanted, nodes, grows=grows) == expected


def block(*values: int, error: str | None = None, first: int = 7) -> pa.Table:
    packed = [pack_table(pa.table({"x": [value]})) for value in values]
    return pa.table(
        {
            "first": [first],
            "units": pa.array([[Number(value=value).model_dump_json() for value in values]]),
            "payloads": pa.array([packed], pa.list_(pa.large_binary())),
            "warning": pa.array([None], pa.string()),
            "error": pa.array([error], pa.string()),
        }
    )


def contents(batch: pa.Table) -> list[list[int]]:
    return [table.column("x").to_pylist() for table in unpack_tables(batch.column("payloads")[0])]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PrepareBlock]:
    """Makes a step, which asks what it is given; None once the run has stopped."""
    monkeypatch.setattr(
        preparing, "begin_preparing", lambda asked, block: asked.begin(block, "node") if asked else Turn(False)
    )
    monkeypatch.setattr(preparing, "end_preparing", lambda asked, block: asked.end(block))
    monkeypatch.setattr(preparing, "_built", ("", None))
    return lambda asked, prepare=ten_times: PrepareBlock(lambda: prepare, whose, Number, asked, 60.0)


def whose(unit: Number) -> str:
    return f"model {unit.value}"


def asked() -> Preparing:
    return Preparing(lambda: {"node"})


def warnings(batch: pa.Table) -> list[str | None]:
    said: list[str | None] = batch.column("warning").to_pylist()
    return said


def test_a_block_keeps_its_units_and_gets_other_payloads(step: Callable[..., PrepareBlock]) -> None:
    deaths, before = asked(), block(3, 4)
    after = step(deaths)(before)
    assert after.drop_columns(["payloads"]).equals(before.drop_columns(["payloads"]))
    assert contents(after) == [[30], [40]]
    assert contents(step(deaths)(before)) == [[30], [40]], "it was come through, and may be made again"


def test_a_block_whose_process_ended_goes_on_as_it_was_read_and_names_its_preparer(
    step: Callable[..., PrepareBlock],
) -> None:
    deaths = asked()
    with pytest.raises(KeyError):  # as of a process that was killed
        step(deaths)(block(98))
    after = step(deaths)(block(98, 3))
    assert contents(after) == [[98], [3]]
    [said] = warnings(after)
    assert said is not None
    assert said.startswith("the `preparer` of model 98 has ended a process (a crash, no answer, no memory, or a lost")
    assert said.endswith("and 1 more: the actor prepares this itself")
    assert warnings(step(deaths)(block(98))) == [None], "said once"


def test_a_preparer_that_ends_process_after_process_is_not_asked_any_more(step: Callable[..., PrepareBlock]) -> None:
    deaths, said = asked(), []
    for first in range(5):
        for _ in range(2):
            with suppress(KeyError):
                after = step(deaths)(block(98, first=first))
        said += warnings(after)
        assert contents(after) == [[98]]
    assert [text is None for text in said] == [False, False, False, True, True]
    assert said[2].startswith("the `preparer` of model 98 has ended 3 processes")
    assert "no answer in 60 s (resources.call_timeout_s)" in said[2]
    assert "from now on the actors prepare the payloads themselves" in said[2]
    assert said[2].endswith("Mend it, or set resources.prepare_workers to 0.")
    assert contents(step(deaths)(block(3, first=9))) == [[3]], "no block is prepared any more"


def test_a_block_with_an_error_and_those_of_a_run_that_has_stopped_are_left_alone(
    step: Callable[..., PrepareBlock],
) -> None:
    failed = block(error='["InputError", "changed"]')
    assert step(asked())(failed).equals(failed)
    assert contents(step(None)(block(3))) == [[3]]
    assert contents(step(asked(), None)(block(3))) == [[3]], "nothing to do"


def test_an_error_of_ours_travels_as_one_of_the_pool(step: Callable[..., PrepareBlock]) -> None:
    after = step(asked())(block(99))
    assert after.column("error").to_pylist() == ['["EmbedderError", "99 cannot be prepared"]']


@pytest.fixture(params=["in_process", "ray"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "in_process":
        return InProcessEngine()
    request.getfixturevalue("ray_session")
    return RayEngine()


def test_a_pool_works_on_what_was_prepared(engine: Engine, tmp_path: Path) -> None:
    work = PoolWork(payloads, partial(Summer, tmp_path), built)
    with engine.session(print), closing(engine.run_pool(work, [pairs_of(5)], resources(1))) as pool:
        came = {unit.value: receipt.rows for unit, receipt in pool}
    assert came == {value: 10 * sum(range(value)) for value in range(5)}
    assert len(lines(tmp_path, "built")) == 1


@pytest.mark.parametrize(("prepare", "workers"), [(no_preparer, "auto"), (built, 0)])
def test_a_pool_works_on_what_was_read_where_nothing_is_offered_or_wanted(
    tmp_path: Path, prepare: Callable[[], Any], workers: Any
) -> None:
    work = PoolWork(payloads, partial(Summer, tmp_path), prepare)
    with closing(InProcessEngine().run_pool(work, [pairs_of(5)], resources(1, workers=workers))) as pool:
        assert {unit.value: receipt.rows for unit, receipt in pool} == {value: sum(range(value)) for value in range(5)}


def test_a_preparer_that_cannot_be_built_ends_the_run_as_it_says(engine: Engine, tmp_path: Path) -> None:
    work = PoolWork(payloads, partial(Summer, tmp_path), refuses)
    with (
        engine.session(print),
        closing(engine.run_pool(work, [pairs_of(2)], resources(1))) as pool,
        pytest.raises(EmbedderError, match=r"^the tokeniser is not there$"),
    ):
        next(pool)
