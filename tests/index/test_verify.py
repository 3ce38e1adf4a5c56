"""A version is whole, or the object that is damaged, gone or doubled is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fastfill_ray.errors import CorruptFile, FileMissing, NotPublished
from fastfill_ray.index import verify as verifying
from fastfill_ray.index.segment_list import listed
from fastfill_ray.index.verify import Verified, verify
from fastfill_ray.log.records import Expire, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion
from tests.faults import flip_bit
from tests.index.test_reader import OLD_DIM, Root
from tests.index.test_segment import vectors


def segment(root: Root, ids: list[Any], **recorded: Any) -> Segment:
    """A durable segment of `ids`; `recorded` is what its record says instead."""
    made = root.segment(vectors(len(ids), seed=root.count), ids)
    return made.model_copy(update={"ids_digest": ids_digest(ids), **recorded})


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two versions of five items that share a segment."""
    root = Root(tmp_path / "root")
    shared = segment(root, [1, 2, 3])
    root.commit(shared, segment(root, [4, 5]))
    root.commit(shared, segment(root, [5, 4]))
    return root


def test_whole_versions_are_counted(root: Root) -> None:
    assert verify(root.files) == [Verified(0, 2, 5), Verified(1, 2, 5)]
    assert verify(root.files, 1) == [Verified(1, 2, 5)]


def test_string_ids_are_verified_alike(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", id_type="string", factory="IVF4,Flat", metric="cosine")
    root.commit(segment(root, ["a", "b"]), segment(root, ["", "1"]))
    assert verify(root.files) == [Verified(0, 2, 4)]


def test_fused_segments_are_verified_against_the_plans_factors(tmp_path: Path) -> None:
    fusion = Fusion(old=0.6, new=0.8)
    root = Root(tmp_path / "root", fusion=fusion)
    made = root.fused(vectors(2, OLD_DIM), vectors(2), [1, 2], Calibration())
    fused = made.model_copy(update={"ids_digest": ids_digest([1, 2])})
    root.commit(fused)
    assert verify(root.files) == [Verified(0, 1, 2)]
    root.commit(fused.model_copy(update={"fusion": Fusion(old=0.6, new=0)}))
    with pytest.raises(CorruptFile, match=r"index/1-fused\.faiss: recorded with dim 12, its space has 4"):
        verify(root.files, 1)
    root.commit(fused.model_copy(update={"fusion": Fusion(old=0.8, new=0.6)}))
    with pytest.raises(CorruptFile, match=r"index/1-fused\.faiss: fused with old=0\.8.*, plan p says old=0\.6"):
        verify(root.files, 2)


def test_an_expired_version_is_left_out_and_cannot_be_asked_for(root: Root) -> None:
    root.log.append(Expire(versions=(0,)))
    for path in ("index/2.faiss", "index/2.parquet"):
        root.files.delete(path)
    assert verify(root.files) == [Verified(1, 2, 5)]
    with pytest.raises(NotPublished, match="there is no version 0; live versions: 1"):
        verify(root.files, 0)


def test_a_version_that_is_not_there_is_told_with_those_that_are(root: Root) -> None:
    with pytest.raises(NotPublished, match="there is no version 7; live versions: 0, 1"):
        verify(root.files, 7)


def test_a_root_without_a_log_is_not_called_whole(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    assert verify(root.files) == []
    for path in root.files.list("log"):
        root.files.delete(path)
    with pytest.raises(NotPublished, match="there is no log here"):
        verify(root.files)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: flip_bit(data, len(data) * 4),
    "truncated": lambda data: data[:-1],
    "grown": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("path", ["index/3.faiss", "index/3.parquet"])
def test_a_damaged_file_is_named_and_only_its_version_fails(
    root: Root, path: str, damage: Callable[[bytes], bytes]
) -> None:
    root.files.put_data(path, damage(root.files.get(path)))
    for version in (None, 1):
        with pytest.raises(CorruptFile, match=path):
            verify(root.files, version)
    assert verify(root.files, 0) == [Verified(0, 2, 5)]


@pytest.mark.parametrize("path", ["index/1.faiss", "index/1.parquet"])
def test_a_file_that_is_gone_is_named(root: Root, path: str) -> None:
    root.files.delete(path)
    with pytest.raises(FileMissing, match=path):
        verify(root.files)


def test_a_damaged_record_is_named(root: Root) -> None:
    path = sorted(root.files.list("log"))[-2]
    root.files.put_data(path, flip_bit(root.files.get(path), 1000))
    with pytest.raises(CorruptFile, match=path):
        verify(root.files)


def test_an_id_in_two_segments_is_told(root: Root) -> None:
    root.commit(segment(root, [1, 2, 3]), segment(root, [4, 2]))
    with pytest.raises(CorruptFile, match="id 2 is in version 2 twice"):
        verify(root.files)


def test_an_id_twice_in_one_segment_is_told(root: Root) -> None:
    root.commit(segment(root, [1, 4, 4]))
    with pytest.raises(CorruptFile, match="id 4 is in version 2 twice"):
        verify(root.files)


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ({"ids_digest": ids_digest([1, 2, 4])}, r"index/4\.parquet: 3 ids, digest .*; recorded are 3"),
        ({"rows": 2}, r"index/4\.faiss: .*rows"),
        ({"dim": 9}, r"index/4\.faiss: .*dim"),
    ],
)
def test_files_that_are_not_what_their_record_says_are_told(root: Root, recorded: dict[str, Any], why: str) -> None:
    root.commit(segment(root, [1, 2, 3], **recorded))
    with pytest.raises(CorruptFile, match=why):
        verify(root.files, 2)


def test_ids_of_another_segment_are_told(root: Root) -> None:
    first, second = segment(root, [1, 2, 3]), segment(root, [4, 5])
    root.commit(first.model_copy(update={"ids": second.ids}), second)
    with pytest.raises(CorruptFile, match=r"index/5\.parquet: 2 ids"):
        verify(root.files, 2)


def test_a_version_that_says_it_holds_more_ids_than_its_segments_is_told(root: Root) -> None:
    last = root.log.state.versions[-1]
    root.log.append(last.model_copy(update={"version": 2, "wave": 2, "rows": 6}))
    with pytest.raises(CorruptFile, match="version 2: 5 ids, the record says 6"):
        verify(root.files)


def test_an_id_that_is_superseded_in_one_segment_may_be_live_in_another(root: Root) -> None:
    stale, new = root.hiding(segment(root, [1, 2, 3]), [1]), segment(root, [2, 4, 5])
    root.commit(stale, new)
    assert verify(root.files, 2) == [Verified(2, 2, 5)]
    root.commit(root.hiding(stale, [1, 2], deleted=[2]), root.hiding(new, [0], deleted=[0]))
    assert verify(root.files, 3) == [Verified(3, 2, 5, 2)]


def test_an_id_that_is_only_deleted_in_one_segment_is_in_the_version_twice(root: Root) -> None:
    root.commit(root.hiding(segment(root, [1, 2, 3]), [1], deleted=[1]), segment(root, [2, 4, 5]))
    with pytest.raises(CorruptFile, match="id 2 is in version 2 twice"):
        verify(root.files)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_deletion_vector_is_named(root: Root, damage: Callable[[bytes], bytes]) -> None:
    made = root.hiding(segment(root, [1, 2, 3]), [0, 2], deleted=[0, 2])
    root.commit(made, segment(root, [4, 5]))
    assert made.deletion is not None
    path = made.deletion.file.path
    root.files.put_data(path, damage(root.files.get(path)))
    with pytest.raises(CorruptFile, match=rf"{path}: .*Damaged versions: 2; whole: 0, 1"):
        verify(root.files)


@pytest.mark.parametrize("digest", ["ids_digest", "deleted_ids_digest"])
def test_a_deletion_vector_whose_ids_are_not_the_recorded_ones_is_named(root: Root, digest: str) -> None:
    made = root.hiding(segment(root, [1, 2, 3]), [0, 2], deleted=[0])
    assert made.deletion is not None
    other = made.deletion.model_copy(update={digest: ids_digest([7])})
    root.commit(made.model_copy(update={"deletion": other}), segment(root, [4, 5, 1]))
    with pytest.raises(CorruptFile, match=rf"{made.deletion.file.path}: [12] ids, digest .*; recorded are"):
        verify(root.files, 2)


def test_absent_ids_and_those_of_the_segments_sum_to_the_plan(root: Root) -> None:
    last = root.log.state.versions[-1]
    short = (segment(root, [1, 2, 3]), segment(root, [5]))
    found = {**listed(root.files, "p", short), "rows": 4, "absent": 1, "ids_digest": ids_digest([1, 2, 3, 5])}
    for number, (changes, fine) in enumerate(
        [
            ({"absent_digest": ids_digest([4])}, True),
            ({"absent_digest": ids_digest([6])}, False),
            ({}, False),
            ({"absent_digest": ids_digest([4]), "absent": 2}, False),
            ({"absent_digest": ids_digest([4]), "ids_digest": ids_digest([1, 2, 3, 4])}, False),
            ({"absent_digest": ids_digest([4]), "deleted": 1}, False),
        ],
        start=2,
    ):
        root.log.append(last.model_copy(update={"version": number, "wave": number, **found, **changes}))
        if fine:
            assert verify(root.files, number) == [Verified(number, 2, 4)]
        else:
            with pytest.raises(CorruptFile, match=rf"version {number}: "):
                verify(root.files, number)


@pytest.mark.parametrize("id_type", ["int64", "string"])
@pytest.mark.parametrize("again", [None, 0, 77, 399])
def test_ids_are_compared_a_part_at_a_time_and_none_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_type: Literal["int64", "string"], again: int | None
) -> None:
    monkeypatch.setattr(verifying, "_PARTITION_IDS", 16)
    root = Root(tmp_path / "root", id_type=id_type)
    known = [item if id_type == "int64" else f"item {item}" for item in range(401)]
    parts = [known[:150], known[150:151], known[151:400], [known[400 if again is None else again]]]
    root.commit(*(segment(root, part) for part in parts))
    if again is None:
        assert verify(root.files) == [Verified(0, 4, 401)]
    else:
        with pytest.raises(CorruptFile, match=f"index/4.parquet: id {known[again]!r} is in version 0 twice"):
            verify(root.files)


def test_different_ids_with_one_hash_are_no_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(tmp_path / "root", id_type="string")
    root.commit(segment(root, ["a", "b"]), segment(root, ["c"]))
    root.commit(segment(root, ["a", "b"]), segment(root, ["b"]))
    monkeypatch.setattr(verifying, "_hash", lambda ids: np.full(len(ids), 5, np.uint64))
    assert verify(root.files, 0) == [Verified(0, 2, 3)]
    with pytest.raises(CorruptFile, match="id 'b' is in version 1 twice"):
        verify(root.files, 1)


def test_flags_that_are_not_what_is_deleted_are_told_where_readers_would_believe_them(root: Root) -> None:
    root.delete([2, 4])
    first, second = segment(root, [1, 2, 3]), segment(root, [4, 5])
    now = root.deleted.fingerprint
    root.commit(root.hiding(first, [1], [1]), root.hiding(second, [0], [0]), deletions=now)
    root.commit(root.hiding(first, [0], [0]), root.hiding(second, [0], [0]))
    assert verify(root.files) == [Verified(0, 2, 5), Verified(1, 2, 5), Verified(2, 2, 5, 2), Verified(3, 2, 5, 2)]
    wrong = root.hiding(first, [0, 1], [0, 1])
    root.commit(wrong, root.hiding(second, [0], [0]), deletions=now)
    root.commit(first, root.hiding(second, [0], [0]), deletions=now)
    assert wrong.deletion is not None
    said = "2 rows are hidden by DELETE, 1 are deleted, and 1 are both"
    with pytest.raises(CorruptFile, match=f"{wrong.deletion.file.path}: {said}"):
        verify(root.files, 4)
    with pytest.raises(CorruptFile, match=f"{first.ids.path}: 0 rows are hidden by DELETE, 1 are deleted"):
        verify(root.files, 5)
    root.undelete([4])
    assert verify(root.files, 4) == [Verified(4, 2, 5, 3)], "made under other deletions: readers hash the ids"
