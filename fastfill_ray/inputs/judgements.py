"""Judgements (qrels): which items were judged for which queries, and with which grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from fastfill_ray.config import shown_paths
from fastfill_ray.errors import InputError
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import read_rows
from fastfill_ray.inputs.table import Column, TableInput, pin
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.types import F64, IdType

# What the grade is called in BEIR's and MTEB's files, and in those made from TREC's.
GRADES = ("score", "relevance")


def pin_judgements(store: InputStore, path: str | Sequence[str], id_type: IdType | None = None) -> TableInput:
    """The files with columns query_id, item_id and at most one of GRADES, pinned.

    Args:
        id_type: of the gallery; None where it is not known yet.

    Raises:
        ConfigError, InputError: a missing column, two grades, grades that are no numbers or all null, ids of another
            type; names the file.
    """
    where = shown_paths(path)
    columns = [Column(name, name, "id") for name in ("query_id", "item_id")]
    pinned = pin(store, store.find(path), [*columns, *(Column(name, name, "weight", optional=True) for name in GRADES)])
    grades = [name for name in GRADES if name not in pinned.absent]
    if len(grades) > 1:
        raise InputError(
            f"{where}: columns 'score' and 'relevance' are both there, and only one can be the grade. Drop 'score', or "
            "drop 'relevance' if 'score' is what was judged."
        )
    first = next((file for file in pinned.files if file.rows), None)
    if grades and grades[0] not in pinned.kinds and first is not None:
        raise _no_grade(first.path, grades[0], None, 0)  # a type that holds nothing but nulls, in all files
    if pinned.kinds.get("item_id", id_type) != (id_type or pinned.kinds.get("item_id")):
        raise InputError(
            f"{where}: column 'item_id' is {pinned.kinds['item_id']}, but the gallery's ids are {id_type}. Cast it: an "
            "integer never equals a text."
        )
    return pinned


def read_judgements(store: InputStore, pinned: TableInput, row_of: Mapping[str, int]) -> tuple[Judgement, ...]:
    """The judgements of some queries that have a grade above 0; of a pair that is judged twice the highest.

    Without a grade column every row has grade 1. Item ids become the gallery's type; query ids are compared as text.

    Args:
        row_of: {id of a query, as text: its row}.

    Raises:
        InputError: an id or a grade that is null or cannot be read (names file and row), or no judgement is left.
    """
    best: dict[tuple[int, int | str], float] = {}
    judged = False
    for file in pinned.files:
        if file.rows == 0:
            continue
        # A column of ids that are all null has no kind, and is read to say so.
        table = read_rows(store, file, ["query_id", "item_id", *(name for name in GRADES if name in pinned.kinds)])
        queries, items = (
            read_ids(table, name, pinned.id_type(name), path=file.path).tolist() for name in ("query_id", "item_id")
        )
        for query, item, grade in zip(queries, items, _grades(table, file.path).tolist(), strict=True):
            row = row_of.get(str(query))
            if row is None:
                continue
            judged = True
            if grade > 0:
                best[row, item] = max(grade, best.get((row, item), 0.0))
    if not judged:
        raise InputError(f"{pinned.files[0].path}: no query_id occurs in the queries' id column")
    if not best:
        raise InputError(
            f"{pinned.files[0].path}: no judgement of these queries has a grade above 0, so nothing is relevant"
        )
    return tuple(Judgement(row, item, grade) for (row, item), grade in best.items())


def _grades(table: pa.Table, path: str) -> F64:
    """The grade of each row (J,)."""
    name = next((name for name in GRADES if name in table.column_names), None)
    if name is None:
        return np.ones(table.num_rows)
    grades = table.column(name).cast(pa.float64(), safe=False).to_numpy()
    bad = np.flatnonzero(~np.isfinite(grades))
    if len(bad):
        raise _no_grade(path, name, table.column(name)[int(bad[0])].as_py(), int(bad[0]))
    return grades


def _no_grade(path: str, name: str, found: object, row: int) -> InputError:
    return InputError(
        f"{path}: column {name!r} is {found!r} in row {row}, expected a finite number. Fill the grade in (0 where the "
        "item is not relevant), or drop the row."
    )
