"""Ids that a user names one by one: a text with one id per line, or a Parquet file."""

from __future__ import annotations

import re
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.storage.arrow import id_array
from fastfill_ray.types import IdType

_STDIN = "-"
_PARQUET = b"PAR1"  # how such a file begins and ends; a text may begin so, too
_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT64 = range(-(1 << 63), 1 << 63)


def read_id_list(store: InputStore, path: str, id_type: IdType, id_column: str) -> pa.Array:
    """The distinct ids (N,) of a list, in its order.

    A text is UTF-8, one id per line; lines of white space are skipped. Of a string id every other character counts,
    blanks at its ends too. A Parquet file holds the ids in its only column, or in one that is called as the gallery's.

    Args:
        path: a local path, ``s3://``, or "-" for standard input.
        id_column: of the gallery.

    Raises:
        InputError: the file cannot be read, or an id is not of the root's type: names file and line, or row.
    """
    name = "standard input" if path == _STDIN else path
    data = _read(store, path)
    if data.startswith(_PARQUET) and data.endswith(_PARQUET):
        return pc.unique(_of_parquet(data, name, id_type, id_column))
    return pc.unique(_of_text(data, name, id_type))


def _read(store: InputStore, path: str) -> bytes:
    if path == _STDIN:
        return sys.stdin.buffer.read()
    try:
        with store.open(path) as handle:
            return handle.read()
    except OSError as error:
        raise InputError(f"ids {path}: a file with one id per line is expected: {error}.") from error


def _of_text(data: bytes, name: str, id_type: IdType) -> pa.Array:
    ids: list[int | str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"ids {name}, line {number:,}"
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 ({error}). Save the file as UTF-8, one id per line.") from None
        if text.strip():
            ids.append(text if id_type == "string" else _integer(text.strip(), where))
    return pa.array(ids, pa.int64() if id_type == "int64" else pa.string())


def _integer(text: str, where: str) -> int:
    # Longer digits would take Python long to read, and fit into int64 no more.
    if len(text) > 20 or not _INTEGER.fullmatch(text) or int(text) not in _INT64:
        raise InputError(
            f"{where}: found {text[:50]!r}, expected an int64, as the root's ids are. Mend or remove the line."
        )
    return int(text)


def _of_parquet(data: bytes, name: str, id_type: IdType, id_column: str) -> pa.Array:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"ids {name}: begins and ends as Parquet does, but cannot be read as such: {error}."
        ) from error
    columns = table.column_names
    column = columns[0] if len(columns) == 1 else id_column
    if column not in columns:
        raise InputError(f"ids {name}: found the columns {columns}, expected {id_column!r} or one column alone.")
    return id_array(read_ids(table, column, id_type, path=name), id_type)
