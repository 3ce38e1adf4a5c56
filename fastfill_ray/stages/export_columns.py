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
from fastfill_ray.inputs.parquet import Footer, PartitionValue, PinnedFile, read_around
from fastfill_ray.inputs.table import Column, partition_values, pin_by, read_footers
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

    def schema(self, files: Files, plan: Plan) -> pa.Schema:
        """The columns as all exported files have them; what cannot be exported is refused, before anything is.

        Raises:
            ConfigError: a name that is empty, that every export has, or that is there twice; no file has such a column.
            InputError: some files lack it, or it is of a type that cannot be read.
            RefusedError: a file of the plan's gallery has changed since, or is gone; or its files hold a column as
                types that no one column holds.
        """
        for number, name in enumerate(self.names):
            if not name:
                raise ConfigError("--columns: a name is empty. Give names with one comma between two.")
            if name in OWN_COLUMNS or name in self.names[:number]:
                why = "every export has a column of that name" if name in OWN_COLUMNS else "it is named twice"
                raise ConfigError(f"--columns: {name!r}: {why}. Leave it out.")
        there = {(file.path, file.size, file.tag): file for file in self.store.find(self.gallery.path)}
        found = []
        for file in read_snapshot(files, plan.snapshot).gallery.files:
            if (now := there.get((file.path, file.size, file.tag))) is None:
                raise RefusedError(
                    f"--columns: {file.path} has changed since the version was made, or is gone from gallery.path of "
                    f"--config. {_MEND}"
                )
            found.append(now)
        footers, paths = read_footers(self.store, found), [file.path for file in found]
        pin_by(footers, found, [Column("--columns", name) for name in self.names])  # refuses what cannot be read
        return self._common(paths, self._schemas(footers, paths))

    def _schemas(self, footers: Sequence[Footer], paths: Sequence[str]) -> list[pa.Schema]:
        """The columns as each file has them, or as its folders' names say them."""
        written = [{field.name: field for field in footer.schema} for footer in footers]
        return [
            pa.schema([fields[name].remove_metadata() if name in fields else _constant(name, of_file.get(name))
                       for name in self.names])
            for fields, of_file in zip(written, partition_values(paths, set(self.names)), strict=True)
        ]  # fmt: skip

    def _common(self, paths: Sequence[str], schemas: Sequence[pa.Schema]) -> pa.Schema:
        common = schemas[0]
        for path, schema in zip(paths, schemas, strict=True):
            for at, field in enumerate(schema):
                try:
                    merged = pa.unify_schemas([pa.schema([common.field(at)]), pa.schema([field])],
                                              promote_options="permissive")  # fmt: skip
                except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                    raise RefusedError(
                        f"--columns: {field.name!r} is {field.type} in {path}, and {common.field(at).type} in files "
                        "before it: no one column holds both. Cast it in some of the files, or leave it out."
                    ) from error
                common = common.set(at, merged.field(0))
        return common


def _constant(name: str, value: PartitionValue) -> pa.Field:
    """A column whose value the names of folders say."""
    return pa.field(name, pa.null() if value is None else pa.int64() if isinstance(value, int) else pa.string())


class ColumnReader:
    """Reads columns of one plan's gallery for the items of its segments.

    Args:
        schema: of ``GalleryColumns.schema``.
    """

    def __init__(self, files: Files, plan: Plan, columns: GalleryColumns, schema: pa.Schema) -> None:
        self._files, self._columns, self._schema, self._segment_rows = files, columns, schema, plan.segment_rows
        snapshot = read_snapshot(files, plan.snapshot)
        self._parts, pinned = ledger_parts(snapshot), snapshot.gallery.files
        values = partition_values([file.path for file in pinned], set(columns.names))
        # The plan's pins know the values of those columns alone that the run itself reads.
        self._constants = {file.path: tuple(each.items()) for file, each in zip(pinned, values, strict=True)}

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
            file = file.model_copy(update={"constants": self._constants[file.path]})
            try:
                around = read_around(self._columns.store, file, rows[by_row], self._columns.names)
                tables += [self._cast(file.path, take_rows(table, within)) for _, table, within in around]
            except InputChanged as error:
                raise RefusedError(f"--columns: {file.path} has changed, or is gone. {_MEND}") from error
            order.append(by_row)
        return take_rows(pa.concat_tables(tables), np.argsort(np.concatenate(order)))

    def _cast(self, path: str, table: pa.Table) -> pa.Table:
        columns = {}
        for field in self._schema:
            try:
                column = table.column(field.name)
                columns[field.name] = column if column.type == field.type else column.cast(field.type)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                raise RefusedError(
                    f"--columns: {field.name!r} of {path} is to become {field.type}, as other files have it, and "
                    f"cannot: {error}. Cast it in some of the files, or leave it out."
                ) from error
        return pa.table(columns)


def same_columns(names: Sequence[str], before: Sequence[str]) -> None:
    """Raises RefusedError where a store that has some columns is to take in others."""
    if tuple(names) != tuple(before):
        had = f"--columns {','.join(before)}" if before else "no --columns"
        raise RefusedError(f"--since: that export has {had}. Give the same ones, so that a store has one kind of rows.")
