"""The held-out queries: sampled, embedded by the same pool as everything else, with their labels and judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastfill_ray.config import BackfillConfig, QueriesConfig
from fastfill_ray.errors import InputError
from fastfill_ray.experiment.items import Queries
from fastfill_ray.inputs.kinds import element_type, vectors_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, TableInput, pin, read_rows
from fastfill_ray.stages.embed import Unit, read_vectors
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import query_unit, stage_folder
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import IdType, fingerprint

MAX_QUERIES = 1000


@dataclass(frozen=True)
class QueryPlan:
    """Which query rows are used, and the units that embed them: none where vectors are given."""

    fingerprint: str
    config: QueriesConfig
    inputs: TableInput
    rows: tuple[tuple[PinnedFile, np.ndarray], ...]
    units: dict[str, tuple[Unit, ...]]


def pin_queries(store: InputStore, config: QueriesConfig) -> tuple[TableInput, TableInput | None]:
    """The query files and the judgements, pinned."""
    columns = {"queries.id_column": config.id_column} if config.qrels_path is not None else {}
    columns |= {f"queries.payload_columns[{i}]": name for i, name in enumerate(config.payload_columns)}
    optional = {
        "queries.label_column": config.label_column,
        "queries.group_column": config.group_column,
        "queries.new_vector_column": config.new_vector_column,
        "queries.old_vector_column": config.old_vector_column,
    }
    columns |= {key: name for key, name in optional.items() if name is not None}
    inputs = pin(store, config.path, columns)
    if inputs.rows == 0:
        raise InputError(f"queries.path {config.path}: there are no rows; leave `queries` out to use the audit items")
    if config.qrels_path is None:
        return inputs, None
    names = {"queries.qrels_path (queries)": "query_id", "queries.qrels_path (items)": "item_id"}
    return inputs, pin(store, config.qrels_path, names)


def plan_queries(
    config: BackfillConfig, inputs: TableInput, judgements: TableInput | None, spaces: Mapping[str, str]
) -> QueryPlan:
    """Sample at most ``MAX_QUERIES`` queries and cut their embedding into units, one per file and model.

    Args:
        spaces: {"new": fingerprint, "old": fingerprint} of the models that can embed queries.
    """
    queries = config.queries
    assert queries is not None
    seen = [inputs.model_dump(mode="json"), judgements.model_dump(mode="json") if judgements else None]
    name = fingerprint([seen, queries.model_dump(mode="json", exclude={"group_column"}), dict(spaces), config.seed])
    count = min(inputs.rows, MAX_QUERIES)
    drawn = np.sort(np.random.default_rng(config.seed).choice(inputs.rows, size=count, replace=False))
    starts = np.cumsum([0, *(file.rows for file in inputs.files)])
    rows = []
    for number, file in enumerate(inputs.files):
        offsets = drawn[(drawn >= starts[number]) & (drawn < starts[number + 1])] - starts[number]
        if len(offsets):
            rows.append((file, offsets))
    units: dict[str, tuple[Unit, ...]] = {}
    given = {"new": queries.new_vector_column, "old": queries.old_vector_column}
    for model in ("new", "old"):
        if given[model] is not None or model not in spaces:
            continue
        units[model] = tuple(
            Unit(
                unit=query_unit(number),
                folder=f"{stage_folder('evaluation', name)}/{model}",
                file=file,
                start=0,
                length=file.rows,
                rows=len(offsets),
                role="query",
                model="new" if model == "new" else "old",
                offsets=tuple(offsets.tolist()),
            )
            for number, (file, offsets) in enumerate(rows)
        )
    return QueryPlan(fingerprint=name, config=queries, inputs=inputs, rows=tuple(rows), units=units)


def load_queries(
    files: Files,
    plan: QueryPlan,
    snapshot: str,
    receipts: Mapping[tuple[str, str], Receipt],
    judgements: TableInput | None,
    *,
    new_dim: int,
    old_dim: int,
    metric: str,
    id_type: IdType,
    store: InputStore,
) -> Queries:
    """The queries whose vectors could be made in every space that is used; the others are dropped.

    Args:
        snapshot: fingerprint of the gallery that is asked.
        receipts: {(folder, unit): receipt} of the plan's units.

    Raises:
        InputError: a given vector column has another dimension, or no query is left.
    """
    config = plan.config
    needs_ids = judgements is not None
    wanted = [config.new_vector_column, config.old_vector_column, config.label_column, config.group_column]
    columns = [name for name in (*wanted, config.id_column if needs_ids else None) if name is not None]
    tables = [read_rows(store, file, columns or [config.payload_columns[0]]).take(rows) for file, rows in plan.rows]
    places = [(number, int(row)) for number, (_, rows) in enumerate(plan.rows) for row in rows]
    vectors: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for model, dim, column in (
        ("new", new_dim, config.new_vector_column),
        ("old", old_dim, config.old_vector_column),
    ):
        found: dict[tuple[int, int], np.ndarray] = {}
        if column is not None:
            for number, ((_, rows), table) in enumerate(zip(plan.rows, tables, strict=True)):
                kind = element_type(table.schema.field(column))
                values, unusable = vectors_of(table.column(column), dim, metric=metric, binary_dtype=kind)
                found |= {(number, int(row)): values[i] for i, row in enumerate(rows) if i not in unusable}
        elif model in plan.units:
            for number, unit in enumerate(plan.units[model]):
                receipt = receipts[unit.folder, unit.unit]
                bad = {fault.row for fault in receipt.quarantined}
                kept = [row for row in plan.rows[number][1].tolist() if row not in bad]
                _, values = read_vectors(files, [receipt], dim)
                found |= {(number, row): values[i] for i, row in enumerate(kept)}
        else:
            continue
        vectors[model] = found
    usable = [i for i, place in enumerate(places) if all(place in found for found in vectors.values())]
    if not usable:
        raise InputError(
            f"queries.path {config.path}: no query could be embedded; see the quarantine reasons in the log"
        )

    def column_of(name: str) -> np.ndarray:
        values = np.empty(len(places), object)
        values[:] = [value for table in tables for value in table.column(name).to_pylist()]
        return values[usable]

    ids = column_of(config.id_column).astype(str) if needs_ids else np.array([f"{n}:{r}" for n, r in places])[usable]
    return Queries(
        # Per-query figures are compared query by query: only those of the same queries, asked of the same gallery.
        fingerprint=fingerprint([plan.fingerprint, snapshot, usable]),
        ids=ids.astype(object),
        new=np.stack([vectors["new"][places[i]] for i in usable]),
        old=np.stack([vectors["old"][places[i]] for i in usable]) if "old" in vectors else None,
        labels=column_of(config.label_column) if config.label_column is not None else None,
        judged=_judged(store, judgements, config.id_column, ids, id_type) if judgements is not None else None,
        are_items=False,
        groups=column_of(config.group_column) if config.group_column is not None else None,
    )


def _judged(
    store: InputStore, judgements: TableInput, config_column: str, ids: np.ndarray, id_type: IdType
) -> list[tuple[int, int | str]]:
    index = {str(value): i for i, value in enumerate(ids)}
    if len(index) < len(ids) or "None" in index:
        raise InputError(
            f"queries.id_column {config_column!r}: {len(ids)} queries have {len(index)} distinct ids (null counts as "
            "'None'); judgements need one id per query, and none of them null"
        )
    judged: dict[tuple[int, int | str], None] = {}
    for file in judgements.files:
        table = read_rows(store, file, ["query_id", "item_id"])
        for query, item in zip(table.column("query_id").to_pylist(), table.column("item_id").to_pylist(), strict=True):
            if item is None or isinstance(item, str) != (id_type == "string"):
                raise InputError(f"{file.path}: item_id {item!r} is not of the gallery's id type {id_type}")
            if str(query) in index:
                judged[index[str(query)], item] = None  # a pair that is judged twice is one judgement
    if not judged:
        raise InputError(f"{judgements.files[0].path}: no query_id occurs in the queries' id column")
    return list(judged)
