"""A second start on a root where a driver works: refused by default, in its place on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray import backfill
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import DriverAtWork, Fenced, StorageError
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.heartbeat import Heartbeat, find_drivers
from tests.integration.conftest import Workshop, in_process

pytestmark = pytest.mark.parametrize("run", ["in_process"], indirect=True)


class SecondStart(InProcessEngine):
    """Starts the same run again in the middle of its waves."""

    def __init__(self, start: Callable[[], object]) -> None:
        self._start = start

    def run_pool(self, *args: Any, **kwargs: Any) -> Any:
        self._start()
        return super().run_pool(*args, **kwargs)


def records(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "log").iterdir())


def test_a_second_start_leaves_the_first_alone(root: Callable[[], Path], workshop: Workshop) -> None:
    target = root()
    config = load_config(workshop.config(target))

    def start() -> None:
        before = records(target)
        with pytest.raises(DriverAtWork, match=r"a driver is at work here: process .* since"):
            _run(config, InProcessEngine())
        assert records(target) == before, "it claims nothing"

    result = _run(config, SecondStart(start))
    assert result.finished
    assert list((target / "drivers").iterdir()) == []


def test_a_start_that_takes_over_fences_the_first(root: Callable[[], Path], workshop: Workshop) -> None:
    target = root()
    config = load_config(workshop.config(target))
    with pytest.raises(Fenced, match="Nothing was deleted"):
        _run(config, SecondStart(lambda: _run(config, InProcessEngine(), take_over=True)))
    state = read_state(open_files(str(target)))
    assert state.finished
    assert [version.wave for version in state.versions] == [0, 1, 2, 3]


def test_a_driver_is_fenced_by_who_takes_over_before_it_has_claimed(
    root: Callable[[], Path], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = root()
    config = load_config(workshop.config(target))
    score, rivals = backfill.score, [True]

    def overtaken(*args: Any) -> Any:
        if rivals:
            rivals.clear()
            _run(config, InProcessEngine(), until="version0", take_over=True)
        return score(*args)

    monkeypatch.setattr(backfill, "score", overtaken)
    before = records(target)
    with pytest.raises(Fenced, match="has appended to the log since this one read it"):
        _run(config, InProcessEngine())
    assert len(records(target)) == len(before) + 3, "the rival's CLAIM, VERSION and PUBLISH, and nothing more"


def test_a_driver_keeps_its_place_while_it_mends_what_is_damaged(
    root: Callable[[], Path], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = root()
    next((target / "pairs").rglob("pairs.*.parquet")).write_bytes(b"damaged")
    set_aside, drivers = backfill.set_aside, []

    def watched(context: Context, damage: StorageError) -> None:
        drivers.append(len(find_drivers(context.files)))
        set_aside(context, damage)

    monkeypatch.setattr(backfill, "set_aside", watched)
    assert in_process(workshop.config(target)).finished
    assert drivers
    assert set(drivers) == {1}


def test_a_start_with_nothing_to_do_asks_nobody(root: Callable[[], Path], workshop: Workshop) -> None:
    target = root()
    assert in_process(workshop.config(target)).finished
    with Heartbeat(open_files(str(target))):
        assert in_process(workshop.config(target)).finished
