"""Pairs that have a new vector already: found by what they hold, whatever file they were embedded from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.inputs.changes import payload_digests, version_digests
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.parquet import read_spans
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.stages.compare import find_known
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Unit, grouped, read_items
from fastfill_ray.stages.known import Known, cut_by_key, read_partition
from fastfill_ray.stages.work import VectorFile
from fastfill_ray.storage.arrow import keys_column, keys_of
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.receipts import Receipt

KnownPairs = dict[str, dict[int, tuple[VectorFile, int]]]
"""``KnownRows`` of pairs."""


def find_pairs(
    context: Context, source: Source, units: Sequence[Unit], receipts: Mapping[str, Receipt], known: Known
) -> KnownPairs:
    """Those of the pairs that are known.

    Args:
        units: of all pairs. receipts: of those units that are embedded; what they vouch for is left out.
    """
    if not known.partitions:
        return {}
    read = partial(_read_digests, source, known.unversioned > 0)
    parts = context.engine.run_tasks(read, grouped(units), name="read pairs", ordered=True)
    numbers = {unit.unit: number for number, unit in enumerate(units)}
    tables = [
        table.append_column("part", pa.array(np.full(table.num_rows, numbers[unit.unit], np.int32)))
        for group, found in parts
        for unit, table in zip(group, found, strict=True)
    ]
    cuts = enumerate(cut_by_key(pa.concat_tables(tables), len(known.partitions)))
    find = partial(_find, context.files, known)
    result: KnownPairs = {}
    for _, table in context.engine.run_tasks(find, cuts, name="find known pairs", ordered=True):
        for row in table.to_pylist():
            place = (known.files[row["source"]], row["source_row"])
            result.setdefault(units[row["part"]].unit, {})[row["offset"]] = place
    for unit, table in zip((each.unit for each in units), tables, strict=True):
        if unit in receipts and unit in result:
            _leave_out(context.files, result[unit], receipts[unit], table)
    return {unit: places for unit, places in result.items() if places}


def _read_digests(source: Source, payloads: bool, units: Sequence[Unit]) -> list[pa.Table]:
    config = source.config
    version = config.version_column
    columns = [config.id_column, *config.payload_columns, *([] if version is None else [version])]
    tables = read_spans(source.store, (unit.span for unit in units), columns)
    return [_digests_of(source, payloads, unit, table) for unit, table in zip(units, tables, strict=True)]


def _digests_of(source: Source, payloads: bool, unit: Unit, chunk: pa.Table) -> pa.Table:
    config, offsets = source.config, np.array(unit.offsets, np.int32)
    table = take_rows(chunk, offsets.astype(np.int64))
    nothing = pa.nulls(table.num_rows, pa.binary(16))
    version = nothing if config.version_column is None else version_digests(table, config.version_column)
    needed = payloads or version.null_count > 0
    return pa.table(
        {
            "key": keys_column(item_keys(read_ids(table, config.id_column, source.id_type))),
            "payload": payload_digests(table, config.payload_columns) if needed else nothing,
            "version": version,
            "offset": offsets,
            "changed": pa.array(np.zeros(len(offsets), bool)),
        }
    )


def _find(files: Files, known: Known, cut: tuple[int, pa.Table]) -> pa.Table:
    number, items = cut
    found = find_known(items, read_partition(files, known, number))
    return found.filter(pc.greater_equal(found.column("source"), 0))


def _leave_out(files: Files, places: dict[int, tuple[VectorFile, int]], receipt: Receipt, table: pa.Table) -> None:
    """What a receipt vouches for, or could not be embedded, is not looked up as well."""
    failed = item_keys([fault.id for fault in receipt.quarantined if fault.id is not None])
    vouched = {*map(tuple, failed.tolist()), *map(tuple, keys_of(read_items(files, [receipt]).column("key")).tolist())}
    for key, offset in zip(keys_of(table.column("key")).tolist(), table.column("offset").to_pylist(), strict=True):
        if tuple(key) in vouched:
            places.pop(offset, None)
