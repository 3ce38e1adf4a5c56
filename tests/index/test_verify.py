"""A version is whole, or the object that is damaged, gone or doubled is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.errors import CorruptFile, FileMissing, NotPublished
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
