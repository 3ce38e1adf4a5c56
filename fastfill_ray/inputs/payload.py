"""What an embedder is given: a payload column's rows as Python values, bad ones found row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from fastfill_ray.inputs.encodings import is_variable_tensor, runs_of, tensor_of
from fastfill_ray.sanitize import one_line
from fastfill_ray.types import I64

_MAX_FAULT_CHARS = 100


def payload_values(
    column: pa.ChunkedArray, field: pa.Field, rows: Sequence[int] | I64 | None = None
) -> tuple[list[object], dict[int, str]]:
    """The Python values of a column, those of tensors as numpy arrays of the item's shape, dtype kept.

    Args:
        field: the column's; it says what an extension type that is not registered here holds.
        rows: R row numbers; None for all.

    Returns:
        (R,) values, None where there is none that can be read; and {position: reason} of these, reason "not UTF-8" or
        "cannot be read: ...", one line.
    """
    rows = range(len(column)) if rows is None else rows
    read = _tensor_reader(field)
    if read is None:
        try:
            return [value for first, length in runs_of(rows) for value in column.slice(first, length).to_pylist()], {}
        except MemoryError:
            raise
        except Exception:  # one row's fault, but whose? Row by row it becomes that row's reason
            read = _plain_value
    values: list[object] = []
    unreadable: dict[int, str] = {}
    for place, row in enumerate(rows):
        try:
            values.append(read(column[int(row)]))
            continue
        except UnicodeDecodeError:
            unreadable[place] = "not UTF-8"
        except MemoryError:
            raise
        except Exception as error:
            unreadable[place] = f"cannot be read: {type(error).__name__}: {one_line(str(error), _MAX_FAULT_CHARS)}"
        values.append(None)
    return values, unreadable


def _plain_value(scalar: pa.Scalar) -> object:
    return scalar.as_py()


def _tensor_reader(field: pa.Field) -> Callable[[pa.Scalar], object] | None:
    """What makes an array of a scalar, None for a column that holds no tensors."""
    if (tensor := tensor_of(field)) is not None:
        return lambda scalar: _item(scalar, tensor.of)
    return _variable_item if is_variable_tensor(field) else None


def _variable_item(scalar: pa.Scalar) -> object:
    stored = scalar.value if isinstance(scalar, pa.ExtensionScalar) else scalar
    if not stored.is_valid:
        return None
    return _item(stored["data"], lambda elements: elements.reshape(stored["shape"].as_py()))


def _item(scalar: pa.Scalar, shaped: Callable[[np.ndarray], np.ndarray]) -> object:
    stored = scalar.value if isinstance(scalar, pa.ExtensionScalar) else scalar
    # A copy: an embedder may write into what it is given, or hand it to a library that does.
    return shaped(stored.values.to_numpy(zero_copy_only=False)).copy() if scalar.is_valid else None
