"""What ends a process in which an embedder does not answer."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa

from fastfill_ray.embedders.prepared import PreparedEmbedder, Preparer, num_tokens
from fastfill_ray.embedders.protocol import Embedder, Role

# Models load for minutes, some from the network.
_BUILD_FACTOR = 6
_STDERR = 2


def build_limit_s(call_timeout_s: float) -> float:
    """How long building a model may take where a call may take `call_timeout_s`."""
    return _BUILD_FACTOR * call_timeout_s


@contextmanager
def ends_process_after(limit_s: float | None) -> Iterator[None]:
    """End this process, exit code 1, if the body takes longer; every thread's stack goes to stderr first.

    None is no limit. faulthandler needs no lock of Python's: it ends a call that never lets Python run, too.
    """
    if limit_s is None:
        yield
        return
    faulthandler.dump_traceback_later(limit_s, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Limited:
    """A preparer, each of whose calls ends the process if it takes longer than `limit_s`."""

    def __init__(self, preparer: Preparer, limit_s: float | None) -> None:
        self._preparer, self._limit_s = preparer, limit_s

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Mapping[str, Any]:
        """See ``Preparer``."""
        with ends_process_after(self._limit_s):
            return self._preparer(batch, role)


class Watched:
    """An embedder, each of whose calls ends the process if it takes longer than `limit_s`."""

    def __init__(self, embedder: Embedder, limit_s: float | None) -> None:
        self._embedder, self._limit_s = embedder, limit_s

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> Any:
        """See ``Embedder``."""
        with ends_process_after(self._limit_s):
            return self._embedder(batch, role)

    def embed_prepared(self, prepared: dict[str, pa.Array], role: Role) -> Any:
        """See ``PreparedEmbedder``."""
        with ends_process_after(self._limit_s):
            return cast(PreparedEmbedder, self._embedder).embed_prepared(prepared, role)

    @property
    def num_tokens(self) -> int | None:
        """See ``prepared.num_tokens``."""
        return num_tokens(self._embedder)
