"""The log: one history, whoever writes, whatever gets lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastfill_ray.errors import CommitStateUnknown, CorruptFile, Fenced, RefusedError
from fastfill_ray.log.records import Expire, Publish
from fastfill_ray.log.state import State
from fastfill_ray.storage.commit_log import Log, read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import record_path
from tests.faults import FaultyFiles, Injected, MemoryFiles, flip_bit
from tests.log.test_records import INIT, log_of_format_1, plan, version


def driver(files: Files) -> Log:
    log = Log(files)
    log.initialise(INIT)
    log.claim()
    return log


def test_an_empty_root_has_an_empty_state(files: Files) -> None:
    assert read_state(files) == State()
    assert files.list("") == []


def test_what_is_appended_is_what_another_reader_folds(files: Files) -> None:
    log = driver(files)
    for body in (plan("p1"), version(0, "p1", 0), Publish(version=0)):
        state = log.append(body)
    assert state == log.state == read_state(files)
    assert (state.next_seq, state.epoch, state.serving) == (5, 1, 0)
    assert files.list("log") == [record_path(seq) for seq in range(5)]


def test_a_root_of_format_1_is_refused_by_readers_and_drivers_and_stays_as_it_is() -> None:
    files = MemoryFiles()
    for seq, data in enumerate(log_of_format_1()):
        files.put_new(record_path(seq), data)
    for act in (read_state, driver):
        with pytest.raises(RefusedError, match="record format 1, this release reads and writes format 2"):
            act(files)
    assert files.list("log") == [record_path(seq) for seq in range(3)]


def test_a_second_initialise_adopts_the_record_that_is_there() -> None:
    files = MemoryFiles()
    Log(files).initialise(INIT)
    other = INIT.model_copy(update={"metric": "l2"})
    assert Log(files).initialise(other).init == INIT


def test_reading_again_reads_only_what_is_new() -> None:
    class Counting(MemoryFiles):
        reads: int = 0

        def get(self, path: str) -> bytes:
            self.reads += 1
            return super().get(path)

    files = Counting()
    log = driver(files)
    log.append(plan("p1"))
    files.reads = 0
    assert log.read().next_seq == 3
    assert files.reads == 1


def test_a_driver_whose_epoch_was_claimed_over_is_fenced_and_deletes_nothing() -> None:
    files = FaultyFiles(MemoryFiles())
    first = driver(files)
    first.append(plan("p1"))
    second = driver(files)
    before = {path: files.get(path) for path in files.list("")}
    with pytest.raises(Fenced, match="owns epoch 1") as caught:
        first.append(version(0, "p1", 0))
    assert caught.value.exit_code == 75
    assert {path: files.get(path) for path in files.list("")} == before
    assert files.deleted == []
    with pytest.raises(Fenced):
        first.append(version(0, "p1", 0))
    assert second.append(version(0, "p1", 0)).versions == (version(0, "p1", 0),)


def test_a_driver_that_sleeps_through_a_claim_cannot_commit_on_waking() -> None:
    shared = MemoryFiles()
    sleepy = FaultyFiles(shared, part="log/", meanwhile=lambda: driver(shared).append(version(0, "p1", 0)))
    first = driver(sleepy)
    first.append(plan("p1"))
    sleepy.faults = ["slow"]
    with pytest.raises(Fenced):
        first.append(version(0, "p1", 0))
    assert len(read_state(shared).versions) == 1


def test_claims_made_at_once_give_each_driver_its_own_epoch() -> None:
    files = MemoryFiles()
    Log(files).initialise(INIT)
    with ThreadPoolExecutor(6) as pool:
        epochs = list(pool.map(lambda _: Log(files).claim(), range(6)))
    assert sorted(epochs) == [1, 2, 3, 4, 5, 6]
    assert read_state(files).epoch == 6


@pytest.mark.parametrize("fault", ["before", "lost_answer"])
def test_a_driver_that_dies_at_an_append_leaves_a_log_that_the_next_one_continues(files: Files, fault: str) -> None:
    faulty = FaultyFiles(files, part="log/")
    first = driver(faulty)
    first.append(plan("p1"))
    faulty.faults = [fault]  # type: ignore[list-item]
    with pytest.raises(Injected):
        first.append(version(0, "p1", 0))
    landed = fault == "lost_answer"
    second = driver(files)
    assert len(second.state.versions) == int(landed)
    if not landed:
        second.append(version(0, "p1", 0))
    assert second.append(Publish(version=0)).serving == 0


def test_an_append_after_one_that_landed_unknown_says_so_and_changes_nothing() -> None:
    files = FaultyFiles(MemoryFiles(), part="log/")
    log = driver(files)
    log.append(plan("p1"))
    files.faults = ["lost_answer"]
    with pytest.raises(Injected):
        log.append(version(0, "p1", 0))
    with pytest.raises(CommitStateUnknown, match="same command again"):
        log.append(version(0, "p1", 0))
    assert len(read_state(files).versions) == 1
    assert log.append(Publish(version=0)).serving == 0


def test_a_record_that_does_not_fit_the_state_never_reaches_the_log() -> None:
    files = MemoryFiles()
    log = driver(files)
    with pytest.raises(RefusedError, match="does not exist"):
        log.append(Publish(version=3))
    with pytest.raises(RefusedError, match="INIT"):
        Log(MemoryFiles()).claim()
    unclaimed = Log(files)
    unclaimed.read()
    with pytest.raises(RefusedError, match="claimed"):
        unclaimed.append(Expire(versions=()))
    assert files.list("") == [record_path(0), record_path(1)]


def test_a_lost_record_in_the_middle_is_an_error_and_not_a_shorter_log(files: Files) -> None:
    log = driver(files)
    log.append(plan("p1"))
    log.append(version(0, "p1", 0))
    files.delete(record_path(2))
    with pytest.raises(CorruptFile, match=f"{record_path(2)} is missing, but record 3"):
        read_state(files)


def test_a_damaged_record_is_refused_by_name(tmp_path: Path) -> None:
    files = open_files(str(tmp_path))
    log = driver(files)
    log.append(plan("p1"))
    path = tmp_path / record_path(1)
    path.write_bytes(flip_bit(path.read_bytes(), 300))
    with pytest.raises(CorruptFile, match=record_path(1)):
        read_state(files)


def test_time_and_transaction_ids_can_be_given() -> None:
    files, numbers = MemoryFiles(), count()
    log = Log(files, now=lambda: "2020-01-01T00:00:00Z", new_txn=lambda: f"txn-{next(numbers)}")
    log.initialise(INIT)
    data = files.get(record_path(0))
    assert b'"created":"2020-01-01T00:00:00Z"' in data
    assert b'"txn":"txn-0"' in data


class Drivers(RuleBasedStateMachine):
    """Three drivers and a faulty store: the log stays one valid history, and an acknowledged record stays in it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryFiles()
        self.files = FaultyFiles(self.store, part="log/")
        self.drivers: dict[int, Log] = {}
        self.acknowledged: dict[int, bytes] = {}

    @initialize()
    def start(self) -> None:
        Log(self.store).initialise(INIT)

    def _keep(self) -> None:
        for path in self.store.list("log"):
            self.acknowledged.setdefault(int(path[4:24]), self.store.get(path))

    @rule(who=st.integers(0, 2), fault=st.sampled_from(["before", "lost_answer", None]))
    def claim(self, who: int, fault: str | None) -> None:
        self.files.faults = [fault] if fault else []  # type: ignore[list-item]
        log = Log(self.files)
        try:
            log.claim()
            self.drivers[who] = log
        except Injected:
            self.drivers.pop(who, None)
        self._keep()

    @precondition(lambda self: self.drivers)
    @rule(data=st.data(), fault=st.sampled_from(["before", "lost_answer", None]))
    def append(self, data: st.DataObject, fault: str | None) -> None:
        log = self.drivers[data.draw(st.sampled_from(sorted(self.drivers)))]
        newest = max(driver.state.epoch for driver in self.drivers.values())
        state = log.state
        body = (
            plan(f"p{len(state.plans)}")
            if state.plan is None or state.finished
            else version(
                len(state.versions), state.plan.plan, len(state.plan_versions), final=len(state.plan_versions) == 2
            )
        )
        self.files.faults = [fault] if fault else []  # type: ignore[list-item]
        try:
            after = log.append(body)
            assert after.epoch >= newest
            assert read_state(self.store) == after
        except (Injected, Fenced, CommitStateUnknown) as error:
            if not isinstance(error, CommitStateUnknown):
                self.drivers = {who: driver for who, driver in self.drivers.items() if driver is not log}
        self._keep()

    @invariant()
    def nothing_acknowledged_is_lost_or_changed(self) -> None:
        assert {seq: self.store.get(record_path(seq)) for seq in self.acknowledged} == self.acknowledged
        assert read_state(self.store).next_seq == len(self.store.list("log"))
        assert self.files.deleted == []


TestDrivers = Drivers.TestCase
TestDrivers.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
