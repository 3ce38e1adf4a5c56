"""The pairs file: items with both vectors, as `simulate` reads them from Parquet, or from a run's `pairs/<fp>`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import InputError
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.inputs.judgements import pin_judgements, read_judgements
from fastfill_ray.inputs.kinds import (
    common_dim,
    id_kind,
    naming,
    read_ids,
    read_weights,
    vector_kind,
    vectors_of,
)
from fastfill_ray.inputs.labels import groups_of, labels_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import read_rows
from fastfill_ray.inputs.table import Column, Role, pin
from fastfill_ray.ordering.ids import hash_ids, seeded_hash
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.storage.arrow import objects
from fastfill_ray.storage.paths import parse_unit_output
from fastfill_ray.types import SPLITS, IdType, Objects

SHARES = (0.7, 0.15, 0.15)
_OPTIONAL = ("label", "group", "weight", "split", "side")
_ROLES: dict[str, Role] = {
    "id": "id",
    **dict.fromkeys(("old", "new", "side"), "vector"),
    "label": "label",
    "group": "group",
    "weight": "weight",
}


def read_pairs(
    store: InputStore, path: str, *, metric: str, seed: int
) -> tuple[PairedItems, tuple[tuple[int, str], ...]]:
    """Columns `id`, `old`, `new`, optional `label`, `group`, `weight`, `side`, `split` of a pairs file.

    Without `split` the items are drawn 70 : 15 : 15 by the hash of their id. Rows with an unusable vector are left out.
    Groups are text.

    Returns:
        The items; and (row, reason) of the rows that are left out.

    Raises:
        ConfigError, InputError: a missing column, ids that are null or repeated, an unknown split, nothing left,
            weights, labels or groups that cannot be read (names file and row).
    """
    parts, present = _read(store, path, ("id", "old", "new"), _OPTIONAL)
    ids = _ids(parts, "id")
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        repeated = values.tolist()[counts.argmax()]
        raise InputError(f"{path}: id {repeated!r} occurs {counts.max()} times; ids must be unique")
    vectors, unusable = {}, dict[int, str]()
    for name in ("old", "new", *(["side"] if "side" in present else [])):
        vectors[name], bad = _vectors(parts, name, metric if name != "side" else "ip")
        unusable |= {row: f"{name}: {reason}" for row, reason in bad.items()}
    kept = np.array([row for row in range(len(ids)) if row not in unusable], np.int64)
    if len(kept) == 0:
        raise InputError(f"{path}: none of {len(ids)} rows has two usable vectors; the first: {unusable.get(0)}")
    columns = {name: _column(parts, name)[kept] for name in present if name not in ("side", "weight")}
    split = columns.get("split")
    id_hash = hash_ids(ids)[kept]
    if split is None:
        place = (seeded_hash(id_hash, seed + HashSeed.SPLIT) >> np.uint64(11)) / float(1 << 53)
        split = np.array(SPLITS, object)[np.searchsorted(np.cumsum(SHARES)[:2], place, side="right")]
    elif not set(split.tolist()) <= set(SPLITS):
        other = next(value for value in split.tolist() if value not in SPLITS)
        raise InputError(f"{path}: column 'split' holds {other!r}; {', '.join(SPLITS)} are expected")
    weights = None
    if "weight" in present:
        read = [read_weights(table, "weight", key="column", path=path) for path, table in parts]
        weights = np.concatenate(read)[kept]
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
    wanted = ("new", "id") if qrels is not None else ("new",)
    optional = ("old", "label", "group") if qrels is not None else ("id", "old", "label", "group")
    parts, present = _read(store, path, wanted, optional)
    new, bad = _vectors(parts, "new", metric)
    old = None
    if "old" in present:
        old, unusable = _vectors(parts, "old", metric)
        bad |= unusable
    for name, found, expected in (("new", new, pairs.new), ("old", old, pairs.old)):
        if found is not None and found.shape[1] != (dim := expected.shape[1]):
            raise InputError(f"{path}: column {name!r} has {found.shape[1]} dims, the pairs' {name!r} has {dim}")
    kept = np.array([row for row in range(len(new)) if row not in bad], np.int64)
    if len(kept) == 0:
        raise InputError(f"{path}: no query has usable vectors")
    named = qrels is not None or "id" in present
    ids = _ids(parts, "id")[kept].astype(str) if named else kept.astype(str)
    judged = None
    if qrels is not None:
        id_type: IdType = "string" if isinstance(pairs.ids[0], str) else "int64"
        row_of = {value: row for row, value in enumerate(ids.tolist())}
        judged = read_judgements(store, pin_judgements(store, qrels, id_type), row_of)
    return Queries(
        ids=ids.astype(object),
        new=new[kept],
        old=None if old is None else old[kept],
        labels=_column(parts, "label")[kept] if "label" in present else None,
        groups=_column(parts, "group")[kept] if "group" in present else None,
        judged=judged,
    )


# The files of a table, each as it is: what one holds as lists, another may hold as bytes.
_Parts = list[tuple[str, pa.Table]]


def _read(store: InputStore, path: str, wanted: tuple[str, ...], optional: tuple[str, ...]) -> tuple[_Parts, list[str]]:
    """The files with rows, each with its path, and which optional columns they have."""
    roles = {name: _ROLES.get(name, "payload") for name in (*wanted, *optional)}
    files = store.find(path)
    # In a run's folder the vectors that were embedded lie beside the pairs.
    files = [file for file in files if parse_unit_output(file.path) is None] or files
    found = pin(store, files, [Column(name, name, role, optional=name in optional) for name, role in roles.items()])
    if found.rows == 0:
        raise InputError(f"{path}: there are no rows")
    present = [name for name in optional if name not in found.absent]
    columns = [*wanted, *present]
    return [(file.path, read_rows(store, file, columns)) for file in found.files if file.rows], present


def _ids(parts: _Parts, name: str) -> np.ndarray:
    """The ids (N,) of a column, all of the first file's kind."""
    id_type: IdType | None = None
    for path, table in parts:
        with naming(path):
            id_type = id_type or id_kind(table.schema.field(name))
    return np.concatenate([read_ids(table, name, id_type or "string", path=path) for path, table in parts])


def _vectors(parts: _Parts, name: str, metric: str) -> tuple[np.ndarray, dict[int, str]]:
    """The vectors (N, dim) of a column, see ``kinds.vectors_of``; dim is the most frequent length in the files."""
    kinds, dims = [], dict[str, int]()
    for path, table in parts:
        with naming(path):
            kinds.append(vector_kind(table.schema.field(name)))
        if (dim := common_dim(table.column(name), kinds[-1])) is not None:
            dims[path] = dim
    if not dims:
        raise InputError(f"{parts[0][0]}: column {name!r} holds no vector, only nulls")
    first, expected = next(iter(dims.items()))
    for path, dim in dims.items():
        if dim != expected:
            raise InputError(f"{path}: column {name!r} holds vectors of {dim} dims, expected {expected} as in {first}")
    vectors, unusable, start = [], dict[int, str](), 0
    for (_, table), kind in zip(parts, kinds, strict=True):
        found, bad = vectors_of(table.column(name), expected, metric=metric, kind=kind)
        unusable |= {start + row: reason for row, reason in bad.items()}
        vectors.append(found)
        start += len(found)
    return np.concatenate(vectors), unusable


def _column(parts: _Parts, name: str) -> Objects:
    """An optional column (N,) as Python objects."""
    read = {"label": labels_of, "group": groups_of}.get(name)
    if read is not None:
        found = [read(table.column(name), where=f"{path}: column {name!r}") for path, table in parts]
    else:
        found = [objects(table.column(name)) for _, table in parts]
    return np.concatenate(found)
