"""A year of a gallery in one test: a run that is interrupted by changes and deaths, and the nights after it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import fastfill_ray as ff
from tests.living import Living, RunIt, gallery_of, in_process, without

FILES, ROWS = 8, 800


def part(number: int) -> str:
    return f"part-{number:03d}.parquet"


def changes_in_the_middle(living: Living) -> None:
    """Every kind of change at once, between two starts of the same command."""
    living.write(
        "part-100.parquet", {**living.new_items(10**6, 200), **living.new_items(2 * 10**6, 100, has_old=False)}
    )
    changed = set(list(living.files[part(1)])[::16])
    assert len(changed) == 50
    living.edit(
        part(1),
        lambda f: dict(reversed([(k, living.changed(i) if k in changed else i) for k, i in f.items()])),
    )
    living.write(part(2), {})
    living.edit(part(3), lambda f: without(f, list(f)[100:140]))
    living.rename(part(4), "part-200.parquet")
    living.touch(part(5))


def a_night(living: Living, night: int) -> int:
    """1 % of the items: changed, removed, added, in two files. Returns how many are to be embedded."""
    for place, name in enumerate(sorted(living.files)[night : night + 2]):
        items = living.files[name]
        keys = list(items)
        changed = {key: living.changed(items[key]) for key in keys[:20]}
        added = living.new_items(3 * 10**6 + 100 * night + 10 * place, 5, has_old=False)
        living.write(name, {**added, **changed, **without(items, keys[:27])})
    return 50


def year(living: Living, *, kills: bool) -> None:
    living.run(until="wave:2")
    living.check_versions(0)
    middle = len(living.state().versions)
    gone = dict(living.files[part(2)])
    changes_in_the_middle(living)
    if kills:
        assert living.run_killed(units=3)
        living.check_versions(middle)
        assert living.run_killed(units=9)
        living.check_versions(middle)
    result = living.finish()
    assert result.state.versions[middle].cause == "change"
    assert not set(living.held(result.state.versions[middle])) & set(gone), "gone in the next version, without a wave"
    # Whatever was due in a start until its end, and what was embedded before it went.
    assert set(living.embedded()) >= {item.marker for item in living.items.values()}
    for night in range(3):
        embedded, versions = len(living.embedded()), len(living.state().versions)
        due = a_night(living, night)
        living.finish()
        assert len(living.embedded()) == embedded + due
        assert [version.cause for version in living.state().versions[versions:]] == ["change"]
    before, embedded = living.written(), living.embedded()
    living.finish()
    assert (living.written(), living.embedded()) == (before, embedded)
    for older, newer in itertools.pairwise(living.state().versions):
        assert newer.base in (None, older.version)


def big_gallery(folder: Path, engine: RunIt) -> Living:
    living = gallery_of(
        folder,
        files=FILES,
        rows=ROWS,
        gallery={"max_removed": 0.2},
        pairs={"count": 640},
        waves=[0.2, 0.4, 0.7, 1.0],
        resources={"embed_actors": [1, 1], "chunk_rows": 200},
        new_model={"batch_size": 256},
    )
    living.engine = engine
    return living


def test_a_year_of_a_gallery(tmp_path: Path) -> None:
    year(big_gallery(tmp_path / "here", in_process), kills=True)


@pytest.mark.slow  # seven starts of Ray's pool
def test_a_year_of_a_gallery_on_ray(tmp_path: Path, ray_session: None) -> None:
    year(big_gallery(tmp_path / "here", ff.run_backfill), kills=False)
