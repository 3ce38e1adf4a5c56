"""What Ray says on its own, and what becomes of it: lines that nobody can act on are left out.

Errors of the user's code travel as exceptions, and what Ray knows beyond them is in its session's log folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

# Read by Ray when it starts; what the user has set counts.
_ENVIRONMENT = {
    # Our own lines are the progress.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Else a FutureWarning per worker.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # C++ writes its errors beside the progress: one for every pool (that its actors' arguments lie in the object
    # store, where Ray Data puts them), and one for each attempt that is repeated. What is fatal still ends with its words.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # "Tip:" lines of the autoscaler; what a run waits for, ``engine.resources`` says.
    "RAY_SCHEDULER_EVENTS": "0",
}
# {logger: how messages begin}
_NOISE: Mapping[str, tuple[str, ...]] = {
    # In a command the main thread listens to signals, and Ray warns that it cannot.
    "ray._private.worker": ("SIGTERM handler is not set",),
    # One row is one block, on purpose; Ray Data warns from 5,000 blocks on.
    "ray.data._internal.logical.rules.set_read_parallelism": ("⚠️  The requested number of read blocks",),
    # Ray Data warns at every execution that its bars are off.
    "ray.data._internal.progress": ("Progress bars disabled",),
    # That a token is asked for, is how it should be; that none is, our own line says.
    "ray._private.authentication.authentication_token_setup": ("Token authentication is",),
}
_NO_TOKEN = (
    "Ray on this machine asks for no token: who reaches its ports can run code in it. `ray get-auth-token --generate` "
    "makes one."
)


def set_environment() -> None:
    """Before Ray starts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def filtered(say: Callable[[str], None]) -> Iterator[None]:
    """Leave noise out of Ray's loggers; what somebody should know is said in a line of ours.

    Args:
        say: takes that line.
    """
    with ExitStack() as at_the_end:
        for name, beginnings in _NOISE.items():
            logger, quiet = logging.getLogger(name), _without(beginnings, say)
            logger.addFilter(quiet)
            at_the_end.callback(logger.removeFilter, quiet)
        yield


def _without(beginnings: tuple[str, ...], say: Callable[[str], None]) -> Callable[[logging.LogRecord], bool]:
    def is_kept(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Token authentication is disabled"):
            say(_NO_TOKEN)
        return not message.startswith(beginnings)

    return is_kept
