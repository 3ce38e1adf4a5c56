"""Columns of the gallery beside what is exported: read from its files, where they are those of the version's plan.

The ledger of the plan says in which row of which file an item lies, as for ``stages.lookup``.

Legend: C items of a segment that are exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.config import GalleryConfig
from fastfill_ray.errors import ConfigError, CorruptFile, InputChanged, RefusedError
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, read_around
from fastfill_ray.inputs.table import Column, pin
from fastfill_ray.log.records import Plan, Segment
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.stages.ledger import ledger_parts, read_keys
from fastfill_ray.stages.snapshot import read_snapshot
from fastfill_ray.storage.arrow import keys_column
from fastfill_ray.storage.files import Files
from fastfill_ray.types import I64

# Of every export.
OWN_COLUMNS = ("id", "vector", "state")
_MEND = "Export without --columns, or run the backfill over the gallery as it is now, and export what it publishes."


@dataclass(frozen=True)
class GalleryColumns:
    """names: of the columns. store, gallery: where the gallery lies; no other file is opened."""

    names: tuple[str, ...]
    store: InputStore
    gallery: GalleryConfig

    def check(self, files: Files, plan: Plan) -> None:
        """Refuse what cannot be exported, before anything is.

        Raises:
            ConfigError: a name that every export has, or that is there twice; no file has such a column.
            InputError: some files lack it, or it is of a type that cannot be read.
            RefusedError: a file of the plan's gallery has changed since, or is gone.
        """
        for number, name in enumerate(self.names):
            if name in OWN_COLUMNS or name in self.names[:number]:
                why = "every export has a column of that name" if name in OWN_COLUMNS else "it is named twice"
                raise ConfigError(f"--columns: {name!r}: {why}. Leave it out.")
        found = self.store.find(self.gallery.path)
        there = {(file.path, file.size, file.tag) for file in found}
        for file in read_snapshot(files, plan.snapshot).gallery.files:
            if (file.path, file.size, file.tag) not in there:
                raise RefusedError(
                    f"--columns: {file.path} has changed since the version was made, or is gone. {_MEND}"
                )
        pinned = pin(self.store, found, [Column("--columns", name) for name in self.names])
        for file in pinned.files:
            for name, _ in file.constants:
                raise RefusedError(
                    f"--columns: {name!r} is only in the name of a folder of {file.path}; columns of the files are "
                    "exported. Leave it out."
                )


class ColumnReader:
    """Reads columns of one plan's gallery for the items of its segments."""

    def __init__(self, files: Files, plan: Plan, columns: GalleryColumns) -> None:
        self._files, self._columns, self._segment_rows = files, columns, plan.segment_rows
        self._parts = ledger_parts(read_snapshot(files, plan.snapshot))

    def places(self, segment: Segment, ids: pa.Array) -> tuple[I64, I64]:
        """The part of the ledger (C,) and the row of its file (C,) of each of a segment's items.

        Raises:
            CorruptFile: the ledger does not know one of them.
        """
        wanted = keys_column(item_keys(ids))
        parts, rows = np.full(len(ids), -1, np.int64), np.zeros(len(ids), np.int64)
        for number in self._nearest(segment):
            if (parts >= 0).all():
                break
            part = self._parts[number]
            found = pc.index_in(keys_column(read_keys(self._files, part)), value_set=wanted)
            there = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            items = found.drop_null().to_numpy()
            parts[items], rows[items] = number, part.start + there
        if (parts < 0).any():
            missing = ids[int(np.flatnonzero(parts < 0)[0])].as_py()
            raise CorruptFile(f"{self._files.root}: the ledger has no item {missing!r}, which its version holds")
        return parts, rows

    def _nearest(self, segment: Segment) -> list[int]:
        """The parts, those first that lie where the segment's bucket does: nearly always they hold all of it."""
        starts = np.cumsum([0, *(part.rows for part in self._parts)])
        begin, end = segment.bucket * self._segment_rows, (segment.bucket + 1) * self._segment_rows
        distance = np.maximum(starts[:-1] - end, begin - starts[1:])
        nearest: list[int] = np.argsort(np.maximum(distance, 0), kind="stable").tolist()
        return nearest

    def read(self, parts: I64, rows: I64) -> pa.Table:
        """The columns of items (C,), in their order.

        Raises:
            RefusedError: a file has changed, or is gone.
        """
        of_file: dict[PinnedFile, list[int]] = {}
        for item, part in enumerate(parts.tolist()):
            of_file.setdefault(self._parts[part].file, []).append(item)
        tables, order = [], []
        for file, items in of_file.items():
            by_row = np.array(items)[np.argsort(rows[items], kind="stable")]
            try:
                around = read_around(self._columns.store, file, rows[by_row], self._columns.names)
                tables += [take_rows(table, within) for _, table, within in around]
            except InputChanged as error:
                raise RefusedError(f"--columns: {file.path} has changed, or is gone. {_MEND}") from error
            order.append(by_row)
        try:
            joined = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise RefusedError(
                f"--columns: the gallery's files hold a column as types that no one column holds: {error}. Cast it in "
                "some of the files, or leave it out."
            ) from error
        return take_rows(joined, np.argsort(np.concatenate(order)))


def same_columns(names: Sequence[str], before: Sequence[str]) -> None:
    """Raises RefusedError where a store that has some columns is to take in others."""
    if tuple(names) != tuple(before):
        had = f"--columns {','.join(before)}" if before else "no --columns"
        raise RefusedError(f"--since: that export has {had}. Give the same ones, so that a store has one kind of rows.")
