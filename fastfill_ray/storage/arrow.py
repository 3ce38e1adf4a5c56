"""Arrow tables and vectors as bytes: written whole, with checksums, and checked before use.

Legend: N items, d dimensions. Vectors are (N, d) float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastfill_ray.errors import CorruptFile, InputError
from fastfill_ray.types import F32, U64, IdType

_KEY_BYTES = 16
_RESTORE = "Restore the file, or roll back to a version that does not use it."


def table_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet file with a checksum per page; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    # No dictionaries: vectors and ids do not repeat, and zstd finds what does.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_table(data: bytes, *, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table in the Parquet file `data`, page checksums verified.

    Args:
        name: the file's name, for messages.
        columns: only these, in this order.

    Raises:
        CorruptFile: not a Parquet file, damaged, or without one of `columns`.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # Parquet's reader drops unknown names without a word.
        missing = [column for column in columns or () if column not in file.schema_arrow.names]
        if missing:
            raise CorruptFile(f"{name}: no column {missing[0]!r}, found {file.schema_arrow.names}.")
        table = file.read(columns=columns)
        return table if columns is None else table.select(columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFile(f"{name} cannot be read as Parquet: {error}. {_RESTORE}") from error


def id_array(ids: Any, id_type: IdType) -> pa.Array:
    """Ids as one Arrow array of the run's id type.

    Args:
        ids: (N,) Arrow (chunked) array, numpy array or sequence; integers of any width, or strings of any Arrow kind.

    Raises:
        InputError: a null, an id of the other type, or one that does not fit into int64; names the position.
    """
    try:
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # what combining no chunk at all gives in some releases
            array = pa.concat_arrays(array.chunks)
        if array.null_count:
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(f"id at position {row} is null, expected {id_type}. Give every row an id.")
        if len(array) and not _is_id_type(array.type, id_type):
            raise InputError(f"ids are {array.type}, expected {id_type}: one run holds one type of ids.")
        return array.cast(id_arrow_type(id_type))
    except pa.ArrowException as error:
        raise InputError(f"ids cannot be read as {id_type}: {error}.") from error


def id_arrow_type(id_type: IdType) -> pa.DataType:
    """The Arrow type that ids of a run are stored as."""
    return pa.int64() if id_type == "int64" else pa.string()


def _is_id_type(found: pa.DataType, id_type: str) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    if id_type == "int64":
        return bool(pa.types.is_integer(found))
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))


def matrix_column(values: NDArray[np.generic]) -> pa.FixedSizeListArray:
    """Numbers (N, d) as a column of N rows; a C-contiguous array is not copied."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def matrix_of(table: pa.Table, name: str) -> np.ndarray:
    """The numbers (N, d) of a column that ``matrix_column`` made."""
    column = table.column(name).combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def keys_column(keys: U64) -> pa.FixedSizeBinaryArray:
    """Keys (N, 2), see ``ordering.ids.item_keys``, as a column of 16 bytes each, the high ones first."""
    data = pa.py_buffer(np.ascontiguousarray(keys, dtype=">u8"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(_KEY_BYTES), len(keys), [None, data])


def keys_of(column: pa.Array | pa.ChunkedArray) -> U64:
    """The keys (N, 2) of a column without nulls that ``keys_column`` made."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [np.empty((0, 2), ">u8"), *(np.frombuffer(_key_bytes(chunk), ">u8").reshape(-1, 2) for chunk in chunks)]
    return np.concatenate(parts).astype(np.uint64)


def _key_bytes(chunk: pa.Array) -> pa.Buffer | bytes:
    data = chunk.buffers()[1]
    return b"" if data is None else data.slice(chunk.offset * _KEY_BYTES, len(chunk) * _KEY_BYTES)


def vector_column(vectors: F32) -> pa.FixedSizeListArray:
    """(N, d) float32 as a column of N vectors; a C-contiguous float32 array is not copied."""
    return matrix_column(np.asarray(vectors, np.float32))


def objects(column: pa.ChunkedArray | Sequence[object]) -> np.ndarray:
    """A column as an object array (N,) of Python values."""
    values = column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
    return np.fromiter(values, object, len(values))  # lists of one length would become a matrix elsewhere


def stored_vectors(table: pa.Table, dim: int) -> np.ndarray:
    """The ``vector`` column (N, dim) of a file that this package wrote."""
    column = table.column("vector").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), dim)
