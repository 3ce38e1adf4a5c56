"""Each kind of change of a gallery, before, in and after a run: only what was never embedded is embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.living import Begun, Living, small_gallery, without

A, B, C = "part-000.parquet", "part-001.parquet", "part-002.parquet"
NEW = "part-900.parquet"
Change = Callable[[Living], None]


def some_slow(values: Iterable[object], every: int) -> list[Any]:
    """The values, of which the default suite has one in so many."""
    return [
        value if place % every == 0 else pytest.param(value, marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("version0", marks=pytest.mark.slow, id="version 0"),
        pytest.param("wave:1", id="wave 1"),
        pytest.param(None, marks=pytest.mark.slow, id="finished"),
    ],
)
def at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """A gallery whose run was stopped, or is finished."""
    return Begun.of(tmp_path_factory.mktemp("at"), small_gallery, lambda living: living.run(until=request.param))


@pytest.fixture
def living(at: Begun) -> Living:
    return at.get()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Living]:
    """A gallery that was run until the end of a wave, made once per module."""
    made: dict[str | None, Begun] = {}

    def get(until: str | None) -> Living:
        if until not in made:
            folder = tmp_path_factory.mktemp("begun")
            made[until] = Begun.of(folder, small_gallery, lambda living: living.run(until=until))
        return made[until].get()

    return get


def some(living: Living, name: str, count: int = 10) -> list[int]:
    """Items of a file: new ones and stale ones."""
    return list(living.files[name])[5 : 5 + count]


def change(what: str) -> Change:
    def act(living: Living) -> None:
        chosen = some(living, B)
        living.edit(B, lambda f: {k: living.changed(i, what) if k in chosen else i for k, i in f.items()})

    return act


def move(living: Living) -> None:
    moved = {key: living.files[A][key] for key in some(living, A)}
    living.edit(A, lambda f: without(f, moved))
    living.edit(B, lambda f: {**moved, **f})


def merge(living: Living) -> None:
    both = {**living.files[C], **living.files[A]}
    living.write(C, {})
    living.write(A, both)


def split(living: Living) -> None:
    items = living.files[A]
    first = some(living, A, 40)
    living.write(A, {key: items[key] for key in first})
    living.write(NEW, without(items, first))


def replaced(living: Living) -> None:
    living.write(B, living.new_items(700_000, 60))


CHANGES: dict[str, Change] = {
    "nothing": lambda living: None,
    "a file added": lambda living: living.write(NEW, living.new_items(900_000, 30)),
    "a file added without old vectors": lambda living: living.write(NEW, living.new_items(900_000, 30, has_old=False)),
    "rows added": lambda living: living.edit(B, lambda f: {**living.new_items(900_000, 7), **f}),
    "payloads changed": change("payload"),
    "old vectors changed": change("old vector"),
    "labels changed": change("label"),
    "rows removed": lambda living: living.edit(B, lambda f: without(f, some(living, B))),
    "a file dropped": lambda living: living.write(C, {}),
    "a file sorted anew": lambda living: living.edit(B, lambda f: dict(reversed(f.items()))),
    "a file renamed": lambda living: living.rename(B, NEW),
    "a file touched": lambda living: living.touch(B),
    "rows moved": move,
    "two files merged": merge,
    "a file split": split,
    "a name reused": replaced,
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_change_costs_what_it_changed(living: Living, what: str) -> None:
    base = living.state().serving
    CHANGES[what](living)
    living.finish()
    assert base is not None
    made = living.state().versions[base + 1 :]
    assert [version.cause for version in made[:1]] == ["wave" if what == "nothing" else "change"][: len(made)]
    assert living.state().serving == living.state().versions[-1].version


def test_a_night_without_a_change_writes_nothing(begun: Callable[..., Living]) -> None:
    living = begun(None)
    for name in (A, B):
        living.touch(name)
    living.finish()
    before = living.written()
    living.finish()
    assert living.written() == before


@pytest.mark.parametrize("payload", ["the same", "another"])
def test_an_item_that_comes_back(living: Living, payload: str) -> None:
    chosen = {key: living.files[B][key] for key in some(living, B, 20)}
    living.edit(B, lambda f: without(f, chosen))
    living.finish()
    if payload == "another":
        chosen = {key: living.changed(item) for key, item in chosen.items()}
    living.write(NEW, chosen)
    living.finish()


def test_a_payload_that_comes_back_after_another_one(living: Living) -> None:
    before = dict(living.files[B])
    change("payload")(living)
    living.finish()
    living.write(B, before)
    living.finish()


@pytest.mark.parametrize("units", range(0, 8, 2))
def test_a_run_that_is_killed_while_it_embeds_what_changed(living: Living, units: int) -> None:
    change("payload")(living)
    move(living)
    living.write(NEW, living.new_items(900_000, 60, has_old=False))
    since = len(living.state().versions)
    living.run_killed(units=units)
    living.check_versions(since)
    living.edit(A, lambda f: without(f, some(living, A)))
    living.finish()


@pytest.mark.parametrize("puts", some_slow(range(0, 70, 7), 2))
def test_a_run_that_is_killed_at_a_write(begun: Callable[..., Living], puts: int) -> None:
    living = begun("wave:1")
    change("payload")(living)
    change("label")(living)
    merge(living)
    since = len(living.state().versions)
    living.run_killed(puts=puts)
    living.check_versions(since)
    split(living)
    living.write(NEW, {})
    living.finish()


@pytest.mark.parametrize("puts", some_slow(range(20, 120, 20), 3))
def test_a_first_run_that_is_killed_before_the_gallery_changes(tmp_path: Path, puts: int) -> None:
    living = small_gallery(tmp_path / "here")
    living.run_killed(puts=puts)
    split(living)
    change("payload")(living)
    living.finish()


SETTINGS: dict[str, dict[str, Any]] = {
    "waves": {"waves": [0.5, 1.0]},
    "policy": {"policy": {"name": "random"}},
    "alignment": {"alignment": {"method": "ridge"}},
    "index": {"index": {"factory": "HNSW8"}},
    "seed": {"seed": 7},
}


@pytest.mark.parametrize("gallery", some_slow(["payloads changed", "nothing"], 2))
@pytest.mark.parametrize("until", some_slow(["wave:1", None], 2))
@pytest.mark.parametrize("setting", some_slow(sorted(SETTINGS), 3))
def test_other_settings_embed_nothing_again(
    begun: Callable[..., Living], setting: str, until: str | None, gallery: str
) -> None:
    living = begun(until)
    given = living.sections
    living.sections = {**given, **SETTINGS[setting]}
    CHANGES[gallery](living)
    living.run(until="version0")
    living.sections = given
    living.write("part-901.parquet", living.new_items(910_000, 9))
    living.finish()


def test_a_new_order_over_a_changed_gallery_is_held_against_what_both_versions_have(
    begun: Callable[..., Living],
) -> None:
    """All items that both have are new in both, so that nothing can differ, whatever came and went."""
    living = begun(None)
    living.run()
    before = living.items
    came = living.new_items(900_000, 40)
    living.write(NEW, {key: replace(item, label="class-0") for key, item in came.items()})  # wrong hits for most
    living.edit(A, lambda f: without(f, list(f)[:20]))
    change("payload")(living)
    living.sections = {**living.sections, "policy": {"name": "random"}}
    first = living.run(until="version0").state.versions[-1]
    assert (first.cause, first.wave) == ("wave", 0)
    both = [key for key, item in living.items.items() if before.get(key) is item]
    assert f"on the {len(both):,} items that both have" in first.verdict.reason
    assert "items differ" in first.verdict.reason
    assert first.verdict.difference == 0


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_version_column_says_what_changed(tmp_path: Path, when: str) -> None:
    living = small_gallery(tmp_path / "here")
    with_column = {**living.sections, "gallery": {"max_removed": 1.0, "version_column": "updated"}}
    if when == "from the start":
        living.sections = with_column
    living.edit(A, lambda f: {k: replace(i, version=None) if k % 2 else i for k, i in f.items()})
    living.run(until="wave:1")
    unversioned = set(living.embedded())
    living.sections = with_column
    living.edit(B, lambda f: dict(reversed(f.items())))
    change("payload")(living)
    living.finish()
    chosen = some(living, C)
    # What was embedded before there was a version goes by its payload still.
    versioned = [key for key in chosen if when == "from the start" or living.files[C][key].marker not in unversioned]
    living.again = {living.files[C][key].marker for key in versioned}
    living.edit(C, lambda f: {k: replace(i, version=f"{i.version}'") if k in chosen else i for k, i in f.items()})
    before = len(living.embedded())
    living.finish()
    assert 0 < len(versioned) <= len(chosen)
    assert len(living.embedded()) == before + len(versioned)


@pytest.mark.parametrize("when", ["before", "after"])
def test_rows_that_cannot_be_embedded(living: Living, when: str) -> None:
    """They stay stale, are absent without an old vector, and are embedded as soon as they can be."""
    chosen = [living.files[B][key] for key in some(living, B, 4)]
    if when == "before":
        living.bad = {item.marker for item in chosen} - set(living.embedded())
        living.finish()
    change("payload")(living)
    living.write(NEW, living.new_items(900_000, 9, has_old=False))
    living.bad |= {living.files[NEW][900_004].marker, living.files[B][some(living, B)[1]].marker}
    result = living.finish()
    assert result.state.versions[-1].absent >= 1
    living.bad = set()
    living.touch(B)
    living.touch(NEW)
    living.finish()


def test_a_change_after_a_rollback_begins_with_what_is_served(begun: Callable[..., Living]) -> None:
    living = begun(None)
    living.rollback(1)
    change("payload")(living)
    move(living)
    living.finish()
    assert living.state().version(4).base == 1


def test_a_change_after_a_version_that_was_held(tmp_path: Path) -> None:
    living = small_gallery(tmp_path / "here", serving={"stale_mode": "aligned", "max_regression": 0.0})
    living.run(until="wave:1")
    # The model of half of the items is another one's: what is new is worse.
    chosen = list(living.items)[::2]
    for name in (A, B, C):
        living.edit(name, lambda f: {k: living.changed(i, "label") if k in chosen else i for k, i in f.items()})
    living.finish()
    change("payload")(living)
    living.finish()


VARIANTS: dict[str, dict[str, Any]] = {
    "fused": {"serving": {"stale_mode": "fused", "max_regression": 0.02}},
    "an IVF index": {"index": {"factory": "IVF2,Flat"}},
    "an HNSW index": {"index": {"factory": "HNSW8"}},
    "expected gain": {"policy": {"name": "expected_gain"}},
    "many segments": {"index": {"segment_rows": 60}},
    "one wave": {"waves": [1.0]},
}


@pytest.mark.parametrize("until", some_slow(["wave:1", None], 2))
@pytest.mark.parametrize("variant", some_slow(sorted(VARIANTS), 2))
def test_other_kinds_of_plans_follow_too(tmp_path: Path, variant: str, until: str | None) -> None:
    living = small_gallery(tmp_path / "here", **VARIANTS[variant])
    everything_changes(living, until)


@pytest.mark.parametrize("until", ["wave:1", None])
def test_string_ids_follow_too(tmp_path: Path, until: str | None) -> None:
    living = small_gallery(tmp_path / "here")
    living.string_ids = True
    for name in (A, B, C):
        living.edit(name, dict)
    everything_changes(living, until)


def everything_changes(living: Living, until: str | None) -> None:
    living.run(until=until)
    change("payload")(living)
    move(living)
    living.write(NEW, living.new_items(900_000, 20, has_old=False))
    living.edit(C, lambda f: without(f, some(living, C)))
    living.finish()
    change("label")(living)
    living.finish()


@pytest.mark.parametrize("until", ["version0", "wave:1", None])
def test_waves_that_end_before_the_last_item(tmp_path: Path, until: str | None) -> None:
    living = small_gallery(tmp_path / "here", waves=[0.5, 0.7])
    living.run(until=until)
    was_new = [key for key in some(living, B) if living.files[B][key].marker in set(living.embedded())]
    change("payload")(living)
    merge(living)
    living.write(NEW, living.new_items(900_000, 20, has_old=False))
    since = len(living.state().versions)
    result = living.run()
    living.check_versions(since)
    version = result.state.versions[-1]
    held = living.held(version)
    assert version.absent == 0
    assert version.fraction < 1
    first = {*was_new, *living.files[NEW]}
    assert {held[key].state for key in first} == {"new"}, "what changed and what came is embedded first"
    known = {key for key, item in living.items.items() if item.marker in set(living.embedded())}
    assert {key for key, each in held.items() if each.state == "new"} == known
    living.verify()


@pytest.mark.parametrize(
    "what",
    ["a file sorted anew", "labels changed", "a file dropped", "rows moved", "a file touched"],
)
def test_a_change_that_makes_nothing_due_keeps_what_is_left_stale(tmp_path: Path, what: str) -> None:
    living = small_gallery(tmp_path / "here", waves=[0.5, 0.7])
    living.run()
    before, since = living.embedded(), len(living.state().versions)
    CHANGES[what](living)
    result = living.run()
    assert living.embedded() == before
    living.check_versions(since)
    living.verify()
    assert result.state.serving == since
    assert result.finished


@pytest.mark.parametrize("until", ["plan", "version0", "wave:1", "wave:2"])
def test_a_run_that_is_to_stop_early_between_changes(begun: Callable[..., Living], until: str) -> None:
    living = begun("plan")
    for act in (change("payload"), move, CHANGES["a file added without old vectors"], change("label"), split):
        act(living)
        since = len(living.state().versions)
        living.run(until=until)
        living.check_versions(since)
        living.verify()
    living.finish()


def test_a_wave_to_stop_at_ends_no_run_before_its_version(begun: Callable[..., Living]) -> None:
    """Where nothing is stale, a plan has one version, after its last wave: each `until` but `plan` makes that."""
    living = begun(None)
    change("payload")(living)
    living.finish(until="version0")


def test_a_gallery_that_has_become_small_is_followed(begun: Callable[..., Living]) -> None:
    """Fewer items than pairs.count, and pairs.count above the first wave: no pairs are drawn any more."""
    living = begun(None)
    living.write(A, {})
    living.write(B, {})
    living.edit(C, lambda f: without(f, some(living, C)))
    living.finish()


def test_pairs_that_were_given_up_and_taken_up_again_are_known_for_good(begun: Callable[..., Living]) -> None:
    """A plan in between has looked at those that there were."""
    living = begun("wave:1")
    given = living.sections
    living.sections = {**given, "seed": 7}
    assert living.run_killed(units=2)
    living.sections = given
    living.touch(A)
    living.run(until="wave:1")
    living.sections = {**given, "seed": 7}
    living.run(until="version0")
    living.sections = {**given, "index": {"factory": "HNSW8"}}
    living.finish()
