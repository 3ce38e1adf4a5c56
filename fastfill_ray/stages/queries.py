"""The held-out queries: sampled, embedded by the same pool as everything else, with their labels and judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.config import QueriesConfig, shown_paths
from fastfill_ray.errors import InputError
from fastfill_ray.experiment.items import Queries
from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.judgements import pin_judgements, read_judgements
from fastfill_ray.inputs.kinds import id_kind, naming, read_ids, vector_kind, vectors_of
from fastfill_ray.inputs.labels import groups_of, labels_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, read_around
from fastfill_ray.inputs.table import Column, Role, TableInput, pin
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.stages.embed import Unit, read_vectors
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import query_folder, query_unit
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import F32, I64, IdType, Objects, fingerprint

MAX_QUERIES = 1000
LABELS, GROUPS = "queries.label_column", "queries.group_column"
NEW_VECTORS, OLD_VECTORS = "queries.new_vector_column", "queries.old_vector_column"

# A query: (number of its file in the plan, row in the file).
_Place = tuple[int, int]


@dataclass(frozen=True)
class QueryPlan:
    """Which query rows are used, and the units that embed them: none where vectors are given."""

    fingerprint: str
    config: QueriesConfig
    judgements: TableInput | None
    rows: tuple[tuple[PinnedFile, np.ndarray], ...]
    units: dict[str, tuple[Unit, ...]]


def query_columns(config: QueriesConfig) -> dict[str, Column]:
    """{config key: column} of every query column that a run reads."""
    columns = [Column(f"queries.payload_columns[{i}]", name) for i, name in enumerate(config.payload_columns)]
    optional: list[tuple[str, str | None, Role]] = [
        ("queries.id_column", config.id_column if config.qrels_path is not None else None, "id"),
        (LABELS, config.label_column, "label"),
        (GROUPS, config.group_column, "group"),
        (NEW_VECTORS, config.new_vector_column, "vector"),
        (OLD_VECTORS, config.old_vector_column, "vector"),
    ]
    columns += [Column(key, name, role, config.vector_dtype) for key, name, role in optional if name is not None]
    return {column.key: column for column in columns}


def of_log(config: QueriesConfig) -> QueriesConfig:
    """The same as a log is read: nothing is judged in it, and beside other queries it says nothing of its own."""
    beside = {} if config.path is None else {"label_column": None, "group_column": None}
    return config.model_copy(update={"qrels_path": None, **beside})


def pin_queries(
    store: InputStore, config: QueriesConfig, id_type: IdType | None = None
) -> tuple[TableInput, TableInput | None]:
    """The query files and the judgements, pinned; id_type: of the gallery, for ``pin_judgements``."""
    path = _path_of(config)
    inputs = pin(store, store.find(path), list(query_columns(config).values()))
    if inputs.rows == 0:
        raise InputError(
            f"queries.path {shown_paths(path)}: there are no rows; leave `queries` out to use the audit items"
        )
    return inputs, None if config.qrels_path is None else pin_judgements(store, config.qrels_path, id_type)


def _path_of(config: QueriesConfig) -> str | Sequence[str]:
    """Where queries that are no log lie; the config has checked that there are some."""
    if config.path is None:
        raise ValueError("the queries are from a log alone")
    return config.path


def plan_queries(
    queries: QueriesConfig,
    inputs: TableInput,
    judgements: TableInput | None,
    spaces: Mapping[str, str],
    seed: int,
) -> QueryPlan:
    """Sample at most ``MAX_QUERIES`` queries and cut their embedding into units, one per file and model.

    Args:
        spaces: {"new": fingerprint, "old": fingerprint} of the models that can embed queries.
    """
    seen = [inputs.model_dump(mode="json"), judgements.model_dump(mode="json") if judgements else None]
    name = fingerprint([seen, queries.model_dump(mode="json", exclude={"group_column"}), dict(spaces), seed])
    count = min(inputs.rows, MAX_QUERIES)
    drawn = np.sort(np.random.default_rng(seed).choice(inputs.rows, size=count, replace=False))
    starts = np.cumsum([0, *(file.rows for file in inputs.files)])
    rows = []
    for number, file in enumerate(inputs.files):
        offsets = drawn[(drawn >= starts[number]) & (drawn < starts[number + 1])] - starts[number]
        if len(offsets):
            rows.append((file, offsets))
    return plan_rows(name, queries, judgements, [(file, offsets, 0, file.rows) for file, offsets in rows], spaces)


def plan_rows(
    name: str,
    queries: QueriesConfig,
    judgements: TableInput | None,
    rows: Sequence[tuple[PinnedFile, I64, int, int]],
    spaces: Mapping[str, str],
) -> QueryPlan:
    """A plan of that name for the rows that are chosen already: (file, rows in it, first and number of what is read for
    them), each a unit.
    """
    units: dict[str, tuple[Unit, ...]] = {}
    given = {"new": queries.new_vector_column, "old": queries.old_vector_column}
    for model in ("new", "old"):
        if given[model] is not None or model not in spaces:
            continue
        units[model] = tuple(
            Unit(
                unit=query_unit(number),
                folder=query_folder(name, model),
                file=file,
                start=start,
                length=length,
                rows=len(chosen),
                role="query",
                model="new" if model == "new" else "old",
                offsets=tuple((chosen - start).tolist()),
            )
            for number, (file, chosen, start, length) in enumerate(rows)
        )
    chosen_rows = tuple((file, chosen) for file, chosen, _, _ in rows)
    return QueryPlan(fingerprint=name, config=queries, judgements=judgements, rows=chosen_rows, units=units)


@dataclass(frozen=True)
class QueryRows:
    """What the files say of the Q queries of a plan, embedded or not.

    tables: per file the rows of its queries: the columns of given vectors. places: (Q,). ids: (Q,). judged: Judgement
    counts queries from 0 to Q - 1.
    """

    tables: tuple[pa.Table, ...]
    places: tuple[_Place, ...]
    ids: Objects
    labels: Objects | None
    groups: Objects | None
    judged: tuple[Judgement, ...] | None


def read_queries(plan: QueryPlan, source: Source) -> QueryRows:
    """Read what is said of the queries: nothing needs to be embedded for that.

    Args:
        source: the gallery that the queries ask.

    Raises:
        InputError: a label or group that cannot be read, ids that are null or not unique, judgements that say nothing.
    """
    config, judgements = plan.config, plan.judgements
    vectors = [name for name in (config.new_vector_column, config.old_vector_column) if name is not None]
    readers: dict[str, tuple[str, _Reader]] = {}
    if judgements is not None:
        readers["ids"] = (config.id_column, _query_ids)
    if config.label_column is not None:
        readers["labels"] = (config.label_column, partial(_values, labels_of, LABELS))
    if config.group_column is not None:
        readers["groups"] = (config.group_column, partial(_values, groups_of, GROUPS))
    columns = list(dict.fromkeys([*vectors, *(name for name, _ in readers.values())]))
    tables: list[pa.Table] = []
    values: dict[str, list[Objects]] = {key: [] for key in readers}
    for file, rows in plan.rows if columns else ():
        parts = []
        for start, table, places in read_around(source.store, file, rows, columns):
            for key, (name, read) in readers.items():
                values[key].append(read(table, name, file.path, start)[places])
            parts.append(take_rows(table.select(vectors), places))
        tables.append(pa.concat_tables(parts))
    found = {key: np.concatenate(parts).astype(object) for key, parts in values.items()}
    places_of = tuple((number, int(row)) for number, (_, rows) in enumerate(plan.rows) for row in rows)
    ids = found.get("ids", np.array([f"{file}:{row}" for file, row in places_of], object))
    return QueryRows(
        tables=tuple(tables),
        places=places_of,
        ids=ids,
        labels=found.get("labels"),
        groups=found.get("groups"),
        judged=None if judgements is None else _judged(source, judgements, config.id_column, ids),
    )


# Reads a column (N,) of a table: (table, name, path of its file, row in the file of its first row).
_Reader = Callable[[pa.Table, str, str, int], Objects]


def _values(read: Callable[..., Objects], key: str, table: pa.Table, name: str, path: str, start: int) -> Objects:
    return read(table.column(name), where=f"{path}: {key} {name!r}", start=start)


def load_queries(
    files: Files,
    plan: QueryPlan,
    read: QueryRows,
    receipts: Mapping[str, Mapping[str, Receipt]],
    source: Source,
    spaces: tuple[str, int],
) -> Queries:
    """The queries whose vectors could be made in every space that is used; the others are dropped.

    Args:
        read: see ``read_queries``.
        receipts: {model: {unit: receipt}} of the plan's units.
        source: the gallery that the queries ask.
        spaces: the gallery's fingerprint, and the new dimension.

    Raises:
        InputError: a given vector column has another dimension, or no query is left.
    """
    snapshot, new_dim = spaces
    usable, new, old = vectors_of_queries(files, plan, read, receipts, source, new_dim)
    if not len(usable):
        raise InputError(
            f"queries.path {shown_paths(_path_of(plan.config))}: no query could be embedded; see the quarantine "
            "reasons in the log"
        )
    judged = read.judged
    if judged is not None:
        row_of = {row: i for i, row in enumerate(usable.tolist())}
        judged = tuple(each._replace(query=row_of[each.query]) for each in judged if each.query in row_of)
    return Queries(
        # Per-query figures are compared query by query: only those of the same queries, asked of the same gallery.
        fingerprint=fingerprint([plan.fingerprint, snapshot, usable.tolist()]),
        ids=read.ids[usable],
        new=new,
        old=old,
        labels=read.labels[usable] if read.labels is not None else None,
        judged=judged,
        are_items=False,
        groups=read.groups[usable] if read.groups is not None else None,
    )


def vectors_of_queries(
    files: Files,
    plan: QueryPlan,
    read: QueryRows,
    receipts: Mapping[str, Mapping[str, Receipt]],
    source: Source,
    new_dim: int,
) -> tuple[I64, F32, F32 | None]:
    """Which of a plan's queries (n,) have a vector in every space that is used, and these: new (n, E), old (n, D), None
    where the old space is not used. Arguments as of ``load_queries``.

    Raises:
        InputError: a given vector column has another dimension.
    """
    config = plan.config
    vectors: dict[str, dict[_Place, F32]] = {}
    for model, dim, column in (
        ("new", new_dim, config.new_vector_column),
        ("old", source.old_dim, config.old_vector_column),
    ):
        if column is not None:
            vectors[model] = _given_vectors(plan, read.tables, column, dim, source.metric)
        elif model in plan.units:
            vectors[model] = _embedded_vectors(files, plan, model, receipts[model], dim)
    places = read.places
    usable = np.array([i for i, place in enumerate(places) if all(place in known for known in vectors.values())], int)

    def of(model: str, dim: int) -> F32:
        found = [vectors[model][places[i]] for i in usable.tolist()]
        return np.stack(found) if found else np.empty((0, dim), np.float32)

    return usable, of("new", new_dim), of("old", source.old_dim) if "old" in vectors else None


def _query_ids(table: pa.Table, name: str, path: str, start: int) -> Objects:
    """The ids (N,) of queries, as text: judgements name them in any type."""
    with naming(path):
        id_type = id_kind(table.schema.field(name)) or "string"
    return read_ids(table, name, id_type, path=path, start=start).astype(str).astype(object)


def _given_vectors(
    plan: QueryPlan, tables: Sequence[pa.Table], column: str, dim: int, metric: str
) -> dict[_Place, F32]:
    """The usable vectors of a column of the query files."""
    vectors: dict[_Place, F32] = {}
    for number, ((_, rows), table) in enumerate(zip(plan.rows, tables, strict=True)):
        kind = vector_kind(table.schema.field(column), plan.config.vector_dtype)
        values, unusable = vectors_of(table.column(column), dim, metric=metric, kind=kind)
        vectors |= {(number, int(row)): values[i] for i, row in enumerate(rows) if i not in unusable}
    return vectors


def _embedded_vectors(
    files: Files, plan: QueryPlan, model: str, receipts: Mapping[str, Receipt], dim: int
) -> dict[_Place, F32]:
    """The vectors that one model made of the queries; those that it could not embed are left out."""
    vectors: dict[_Place, F32] = {}
    for number, unit in enumerate(plan.units[model]):
        receipt = receipts[unit.unit]
        bad = {fault.row for fault in receipt.quarantined}
        _, values = read_vectors(files, [receipt], dim)
        kept = [row for row in plan.rows[number][1].tolist() if row not in bad]
        vectors |= {(number, row): values[i] for i, row in enumerate(kept)}
    return vectors


def _judged(source: Source, judgements: TableInput, id_column: str, ids: np.ndarray) -> tuple[Judgement, ...]:
    """The relevant items of the queries that are asked."""
    row_of = {str(value): i for i, value in enumerate(ids)}
    if len(row_of) < len(ids) or "None" in row_of:
        raise InputError(
            f"queries.id_column {id_column!r}: {len(ids)} queries have {len(row_of)} distinct ids (null counts as "
            "'None'); judgements need one id per query, and none of them null"
        )
    return read_judgements(source.store, judgements, row_of)
