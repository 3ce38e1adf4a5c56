"""What every engine does, on both of them: the Ray result equals the in-process result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import trainer
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.engine.interface import Checkpoints, Engine, PoolWork, TrainSetup
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.errors import AlignmentFailed, EmbedderError, InputError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.ordering import partition
from tests.engine.workers import (
    Napper,
    Number,
    by_remainder,
    die,
    its_limit,
    lines,
    pairs_of,
    payloads,
    receipts_of,
    refuse,
    refuse_or_write,
    refuse_three,
    square,
    total,
    work,
)

ONE_ACTOR = ResourcesConfig(embed_actors=(1, 1))


@pytest.fixture(params=["in_process", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine: Engine = InProcessEngine()
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        engine = RayEngine()
    with engine.session(print):
        yield engine


def test_every_item_is_worked_on_once(engine: Engine) -> None:
    results = dict(engine.run_tasks(square, range(20), name="square"))
    assert results == {value: value * value for value in range(20)}
    assert list(engine.run_tasks(square, [], name="square")) == []


def test_ordered_tasks_come_in_the_order_of_their_items(engine: Engine) -> None:
    results = engine.run_tasks(square, range(20), name="square", ordered=True)
    assert list(results) == [(value, value * value) for value in range(20)]


def test_an_error_of_a_task_comes_out_as_it_was_raised(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^3 cannot be used$"):
        list(engine.run_tasks(refuse_three, range(5), name="refuse"))


def test_what_is_in_flight_when_another_task_fails_is_not_interrupted(ray_session: None, tmp_path: Path) -> None:
    """A worker that is interrupted while it imports a module fails in every later task."""
    engine = RayEngine()
    with engine.session(print):
        with pytest.raises(InputError, match=r"^0 cannot be used$"):
            list(engine.run_tasks(partial(refuse_or_write, tmp_path), range(2), name="refuse or write"))
        deadline = time.monotonic() + 60
        while not (tmp_path / "written").exists():
            assert time.monotonic() < deadline, "it was interrupted"
            time.sleep(0.05)


def test_one_call_is_made_as_an_actor_would_make_it(engine: Engine) -> None:
    resources = ResourcesConfig(call_timeout_s=7)
    assert engine.run_once(its_limit, resources) == (None if isinstance(engine, InProcessEngine) else 7,)
    with pytest.raises(EmbedderError, match=r"^it cannot be built$"):
        engine.run_once(refuse, resources)
    if isinstance(engine, RayEngine):
        assert engine.run_once(die, resources) is None


@pytest.mark.parametrize("items_per_task", [1, 2])
def test_an_exchange_joins_each_part_of_all_items(
    engine: Engine, items_per_task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "MOST_PIECES", 6 // items_per_task)
    items = [np.arange(4), np.arange(4, 12)]
    was_cut: list[int] = []
    joined = engine.exchange(partial(by_remainder, 3), total, items, 3, lambda item: was_cut.append(len(item)))
    assert joined == [0 + 3 + 6 + 9, 1 + 4 + 7 + 10, 2 + 5 + 8 + 11]
    assert was_cut == [4, 8]


def test_an_error_of_an_exchange_comes_out_as_it_was_raised(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^13 cannot be used$"):
        engine.exchange(partial(by_remainder, 2), total, [np.arange(3), np.arange(20)], 2, lambda item: None)


def test_a_pass_gives_the_receipt_of_every_unit(engine: Engine) -> None:
    receipts = {receipt.unit: receipt.rows for receipt in engine.run_units(partial(receipts_of, 10), pairs_of(5))}
    assert receipts == {f"c{value:08d}": value + 10 for value in range(5)}
    assert list(engine.run_units(partial(receipts_of, 10), [])) == []


def test_an_error_of_a_pass_comes_out_as_it_was_raised(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"^99 cannot be used$"):
        list(engine.run_units(partial(receipts_of, 97), pairs_of(4)))


def test_a_pool_gives_each_unit_with_its_receipt_and_builds_a_worker_once(engine: Engine, tmp_path: Path) -> None:
    with closing(
        engine.run_pool(work(tmp_path), [pairs_of(5), [[Number(value=5)], [Number(value=6)]]], ONE_ACTOR)
    ) as pool:
        came = {unit.value: receipt.rows for unit, receipt in pool}
    assert came == {value: sum(range(value)) for value in range(7)}
    assert sorted(lines(tmp_path, "begun")) == [str(value) for value in range(7)]
    assert len(lines(tmp_path, "built")) == 1
    assert list(engine.run_pool(work(tmp_path), [], ONE_ACTOR)) == []


@pytest.mark.parametrize(("value", "error"), [(99, InputError), (98, EmbedderError)])
def test_an_error_of_a_pool_comes_out_as_it_was_raised(
    engine: Engine, tmp_path: Path, value: int, error: type[Exception]
) -> None:
    with closing(engine.run_pool(work(tmp_path), [[[Number(value=value)]]], ONE_ACTOR)) as pool:  # noqa: SIM117
        with pytest.raises(error, match=f"^{value} cannot be"):
            next(pool)


def test_a_pool_with_work_for_more_actors_grows(ray_session: None, tmp_path: Path) -> None:
    engine, units = RayEngine(), [[[Number(value=value)]] for value in range(60)]
    napping = PoolWork(payloads, partial(Napper, tmp_path))
    with (
        engine.session(print),
        closing(engine.run_pool(napping, units, ResourcesConfig(embed_actors=(1, 2)))) as pool,
    ):
        for _ in pool:
            if len(list(tmp_path.iterdir())) == 2:
                return
    raise AssertionError("one actor did it all")


def test_a_stopped_pool_ends_when_all_that_has_begun_has_come_back(engine: Engine, tmp_path: Path) -> None:
    with closing(engine.run_pool(work(tmp_path), [pairs_of(30)], ONE_ACTOR)) as pool:
        came = [next(pool)[0].value]
        pool.stop()
        came += [unit.value for unit, _ in pool]
    assert sorted(came) == sorted(int(line) for line in lines(tmp_path, "begun"))


def fit(folder: str, data: list[int], checkpoints: Checkpoints) -> None:
    assert checkpoints.latest("some") is None, "nothing was kept yet"
    checkpoints.save("some", b"state", {"epoch": 1})
    assert checkpoints.latest("another") is None
    (Path(folder) / "trained").write_text(str(sum(data)))
    if not data:
        raise AlignmentFailed("there is nothing to fit")


def test_training_gets_its_data_and_leaves_what_it_writes(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_WORKERS", 0)
    setup = TrainSetup(str(tmp_path / "checkpoints"), InputStore(), use_gpu=False)
    engine.train(partial(fit, str(tmp_path)), [1, 2, 3], setup)
    assert (tmp_path / "trained").read_text() == "6"


def test_an_error_of_training_comes_out_as_it_was_raised(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_WORKERS", 0)
    monkeypatch.setattr(trainer, "_WORKER_FAILURES", 0)
    setup = TrainSetup(str(tmp_path / "checkpoints"), InputStore(), use_gpu=False)
    with pytest.raises(AlignmentFailed, match=r"^there is nothing to fit$"):
        engine.train(partial(fit, str(tmp_path)), list[int](), setup)
