"""An embedder in a process of its own: what kills or hangs that process is learnt, and held to its rows.

``embed_rows`` halves a batch whose call fails. Here a call fails where the process dies or does not answer in time, so
the same halving finds the rows that do it. The process lives on as long as it can: to load a model may take minutes.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa

from fastfill_ray.embedders.memory import Memory
from fastfill_ray.embedders.protocol import CallFailed, Embedder, Role, load_embedder, raised
from fastfill_ray.embedders.watchdog import build_limit_s
from fastfill_ray.errors import EmbedderError

logger = logging.getLogger(__name__)

# Processes that may end without one answer in between: a single bad row of a large batch ends 1 + log2 of its rows.
_MAX_DEATHS_IN_A_ROW = 16
_MAX_DEATHS = 100
# Of a model that this unit has seen built.
_REBUILDS = 3
_BUILD_DELAYS_S = (0.5, 2.0)  # between calls of a constructor that raises
_LOOK_S = 0.1
# Above this share of a node's memory Ray ends processes until it is met; it does not know how much this one holds, and
# would end every other one first. So this one ends before, if it is its call that has taken the memory.
_MAX_USED = 0.95 * float(os.environ.get("RAY_memory_usage_threshold", "0.95"))  # noqa: SIM112
_TAKEN = 0.05
_PR_SET_PDEATHSIG = 1

# refused: an EmbedderError, the end of the run; failed: a fault of the rows.
Kind = Literal["done", "failed", "refused"]
_Method = Literal["__call__", "embed_prepared"]


class CallJournal(Protocol):
    """What is known about calls beyond the life of the process that makes them."""

    def begin(self, call: str) -> int:
        """How often this call was begun before and did not end: its caller died with it."""
        ...

    def end(self, call: str) -> None: ...


class IsolatedEmbedder:
    """`spec`, "module:Class", in a child process, which is started again when it dies. Close it: use ``with``.

    Args:
        name: of what is embedded, for errors.
        call_timeout_s: how long one call may take; building may take longer, see ``build_limit_s``.

    Raises:
        EmbedderError: the embedder cannot be built, or ends process after process.
    """

    def __init__(
        self, name: str, spec: str, kwargs: Mapping[str, Any], call_timeout_s: float, journal: CallJournal
    ) -> None:
        self._name, self._spec, self._kwargs = name, spec, dict(kwargs)
        self._call_timeout_s, self._journal = call_timeout_s, journal
        self._child: _Child | None = None
        self._was_built = False
        self._deaths, self._in_a_row = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Any:
        """See ``Embedder``. Raises CallFailed where the process died, hung, or the embedder raised."""
        return self._call("__call__", batch, role)

    def embed_prepared(self, prepared: dict[str, pa.Array], role: Role) -> Any:
        """See ``PreparedEmbedder``. Raises as a call does."""
        return self._call("embed_prepared", prepared, role)

    def _call(self, method: _Method, batch: Mapping[str, Any], role: Role) -> Any:
        data = bytes(ForkingPickler.dumps((method, batch, role)))
        call = hashlib.sha256(self._name.encode() + data).hexdigest()
        # More rows than one are halved at once; a single row gets another chance, the fault may be the machine's.
        if self._journal.begin(call) > (len(next(iter(batch.values()))) == 1):
            raise CallFailed("killed the process, and the one that watched it (out of memory?)")
        try:
            return self._ask(data)
        finally:
            self._journal.end(call)

    def _ask(self, data: bytes) -> Any:
        child = self._child = self._child or self._built()
        try:
            kind, answer = child.ask(data, self._call_timeout_s, "resources.call_timeout_s")
        except _Ended as ended:
            self._child = None
            self._count(ended)
            raise CallFailed(str(ended)) from None
        self._in_a_row = 0
        if kind == "failed":
            raise CallFailed(answer)
        if kind == "refused":
            raise EmbedderError(answer)
        return answer

    def _built(self) -> _Child:
        limit_s, key = build_limit_s(self._call_timeout_s), "a multiple of resources.call_timeout_s"
        tries = _REBUILDS if self._was_built else 1
        while True:
            child = _Child()
            try:
                kind, answer = child.ask(bytes(ForkingPickler.dumps((self._spec, self._kwargs))), limit_s, key)
                break
            except _Ended as ended:
                tries -= 1
                if tries == 0:
                    raise EmbedderError(
                        f"embedder {self._spec!r} cannot be built: {ended}. It was tried at least three times; what it "
                        "wrote is in the workers' logs. Mend it, or give it more memory or time."
                    ) from None
        if kind == "refused":
            child.kill()
            raise EmbedderError(answer)
        self._was_built = True
        return child

    def _count(self, ended: _Ended) -> None:
        self._deaths += 1
        self._in_a_row += 1
        logger.info("%s: the process of its own %s", self._name, ended)
        if self._in_a_row >= _MAX_DEATHS_IN_A_ROW or self._deaths >= _MAX_DEATHS:
            in_between = "no answer in between" if self._in_a_row == self._deaths else "few answers in between"
            raise EmbedderError(
                f"{self._name}: embedder {self._spec!r} ended {self._deaths} processes, {in_between}; the last one: "
                f"{ended}. So many rows are not put into quarantine one by one: mend the embedder or the rows, or give "
                "it more memory or a smaller new_model.batch_size."
            )


class _Ended(Exception):
    """The child is gone; the text says how."""


class _Child:
    """A process that builds an embedder from the first message and calls it with each other one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            serve = f"from {__name__} import serve; serve({theirs.fileno()}, {os.getpid()})"
            self._process = subprocess.Popen(
                [sys.executable, "-c", serve],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # so that what it starts ends with it
                # What this process can import, that one can: Ray puts the job's folder into sys.path alone.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        self._connection = Connection(ours.detach())
        self._memory = Memory()

    def ask(self, data: bytes, limit_s: float, key: str) -> tuple[Kind, Any]:
        """What came of the message, and the vectors or the text. key: what sets the limit.

        Raises:
            _Ended: it died or did not answer in time; it is gone.
        """
        deadline = time.monotonic() + limit_s
        held = self._memory.resident_bytes(self._process.pid)
        try:
            self._connection.send_bytes(data)
            # The connection alone does not tell: a process that the embedder has started may hold its other end.
            while not self._connection.poll(_LOOK_S):
                if self._process.poll() is not None and not self._connection.poll(0):
                    raise EOFError
                if self._took_memory(held):
                    self.kill()
                    raise _Ended(f"killed the process: out of memory ({_MAX_USED:.0%} of the node's were used)")
                if time.monotonic() > deadline:
                    self.kill()
                    raise _Ended(f"no answer within {limit_s:g} s ({key})")
            kind, answer = self._connection.recv()
            return kind, answer
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self.kill()
            raise _Ended(f"killed the process: {_how(self._process.returncode)}") from None

    def _took_memory(self, held: int) -> bool:
        taken = self._memory.resident_bytes(self._process.pid) - held
        return taken > _TAKEN * self._memory.total_bytes and self._memory.used_share() > _MAX_USED

    def kill(self) -> None:
        """End it, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    name = next((known.name for known in signal.Signals if known == -returncode), "")
    hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
    return f"signal {-returncode} {name}{hint}"


def serve(descriptor: int, parent: int) -> None:
    """In the child: answer until the parent is gone."""
    _end_with(parent)
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    with suppress(EOFError):
        spec, kwargs = connection.recv()
        try:
            embedder = load_embedder(spec, kwargs, retry_delays_s=_BUILD_DELAYS_S)
        except EmbedderError as error:
            connection.send(("refused", str(error)))
            return
        connection.send(("done", None))
        while True:
            connection.send(_answer(embedder, *connection.recv()))


def _answer(embedder: Embedder, method: _Method, batch: Any, role: Role) -> tuple[Kind, Any]:
    try:
        return "done", np.asarray(getattr(embedder, method)(batch, role))
    except EmbedderError as error:
        return "refused", str(error)
    except BaseException as error:
        return "failed", raised(error)


def _end_with(parent: int) -> None:
    """A call that hangs, even one that never lets Python run, must not outlive the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
