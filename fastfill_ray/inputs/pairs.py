"""The pairs file: items with both vectors, as `simulate` reads them from one Parquet file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.inputs.judgements import pin_judgements, read_judgements
from fastfill_ray.inputs.kinds import element_type, labels_of, read_ids, vectors_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import columns_of, id_type_of, pin, read_rows, vector_dim_of
from fastfill_ray.ordering.ids import hash_ids, seeded_hash
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.storage.arrow import objects
from fastfill_ray.types import F32, I64, SPLITS, IdType, Objects

SHARES = (0.7, 0.15, 0.15)
_OPTIONAL = ("label", "group", "weight", "split", "side")


def read_pairs(
    store: InputStore, path: str, *, metric: str, seed: int
) -> tuple[PairedItems, tuple[tuple[int, str], ...]]:
    """Columns `id`, `old`, `new`, optional `label`, `group`, `weight`, `side`, `split` of a pairs file.

    Without `split` the items are drawn 70 : 15 : 15 by the hash of their id. Rows with an unusable vector are left out.

    Returns:
        The items; and (row, reason) of the rows that are left out.

    Raises:
        ConfigError, InputError: a missing column, ids that are null or repeated, an unknown split, nothing left.
    """
    table, id_type, present = _read(store, path, {"id": "id", "old": "old", "new": "new"}, _OPTIONAL)
    ids = read_ids(table, "id", id_type)
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        repeated = values.tolist()[counts.argmax()]
        raise InputError(f"{path}: id {repeated!r} occurs {counts.max()} times; ids must be unique")
    vectors, unusable = {}, dict[int, str]()
    for name in ("old", "new", *(["side"] if "side" in present else [])):
        vectors[name], bad = _vectors(store, path, table, name, metric if name != "side" else "ip")
        unusable |= {row: f"{name}: {reason}" for row, reason in bad.items()}
    kept = np.array([row for row in range(len(ids)) if row not in unusable], np.int64)
    if len(kept) == 0:
        raise InputError(f"{path}: none of {len(ids)} rows has two usable vectors; the first: {unusable.get(0)}")
    columns = {name: _column(table, name, path)[kept] for name in present if name != "side"}
    split = columns.get("split")
    id_hash = hash_ids(ids)[kept]
    if split is None:
        place = (seeded_hash(id_hash, seed + HashSeed.SPLIT) >> np.uint64(11)) / float(1 << 53)
        split = np.array(SPLITS, object)[np.searchsorted(np.cumsum(SHARES)[:2], place, side="right")]
    elif not set(split.tolist()) <= set(SPLITS):
        other = next(value for value in split.tolist() if value not in SPLITS)
        raise InputError(f"{path}: column 'split' holds {other!r}; {', '.join(SPLITS)} are expected")
    weights = _weights(columns["weight"], kept, path) if "weight" in columns else None
    items = PairedItems(
        ids=ids.astype(object)[kept],
        old=vectors["old"][kept],
        new=vectors["new"][kept],
        split=split,
        labels=columns.get("label"),
        groups=columns.get("group"),
        weights=weights,
        side=vectors["side"][kept] if "side" in vectors else None,
    )
    return items, tuple(sorted(unusable.items()))


def read_queries(store: InputStore, path: str, qrels: str | None, pairs: PairedItems, *, metric: str) -> Queries:
    """Columns `new`, optional `id`, `old`, `label`, `group` of a query file; with `qrels` the `id` is needed.

    Args:
        qrels: Parquet with columns query_id, item_id, and a grade or none, see ``inputs.judgements``; None for no
            judgements.
        pairs: the items that the queries ask for.

    Raises:
        ConfigError, InputError: a missing column, another dim or id type than the pairs', no usable query, a judgement
            that cannot be read.
    """
    wanted = {"new": "new"} | ({"id": "id"} if qrels is not None else {})
    optional = ("old", "label", "group") if qrels is not None else ("id", "old", "label", "group")
    table, _, present = _read(store, path, wanted, optional)
    new, bad = _vectors(store, path, table, "new", metric)
    old = None
    if "old" in present:
        old, unusable = _vectors(store, path, table, "old", metric)
        bad |= unusable
    for name, found, expected in (("new", new, pairs.new), ("old", old, pairs.old)):
        if found is not None and found.shape[1] != (dim := expected.shape[1]):
            raise InputError(f"{path}: column {name!r} has {found.shape[1]} dims, the pairs' {name!r} has {dim}")
    kept = np.array([row for row in range(len(new)) if row not in bad], np.int64)
    if len(kept) == 0:
        raise InputError(f"{path}: no query has usable vectors")
    named = qrels is not None or "id" in present
    ids = objects(table.column("id"))[kept].astype(str) if named else kept.astype(str)
    judged = None
    if qrels is not None:
        id_type: IdType = "string" if isinstance(pairs.ids[0], str) else "int64"
        row_of = {value: row for row, value in enumerate(ids.tolist())}
        judged = read_judgements(store, pin_judgements(store, qrels, id_type), id_type, row_of)
    return Queries(
        ids=ids.astype(object),
        new=new[kept],
        old=None if old is None else old[kept],
        labels=_column(table, "label", path)[kept] if "label" in present else None,
        groups=_column(table, "group", path)[kept] if "group" in present else None,
        judged=judged,
    )


def _read(
    store: InputStore, path: str, wanted: dict[str, str], optional: tuple[str, ...]
) -> tuple[pa.Table, IdType, list[str]]:
    """The table, the type of its ids, and which optional columns it has."""
    there = columns_of(store, path)
    present = [name for name in optional if name in there]
    found = pin(store, path, wanted | {name: name for name in present})
    if found.rows == 0:
        raise InputError(f"{path}: there are no rows")
    columns = [*wanted.values(), *present]
    table = pa.concat_tables([read_rows(store, file, columns) for file in found.files])
    for name in wanted.values():
        if name.endswith("id") and table.column(name).null_count:
            raise InputError(f"{path}: column {name!r} is null in {table.column(name).null_count} rows; fill them in")
    return table, id_type_of(found, "id") if "id" in wanted else "string", present


def _vectors(
    store: InputStore, path: str, table: pa.Table, name: str, metric: str
) -> tuple[np.ndarray, dict[int, str]]:
    dim = vector_dim_of(store, pin(store, path, {name: name}), name)
    kind = element_type(table.schema.field(name))
    return vectors_of(table.column(name), dim, metric=metric, binary_dtype=kind)


def _weights(given: Objects, rows: I64, path: str) -> F32:
    """The weights (N,) of the kept rows; rows: (N,) their numbers in the file."""
    try:
        weights = given.astype(np.float32)
    except ValueError:
        raise InputError(f"{path}: column 'weight' holds {given[0]!r}; numbers are expected") from None
    if not np.isfinite(weights).all():
        row = int(rows[np.argmin(np.isfinite(weights))])
        raise InputError(f"{path}: column 'weight' is no finite number in row {row}; fill it in, 1 where unknown")
    return weights


def _column(table: pa.Table, name: str, path: str) -> Objects:
    """An optional column (N,) as Python objects."""
    column = table.column(name)
    return labels_of(column, where=f"{path}: column {name!r}") if name == "label" else objects(column)
