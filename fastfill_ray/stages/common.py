"""Two versions without the items in which they differ: so that a changed gallery does not decide which one is better.

An item is common if both have it, live, and its payload has not changed as far as is known. N rows of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.index.deletion_vector import hidden_rows, superseding
from fastfill_ray.log.records import FileRef, Segment
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.stages.compare import rows_of_segment, same_payload
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.known import cut_by_key, num_partitions
from fastfill_ray.storage.arrow import keys_column, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import compared_path
from fastfill_ray.storage.refs import get_verified, put_content

_ROWS = pa.schema(
    [
        ("key", pa.binary(16)),
        ("payload", pa.binary(16)),
        ("version", pa.binary(16)),
        ("new", pa.bool_()),
        ("segment", pa.int32()),
        ("row", pa.int32()),
    ]
)


class OnBoth(NamedTuple):
    """The segments of two versions, in which only common items are live, and how many those are."""

    before: list[Segment]
    now: list[Segment]
    items: int


def common_items(
    context: Context, before: Sequence[Segment], now: Sequence[Segment], path_of: Callable[[Segment], str]
) -> OnBoth:
    """Both versions with deletion vectors over what they do not have in common; no version gets these segments.

    Args:
        path_of: ``index.deletion_vector.fresh_path`` for a segment.
    """
    segments, files = [*before, *now], context.files
    parts = num_partitions(sum(segment.live_rows for segment in segments))
    cut = partial(_cut, files, parts, len(before))
    numbered = list(enumerate(segments))
    found = context.engine.exchange(cut, partial(_join, files), numbered, parts, lambda _: None)
    differing, counts = zip(*found, strict=True)
    hide = _HideDiffering(files, differing, path_of)
    masked = [each for _, each in context.engine.run_tasks(hide, numbered, name="hide what differs", ordered=True)]
    sides = masked[: len(before)], masked[len(before) :]
    kept = [[segment for segment in side if segment is not None] for side in sides]
    return OnBoth(kept[0], kept[1], sum(counts))


def _cut(files: Files, parts: int, first_now: int, numbered: tuple[int, Segment]) -> list[tuple[bool, pa.Table]]:
    """The live rows of a segment, and whether it is of the version that is looked at now."""
    number, segment = numbered
    table = read_table(get_verified(files, segment.ids), name=segment.ids.path)
    rows = np.setdiff1d(np.arange(table.num_rows), hidden_rows(files, segment))
    table = table.take(pa.array(rows))
    digests = [
        table.column(name) if segment.state == "new" else pa.nulls(len(rows), pa.binary(16))
        for name in ("payload", "version")
    ]
    keys = keys_column(item_keys(table.column("id")))
    is_new = pa.array(np.full(len(rows), segment.state == "new"))
    numbers = pa.array(np.full(len(rows), number, np.int32))
    live = pa.table([keys, *digests, is_new, numbers, pa.array(rows, pa.int32())], names=_ROWS.names).cast(_ROWS)
    return [(number >= first_now, part) for part in cut_by_key(live, parts)]


def _join(files: Files, *pieces: tuple[bool, pa.Table]) -> tuple[FileRef, int]:
    """One partition: the rows that only one version has, or with another payload, and the number of common items."""
    before, now = (
        pa.concat_tables([_ROWS.empty_table(), *(table for is_now, table in pieces if is_now == side)])
        for side in (False, True)
    )
    theirs = before.rename_columns(["key", *(f"s_{name}" for name in _ROWS.names[1:])])
    both = now.join(theirs, "key", join_type="inner")
    # Nobody knows which payload a stale vector was made of; but a new vector is given up for another payload alone.
    is_withdrawn = pc.and_(both.column("s_new"), pc.invert(both.column("new")))
    both = both.filter(pc.coalesce(same_payload(both, "s_"), pc.invert(is_withdrawn)))
    differing = [
        side.select(["segment", "row"]).join(common, ["segment", "row"], join_type="left anti")
        for side, common in (
            (before, both.select(["s_segment", "s_row"]).rename_columns(["segment", "row"])),
            (now, both.select(["segment", "row"])),
        )
    ]
    table = pa.concat_tables(differing).sort_by([("segment", "ascending"), ("row", "ascending")])
    return put_content(files, compared_path, table_bytes(table)), both.num_rows


@dataclass(frozen=True)
class _HideDiffering:
    """One segment's task. differing: files of segment and row."""

    files: Files
    differing: Sequence[FileRef]
    path_of: Callable[[Segment], str]

    def __call__(self, numbered: tuple[int, Segment]) -> Segment | None:
        """The segment without the rows that differ; None where no row is left."""
        number, segment = numbered
        before = hidden_rows(self.files, segment)
        hidden = np.union1d(before, rows_of_segment(self.files, self.differing, number))
        if len(hidden) == segment.rows:
            return None
        if len(hidden) == len(before):
            return segment
        return superseding(self.files, segment, hidden, self.path_of(segment))
