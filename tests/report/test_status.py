"""What `status` says before there is a record, of drivers at work, and of what it cost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fastfill_ray.errors import NotPublished
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.report.status import Status, read_status, status_json, status_text
from fastfill_ray.storage.heartbeat import Beat, Heartbeat, find_drivers, progress_words
from fastfill_ray.storage.local import LocalFiles
from fastfill_ray.storage.paths import driver_path, stage_receipt, unit_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt
from tests.report.logs import finished


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(str(tmp_path / "root"))


def put(files: LocalFiles, path: str, rows: int = 0) -> None:
    put_receipt(files, path, Receipt(unit="u", rows=rows))


def test_before_the_first_record_it_says_what_is_done(files: LocalFiles) -> None:
    with pytest.raises(NotPublished, match="there is no such folder"):
        read_status(files)
    files.put_data("snapshots/ab/snapshot.json", b"{}")
    assert "So far: nothing is embedded yet. The same command goes on." in status_text(read_status(files), None)
    for unit, rows in (("c" + "0" * 16, 300), ("c" + "1" * 16, 200)):
        put(files, unit_receipt("pairs/ab", unit), rows)
    put(files, stage_receipt("alignment", "cd"))
    told = status_text(read_status(files), None)
    assert "there is no plan yet. So far: 500 items of the sample are embedded; 1 map is fitted." in told
    put(files, stage_receipt("choice", "ef"))
    found = status_json(read_status(files))
    assert found["beginning"] == {"pairs": 500, "maps": 1, "is_chosen": True, "scored": 0}
    assert (found["plan"], found["versions"], found["serving"]) == (None, [], None)


def test_a_driver_at_work_is_shown_with_what_it_does(files: LocalFiles) -> None:
    with Heartbeat(files, doing=lambda: "wave 3 of 5: 41 % of the items embedded"):
        status = read_status(files)
        first = status_text(status, None).splitlines()[0]
        assert first.startswith(f"At work: process {os.getpid()} on ")
        assert first.endswith("last sign of life 0 s ago: wave 3 of 5: 41 % of the items embedded.")
        [told] = status_json(status)["at_work"]
        assert (told["is_at_work"], told["doing"]) == (True, "wave 3 of 5: 41 % of the items embedded")
        assert len(status_json(status)["drivers"]) == 1


def test_a_driver_elsewhere_is_at_work_while_its_signs_are_fresh_and_gone_after_long(files: LocalFiles) -> None:
    beat = Beat(driver="d", host="spot-7", pid=4, process="boot container 4 9", since=0.0, at=time.time(), beats=3)
    assert progress_words(beat).startswith("At work: process 4 on spot-7, ")
    silent = beat.model_copy(update={"at": beat.at - 120, "doing": "pairs: 1 of 2 items"})
    assert "or dead since its last sign of life" in progress_words(silent)
    assert "pairs: 1 of 2 items" in progress_words(silent)
    gone = beat.model_copy(update={"at": beat.at - 3600})
    assert progress_words(gone).startswith("Not at work any more: process 4 on spot-7, last sign of life 60 min ago")
    old = gone.model_dump_json(exclude={"doing"}).encode()  # of a release before
    files.put_data(driver_path("d"), old)
    assert find_drivers(files)[0].doing == ""


def test_a_price_says_what_the_embedding_cost(files: LocalFiles) -> None:
    versions = tuple(each.model_copy(update={"embed_seconds": 720.0}) for each in finished().versions)
    status = Status("root", finished().model_copy(update={"versions": versions}), Deleted.read(files, ()), (), None)
    said = "At 2.5 an hour of one actor the embedding comes to 2.50, 415.63 for a million items."
    assert said in status_text(status, None, price=2.5).splitlines()
    assert "an hour" not in status_text(status, None)
