"""The pairs as units of work, and what is kept of them: vectors, old and new, and what the gallery says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.config import GalleryConfig
from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.gallery import (
    Source,
    item_groups,
    item_labels,
    item_priorities,
    item_weights,
    mapped_columns,
    mapped_vectors,
)
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.labels import labels_of, stored_label_type
from fastfill_ray.inputs.parquet import read_spans
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.draw import Drawn
from fastfill_ray.stages.embed import Unit, grouped, read_vectors, read_vectors_file
from fastfill_ray.stages.reuse import KnownPairs
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import VectorFile
from fastfill_ray.storage.arrow import id_array, matrix_of, objects, read_table, table_bytes, vector_column
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import Stage, stage_folder, stage_output, stage_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import F32, fingerprint


@dataclass(frozen=True)
class PairPlan:
    """The sampled rows: per chunk the offsets of its pairs, and each pair's split."""

    fingerprint: str
    units: tuple[Unit, ...]
    split_of: dict[str, tuple[str, ...]]
    offsets: dict[str, tuple[int, ...]]

    @property
    def folder(self) -> str:
        """Where the units' vectors and receipts lie."""
        return self.units[0].folder


def plan_pairs(
    drawn: Drawn, gallery: GalleryConfig, snapshot: Snapshot, new_space: str, stage: Stage = "pairs"
) -> PairPlan:
    """The pairs as units of work. The same pairs of files that are pinned as before keep their name, whatever else the
    gallery holds: what was embedded for them is not embedded again.

    Args:
        new_space: fingerprint of the new model.
        stage: whose the vectors are.
    """
    rows = [[unit, drawn.offsets[unit], drawn.split_of[unit]] for unit in sorted(drawn.offsets)]
    # The ledger is named by every column that the pairs are read from, and by what it is read as; all but the payload
    # and the priorities, which it does not check.
    priorities = [] if gallery.priority_column is None else [gallery.priority_column]
    name = fingerprint([snapshot.ledger, rows, new_space, gallery.payload_columns, *priorities])
    units = [
        Unit(
            unit=chunk.unit,
            folder=stage_folder(stage, name),
            file=snapshot.gallery.files[chunk.file],
            start=chunk.start,
            length=chunk.rows,
            rows=len(drawn.offsets[chunk.unit]),
            role="item",
            model="new",
            offsets=drawn.offsets[chunk.unit],
        )
        for chunk in snapshot.chunks
        if chunk.unit in drawn.offsets
    ]
    return PairPlan(fingerprint=name, units=tuple(units), split_of=drawn.split_of, offsets=drawn.offsets)


def load_pairs(files: Files, name: str) -> PairedItems | None:
    """The finished stage's pairs, or None."""
    receipt = read_receipt(files, stage_receipt("pairs", name))
    if receipt is None:
        return None
    table = read_table(get_verified(files, receipt.outputs[0]), name=receipt.outputs[0].path)
    return _from_table(name, table)


def read_old(context: Context, plan: PairPlan, source: Source) -> dict[str, pa.Table]:
    """Per unit what the gallery says of its pairs: columns id, old, split, and side, label, group and weight where
    configured. A pair whose old or side vector cannot be used teaches nothing and is left out.
    """
    tables: dict[str, pa.Table] = {}
    read = partial(_read_old, source=source)
    for group, found in context.engine.run_tasks(read, grouped(plan.units), name="read pairs"):
        for unit, table in zip(group, found, strict=True):
            whole = table.append_column("split", pa.array(plan.split_of[unit.unit]))
            tables[unit.unit] = whole.filter(whole.column("usable")).drop_columns("usable")
    return tables


def check_splits(tables: Sequence[pa.Table], plan: PairPlan, what: str) -> None:
    """Raises ConfigError if too few pairs of a split have `what`."""
    left = Counter(split for table in tables for split in table.column("split").to_pylist())
    drawn = Counter(split for splits in plan.split_of.values() for split in splits)
    for split, least in MIN_SPLIT.items():
        if left[split] < least:
            raise ConfigError(
                f"pairs: only {left[split]} of {drawn[split]} {split} pairs have {what}; at least {least} are needed "
                "to decide anything. Raise pairs.count."
            )


def finish_pairs(
    files: Files,
    plan: PairPlan,
    receipts: Mapping[str, Receipt],
    known: KnownPairs,
    read: Mapping[str, pa.Table],
    *,
    new_dim: int,
    are_pairs: bool = True,
    details: Mapping[str, Any] | None = None,
) -> PairedItems:
    """Join new vectors with old ones and labels, write the pairs and the stage's receipt.

    A pair whose new vector could not be made teaches nothing and is left out.

    Args:
        read: see ``read_old``.
        are_pairs: whether a choice needs some of them in every split. details: what the receipt says besides.

    Raises:
        ConfigError: a split keeps too few pairs to decide anything.
    """
    parts = []
    for unit in plan.units:
        embedded = [receipts[unit.unit]] if unit.unit in receipts else []
        there, vectors = _with_known(files, read_vectors(files, embedded, new_dim), known.get(unit.unit, {}), new_dim)
        row_of = {value: i for i, value in enumerate(there)}
        ids = read[unit.unit].column("id").to_pylist()
        kept = [i for i, value in enumerate(ids) if value in row_of]
        chosen = read[unit.unit].take(pa.array(kept, pa.int64()))
        parts.append(chosen.append_column("new", vector_column(vectors[[row_of[ids[i]] for i in kept]])))
    if are_pairs:
        check_splits(parts, plan, "an old vector that can be used and a new one")
    table = pa.concat_tables(parts)
    # In the order of their keys: the same pairs are the same table, however the gallery is cut into files.
    keys = item_keys(objects(table.column("id")))
    table = table.take(pa.array(np.lexsort((keys[:, 1], keys[:, 0]))))
    data = table_bytes(table)
    output = put_content(files, partial(stage_output, "pairs", plan.fingerprint, "pairs.parquet"), data)
    quarantined: list[Quarantined] = [fault for receipt in receipts.values() for fault in receipt.quarantined]
    receipt = Receipt(
        unit="pairs",
        outputs=(output,),
        rows=table.num_rows,
        quarantined=tuple(quarantined),
        seconds=sum(receipt.seconds for receipt in receipts.values()),
        details=dict(details or {}),
    )
    put_receipt(files, stage_receipt("pairs", plan.fingerprint), receipt)
    return _from_table(plan.fingerprint, table)


def _with_known(
    files: Files, embedded: tuple[list[int | str], F32], known: Mapping[int, tuple[VectorFile, int]], new_dim: int
) -> tuple[list[int | str], F32]:
    """Ids (N,) and vectors (N, E) of a unit's pairs: of those that were embedded for it, and of those known before."""
    ids, parts = list(embedded[0]), [embedded[1]]
    for file, row in known.values():
        there, vectors = read_vectors_file(files, file.vectors, new_dim)
        ids.append(there[row])
        parts.append(vectors[row : row + 1])
    return ids, np.concatenate(parts)


def _read_old(units: Sequence[Unit], *, source: Source) -> list[pa.Table]:
    """Columns id, old, usable and, where configured, side, label, group and weight of each unit's pairs."""
    config = source.config
    optional = (config.label_column, config.group_column, config.weight_column, config.priority_column)
    columns = [config.id_column, *mapped_columns(config), *(name for name in optional if name is not None)]
    tables = read_spans(source.store, (unit.span for unit in units), columns)
    return [_old_of(unit, table, source) for unit, table in zip(units, tables, strict=True)]


def _old_of(unit: Unit, chunk: pa.Table, source: Source) -> pa.Table:
    """Those columns of a unit's pairs; chunk: all rows of its span."""
    config = source.config
    offsets = np.array(unit.offsets, np.int64)
    table = take_rows(chunk, offsets)
    old, side, unusable = mapped_vectors(table, source)
    result = {
        "id": id_array(read_ids(table, config.id_column, source.id_type), source.id_type),
        "old": vector_column(old),
        "usable": pa.array([row not in unusable for row in range(table.num_rows)]),
    }
    if side is not None:
        result["side"] = vector_column(side)
    # The rest is read of the whole chunk: so a bad value is named by its row in the file.
    if (weights := item_weights(chunk, source, unit.span)) is not None:
        result["weight"] = pa.array(weights[offsets])
    if (priorities := item_priorities(chunk, source, unit.span)) is not None:
        result["priority"] = pa.array(priorities[offsets])
    if (labels := item_labels(chunk, source, unit.span)) is not None:
        result["label"] = pa.array(labels[offsets].tolist(), stored_label_type(source.label_kind))
    if (groups := item_groups(chunk, source, unit.span)) is not None:
        result["group"] = pa.array(groups[offsets], pa.string())
    return pa.table(result)


def _from_table(name: str, table: pa.Table) -> PairedItems:
    return PairedItems(
        fingerprint=name,
        ids=objects(table.column("id")),
        old=matrix_of(table, "old"),
        new=matrix_of(table, "new"),
        labels=labels_of(table.column("label")) if "label" in table.column_names else None,
        split=np.array(table.column("split").to_pylist()),
        side=matrix_of(table, "side") if "side" in table.column_names else None,
        groups=objects(table.column("group")) if "group" in table.column_names else None,
        weights=table.column("weight").to_numpy() if "weight" in table.column_names else None,
        priority=table.column("priority").to_numpy() if "priority" in table.column_names else None,
    )
