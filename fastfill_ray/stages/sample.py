"""Wave 0: uniformly sampled items get new vectors first; everything that is learnt or decided, is on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.config import BackfillConfig
from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.inputs.gallery import Source, item_weights, mapped_columns, mapped_vectors
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.parquet import read_rows
from fastfill_ray.ordering.partition import MIN_SPLIT, sample_pairs
from fastfill_ray.stages.embed import Unit, read_vectors
from fastfill_ray.stages.runtime import run_tasks
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.storage.arrow import id_array, objects, read_table, stored_vectors, table_bytes, vector_column
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, stage_folder, stage_output, stage_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_file, sha256_hex
from fastfill_ray.types import SPLITS, fingerprint


@dataclass(frozen=True)
class PairPlan:
    """The sampled rows: per chunk the offsets of its pairs, and each pair's split."""

    fingerprint: str
    units: tuple[Unit, ...]
    split_of: dict[str, tuple[str, ...]]
    offsets: dict[int, tuple[int, ...]]


def plan_pairs(config: BackfillConfig, snapshot: Snapshot, new_space: str) -> PairPlan:
    """Sample the pairs. Raises ConfigError if the gallery or a split is too small."""
    parts = sample_pairs(snapshot.rows, config.pairs.count, config.pairs.split, config.seed)
    gallery = config.gallery
    name = fingerprint(
        [
            snapshot.fingerprint,
            config.pairs.model_dump(mode="json"),
            config.seed,
            new_space,
            [
                gallery.payload_columns,
                gallery.label_column,
                # Only where set: pairs of a config without them keep the name that they have.
                *([gallery.side_column] if gallery.side_column else []),
                *(["group", gallery.group_column] if gallery.group_column else []),
                *(["weight", gallery.weight_column] if gallery.weight_column else []),
            ],
        ]
    )
    rows = np.concatenate([parts[split] for split in SPLITS])
    splits = np.repeat(SPLITS, [len(parts[split]) for split in SPLITS])
    order = np.argsort(rows, kind="stable")
    rows, splits = rows[order], splits[order]
    chunks = snapshot.chunks
    file_starts = snapshot.file_starts()
    starts = np.array([file_starts[chunk.file] + chunk.start for chunk in chunks])
    owner = np.searchsorted(starts, rows, side="right") - 1
    units, split_of, offsets = [], {}, {}
    for index in np.unique(owner).tolist():
        chunk, mine = chunks[index], owner == index
        unit = chunk_unit(index)
        split_of[unit] = tuple(splits[mine].tolist())
        offsets[index] = tuple((rows[mine] - starts[index]).tolist())
        units.append(
            Unit(
                unit=unit,
                folder=stage_folder("pairs", name),
                file=snapshot.gallery.files[chunk.file],
                start=chunk.start,
                length=chunk.rows,
                rows=int(mine.sum()),
                role="item",
                model="new",
                offsets=offsets[index],
            )
        )
    return PairPlan(fingerprint=name, units=tuple(units), split_of=split_of, offsets=offsets)


def load_pairs(files: Files, plan: PairPlan) -> PairedItems | None:
    """The finished stage's pairs, or None."""
    receipt = read_receipt(files, stage_receipt("pairs", plan.fingerprint))
    if receipt is None:
        return None
    table = read_table(get_verified(files, receipt.outputs[0]), name=receipt.outputs[0].path)
    return _from_table(plan.fingerprint, table)


def finish_pairs(
    files: Files, plan: PairPlan, receipts: Mapping[str, Receipt], source: Source, *, new_dim: int
) -> PairedItems:
    """Join new vectors with old ones and labels, write the pairs and the stage's receipt.

    A pair whose old or side vector cannot be used, or whose new one could not be made, teaches nothing and is left out.

    Raises:
        ConfigError: a split keeps too few pairs to decide anything.
    """
    read = partial(_read_old, source=source)
    tables = {unit.unit: table for unit, table in run_tasks(read, plan.units, name="read pairs")}
    parts = []
    for unit in plan.units:
        known, vectors = read_vectors(files, [receipts[unit.unit]], new_dim)
        row_of = {value: i for i, value in enumerate(known)}
        table = tables[unit.unit].append_column("split", pa.array(plan.split_of[unit.unit]))
        usable = table.column("usable").to_pylist()
        ids = table.column("id").to_pylist()
        kept = [i for i, value in enumerate(ids) if usable[i] and value in row_of]
        chosen = table.take(pa.array(kept, pa.int64())).drop_columns("usable")
        parts.append(chosen.append_column("new", vector_column(vectors[[row_of[ids[i]] for i in kept]])))
    table = pa.concat_tables(parts)
    for split, too_few in MIN_SPLIT.items():
        left = table.column("split").to_pylist().count(split)
        if left < too_few:
            raise ConfigError(
                f"pairs: only {left} usable {split} pairs are left of {table.num_rows}; raise pairs.count"
            )
    data = table_bytes(table)
    output = put_file(files, stage_output("pairs", plan.fingerprint, "pairs.parquet", sha256_hex(data)), data)
    quarantined: list[Quarantined] = [fault for receipt in receipts.values() for fault in receipt.quarantined]
    receipt = Receipt(
        unit="pairs",
        outputs=(output,),
        rows=table.num_rows,
        quarantined=tuple(quarantined),
        seconds=sum(receipt.seconds for receipt in receipts.values()),
    )
    put_receipt(files, stage_receipt("pairs", plan.fingerprint), receipt)
    return _from_table(plan.fingerprint, table)


def _read_old(unit: Unit, *, source: Source) -> pa.Table:
    """Columns id, old, usable and, where configured, side, label, group and weight of a unit's pairs."""
    config = source.config
    optional = {"label": config.label_column, "group": config.group_column}
    beside = {name: column for name, column in optional.items() if column is not None}
    weighed = [config.weight_column] if config.weight_column is not None else []
    columns = [config.id_column, *mapped_columns(config), *beside.values(), *weighed]
    table = read_rows(source.store, unit.file, columns, start=unit.start, rows=unit.length)
    table = table.take(pa.array(unit.offsets, pa.int64()))
    old, side, unusable = mapped_vectors(table, source)
    result = {
        "id": id_array(read_ids(table, config.id_column, source.id_type), source.id_type),
        "old": vector_column(old),
        "usable": pa.array([row not in unusable for row in range(table.num_rows)]),
    }
    if side is not None:
        result["side"] = vector_column(side)
    if weighed:
        result["weight"] = pa.array(item_weights(table, source, unit.file.path))
    result |= {name: table.column(column).combine_chunks() for name, column in beside.items()}
    return pa.table(result)


def _from_table(name: str, table: pa.Table) -> PairedItems:
    return PairedItems(
        fingerprint=name,
        ids=objects(table.column("id")),
        old=_matrix(table, "old"),
        new=_matrix(table, "new"),
        labels=objects(table.column("label")) if "label" in table.column_names else None,
        split=np.array(table.column("split").to_pylist()),
        side=_matrix(table, "side") if "side" in table.column_names else None,
        groups=objects(table.column("group")) if "group" in table.column_names else None,
        weights=table.column("weight").to_numpy() if "weight" in table.column_names else None,
    )


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    return stored_vectors(pa.table({"vector": column}), column.type.list_size)
