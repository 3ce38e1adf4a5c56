"""The log: one history, whoever writes, whatever gets lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastfill_ray.errors import CommitStateUnknown, CorruptFile, Fenced, RefusedError
from fastfill_ray.log.records import Delete, Expire, FileRef, Plan, Publish, Version
from fastfill_ray.log.state import State
from fastfill_ray.storage.commit_log import Log, read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import record_path
from tests.faults import FaultyFiles, Injected, MemoryFiles, flip_bit
from tests.log.test_records import INIT, delete, log_of_format_1, plan, undelete, version


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
        with pytest.raises(RefusedError, match="record format 1, this release reads and writes format 3"):
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


def test_records_are_read_side_by_side() -> None:
    class SlowFiles(MemoryFiles):
        """Gives no record until another one is asked for as well."""

        both = threading.Barrier(2)

        def get(self, path: str) -> bytes:
            data = super().get(path)
            self.both.wait(timeout=20)
            return data

    files = MemoryFiles()
    log = driver(files)
    for body in (plan("p1"), version(0, "p1", 0)):
        log.append(body)
    slow = SlowFiles()
    slow.objects = files.objects
    assert read_state(slow) == log.state


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


# Deletions


def by_hand(number: int, *, salt: str = "a" * 32) -> Callable[[State], Delete]:
    """A deletion that can be told from others, with a salt of its own where the log has none."""
    file = FileRef(path=f"deletions/{number}", size=1, sha256="")
    return lambda state: Delete(ids=file, rows=number + 1, salt=state.salt or salt)


def delete_in(files: Files, number: int = 0, *, salt: str = "a" * 32) -> State:
    return Log(files).append_deletion(by_hand(number, salt=salt))


def test_a_deletion_is_under_the_heads_epoch_and_the_driver_goes_on_behind_it() -> None:
    files = MemoryFiles()
    log = driver(files)
    log.append(plan("p1"))
    assert delete_in(files).epoch == 1
    before = log.state.next_seq
    state = log.append(version(0, "p1", 0))
    assert state == read_state(files)
    assert (state.next_seq, len(state.deletions), state.epoch) == (before + 2, 1, 1)
    Log(files).append_deletion(lambda state: undelete())
    assert log.append(Publish(version=0)).serving == 0
    assert len(log.state.deletions) == 2


@pytest.mark.parametrize("deletions", [1, 3])
def test_deletions_that_land_between_two_steps_of_a_driver_fence_it_at_none(deletions: int) -> None:
    shared = MemoryFiles()
    numbers = count()
    files = FaultyFiles(
        shared, part="log/", meanwhile=lambda: [delete_in(shared, next(numbers)) for _ in range(deletions)]
    )
    log = Log(files)
    log.read()
    Log(shared).initialise(INIT)  # another start, which began the log and went no further
    delete_in(shared, next(numbers))
    assert log.initialise(INIT).init == INIT
    delete_in(shared, next(numbers))
    files.faults = ["slow"]
    assert log.claim(as_read=True) == 1
    for body in (plan("p1"), version(0, "p1", 0), Publish(version=0)):
        files.faults = ["slow"]
        log.append(body)
    state = read_state(shared)
    assert state == log.state
    assert [deletion.rows for deletion in state.deletions] == list(range(1, 3 + 4 * deletions))


def test_a_driver_that_came_between_fences_with_deletions_around_it() -> None:
    files = MemoryFiles()
    late, log = driver(files), Log(files)
    log.read()
    delete_in(files, 0)
    late.append(plan("p1"))
    delete_in(files, 1)
    with pytest.raises(Fenced, match="has appended to the log since"):
        log.claim(as_read=True)
    delete_in(files, 2)
    Log(files).claim()
    delete_in(files, 3)
    with pytest.raises(Fenced, match="owns epoch 1"):
        late.append(version(0, "p1", 0))
    assert len(read_state(files).deletions) == 4


def test_a_start_that_found_no_log_is_fenced_by_a_driver_and_not_by_a_deletion() -> None:
    files = MemoryFiles()
    log = Log(files)
    log.read()
    driver(files)
    delete_in(files)
    with pytest.raises(Fenced):
        log.initialise(INIT)


def test_a_deletion_whose_number_is_taken_is_sealed_anew_under_the_new_epoch() -> None:
    shared = MemoryFiles()
    driver(shared)
    files = FaultyFiles(shared, part="log/", faults=["slow"], meanwhile=lambda: driver(shared))
    state = delete_in(files)
    assert (state.epoch, state.next_seq, len(state.deletions)) == (2, 4, 1)
    assert read_state(shared) == state


def test_the_second_of_two_first_deletions_takes_over_the_salt() -> None:
    shared = MemoryFiles()
    driver(shared)
    files = FaultyFiles(shared, part="log/", faults=["slow"], meanwhile=lambda: delete_in(shared, 1, salt="b" * 32))
    state = delete_in(files, 0)
    assert [(deletion.rows, deletion.salt) for deletion in state.deletions] == [(2, "b" * 32), (1, "b" * 32)]


def test_a_deletion_that_lands_late_lands_before_the_next_claim_or_never() -> None:
    shared = MemoryFiles()
    driver(shared)
    files = FaultyFiles(shared, part="log/")
    for overtaken in (False, True):
        files.faults = ["late"]
        with pytest.raises(Injected):
            delete_in(files)
        if overtaken:
            Log(shared).claim()
        files.land()
    state = read_state(shared)
    assert (state.next_seq, state.epoch, len(state.deletions)) == (4, 2, 1)


def test_deletions_of_many_at_once_are_all_in_the_log(files: Files) -> None:
    log = driver(files)
    with ThreadPoolExecutor(4) as pool:
        deleting = [pool.submit(delete_in, files, number) for number in range(4)]
        log.append(plan("p1"))
        log.append(version(0, "p1", 0))
    numbers = {task.result().next_seq for task in deleting}
    assert len(numbers) == 4
    assert sorted(deletion.rows for deletion in read_state(files).deletions) == [1, 2, 3, 4]


def test_a_deletion_from_nothing_or_one_that_does_not_fit_leaves_no_record() -> None:
    files = MemoryFiles()
    with pytest.raises(RefusedError, match="no log here"):
        delete_in(files)
    driver(files)
    with pytest.raises(RefusedError, match="there is none before it"):
        Log(files).append_deletion(lambda state: undelete())
    delete_in(files)
    with pytest.raises(RefusedError, match="another salt"):
        Log(files).append_deletion(lambda state: delete("c" * 32))
    assert len(files.list("")) == 3


def test_time_and_transaction_ids_can_be_given() -> None:
    files, numbers = MemoryFiles(), count()
    log = Log(files, now=lambda: "2020-01-01T00:00:00Z", new_txn=lambda: f"txn-{next(numbers)}")
    log.initialise(INIT)
    data = files.get(record_path(0))
    assert b'"created":"2020-01-01T00:00:00Z"' in data
    assert b'"txn":"txn-0"' in data


FAULTS = st.sampled_from(["before", "lost_answer", "late", None])


class Drivers(RuleBasedStateMachine):
    """Three drivers, ids being deleted, and a faulty store: the log stays one valid history, an acknowledged record
    stays in it, and no deletion fences a driver.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryFiles()
        self.files = FaultyFiles(self.store, part="log/")
        self.drivers: dict[int, tuple[Log, int]] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.deletions = 0
        self.deleted: list[int] = []

    @initialize()
    def start(self) -> None:
        Log(self.store).initialise(INIT)

    def _keep(self) -> None:
        for path in self.store.list("log"):
            self.acknowledged.setdefault(int(path[4:24]), self.store.get(path))

    def _between(self, deletions: int, *, claims: bool) -> None:
        """What others do while a write is under way."""
        for _ in range(deletions):
            self._delete(self.store)
        if claims:
            Log(self.store).claim()

    def _delete(self, files: Files) -> None:
        self.deletions += 1
        number = self.deletions
        delete_in(files, number, salt=f"{number:032x}")
        self.deleted.append(number + 1)

    @rule(who=st.integers(0, 2), fault=FAULTS)
    def claim(self, who: int, fault: str | None) -> None:
        self.files.faults = [fault] if fault else []  # type: ignore[list-item]
        log = Log(self.files)
        try:
            self.drivers[who] = log, log.claim()
        except Injected:
            self.drivers.pop(who, None)
        self._keep()

    @rule(fault=FAULTS | st.just("slow"), deletions=st.integers(0, 2), claims=st.booleans())
    def delete(self, fault: str | None, deletions: int, claims: bool) -> None:
        self.files.faults = [fault] if fault else []  # type: ignore[list-item]
        self.files.meanwhile = lambda: self._between(deletions, claims=claims)
        with suppress(Injected):
            self._delete(self.files)
        self._keep()

    @rule()
    def land(self) -> None:
        self.files.land()
        self._keep()

    @precondition(lambda self: self.drivers)
    @rule(data=st.data(), fault=FAULTS | st.just("slow"), deletions=st.integers(0, 2), claims=st.booleans())
    def append(self, data: st.DataObject, fault: str | None, deletions: int, claims: bool) -> None:
        who = data.draw(st.sampled_from(sorted(self.drivers)))
        log, epoch = self.drivers[who]
        self.files.faults = [fault] if fault else []  # type: ignore[list-item]
        self.files.meanwhile = lambda: self._between(deletions, claims=claims)
        try:
            after = log.append(_next_body(log.state))
            assert after.epoch == epoch
            assert read_state(self.store) == after
        except Injected:
            del self.drivers[who]
        except Fenced:
            del self.drivers[who]
            if read_state(self.store).epoch == epoch:
                raise  # by deletions alone
        self._keep()

    @invariant()
    def nothing_acknowledged_is_lost_or_changed(self) -> None:
        assert {seq: self.store.get(record_path(seq)) for seq in self.acknowledged} == self.acknowledged
        state = read_state(self.store)
        assert state.next_seq == len(self.store.list("log"))
        assert self.files.deleted == []
        found = [deletion.rows for deletion in state.deletions]
        assert len(found) == len(set(found))
        assert set(self.deleted) <= set(found)


def _next_body(state: State) -> Plan | Version:
    if state.plan is None or state.finished:
        return plan(f"p{len(state.plans)}")
    wave = len(state.plan_versions)
    return version(len(state.versions), state.plan.plan, wave, final=wave == 2)


TestDrivers = Drivers.TestCase
TestDrivers.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
