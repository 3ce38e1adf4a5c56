"""The raw hits of the measurement queries in a part of the gallery, kept: it is searched once for all versions.

They do not depend on calibration, which is applied when hits are merged.

Legend: Q queries, n items of a segment, K hits per query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.storage.arrow import matrix_column, matrix_of, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import unit_output, unit_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import F32, I64, Bools


@dataclass(frozen=True)
class SegmentHits:
    """The raw hits of all queries in one segment of n items, and what they are judged by.

    scores: (Q, K) float32, as the segment gives them, -inf where missing. rows: (Q, K) int64, -1 where missing.
    own_rows: (Q,) the row of the item that a query itself is, -1 for none.
    same_label: (Q, K) int8, 1 where the hit has the query's label, also where it is the query itself; else 0.
    num_same_label: (Q,) items with the query's label, itself left out; None where there are no labels.
    judged: rows of the relevant items, the query itself left out; None where nothing is judged.
    beyond: (Q,) the most that a live row can score which is not held and may count, -inf where there is none; None:
    there is none for any query.
    """

    scores: F32
    rows: I64
    own_rows: I64
    same_label: NDArray[np.int8]
    num_same_label: I64 | None
    judged: RelevantItems | None
    beyond: F32 | None = None

    def shown(self, hidden: Bools, width: int) -> SegmentHits:
        """Without the hits that are hidden, the next ones moved up: (Q, width), -inf, -1 and 0 where there are fewer.

        Args:
            hidden: (n,) whether each row is.
        """
        dropped = (self.rows < 0) | hidden[self.rows]
        first = np.argsort(dropped, axis=1, kind="stable")[:, :width]
        missing = np.take_along_axis(dropped, first, axis=1)
        return replace(
            self,
            scores=np.where(missing, np.float32(-np.inf), np.take_along_axis(self.scores, first, axis=1)),
            rows=np.where(missing, -1, np.take_along_axis(self.rows, first, axis=1)),
            same_label=np.where(missing, np.int8(0), np.take_along_axis(self.same_label, first, axis=1)),
        )

    def cut_short(self, hidden: Bools, width: int) -> I64:
        """The queries whose lists went on beyond what is held and hold fewer than `width` rows that are not hidden."""
        live = ((self.rows >= 0) & ~hidden[self.rows]).sum(axis=1)
        return np.flatnonzero((self.rows >= 0).all(axis=1) & (live < width))

    def updated(self, queries: I64, again: SegmentHits) -> SegmentHits:
        """With the hits of some queries (q,) from another search of them, as wide as this one."""
        columns = {name: getattr(self, name).copy() for name in ("scores", "rows", "same_label")}
        for name, column in columns.items():
            column[queries] = getattr(again, name)
        return replace(self, **columns)


def kept_hits(files: Files, folder: str, unit: str, search: Callable[[], SegmentHits]) -> SegmentHits:
    """The hits that are kept under that name, or those of `search`, kept from here on.

    Args:
        folder: of the queries, the metric and the depth.

    Raises:
        CorruptFile: what is kept is damaged; without its receipt it is made again.
    """
    path = unit_receipt(folder, unit)
    if (receipt := read_receipt(files, path)) is not None:
        output = receipt.outputs[0]
        return _from_table(read_table(get_verified(files, output), name=output.path))
    hits = search()
    output = put_content(files, partial(unit_output, folder, unit), table_bytes(_to_table(hits)))
    put_receipt(files, path, Receipt(unit=unit, outputs=(output,), rows=len(hits.scores)))
    return hits


def _to_table(hits: SegmentHits) -> pa.Table:
    """One row per query."""
    columns: dict[str, pa.Array] = {
        "scores": matrix_column(hits.scores),
        "rows": matrix_column(hits.rows),
        "same_label": matrix_column(hits.same_label),
        "own_row": pa.array(hits.own_rows),
    }
    if hits.num_same_label is not None:
        columns["num_same_label"] = pa.array(hits.num_same_label)
    if hits.judged is not None:
        starts = pa.array(hits.judged.starts)
        columns["judged"] = pa.LargeListArray.from_arrays(starts, pa.array(hits.judged.items))
        if hits.judged.grades is not None:
            columns["grades"] = pa.LargeListArray.from_arrays(starts, pa.array(hits.judged.grades))
    return pa.table(columns)


def _from_table(table: pa.Table) -> SegmentHits:
    judged = None
    if "judged" in table.column_names:
        items = table.column("judged").combine_chunks()
        grades = table.column("grades").combine_chunks().flatten() if "grades" in table.column_names else None
        judged = RelevantItems(
            items.flatten().to_numpy(), items.offsets.to_numpy(), None if grades is None else grades.to_numpy()
        )
    counted = "num_same_label" in table.column_names
    return SegmentHits(
        scores=matrix_of(table, "scores"),
        rows=matrix_of(table, "rows"),
        own_rows=table.column("own_row").to_numpy(),
        same_label=matrix_of(table, "same_label"),
        num_same_label=table.column("num_same_label").to_numpy() if counted else None,
        judged=judged,
    )
