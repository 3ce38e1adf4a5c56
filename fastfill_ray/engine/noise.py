"""What Ray says on its own, and what becomes of it: lines that nobody can act on are left out.

Errors of the user's code travel as exceptions, and what Ray knows beyond them is in its session's log folder.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TextIO

from fastfill_ray.sanitize import one_line

_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_LEVEL_IS_SET = f"Set ray log level from environment variable {_LEVEL}".encode()
# Read by Ray when it starts; what the user has set counts.
_ENVIRONMENT = {
    # Our own lines are the progress.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Else a FutureWarning per worker.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # C++ writes its errors to stderr: that a pool's actors have arguments in the object store, where Ray Data puts
    # them, and each attempt that is repeated. A process that ends by a fatal one still says so.
    _LEVEL: "fatal",
}
# {logger: parts of the messages that are left out}
_NOISE: Mapping[str, tuple[str, ...]] = {
    # In a command the main thread listens to signals, and Ray warns that it cannot.
    "ray._private.worker": ("SIGTERM handler is not set",),
    # One row is one block, on purpose; Ray Data warns from 5,000 blocks on.
    "ray.data._internal.logical.rules.set_read_parallelism": ("The requested number of read blocks",),
    # Ray Data warns at every execution that its bars are off.
    "ray.data._internal.progress": ("Progress bars disabled",),
    # That a token is asked for, is how it should be; that none is, our own line says.
    "ray._private.authentication.authentication_token_setup": ("Token authentication is",),
}
# How a node's messages begin on the driver's stdout; ANSI colours may stand around it.
_RAYLET = re.compile(r"(?:\x1b\[\d+m)?\(raylet[^)]*\)(?:\x1b\[\d+m)? *")
_WORKER_DIED = re.compile(r"A worker died or was killed .* Worker PID: (\d+)", re.DOTALL)
# A pool that is stopped ends its actors so.
_WE_KILLED = "killed by `ray.kill`"
_NO_TOKEN = (
    "Ray on this machine asks for no token: who reaches its ports can run code in it. `ray get-auth-token --generate` "
    "makes one."
)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Ray is started in here. That it was told to be quiet, its C++ writes to stderr: that line is left out."""
    asked = _LEVEL in os.environ
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if asked:
        yield
        return
    with tempfile.TemporaryFile() as written:
        try:
            with _descriptor_2_to(written.fileno()):
                yield
        finally:
            written.seek(0)
            for line in written:
                if _LEVEL_IS_SET not in line:
                    os.write(2, line)


@contextmanager
def _descriptor_2_to(file: int) -> Iterator[None]:
    """What C++ writes to stderr goes to a file. ``sys.stderr`` stays what it is: Ctrl-C may be answered meanwhile."""
    stderr, kept = sys.stderr, os.dup(2)
    with open(kept, "w", encoding=getattr(stderr, "encoding", None), errors="backslashreplace") as same:
        with suppress(OSError, ValueError, AttributeError):  # a notebook's has no descriptor
            if stderr.fileno() == 2:
                stderr.flush()
                sys.stderr = same
        os.dup2(file, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            sys.stderr = stderr


@contextmanager
def filtered(say: Callable[[str], None]) -> Iterator[None]:
    """Leave noise out of Ray's loggers and out of stdout; what somebody should know is said in a line of ours.

    Args:
        say: takes that line.
    """
    with ExitStack() as at_the_end, redirect_stdout(_WithoutRaylet(sys.stdout, say)):
        for name, parts in _NOISE.items():
            logger, quiet = logging.getLogger(name), _without(parts, say)
            logger.addFilter(quiet)
            at_the_end.callback(logger.removeFilter, quiet)
        yield


def _without(parts: tuple[str, ...], say: Callable[[str], None]) -> Callable[[logging.LogRecord], bool]:
    def is_kept(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Token authentication is disabled"):
            say(_NO_TOKEN)
        return not any(part in message for part in parts)

    return is_kept


class _WithoutRaylet(io.TextIOBase):
    """stdout, which is for results: what a node of Ray prints there in between, is said in a line of ours."""

    def __init__(self, stream: TextIO, say: Callable[[str], None]) -> None:
        self._stream, self._say = stream, say
        self._line_ends = False  # what comes next is the end of a line that was left out

    def write(self, text: str) -> int:
        if beginning := _RAYLET.match(text):
            message = text[beginning.end() :]
            if _WE_KILLED not in message:
                self._say(_in_our_words(message))
            self._line_ends = not text.endswith("\n")
            return len(text)
        is_left_out, self._line_ends = self._line_ends and text == "\n", False
        return len(text) if is_left_out else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _in_our_words(message: str) -> str:
    if died := _WORKER_DIED.match(message):
        return (
            f"Ray: worker process {died[1]} has died (a crash, a kill, or no memory); what it had begun is done again."
        )
    return one_line(f"Ray: {message}", 300)
