"""A gallery that changes under a run's hands, and what a start refuses to take out or to go on without."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fastfill_ray as ff
from fastfill_ray.errors import ConfigError, InputChanged, TooManyRemoved
from fastfill_ray.inputs import parquet
from fastfill_ray.log.records import Version
from fastfill_ray.stages.version import VersionMaker
from tests import synthetic
from tests.living import Living, gallery_of

FIRST, SECOND = "part-000.parquet", "part-001.parquet"


@pytest.fixture
def living(tmp_path: Path) -> Living:
    return gallery_of(tmp_path, rows=150)


@contextmanager
def after_version(living: Living, number: int, change: Callable[[], None]) -> Iterator[None]:
    """While version `number` of a run is made, something happens."""
    make = VersionMaker.make

    def made(self: VersionMaker, *args: Any) -> Version:
        version = make(self, *args)
        if version.version == number:
            change()
            come_due(living)
        return version

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VersionMaker, "make", made)
        yield


def come_due(living: Living) -> None:
    """What lies in the gallery by now may be embedded."""
    living.due |= {item.marker for item in living.items.values()}


def replace_some(living: Living, name: str, count: int = 7) -> None:
    """Other payloads of the first items of a file."""
    items = dict(living.files[name])
    for key in list(items)[:count]:
        items[key] = living.new_item()
    living.write(name, items)
    come_due(living)


def run_and_hear(living: Living, **options: Any) -> tuple[ff.BackfillResult, str]:
    stream = io.StringIO()
    return living.run(stream=stream, **options), stream.getvalue()


def causes(result: ff.BackfillResult) -> list[tuple[str, int]]:
    return [(version.cause, version.wave) for version in result.state.versions]


def test_what_changes_between_two_waves_is_adopted_by_the_same_run(living: Living) -> None:
    def change() -> None:
        replace_some(living, SECOND)
        living.write("part-009.parquet", {9000 + i: living.new_item(has_old=i % 2 == 0) for i in range(20)})

    with after_version(living, 1, change):
        result, said = run_and_hear(living)
    assert causes(result) == [("wave", 0), ("wave", 1), ("change", 1), ("wave", 1), ("wave", 2), ("wave", 3)]
    assert "the gallery has changed: a new plan for the inputs as they are now" in said
    living.check_all_new(result.state.versions[-1])
    living.verify()
    assert living.embedded() == sorted(set(living.embedded()))


def test_without_follow_it_is_left_to_the_next_start(living: Living) -> None:
    living.sections["gallery"] = {"follow": False}
    with after_version(living, 1, lambda: living.write("part-009.parquet", {9000: living.new_item()})):
        result = living.run()
    assert causes(result) == [("wave", 0), ("wave", 1), ("wave", 2), ("wave", 3)]
    result = living.run()
    assert causes(result)[4:] == [("change", 3)]
    living.check_all_new(result.state.versions[-1])


def test_once_the_last_wave_has_begun_it_is_left_to_the_next_start(living: Living) -> None:
    with after_version(living, 2, lambda: living.write("part-009.parquet", {9000: living.new_item()})):
        result = living.run()
    assert causes(result) == [("wave", 0), ("wave", 1), ("wave", 2), ("wave", 3)]
    living.check_all_new(living.run().state.versions[-1])


def test_a_file_that_changes_under_a_workers_hands_costs_its_chunks_not_the_run(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, calls = synthetic.StubEmbedder.__call__, [0]

    def changing(self: synthetic.StubEmbedder, batch: dict[str, Any], role: str) -> Any:
        calls[0] += 1
        if calls[0] == 12:
            replace_some(living, SECOND, 20)
        return embed(self, batch, role)

    monkeypatch.setattr(synthetic.StubEmbedder, "__call__", changing)
    result, said = run_and_hear(living)
    assert "part-001.parquet: changed" in said
    assert result.finished
    living.check_all_new(result.state.versions[-1])
    living.verify()


def test_a_gallery_that_never_rests_ends_the_run_and_names_the_file(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    living.run(until="version0")
    embed = synthetic.StubEmbedder.__call__

    def changing(self: synthetic.StubEmbedder, batch: dict[str, Any], role: str) -> Any:
        for name in list(living.files):
            living.touch(name)
        return embed(self, batch, role)

    monkeypatch.setattr(synthetic.StubEmbedder, "__call__", changing)
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 1)  # chunk by chunk, as large ones are read
    with pytest.raises(InputChanged, match=r"part-00\d\.parquet"):
        living.run()
    monkeypatch.undo()
    living.check_all_new(living.run().state.versions[-1])


def test_a_file_that_is_being_written_does_not_end_a_run(living: Living) -> None:
    half = living.folder / "gallery" / "part-009.parquet"
    with after_version(living, 1, lambda: (half.write_bytes(b"PAR1 half of it"), None)[1]):
        result, said = run_and_hear(living)
    assert "the gallery has changed, but cannot be adopted now" in said
    assert "part-009.parquet" in said
    assert causes(result) == [("wave", 0), ("wave", 1), ("wave", 2), ("wave", 3)]
    half.unlink()
    assert living.run().state.versions[-1] == result.state.versions[-1]


def test_a_run_that_loses_half_of_its_gallery_takes_nothing_out(living: Living) -> None:
    kept = dict(living.files[FIRST])
    with after_version(living, 1, lambda: living.write(FIRST, {})), pytest.raises((TooManyRemoved, InputChanged)):
        living.run()
    state = living.state()
    assert all(version.cause == "wave" for version in state.versions)
    living.write(FIRST, kept)
    living.check_all_new(living.run().state.versions[-1])


def test_more_removals_than_allowed_are_refused_before_anything_is_written(living: Living) -> None:
    living.run()
    records = living.state().next_seq
    living.write(FIRST, {})
    with pytest.raises(TooManyRemoved, match=r"150 of the 450 items .*max_removed allows 10%.*--allow-removals"):
        living.run()
    assert living.state().next_seq == records
    result = living.run(allow_removals=True)
    assert causes(result)[-1] == ("change", 3)
    living.check_all_new(result.state.versions[-1])


def test_old_vectors_may_go_once_nothing_is_stale_and_not_before(living: Living) -> None:
    living.run(until="wave:1")
    without = {"gallery": {"old_vector_column": None}}
    living.sections |= without
    with pytest.raises(ConfigError, match=r"old_vector_column is null, but not every item is served by a new vector"):
        living.run()
    living.sections.pop("gallery")
    living.run()
    living.sections |= without
    replace_some(living, SECOND, 3)
    result, said = run_and_hear(living)
    assert "no old vectors" in said
    assert "train" not in said
    living.check_all_new(result.state.versions[-1])
    living.verify()
