"""How the process of a command ends: when its work is done, by an error, or by Ctrl-C or SIGTERM.

The command works in a thread, and the main thread waits for it or for a signal. So a signal is heard at once in every
state, and no library can take the handlers over: Python lets the main thread alone set them.

Signals are a process's, and so is what is kept here: one per process. In a process that is not ours, a notebook or a
service, none of it acts: signals are the caller's, and an error is raised.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, TextIO, TypeAlias

from fastfill_ray.errors import FastfillError
from fastfill_ray.sanitize import one_line, printable, redact

# How long units in flight may take to write their receipts. Kubernetes and spot machines kill after 30 s or more.
GRACE_S, _FAREWELL_S = 12.0, 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ray has asked the kernel to end them with the process that started them. Were they to end before, the C++ in this
# process would notice, and end it with a code of its own.
_ENDS_WITH_US = ("raylet", "gcs_server")

# A signal, or what the command returned or raised.
Events: TypeAlias = "queue.SimpleQueue[signal.Signals | int | BaseException]"


class Drainable(Protocol):
    """Work in flight that leaves something durable if it may end."""

    def drain(self) -> None:
        """Begin nothing more; return when what has begun has ended. Called from a thread of its own."""
        ...


class _UntilClosed:
    """A stream whose reader may go before everything is written, as `head` does: the rest is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Its buffer still holds what nobody reads, and is flushed again when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """From here on nobody has to read what this process prints: it ends with the code that it would end with anyway."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:  # it is where the process was started without one
            setattr(sys, name, _UntilClosed(stream))


class _Process:
    """What is in flight, and what a stop says of the rest."""

    def __init__(self) -> None:
        self.in_flight: list[Drainable] = []
        self.where: Callable[[], str] = str  # "": nothing is known
        self.is_command = False
        self.ray_runs = False


_process = _Process()


def begin(work: Drainable) -> None:
    """From here on, a stop drains `work`; what began last first."""
    _process.in_flight.append(work)


def end(work: Drainable) -> None:
    """A stop need not care for `work` any more."""
    with suppress(ValueError):
        _process.in_flight.remove(work)


def describe(where: Callable[[], str]) -> None:
    """`where` says what a run has done so far; it is asked in the middle of anything, and must not wait."""
    _process.where = where


def is_command() -> bool:
    """Whether the process is a command's, and ends with it."""
    return _process.is_command


def leave_ray_running() -> None:
    """Ray ends with this process. Shutting it down under threads that use it would end the process at once, with
    code 1 and before the error was told.
    """
    _process.ray_runs = True


def guarded(act: Callable[[], int], *, last: bool = False) -> int:
    """Run a command; call it from the main thread.

    Args:
        last: nothing follows in this process. Signals that come once the command is through change nothing any more.

    Returns:
        What `act` returns, or an error's exit code, once its one line is on stderr. After a signal, or an error with
        Ray running, it does not return: the process ends here, with 128 + the signal's number or the error's code.
    """
    events: Events = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome: int | BaseException = act()
        except BaseException as error:
            outcome = error
        events.put(outcome)
        if _process.ray_runs:  # Linux ends what a thread has started when the thread ends: Ray would go before we do
            threading.Event().wait()

    # Ray reads it when it is imported. Otherwise C++ answers SIGTERM, with its stack, and may abort.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as `nohup` and `&` ask
    before = {number: signal.signal(number, lambda n, _: events.put(signal.Signals(n))) for number in heard}
    _process.is_command = True
    try:
        threading.Thread(target=work, name="command", daemon=True).start()
        event = events.get()
        if isinstance(event, signal.Signals):
            _stop(event, events)
        if isinstance(event, BaseException):
            return _failed(event)
        if _process.ray_runs:  # after an error that the command recovered from
            _leave(event)
        return event
    finally:
        _process.is_command = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler or signal.SIG_DFL)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """``sys.excepthook`` of the commands: the traceback of a bug, without the secrets of the exceptions in it."""
    lines = redact("".join(traceback.format_exception(kind, error, trace))).splitlines()
    _say("\n".join(printable(line) for line in lines))


def _say(text: str) -> None:
    """To stderr. Whoever read it may be gone (Ctrl-C ends `tee` in `... 2>&1 | tee log`): the exit code counts then."""
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            text = f"\r\x1b[K{text}"  # the line may hold a progress bar
        print(text, file=sys.stderr, flush=True)


def _failed(error: BaseException) -> int:
    """Say what went wrong; the exit code."""
    if not isinstance(error, FastfillError):
        if not _process.ray_runs:
            raise error
        print_traceback(type(error), error, error.__traceback__)
        _leave(1)
    _say(f"{type(error).__name__}: {error}")
    if _process.ray_runs:
        _leave(error.exit_code)
    return error.exit_code


def _stop(number: signal.Signals, events: Events) -> NoReturn:
    """Let what is in flight end, for at most the grace period or until a second signal; then end the process."""
    work, faults = _process.in_flight[::-1], []
    drained: list[Drainable] = []

    def drain(some: list[Drainable]) -> None:
        for each in some:
            try:
                each.drain()
            except BaseException as error:
                faults.append(error)
            drained.append(each)
        events.put(0)

    deadline = time.monotonic() + GRACE_S
    threading.Thread(target=drain, args=(work,), name="drain", daemon=True).start()
    while len(drained) < len(work):
        try:
            event = events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if isinstance(event, signal.Signals):
            break
    # What is too slow is given up; what comes after it still gets its chance, in a moment.
    late = threading.Thread(target=drain, args=(work[len(drained) + 1 :],), name="drain", daemon=True)
    late.start()
    late.join(_FAREWELL_S)
    line = f"Interrupted by {number.name}"
    if where := _process.where():
        line += f": {where}"
    line += ". What is durable is kept: the same command goes on."
    for error in faults:
        line += f" While it stopped: {type(error).__name__}: {one_line(str(error))}"
    _say(line)
    _leave(128 + number)


def _leave(code: int) -> NoReturn:
    """End this process and those that it has started, now: threads still use Ray, and nothing else may run."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end_descendants(os.getpid())
    os._exit(code)


def _end_descendants(pid: int) -> None:
    """End what a local Ray consists of: some of its processes look for each other for a minute before they give up."""
    frozen: dict[int, str] = {}
    while new := {child: name for child, name in _descendants(pid).items() if child not in frozen}:
        for child in new:  # first of all nobody starts anything more
            _send(child, signal.SIGSTOP)
        frozen |= new
    for child, name in frozen.items():
        if name not in _ENDS_WITH_US:
            _send(child, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(OSError):  # it has just ended
        os.kill(pid, number)


def _descendants(pid: int) -> dict[int, str]:
    """{pid: name} of the processes below `pid`."""
    below: dict[int, dict[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            below.setdefault(int(rest.split()[1]), {})[int(stat.parent.name)] = name
    found: dict[int, str] = {}
    generation = below.get(pid, {})
    while generation:
        found |= generation
        generation = {child: name for parent in generation for child, name in below.get(parent, {}).items()}
    return found
