"""How a unit of work and what comes of it travel through Ray: as JSON, payloads as Arrow IPC; errors as values, raised
again as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from ray.exceptions import RayError

from fastfill_ray import errors
from fastfill_ray.errors import FastfillError


@contextmanager
def original_errors() -> Iterator[None]:
    """Turn what Ray wraps around an error of ours back into that error."""
    try:
        yield
    except Exception as error:
        ours = _find_ours(error)  # an error of a task is of our class and of Ray's: its text is a worker's traceback
        if ours is None or ours is error:
            raise
        raise ours from error


def _find_ours(error: BaseException | None, depth: int = 0) -> FastfillError | None:
    if error is None or depth > 8:
        return None
    if isinstance(error, FastfillError) and not isinstance(error, RayError):
        return error
    # Ray keeps what it wraps under several names; Ray Train keeps one error per worker.
    failures = getattr(error, "worker_failures", None) or {}
    links = (
        getattr(error, "cause", None),
        getattr(error, "_base_exc", None),
        error.__cause__,
        error.__context__,
        *failures.values(),
    )
    return next((ours for link in links if (ours := _find_ours(link, depth + 1))), None)


def pack_error(error: FastfillError) -> str:
    """An error as a value, for Ray Data: of an exception in a UDF it hands on only the text, and logs pages of it."""
    name = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    return json.dumps([name, *map(str, error.args)])


def raise_packed(packed: str | None) -> None:
    """Raise what ``pack_error`` packed."""
    if packed is not None:
        name, *arguments = json.loads(packed)
        raise getattr(errors, name)(*arguments)


def pack_table(table: pa.Table) -> bytes:
    """A payload as a value, for Ray Data: with its schema, whatever types that has."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack_tables(packed: pa.Scalar) -> list[pa.Table]:
    """The tables of a list of what ``pack_table`` packed; they refer to its memory."""
    return [pa.ipc.open_stream(each.as_buffer()).read_all() for each in packed.values]
