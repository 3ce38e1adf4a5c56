"""An open index follows the deletions of the log, against a set; what that costs, and what a damaged file does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastfill_ray.cli import main
from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.index import deletions as module
from fastfill_ray.index.reader import Index, open_index
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Expire, Publish, Segment
from tests.faults import flip_bit
from tests.index.test_reader import Root
from tests.index.test_segment import vectors

SIZES = (6, 1, 5)
STARTS = (0, 6, 7)
IDS = st.sets(st.integers(0, sum(SIZES) + 1), min_size=1)


def found(index: Index) -> set[Any]:
    """Every id that a search returns."""
    ids = set(index.search(vectors(2), sum(SIZES) + 3)[1].ravel().tolist()) - {-1, None}
    assert len(ids) == index.rows
    return ids


class Readers(RuleBasedStateMachine):
    """One reader of what is published and one of version 0, beside deletions, versions and rollbacks.

    versions: the ids of each, superseded ones left out. seen: what the readers adopted last: (version, deleted ids).
    """

    @initialize(id_type=st.sampled_from(["int64", "string"]))
    def first_version(self, id_type: Literal["int64", "string"]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Root(Path(self.folder.name), id_type=id_type)
        self.name: Callable[[int], Any] = int if id_type == "int64" else "item {}".format
        self.deleted: set[int] = set()
        self.versions: list[set[int]] = []
        self.plain = [
            self.root.segment(vectors(size, seed=size), [self.name(i) for i in range(start, start + size)])
            for size, start in zip(SIZES, STARTS, strict=True)
        ]
        self.new_version(set(), exact=False)
        self.readers = [open_index(str(self.root.path)), open_index(str(self.root.path), 0)]
        self.seen = [(0, frozenset[int]())] * 2

    @rule(ids=IDS)
    def delete(self, ids: set[int]) -> None:
        self.root.delete([self.name(i) for i in ids])
        self.deleted |= ids

    @precondition(lambda self: self.root.log.state.deletions)
    @rule(ids=IDS)
    def undelete(self, ids: set[int]) -> None:
        self.root.undelete([self.name(i) for i in ids])
        self.deleted -= ids

    @precondition(lambda self: len(self.versions) < 10)  # of the root's plan
    @rule(superseded=st.sets(st.integers(0, sum(SIZES) - 1), max_size=4), exact=st.booleans())
    def new_version(self, superseded: set[int], exact: bool) -> None:
        """Some segments get another deletion vector: its flags are those of now, or of another time."""
        flagged = self.deleted if exact else {1, 2, 9}
        segments: list[Segment] = []
        for segment, start, size in zip(self.plain, STARTS, SIZES, strict=True):
            ids = range(start, start + size)
            hidden = [i - start for i in ids if i in superseded | flagged]
            segments.append(self.root.hiding(segment, hidden, [i - start for i in flagged - superseded]))
        self.root.commit(*segments, deletions=self.root.deleted.fingerprint if exact else "")
        self.versions.append(set(range(sum(SIZES))) - superseded)

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        self.root.log.append(Publish(version=data.draw(st.integers(0, len(self.versions) - 1)), reason="rollback"))

    @rule(which=st.integers(0, 1))
    def refresh(self, which: int) -> None:
        serving = self.root.log.state.serving if which == 0 else 0
        assert serving is not None
        now = serving, frozenset(self.deleted)
        assert self.readers[which].refresh() is (now != self.seen[which])
        assert self.readers[which].refresh() is False
        self.seen[which] = now

    @rule(which=st.integers(0, 1))
    def open_again(self, which: int) -> None:
        self.readers[which] = open_index(str(self.root.path), None if which == 0 else 0)
        serving = self.root.log.state.serving if which == 0 else 0
        assert serving is not None
        self.seen[which] = serving, frozenset(self.deleted)

    @invariant()
    def what_is_found_is_what_was_adopted(self) -> None:
        for reader, (version, deleted) in zip(self.readers, self.seen, strict=True):
            assert reader.version == version
            assert found(reader) == {self.name(i) for i in self.versions[version] - deleted}

    def teardown(self) -> None:
        self.folder.cleanup()


Readers.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestReaders = Readers.TestCase


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Version 0 of ids 0 to 11 in three segments."""
    root = Root(tmp_path / "root")
    root.commit(*(root.segment(vectors(n, seed=n), range(s, s + n)) for n, s in zip(SIZES, STARTS, strict=True)))
    return root


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids were hashed, call by call."""
    counts: list[int] = []
    hash_ids = module.hash_ids

    def counted(ids: pa.Array, salt: str) -> pa.Array:
        counts.append(len(ids))
        return hash_ids(ids, salt)

    monkeypatch.setattr(module, "hash_ids", counted)
    return counts


def test_each_id_is_hashed_once_and_none_where_nothing_is_deleted(root: Root, hashed: list[int]) -> None:
    index = open_index(str(root.path))
    assert index.refresh() is False
    assert hashed == []
    root.delete([3])
    hashed.clear()
    assert index.refresh() is True
    assert sorted(hashed) == [*(0, 0), *(1, 1), *(5, 6)], "every id, and those that are found again by all 16 bytes"
    root.delete([7])
    hashed.clear()
    assert index.refresh() is True
    assert sorted(hashed) == [0, 1, 1], "only what is found"
    segments = segments_of(root.files, root.log.state.versions[0])
    root.commit(*segments[:2], root.segment(vectors(4), range(7, 11)))
    hashed.clear()
    assert index.refresh() is True
    assert sorted(hashed) == [1, 4], "only the new segment"
    assert found(index) == set(range(11)) - {3, 7}


def test_a_version_whose_vectors_flag_what_is_deleted_is_opened_without_hashing(root: Root, hashed: list[int]) -> None:
    first, *others = segments_of(root.files, root.log.state.versions[0])
    root.delete([3, 99])
    root.commit(root.hiding(first, [0, 3], [3]), *others, deletions=root.deleted.fingerprint)
    hashed.clear()
    assert found(open_index(str(root.path))) == set(range(12)) - {0, 3}
    assert hashed == []
    assert found(open_index(str(root.path), 0)) == set(range(12)) - {3}
    root.undelete([3])
    hashed.clear()
    assert found(open_index(str(root.path))) == set(range(12)) - {0}, "99 is deleted: no flag is believed any more"
    root.undelete([99])
    assert found(open_index(str(root.path))) == set(range(12)) - {0}


def test_deleting_what_is_deleted_changes_nothing_and_is_read_once(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.delete([3])
    index = open_index(str(root.path))
    root.delete([3])
    assert index.refresh() is False
    read: list[str] = []
    get = type(index._files).get
    monkeypatch.setattr(type(index._files), "get", lambda files, path: read.append(path) or get(files, path))
    assert index.refresh() is False
    assert {path.partition("/")[0] for path in read} == {"log"}


def test_a_version_that_expires_under_an_index_opened_by_number_stays_and_its_deletions_follow(root: Root) -> None:
    index = open_index(str(root.path), 0)
    root.commit(*segments_of(root.files, root.log.state.versions[0]))
    root.log.append(Expire(versions=(0,)))
    assert index.refresh() is False
    root.delete([3])
    assert index.refresh() is True
    assert (index.version, found(index)) == (0, set(range(12)) - {3})


def test_every_item_of_a_version_may_be_deleted(root: Root) -> None:
    index = open_index(str(root.path))
    root.delete(range(12))
    assert index.refresh() is True
    scores, ids = index.search(vectors(2), 3)
    assert (ids == -1).all()
    assert (scores == -np.inf).all()


def damage(root: Root, path: str, how: str) -> None:
    data = root.files.get(path)
    root.files.delete(path)
    if how == "damaged":
        root.files.put_data(path, flip_bit(data, 500))


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_deletion_that_cannot_be_read_leaves_the_index_as_it_was_until_the_same_delete_puts_it_back(
    root: Root, tmp_path: Path, how: str
) -> None:
    root.delete([3])
    index = open_index(str(root.path))
    path = root.delete([4, 5])
    damage(root, path, how)
    error = CorruptFile if how == "damaged" else FileMissing
    said = rf"{path}.*Run `fastfill-ray delete` again with the same ids: it writes the same file\.$"
    acts: list[Callable[[], object]] = [index.refresh, lambda: open_index(str(root.path)), lambda: verify(root.files)]
    for act in acts:
        with pytest.raises(error, match=said) as caught:
            act()
        assert caught.value.paths == (path,)
        assert "roll back" not in str(caught.value)
    assert found(index) == set(range(12)) - {3}
    ids = tmp_path / "ids"
    ids.write_text("5\n4\n")
    assert main(["delete", str(root.path), "--ids", str(ids)]) == 0
    assert index.refresh() is True
    assert found(index) == set(range(12)) - {3, 4, 5}


def test_a_deletion_that_was_undone_in_part_is_put_back_with_what_came_after_it(root: Root) -> None:
    deleted, undone = root.delete([4, 5]), root.undelete([5])
    damage(root, deleted, "gone")
    with pytest.raises(
        FileMissing, match=rf"{deleted}.*fastfill-ray delete` again .* Then repeat each `undelete` that"
    ):
        open_index(str(root.path))
    root.delete([4, 5])
    root.undelete([5])
    assert found(open_index(str(root.path))) == set(range(12)) - {4}
    damage(root, undone, "damaged")
    with pytest.raises(CorruptFile, match=rf"{undone}.*fastfill-ray undelete` again .* Then repeat each `delete` that"):
        open_index(str(root.path))


def test_searches_during_a_refresh_see_the_deletions_before_or_after(root: Root) -> None:
    index = open_index(str(root.path))
    root.delete([0, 6, 7])
    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(index.search, vectors(2, seed=3), 12) for _ in range(100)]
        refreshes = [pool.submit(index.refresh) for _ in range(3)]
        searches += [pool.submit(index.search, vectors(2, seed=3), 12) for _ in range(100)]
    assert sorted(refresh.result() for refresh in refreshes) == [False, False, True]
    for search in searches:
        assert set(search.result()[1][0].tolist()) in (set(range(12)), set(range(12)) - {0, 6, 7} | {-1})
    assert found(index) == set(range(12)) - {0, 6, 7}


def test_ids_that_another_process_deletes_are_gone_and_never_come_back(root: Root, tmp_path: Path) -> None:
    index, here = open_index(str(root.path)), Path(__file__).parents[2]
    for number in (3, 8):
        (tmp_path / f"{number}").write_text(f"{number}\n")
    code = (
        "import sys; from fastfill_ray.cli import main; sys.exit(main(['delete', sys.argv[1], '--ids', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, str(root.path)]
    others = [subprocess.Popen([*command, str(tmp_path / f"{n}")], cwd=here, stdout=subprocess.DEVNULL) for n in (3, 8)]
    seen = set(range(12))
    while any(other.poll() is None for other in others):
        index.refresh()
        now = found(index)
        assert now <= seen
        seen = now
    assert [other.wait() for other in others] == [0, 0]
    index.refresh()
    assert found(index) == set(range(12)) - {3, 8}
