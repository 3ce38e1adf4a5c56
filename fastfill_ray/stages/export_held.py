"""Which rows of what is exported a store holds already as they are: segments are rebuilt of items that did not change.

Legend: C rows of a segment that are to be exported, d dim of its vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.log.records import Segment
from fastfill_ray.stages.export_changes import Portion, PortionReader
from fastfill_ray.types import F32, I64, Bools

# A vector that is computed again agrees to rounding, not to the bit (``alignment.maps``): of its norm. No score moves
# by more than 1e-5 |q| |x|.
_ROUNDING = 1e-5
_STEP_ROWS = 1 << 14


def can_be_alike(one: Segment, other: Segment, *, by_wave: bool) -> bool:
    """Whether an item can be exported alike from two segments of plans with the same alignment and fusion.

    Args:
        by_wave: what is exported of a stale item depends on its wave.
    """
    return one.state == other.state and (one.state == "new" or not by_wave or one.wave == other.wave)


def rows_not_held(
    reader: PortionReader,
    load: Callable[[Segment], Any],
    index: Any,
    ids: pa.Array,
    rows: I64,
    held: Sequence[Portion],
) -> I64:
    """Those of the rows (C,) of a segment whose id has another vector in what a store holds, or none.

    One segment is loaded beside `index` at a time.

    Args:
        load: gives the index of a segment.
        index, ids: of the segment whose rows they are; ids (N,).
        held: portions that ``can_be_alike``.
    """
    for portion in held:
        theirs, their_rows = reader.rows(portion)
        place = pc.index_in(ids.take(pa.array(rows)), value_set=theirs.take(pa.array(their_rows))).fill_null(-1)
        there = place.to_numpy().astype(np.int64)
        both = np.flatnonzero(there >= 0)
        if len(both):
            differ = np.ones(len(rows), bool)
            differ[both] = _differ(index, rows[both], load(portion.segment), their_rows[there[both]])
            rows = rows[differ]
    return rows


def _differ(index: Any, rows: I64, other: Any, their_rows: I64) -> Bools:
    """Whether the vectors of each pair of rows (C,) differ."""
    differ = np.empty(len(rows), bool)
    for start in range(0, len(rows), _STEP_ROWS):
        step = slice(start, start + _STEP_ROWS)
        ours, theirs = _vectors(index, rows[step]), _vectors(other, their_rows[step])
        differ[step] = np.linalg.norm(ours - theirs, axis=1) > _ROUNDING * np.linalg.norm(ours, axis=1)
    return differ


def _vectors(index: Any, rows: I64) -> F32:
    """Vectors (C, d) of some rows."""
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.make_direct_map()  # nothing where there is one; without, inverted lists do not say where a row lies
    vectors: F32 = index.reconstruct_batch(rows)
    return vectors
