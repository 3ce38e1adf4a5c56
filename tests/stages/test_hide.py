"""Deletion vectors of a new version: what they hide, and what is neither read nor written for them."""

from __future__ import annotations

import io
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import CorruptFile
from fastfill_ray.index.deletion_vector import fresh_path, read_deletion
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.index.verify import Verified, verify
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Segment, Version
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.hide import hide_deleted
from fastfill_ray.stages.progress import Progress
from tests.index.test_reader import Root
from tests.index.test_segment import vectors

PARTS = (range(6), range(6, 7), range(7, 12))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def plain(root: Root) -> list[Segment]:
    """Ids 0 to 11 in three segments."""
    return [root.segment(vectors(len(ids), seed=len(ids)), ids) for ids in PARTS]


def hide(root: Root, segments: list[Segment], before: Version | None = None) -> list[Segment]:
    context = Context(InProcessEngine(), root.files, InputStore(), Progress(io.StringIO()))
    return hide_deleted(context, root.deleted, segments, partial(fresh_path, "p", 1), before)


def hidden(root: Root, segments: list[Segment]) -> list[tuple[set[int], set[int]]]:
    """Per segment the ids of its superseded rows, and of those that a DELETE hides."""
    vectors_ = [read_deletion(root.files, segment) for segment in segments]
    return [
        ({ids[row] for row in rows[~deleted]}, {ids[row] for row in rows[deleted]})
        for ids, (rows, deleted) in zip(PARTS, vectors_, strict=True)
    ]


SETS = st.sets(st.integers(0, 12), max_size=6)


@given(steps=st.lists(st.tuples(SETS, SETS, SETS), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_deleted_is_hidden_beside_what_is_superseded_version_after_version(
    tmp_path: Path, steps: list[tuple[set[int], set[int], set[int]]]
) -> None:
    root = Root(tmp_path / uuid.uuid4().hex)
    segments, deleted, superseded, before = plain(root), set[int](), set[int](), None
    for newly_superseded, newly_deleted, undeleted in steps:
        if newly_superseded - superseded - {12}:  # a plan that follows makes vectors of superseded rows alone
            superseded |= newly_superseded
            rows = [[i - ids[0] for i in ids if i in superseded] for ids in PARTS]
            segments = [
                root.hiding(segment.model_copy(update={"deletion": None}), hidden)
                for segment, hidden in zip(segments, rows, strict=True)
            ]
        if newly_deleted:
            root.delete(sorted(newly_deleted))
            deleted |= newly_deleted
        if undeleted and root.log.state.deletions:
            root.undelete(sorted(undeleted))
            deleted -= undeleted
        segments = hide(root, segments, before)
        expected = [(superseded & set(ids), (deleted - superseded) & set(ids)) for ids in PARTS]
        assert hidden(root, segments) == expected
        assert [s.plan_rows for s in segments] == [len(set(ids) - superseded) for ids in PARTS]
        number = root.commit(*segments, deletions=root.deleted.fingerprint)
        before = root.log.state.versions[number]
        again = hide(root, segments, before)
        assert all(one is other for one, other in zip(segments, again, strict=True))


@pytest.fixture
def journal(root: Root, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read and written of the index: one path after the other."""
    paths: list[str] = []

    def noted(name: str) -> Any:
        method = getattr(type(root.files), name)

        def call(files: Any, path: str, *arguments: Any) -> Any:
            if path.startswith("index/"):
                paths.append(path)
            return method(files, path, *arguments)

        return call

    for name in ("get", "put_data", "put_new"):
        monkeypatch.setattr(type(root.files), name, noted(name))
    return paths


def test_where_nothing_is_deleted_and_nothing_was_nothing_is_read(root: Root, journal: list[str]) -> None:
    first, *others = plain(root)
    segments = [root.hiding(first, [2]), *others]
    journal.clear()
    assert hide(root, segments) == segments
    root.delete([3])
    root.undelete([3])
    assert hide(root, segments) == segments
    assert journal == []


def test_after_an_undelete_only_segments_that_hide_deleted_rows_are_looked_at(root: Root, journal: list[str]) -> None:
    segments = plain(root)
    root.delete([0, 2, 7])
    first, second, third = hide(root, [root.hiding(segments[0], [0]), *segments[1:]])
    assert hidden(root, [first, second, third]) == [({0}, {2}), (set(), set()), (set(), {7})]
    root.undelete([0, 2, 7])
    journal.clear()
    shown = hide(root, [first, second, third])
    assert hidden(root, shown) == [({0}, set()), (set(), set()), (set(), set())]
    assert shown[1] is second
    assert shown[2] == segments[2], "without a deletion vector, as before"
    assert second.ids.path not in journal


def test_a_segment_that_hides_what_it_should_keeps_its_vector(root: Root, journal: list[str]) -> None:
    root.delete([2, 7])
    first, second, third = hide(root, plain(root))
    root.delete([6])
    journal.clear()
    again = hide(root, [first, second, third])
    assert (again[0], again[2]) == (first, third)
    assert hidden(root, again) == [(set(), {2}), (set(), {6}), (set(), {7})]
    assert len(list((root.path / "index/p").iterdir())) == 3, "one more file"
    assert {segment.live_rows for segment in again} == {5, 0, 4}


def test_under_the_same_deletions_only_new_segments_are_read(root: Root, journal: list[str]) -> None:
    root.delete([2, 7])
    segments = hide(root, plain(root))
    root.commit(*segments, deletions=root.deleted.fingerprint)
    before = root.log.state.versions[0]
    new = root.segment(vectors(5, seed=7), range(7, 12))
    journal.clear()
    result = hide(root, [*segments[:2], new], before)
    assert [one is other for one, other in zip(result, segments, strict=False)] == [True, True, False]
    assert hidden(root, result)[2] == (set(), {7})
    assert not {path for segment in segments[:2] for path in (segment.index.path, segment.ids.path)} & set(journal)
    root.delete([1])
    assert hidden(root, hide(root, segments, before))[0] == (set(), {1, 2})


def test_a_version_of_these_segments_is_whole_and_says_how_many_are_deleted(root: Root) -> None:
    root.commit(*plain(root))
    root.delete([2, 7, 99])
    root.commit(*hide(root, segments_of(root.files, root.log.state.versions[0])), deletions=root.deleted.fingerprint)
    assert verify(root.files) == [Verified(0, 3, 12), Verified(1, 3, 12, 2)]


def test_damaged_ids_are_an_error_by_name(root: Root) -> None:
    segments = plain(root)
    root.delete([2])
    root.files.put_data(segments[2].ids.path, b"x")
    with pytest.raises(CorruptFile) as caught:
        hide(root, segments)
    assert caught.value.paths == (segments[2].ids.path,)
