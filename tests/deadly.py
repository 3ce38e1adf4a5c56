"""An embedder whose rows say what they do to the process that embeds them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import EmbedderError

DIM = 3


def _raise(error: BaseException) -> None:
    raise error


def _raise_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        raise ConnectionError("the service is away for a moment")


def _leave_a_process_behind() -> None:
    """It inherits what is open, so that only the process itself tells that it has ended."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
    os._exit(5)


def _eat_memory() -> None:
    """A block of 256 MiB at a time, each of whose pages is touched."""
    blocks = []
    while True:
        blocks.append(np.ones(32 << 20))
        time.sleep(0.2)  # what watches the memory needs a moment


_DEEDS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), 9),
    "sleep": lambda: time.sleep(3600),
    "backtrack": lambda: re.match(r"(a+)+$", "a" * 64 + "b"),  # never lets Python run
    "fork": _leave_a_process_behind,
    "memory": _eat_memory,
    "raise": lambda: _raise(ValueError("cannot be read")),
    "SystemExit": lambda: _raise(SystemExit(0)),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "refuse": lambda: _raise(EmbedderError("the key has expired")),
}


class Deadly:
    """Embeds column `x`: a number as [number + 1, 1, 1]; a word does what it says.

    Args:
        build: what the constructor does: a word of the same, "slow" (two seconds), or nothing.
        folder: where "once N" keeps that it has raised, and each process that builds or calls notes its pid.
    """

    def __init__(self, build: str = "", folder: str = "") -> None:
        self._folder = Path(folder) if folder else None
        self._note("built")
        if build == "slow":
            time.sleep(2)
        elif build:
            _DEEDS[build]()

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        self._note("called")
        rows = list(batch["x"])
        for row in rows:
            if row.startswith("once") and self._folder is not None:
                _raise_once(self._folder / row)
            elif row in _DEEDS:
                _DEEDS[row]()
        return np.array([[vector_of(row), 1, 1] for row in rows], np.float32)

    def _note(self, what: str) -> None:
        if self._folder is not None:
            with (self._folder / what).open("a") as file:
                file.write(f"{os.getpid()}\n")


def vector_of(row: str) -> float:
    return len(row) if row.startswith("once") else float(row) + 1


def notes(folder: Path, what: str) -> list[int]:
    """Pids that built or called, in order."""
    path = folder / what
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_until_gone(pid: int, timeout_s: float = 60) -> None:
    """Until a process is no more (or a zombie that nobody has waited for yet)."""
    deadline = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}").exists():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        threading.Event().wait(0.05)


class Prepared(Deadly):
    """The same with a preparer, which does what rows say first: those that begin with "early" do it there alone, those
    that begin with "late" only once they are prepared.
    """

    @classmethod
    def preparer(cls, build: str = "", folder: str = "") -> Any:
        del build
        return _Preparing(Path(folder))

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        return super().__call__({"x": [_late(row) for row in batch["x"]]}, role)

    def embed_prepared(self, prepared: dict[str, pa.Array], role: str) -> np.ndarray:
        self._note("embedded prepared")
        return super().__call__({"x": prepared["row"].to_pylist()}, role)


class _Preparing:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> dict[str, Any]:
        with (self._folder / "prepared").open("a") as file:
            file.write(f"{os.getpid()}\n")
        for row in batch["x"]:
            deed = row.removeprefix("early ")
            if deed in _DEEDS:
                _DEEDS[deed]()
        return {"row": pa.array([_late(row) for row in batch["x"]], pa.string())}


def _late(row: str) -> str:
    return "0" if row.startswith("early ") else row.removeprefix("late ")
