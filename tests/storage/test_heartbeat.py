"""Who is told from a dead driver, and how long that takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastfill_ray.errors import DriverAtWork, StorageError
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.heartbeat import SILENT_S, Beat, Heartbeat, find_drivers, process_name
from fastfill_ray.storage.local import LocalFiles
from fastfill_ray.storage.paths import driver_path

ANOTHER = """
import sys, time
from fastfill_ray.storage.heartbeat import Heartbeat
from fastfill_ray.storage.local import LocalFiles
with Heartbeat(LocalFiles(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(600)
"""
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells processes apart")


def never(seconds: float) -> None:
    raise AssertionError("nobody had to be watched")


def elsewhere(**values: object) -> Beat:
    """A driver on a machine that this one cannot look into."""
    now = time.time()
    beat = Beat(
        driver="elsewhere", host="spot-7", pid=41, process="boot container 41 9", since=now - 90, at=now, beats=6
    )
    return beat.model_copy(update=values)


def put(files: Files, beat: Beat) -> None:
    files.put_data(driver_path(beat.driver), beat.model_dump_json().encode())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return LocalFiles(str(tmp_path / "root"))


@linux
def test_a_living_driver_is_named_and_a_killed_one_is_not_in_the_way(files: Files) -> None:
    other = subprocess.Popen([sys.executable, "-c", ANOTHER, files.root], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        with pytest.raises(DriverAtWork, match=rf"process {other.pid} on .* since .*--take-over"):
            Heartbeat(files, sleep=never).__enter__()
        assert [beat.pid for beat in find_drivers(files)] == [other.pid], "the refused one leaves nothing"
        with Heartbeat(files, take_over=True, sleep=never):
            assert {beat.pid for beat in find_drivers(files)} == {other.pid, os.getpid()}
    finally:
        other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    with Heartbeat(files, sleep=never):  # dead, though its parent has not asked for its exit code yet
        assert [beat.pid for beat in find_drivers(files)] == [os.getpid()], "what the dead one left is removed"
    other.wait()


def test_a_driver_of_this_process_counts_while_it_runs(files: Files) -> None:
    with Heartbeat(files):
        with pytest.raises(DriverAtWork):
            Heartbeat(files, sleep=never).__enter__()
        assert len(find_drivers(files)) == 1
    with Heartbeat(files, sleep=never):
        pass
    with pytest.raises(ZeroDivisionError), Heartbeat(files, sleep=never):
        _ = 1 / 0
    assert find_drivers(files) == []


def test_on_another_machine_the_one_that_writes_again_lives(files: Files) -> None:
    beat = elsewhere()
    put(files, beat)
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            put(files, beat.model_copy(update={"beats": 7, "at": beat.at - 500}))  # its clock may say what it likes

    with pytest.raises(DriverAtWork, match="process 41 on spot-7"):
        Heartbeat(files, sleep=sleep).__enter__()
    assert len(slept) == 3


def test_on_another_machine_the_one_that_stays_silent_is_dead(files: Files) -> None:
    put(files, elsewhere())
    slept: list[float] = []
    with Heartbeat(files, sleep=slept.append):
        assert [beat.pid for beat in find_drivers(files)] == [os.getpid()]
    assert sum(slept) == pytest.approx(SILENT_S)


def test_nobody_waits_for_one_that_ends_meanwhile_or_ended_long_ago(files: Files) -> None:
    put(files, elsewhere())
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        files.delete(driver_path("elsewhere"))

    with Heartbeat(files, sleep=sleep):
        pass
    assert len(slept) == 1
    put(files, elsewhere(at=time.time() - 3600))
    with Heartbeat(files, sleep=never):
        pass


def test_a_process_may_outlive_its_run(files: Files) -> None:
    """A notebook whose last run could not delete what it had written."""
    parent = os.getppid()
    put(files, elsewhere(pid=parent, process=process_name(parent), at=time.time() - 3600))
    with Heartbeat(files, sleep=never):
        pass


def test_of_two_that_start_at_once_the_later_goes(files: Files) -> None:
    now = time.time()

    class Rival(LocalFiles):
        """A driver that looked as early as this one writes as late as it."""

        def put_data(self, path: str, data: bytes) -> None:
            super().put_data(path, data)
            put(files, elsewhere(since=now + skew, beats=1))

    def renews(seconds: float) -> None:
        put(files, elsewhere(since=now + skew, beats=2))

    skew = -5.0
    with pytest.raises(DriverAtWork):
        Heartbeat(Rival(files.root), sleep=renews).__enter__()
    assert [beat.driver for beat in find_drivers(files)] == ["elsewhere"]
    files.delete(driver_path("elsewhere"))
    skew = +5.0
    with Heartbeat(Rival(files.root), sleep=renews):
        assert len(find_drivers(files)) == 2


def test_what_is_no_heartbeat_is_left_alone(files: Files) -> None:
    files.put_data(driver_path("foreign"), b'{"format": 9}')
    with Heartbeat(files, sleep=never):
        pass
    assert files.get(driver_path("foreign")) == b'{"format": 9}'


def test_a_store_that_fails_at_the_end_does_not_hide_the_outcome(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(LocalFiles):
        def delete(self, path: str) -> None:
            raise StorageError("deleting: permission denied")

    with pytest.raises(ZeroDivisionError), Heartbeat(Stubborn(files.root), sleep=never):
        _ = 1 / 0
    assert "permission denied" in caplog.text
    with Heartbeat(files, sleep=never):  # of this process, but no longer alive
        pass


@linux
def test_a_reused_pid_is_another_process() -> None:
    assert process_name(os.getpid()) == process_name(os.getpid())
    assert process_name(os.getpid()).split()[2:] != process_name(os.getppid()).split()[2:]
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert process_name(gone.pid) == ""
