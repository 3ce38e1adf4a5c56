"""A file under the root that is damaged or gone: made again and said, or an error that names it; never a traceback."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Segment, Version
from fastfill_ray.stages.segments import Assembler
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.local import LocalFiles
from tests.damage import KINDS, MADE_AGAIN, MUTATIONS, NAMED, NOT_READ, Bench, table
from tests.faults import flip_bit
from tests.integration.conftest import in_process
from tests.segments import segments_in

FINE = {NAMED, MADE_AGAIN, NOT_READ}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def newest(root: Path) -> Version:
    return read_state(open_files(str(root))).versions[-1]


def segment_of(root: Path, wave: int, state: str) -> Segment:
    """A segment of the newest version."""
    return next(s for s in segments_in(root, newest(root)) if (s.wave, s.state) == (wave, state))


def damage_in_place(path: Path) -> None:
    path.write_bytes(flip_bit(path.read_bytes(), 8 * (path.stat().st_size // 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_made_again_or_named(bench: Bench, kind: str) -> None:
    number = list(KINDS).index(kind)
    rng = np.random.default_rng(number)
    for mutation in (MUTATIONS[number % 5], MUTATIONS[(number + 2) % 5]):
        outcome = bench.try_one(kind, mutation, rng)
        assert outcome.word in FINE, outcome


@pytest.mark.slow
def test_of_200_damages_per_kind_of_file_none_ends_in_a_traceback(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(200)
    outcomes = [bench.try_one(kind, MUTATIONS[i % 5], rng) for kind in KINDS for i in range(200)]
    with capsys.disabled():
        print(f"\n{table(outcomes)}")
    assert [outcome for outcome in outcomes if outcome.word not in FINE] == []


@pytest.mark.parametrize("part", ["index", "ids"])
@pytest.mark.parametrize(("wave", "state"), [(3, "stale"), (1, "new"), (0, "new")])
def test_a_kept_segment_that_is_damaged_is_built_again_and_the_old_version_stays_reported(
    bench: Bench, wave: int, state: str, part: str
) -> None:
    root = bench.copy("bare")
    damaged = segment_of(root, wave, state)
    damage_in_place(root / getattr(damaged, part).path)
    said = bench.run("bare", root, until="wave:2")
    assert f"{damaged.index.path} or {damaged.ids.path} is damaged or gone: built again" in said
    assert f"stays damaged (version {'1' if wave == 1 else '0, 1'})" in said
    files = open_files(str(root))
    assert [found.version for found in verify(files, 2)] == [2]
    again = [s for s in segments_in(root, newest(root)) if (s.bucket, s.wave, s.state) == (damaged.bucket, wave, state)]
    assert [(s.rows, s.ids_digest) for s in again] == [(damaged.rows, damaged.ids_digest)]
    assert again[0].index.path != damaged.index.path
    with pytest.raises(CorruptFile, match=rf"{getattr(damaged, part).path}: .*; whole: (0, )?2\."):
        verify(files)


def test_a_segment_whose_deletion_vector_is_gone_is_built_again_of_the_items_of_the_plan(bench: Bench) -> None:
    root = bench.copy("deleted")
    before, damaged = newest(root), segment_of(root, 3, "stale")
    assert before.deleted == 100
    assert damaged.deletion is not None
    (root / damaged.deletion.file.path).unlink()
    said = bench.run("deleted", root, until="wave:2")
    paths = (damaged.index.path, damaged.ids.path, damaged.deletion.file.path)
    assert f"{' or '.join(paths)} is damaged or gone: built again" in said
    after = newest(root)
    again = [s for s in segments_in(root, after) if (s.bucket, s.wave, s.state) == (damaged.bucket, 3, "stale")]
    assert [(s.rows, s.ids_digest) for s in again] == [(damaged.rows, damaged.ids_digest)]
    assert after.deleted == 100
    assert (after.rows, after.absent) == (300, 0)
    assert verify(open_files(str(root)), after.version)


def test_a_damaged_segment_whose_vectors_are_gone_is_embedded_again(bench: Bench) -> None:
    root = bench.copy("bare")
    damaged = segment_of(root, 1, "new")
    (root / damaged.index.path).unlink()
    ids = set(pq.read_table(root / damaged.ids.path).column("id").to_pylist())
    files = sorted((root / "vectors").glob("*/wave=01/c*.parquet"))
    vectors = [path for path in files if ids & set(pq.read_table(path).column("id").to_pylist())]
    assert len(vectors) > 1
    for path in vectors[:2]:
        path.unlink()
    said = bench.run("bare", root, until="wave:2")
    assert vectors[0].name in said or vectors[1].name in said
    assert verify(open_files(str(root)), 2)
    assert all(path.exists() for path in vectors)


def test_kept_segments_are_not_read_while_size_and_tag_are_the_recorded_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bench.folder / "fresh"
    bench.run("bare", root, until="wave:1")
    kept = {
        path
        for s in segments_in(root, newest(root))
        if (s.wave, s.state) != (2, "stale")
        for path in (s.index.path, s.ids.path)
    }
    read: list[str] = []
    get = LocalFiles.get

    def noted(files: LocalFiles, path: str) -> bytes:
        read.append(path)
        return get(files, path)

    monkeypatch.setattr(LocalFiles, "get", noted)
    bench.run("bare", root, until="wave:2")
    assert not kept & set(read)
    assert kept <= {path for s in segments_in(root, newest(root)) for path in (s.index.path, s.ids.path)}


def test_a_copied_root_is_read_once_and_its_tags_are_renewed(bench: Bench) -> None:
    root = bench.copy("bare")
    before = segment_of(root, 3, "stale")
    bench.run("bare", root, until="wave:2")
    after = segment_of(root, 3, "stale")
    assert after.index.path == before.index.path
    assert after.index.tag != before.index.tag


def test_a_stale_segment_whose_pinned_file_is_gone_takes_nothing_out_and_is_built_again_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bench.copy("bare")
    lost = next(s for s in segments_in(root, newest(root)) if (s.bucket, s.wave, s.state) == (1, 3, "stale"))
    (root / lost.ids.path).unlink()
    pinned, away = bench.folder / "gallery" / "part-001.parquet", bench.folder / "away"
    look_at = Assembler._look_at

    def vanish_first(assembler: Assembler, segments: list[Segment]) -> tuple[list[Segment], list[Segment]]:
        pinned.rename(away)
        return look_at(assembler, segments)

    with monkeypatch.context() as patch:
        patch.setattr(Assembler, "_look_at", vanish_first)
        try:
            with pytest.raises(FileMissing, match=lost.ids.path):
                bench.run("bare", root, until="wave:2")
        finally:
            away.rename(pinned)
    files = open_files(str(root))
    assert newest(root).version == 1
    bench.run("bare", root, until="wave:2")
    assert (newest(root).rows, newest(root).absent) == (300, 0)
    assert verify(files, 2)
    bench.run("bare", root, until="wave:3")
    assert (newest(root).rows, newest(root).absent, newest(root).new_rows) == (300, 0, 300)
    assert verify(files, 3)


def test_a_version_whose_files_are_gone_is_not_published_late(bench: Bench) -> None:
    root = bench.folder / "late"
    bench.run("bare", root, until="version0")
    bench.run("bare", root, until="wave:1")
    log = sorted((root / "log").iterdir())
    log[-1].unlink()  # as if the driver had died between VERSION and PUBLISH
    gone = segment_of(root, 3, "stale")
    (root / gone.index.path).unlink()
    with pytest.raises(CorruptFile, match=f"version 1 is not published: {gone.index.path} is damaged or gone"):
        bench.run("bare", root, until="wave:1")
    said = bench.run("bare", root, until="wave:2")
    assert f"version 1 is not published: {gone.index.path}" in said
    state = read_state(open_files(str(root)))
    assert state.published == (0, 2)
    assert verify(open_files(str(root)), 2)


def test_a_damaged_file_is_made_again_once_and_then_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bench.copy("wave")
    name = sorted((root / "vectors").glob("*/wave=02/c*.parquet"))[0].name
    get = LocalFiles.get
    monkeypatch.setattr(LocalFiles, "get", lambda files, path: b"x" if path.endswith(name) else get(files, path))
    with pytest.raises(CorruptFile, match=f"{name}: found 1 bytes"):
        bench.run("wave", root, until="wave:2")


def test_what_is_made_again_and_is_not_what_the_plan_was_made_from_is_refused(bench: Bench) -> None:
    root = bench.copy("wave")
    [snapshot] = (root / "snapshots").glob("*/snapshot.json")
    snapshot.write_bytes(b"")
    config = bench.config("wave", root)
    config["resources"]["chunk_rows"] = 20  # row groups of 64 are cut into others than by 50
    with pytest.raises(CorruptFile, match=r"snapshot\.json: was damaged or gone.*Put resources\.chunk_rows"):
        in_process(config, until="wave:2")
    assert "made again" in bench.run("wave", root, until="wave:2")


def test_under_ray_several_damaged_files_are_made_again_in_one_call(bench: Bench, ray_session: None) -> None:
    root = bench.copy("wave")
    [snapshot] = (root / "snapshots").glob("*/snapshot.json")
    vectors = sorted((root / "vectors").glob("*/wave=02/c*.parquet"))
    stale, new = segment_of(root, 3, "stale"), segment_of(root, 1, "new")
    damage_in_place(snapshot)
    os.truncate(vectors[0], 100)
    vectors[1].unlink()
    (root / stale.index.path).unlink()
    damage_in_place(root / new.ids.path)
    stream = io.StringIO()
    result = ff.run_backfill(bench.config("wave", root), until="wave:2", stream=stream)
    said = stream.getvalue()
    for path in (snapshot, *vectors[:2]):
        assert path.name in said
    assert stale.index.path in said
    assert new.ids.path in said
    assert result.state.versions[-1].new_rows == round(0.8 * 300)
    assert verify(open_files(str(root)), 2)
