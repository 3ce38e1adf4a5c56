"""When queries were asked, and the moment that cuts their traffic in two.

Legend: N rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.encodings import chunks_of
from fastfill_ray.types import F64, I64, Bools

# Stretches of time that are told apart. Each begins at a multiple of its length, so it does not matter who comes first.
_MAX_STRETCHES = 1 << 16


@dataclass(frozen=True)
class CutTime:
    """A moment. key: of the first time behind it, in ``time_keys``."""

    key: int

    def is_after(self, keys: I64) -> Bools:
        """Which keys (N,) are not before it."""
        after: Bools = keys >= self.key
        return after


def time_keys(table: pa.Table, column: str, *, path: str, start: int) -> I64:
    """Integers (N,) in the order of the times: of moments and dates, or of numbers, such as seconds since 1970.

    Args:
        path, start: the file that the table is from, and the row in it of the table's first row; for errors.

    Raises:
        InputError: neither of these, or a time that is null or not finite; names the row.
    """
    kind = table.schema.field(column).type
    parts = [np.empty(0)]
    for chunk in chunks_of(table.column(column)):
        if pa.types.is_timestamp(chunk.type) or pa.types.is_date(chunk.type):
            microseconds = chunk.cast(pa.timestamp("us", getattr(chunk.type, "tz", None)), safe=False)
            chunk = microseconds.cast(pa.int64())
        elif not (pa.types.is_integer(chunk.type) or pa.types.is_floating(chunk.type) or pa.types.is_null(chunk.type)):
            raise InputError(
                f"{path}: column {column!r} is {kind}; a moment, a date or a number is expected: cast it, for example "
                f"CAST({column} AS TIMESTAMP)"
            )
        parts.append(chunk.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    values = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{path} row {start + row}: {column!r} is {table[column][row].as_py()!r}, expected a time. Fill it in, or "
            "drop the column: then queries are held out by hash."
        )
    bits = (values + 0.0).view(np.int64)  # -0.0 and 0.0 are one number
    return np.where(bits < 0, bits ^ np.int64((1 << 63) - 1), bits)


def find_cut(batches: Iterable[tuple[I64, F64]], share: float) -> CutTime | None:
    """The moment behind which about `share` of the traffic lies; None where there is but one moment.

    Neither side is empty. Memory: constant; times are rounded down to one of ``_MAX_STRETCHES`` stretches.

    Args:
        batches: keys of times (N,), and the traffic (N,) at them.
    """
    shift = 0
    starts, traffic = np.empty(0, np.int64), np.empty(0)
    for keys, amounts in batches:
        starts, traffic = _summed(np.concatenate([starts, keys >> shift]), np.concatenate([traffic, amounts]))
        while len(starts) > _MAX_STRETCHES:
            shift += 1
            starts, traffic = _summed(starts >> 1, traffic)
    there = traffic > 0
    starts, traffic = starts[there], traffic[there]
    if len(starts) < 2:
        return None
    before = np.cumsum(traffic)[:-1]  # of the stretches before each of starts[1:]
    nearest = int(np.abs(before - (1 - share) * traffic.sum()).argmin())
    return CutTime(int(starts[nearest + 1]) << shift)


def _summed(starts: I64, traffic: F64) -> tuple[I64, F64]:
    distinct, place = np.unique(starts, return_inverse=True)
    return distinct, np.bincount(place, weights=traffic, minlength=len(distinct)).astype(np.float64)
