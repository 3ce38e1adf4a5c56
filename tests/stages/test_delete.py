"""Ids deleted from a root that stands still, and from one that is being written to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from fastfill_ray.errors import InputError, NotPublished, RefusedError
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Publish
from fastfill_ray.stages.delete import Kind, Recorded, delete
from fastfill_ray.storage.commit_log import Log, read_state
from tests.faults import FaultyFiles, Injected, MemoryFiles
from tests.log.test_records import INIT, plan, version


@pytest.fixture
def files() -> MemoryFiles:
    files = MemoryFiles()
    log = Log(files)
    log.initialise(INIT)
    log.claim()
    return files


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("3\n5\n3\n")
    return path


def change(files: MemoryFiles | FaultyFiles, ids: Path, kind: Kind = "DELETE") -> Recorded:
    return delete(files, InputStore(), str(ids), kind)


def deleted_rows(files: MemoryFiles) -> list[int]:
    """Which of the ids 0 to 9 are deleted."""
    return Deleted.read(files, read_state(files).deletions).rows_of(pa.array(range(10))).tolist()


def test_ids_are_deleted_by_one_record_and_one_file_and_come_back_by_another(files: MemoryFiles, ids: Path) -> None:
    before = set(files.objects)
    assert change(files, ids) == Recorded("DELETE", 2, 2)
    added = sorted(set(files.objects) - before)
    assert [path.partition("/")[0] for path in added] == ["deletions", "log"]
    assert deleted_rows(files) == [3, 5]
    ids.write_text("5\n8\n")
    assert change(files, ids, "UNDELETE") == Recorded("UNDELETE", 2, 3)
    assert deleted_rows(files) == [3]
    assert len({deletion.salt for deletion in read_state(files).deletions}) == 1


def test_no_id_no_record(files: MemoryFiles, ids: Path) -> None:
    ids.write_text("\n")
    before = dict(files.objects)
    assert change(files, ids) == Recorded("DELETE", 0, None)
    assert files.objects == before


def test_what_cannot_be_deleted_leaves_nothing_behind(files: MemoryFiles, ids: Path) -> None:
    before = dict(files.objects)
    with pytest.raises(NotPublished, match="there is no log here"):
        change(MemoryFiles(), ids)
    with pytest.raises(RefusedError, match="nothing was ever deleted here"):
        change(files, ids, "UNDELETE")
    ids.write_text("3\nfive\n")
    with pytest.raises(InputError, match=f"{ids}, line 2"):
        change(files, ids)
    assert files.objects == before


def test_a_parquet_column_has_the_name_that_the_plans_gallery_gives_it(files: MemoryFiles, tmp_path: Path) -> None:
    from pyarrow import parquet

    log = Log(files)
    log.claim()
    log.append(plan("p1").model_copy(update={"settings": {"gallery": {"id_column": "sku"}}}))
    parquet.write_table(pa.table({"sku": [4], "why": ["sold"]}), tmp_path / "ids")
    assert change(files, tmp_path / "ids").ids == 1
    assert deleted_rows(files) == [4]


def test_a_first_delete_that_comes_second_hashes_its_ids_again(files: MemoryFiles, ids: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.write_text("7\n")
    slow = FaultyFiles(files, part="log/", faults=["slow"], meanwhile=lambda: change(files, others))
    assert change(slow, ids) == Recorded("DELETE", 2, 3)
    assert deleted_rows(files) == [3, 5, 7]


@pytest.mark.parametrize("fault", ["before", "lost_answer", "late"])
def test_a_delete_whose_outcome_is_unknown_is_repeated_without_harm(files: MemoryFiles, ids: Path, fault: str) -> None:
    faulty = FaultyFiles(files, part="log/", faults=[fault])  # type: ignore[list-item]
    with pytest.raises(Injected):
        change(faulty, ids)
    change(files, ids)
    faulty.land()
    assert deleted_rows(files) == [3, 5]


def test_a_driver_in_the_middle_of_its_work_goes_on(files: MemoryFiles, ids: Path) -> None:
    log = Log(files)
    log.claim()
    for body in (plan("p1"), version(0, "p1", 0), Publish(version=0)):
        change(files, ids)
        log.append(body)
    assert read_state(files) == log.state
    assert len(log.state.deletions) == 3
