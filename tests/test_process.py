"""How a command ends at a signal: real signals at real processes, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastfill_ray.process import guarded

PREPARE = """
import subprocess, sys, threading, time
from pathlib import Path
from fastfill_ray import process
folder = Path({folder!r})

class Work:
    def drain(self):
        (folder / "draining").touch()
        time.sleep({drain_s})
        (folder / "drained").touch()

def act():
    {act}
    (folder / "ready").touch()
    time.sleep(60)
    return 0

process.GRACE_S = {grace_s}
process.describe(lambda: "3 of 4 versions")
sys.exit(process.guarded(act))
"""
IN_FLIGHT = "process.begin(Work())"


def hears_ctrl_c() -> None:
    """In a child, as `preexec_fn`: a shell lets what it starts with `&` ignore SIGINT, and so everything below."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(
        act: str = "pass", *, drain_s: float = 0, grace_s: float = 60, before: str = "", stdin: int | None = None
    ) -> subprocess.Popen[str]:
        code = before + PREPARE.format(folder=str(tmp_path), act=act, drain_s=drain_s, grace_s=grace_s)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, stdin=stdin, text=True, preexec_fn=hears_ctrl_c
        )
        wait_for(tmp_path / "ready")
        return process

    return start


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def state_of(pid: int) -> str:
    """A letter, as ps shows it; "" where there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_one_line_and_its_code(start: Start, number: signal.Signals) -> None:
    command = start()
    command.send_signal(number)
    assert command.wait(timeout=60) == 128 + number
    assert command.stderr is not None
    assert command.stderr.read() == (
        f"Interrupted by {number.name}: 3 of 4 versions. What is durable is kept: the same command goes on.\n"
    )


def test_the_code_counts_where_nobody_reads_the_line_any_more(start: Start) -> None:
    """`... 2>&1 | tee log`: Ctrl-C ends both."""
    command = start()
    assert command.stderr is not None
    command.stderr.close()
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 130


def test_an_error_counts_where_nobody_reads_its_line(start: Start) -> None:
    act = "(folder / 'ready').touch(); sys.stdin.read(); from fastfill_ray.errors import Fenced; raise Fenced('x')"
    command = start(act, stdin=subprocess.PIPE)
    assert command.stderr is not None
    assert command.stdin is not None
    command.stderr.close()
    command.stdin.close()
    assert command.wait(timeout=60) == 75


def test_a_fault_while_it_stops_keeps_nothing_else_from_it(start: Start, tmp_path: Path) -> None:
    broken = "class Broken:\n        def drain(self):\n            raise OSError('lost')\n    process.begin(Broken())"
    command = start(f"{IN_FLIGHT}\n    {broken}")
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert command.stderr is not None
    assert "While it stopped: OSError: lost" in command.stderr.read()
    assert (tmp_path / "drained").exists()


def test_what_is_too_slow_keeps_nothing_else_from_stopping(start: Start, tmp_path: Path) -> None:
    slow = "class Slow:\n        def drain(self):\n            time.sleep(300)\n    process.begin(Slow())"
    command = start(f"{IN_FLIGHT}\n    {slow}", grace_s=0.2)
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert (tmp_path / "drained").exists()


def test_a_signal_after_all_is_done_changes_nothing(tmp_path: Path) -> None:
    code = f"""
import atexit, sys, time
from pathlib import Path
from fastfill_ray.process import guarded
def slowly():
    Path({str(tmp_path / "ready")!r}).touch()
    time.sleep(1)
atexit.register(slowly)
sys.exit(guarded(lambda: 2, last=True))
"""
    for number in (signal.SIGINT, signal.SIGTERM):
        command = subprocess.Popen([sys.executable, "-c", code], preexec_fn=hears_ctrl_c)
        wait_for(tmp_path / "ready")
        command.send_signal(number)
        assert command.wait(timeout=60) == 2
        (tmp_path / "ready").unlink()


def test_a_signal_that_is_ignored_stays_ignored(start: Start) -> None:
    command = start("pass", before="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    command.send_signal(signal.SIGINT)
    time.sleep(0.2)
    command.terminate()
    assert command.wait(timeout=60) == 143


def test_what_is_in_flight_may_end_first(start: Start, tmp_path: Path) -> None:
    command = start(IN_FLIGHT, drain_s=0.5)
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert (tmp_path / "drained").exists()


def test_after_the_grace_period_it_ends_all_the_same(start: Start, tmp_path: Path) -> None:
    command = start(IN_FLIGHT, drain_s=300, grace_s=0.2)
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert not (tmp_path / "drained").exists()


def test_a_second_signal_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    command = start(IN_FLIGHT, drain_s=300, grace_s=300)
    command.send_signal(signal.SIGINT)
    wait_for(tmp_path / "draining")
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=60) == 130


def test_an_error_while_it_drains_is_on_the_same_line(start: Start) -> None:
    command = start("Work.drain = lambda self: 1 / 0; process.begin(Work())")
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert command.stderr is not None
    [line] = command.stderr.read().splitlines()
    assert line.endswith("goes on. While it stopped: ZeroDivisionError: division by zero")


def test_what_its_processes_have_started_ends_with_it(start: Start, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    shell = f"sleep 300 & echo $! > {pid}; wait"
    command = start(f"subprocess.Popen(['sh', '-c', {shell!r}]); time.sleep(1)")
    wait_for(pid)
    command.terminate()
    assert command.wait(timeout=60) == 143
    assert state_of(int(pid.read_text())) in ("", "Z")


def test_a_command_that_ends_by_itself_puts_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert guarded(lambda: 7) == 7
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("act", ["print('x' * 100_000) or 3", "print('x') or 3", "print('x', file=sys.stderr) or 3"])
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_goes_early_as_head_does_changes_neither_the_code_nor_what_else_is_said(
    act: str, both: bool
) -> None:
    begin = "import sys; from fastfill_ray import process; process.outlive_readers()"
    code = f"{begin}; sys.exit(process.guarded(lambda: {act}))"
    reader, writer = os.pipe()
    os.close(reader)
    command = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=writer if both else subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert command.returncode == 3
    assert both or command.stderr == ("x\n" if "stderr" in act else "")
