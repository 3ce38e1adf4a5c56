"""The user's command that is run when what readers see has changed: at least once per change, never undoing it.

What was told last is an object of its own; the log says what there is to tell. A command that fails or is killed is run
again at the next change, or at the next start. It can be run twice for one change: its sequence number is the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from pydantic import Field, ValidationError

from fastfill_ray.errors import FileMissing
from fastfill_ray.log.state import State
from fastfill_ray.sanitize import one_line, redact
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import HOOK
from fastfill_ray.types import Model

logger = logging.getLogger(__name__)

# A loader of a store may take minutes; what takes longer should start something and end.
TIMEOUT_S = 600.0
# What is kept of its output: the end, once there is so much of it. It is looked at so often.
_OUTPUT_BYTES, _MOST_BYTES, _LOOK_S = 2000, 1 << 20, 0.2


class _Told(Model):
    sequence: int = Field(ge=0)


def tell(files: Files, state: State, command: Sequence[str], say: Callable[[str], None]) -> bool:
    """Run the command if something is to be told, with FASTFILL_ROOT, FASTFILL_VERSION and FASTFILL_SEQUENCE set.

    FASTFILL_VERSION is what readers open now; the sequence is the number of the record that changed it.

    Args:
        command: program and arguments, run without a shell; empty for none.
        say: takes a line for people.

    Returns:
        Whether there is nothing to be told any more.
    """
    sequence, version = state.readers_seq, state.serving
    if not command or sequence is None or version is None or sequence <= _told(files):
        return True
    environment = {
        **os.environ,
        "FASTFILL_ROOT": files.root,
        "FASTFILL_VERSION": str(version),
        "FASTFILL_SEQUENCE": str(sequence),
    }
    logger.debug("%s: record %d is told to %s", files.root, sequence, command[0])
    try:
        fault = _run(command, environment)
    except OSError as error:  # there is no such program, or no room for its output
        fault = f"cannot be started: {error.strerror}"
    if fault is not None:
        say(
            f"serving.on_publish: {redact(shlex.join(command))} {fault}. Version {version} stays published; the "
            "command is run again at the next change, or when the run is started again."
        )
        return False
    files.put_data(HOOK, _Told(sequence=sequence).model_dump_json().encode())
    return True


def _told(files: Files) -> int:
    """The sequence that was told last, -1 for none. A damaged one is as none: the command can take it twice."""
    try:
        return _Told.model_validate_json(files.get(HOOK)).sequence
    except (FileMissing, ValidationError):
        return -1


def _run(command: Sequence[str], environment: dict[str, str]) -> str | None:
    """What is wrong, for people; None if the command ended with code 0.

    Raises:
        OSError: it cannot be started.
    """
    # Not a pipe: what the command leaves running may write on, also when nobody reads any more.
    with tempfile.TemporaryFile(buffering=0) as output:
        fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) | os.O_APPEND)  # it can be cut meanwhile
        # A group of its own: all that it starts can be ended with it. A driver that is stopped ends what it has
        # started, and so this; one that is killed does not. The next start tells it again.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        deadline = time.monotonic() + TIMEOUT_S
        while (code := _ended(process, min(_LOOK_S, deadline - time.monotonic()))) is None:
            if time.monotonic() >= deadline:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"took longer than {TIMEOUT_S:.0f} s and was ended"
            if output.seek(0, os.SEEK_END) > _MOST_BYTES:
                end = _end_of(output)
                output.truncate(0)
                output.write(end)
        if code == 0:
            return None
        last = _end_of(output).decode(errors="replace").strip().rpartition("\n")[2]
        how = f"ended with code {code}" if code > 0 else f"was ended by signal {-code}"
        return how + (f": {one_line(last)}" if last else "")


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its code, None while it runs."""
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _end_of(output: IO[bytes]) -> bytes:
    output.seek(max(0, output.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
    return output.read()
