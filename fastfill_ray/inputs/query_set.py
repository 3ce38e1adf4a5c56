"""The queries of a file that versions are compared on: a set of queries, or a log of them with its traffic.

Both are read as a log (``inputs.query_log``): queries that are the same are one, with the traffic of all its rows, and
a set is a log in which every row counts once.

Legend: Q queries, D old dim, E new dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.inputs.encodings import take_rows
from fastfill_ray.inputs.kinds import vector_kind, vectors_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import read_around
from fastfill_ray.inputs.payload import payload_values
from fastfill_ray.inputs.query_log import pin_query_log, read_query_log
from fastfill_ray.inputs.table import Column
from fastfill_ray.types import F32, F64, IdType, Metric

_OPTION = "--queries"


@dataclass(frozen=True, eq=False)
class QuerySet:
    """The most asked Q queries of a file.

    Attributes:
        traffic: (Q,) of each, above 0, the most first.
        rows: (Q,) "file row N", where each stands.
        payload: {column: (Q,) values}, of those payload columns that the file has.
        vectors: {column: (Q, D or E) float32}, of those vector columns that the file has.
        unusable: {query: reason}, of queries of which a payload or a vector cannot be read.
        taken: per query, {item: traffic} of what users took for it.
        all_traffic: of the whole file.
    """

    traffic: F64
    rows: tuple[str, ...]
    payload: Mapping[str, list[object]]
    vectors: Mapping[str, F32]
    unusable: Mapping[int, str]
    taken: tuple[Mapping[int | str, float], ...]
    all_traffic: float


@dataclass
class _Query:
    """One query of the log."""

    place: tuple[int, int]
    traffic: float
    taken: dict[int | str, float]


def read_query_set(
    store: InputStore,
    path: str,
    columns: Sequence[Column],
    dims: Mapping[str, int],
    *,
    id_type: IdType,
    metric: Metric,
    limit: int,
) -> QuerySet:
    """Read the most asked queries of a file, a folder, or a list of both.

    Args:
        columns: payload and vectors; some may be optional.
        dims: {vector column: its dim}.
        id_type: of the gallery.
        limit: queries that are read, at most.

    Raises:
        ConfigError, InputError: a column is missing or of another kind, or what a log says cannot be read.
    """
    pinned = pin_query_log(store, path, columns, id_type, key=_OPTION, reads_time=False)
    columns = [column for column in columns if column.key not in pinned.absent]
    # As one part: what is asked most is told over the whole log, not over either side of a cut.
    log = read_query_log(store, pinned, columns, limit=limit, seed=0, held_out_share=0.0)
    asked = log.fit
    chosen = [
        _Query((place[0], place[1]), traffic, {})
        for traffic, place in zip(asked.traffic.tolist(), asked.places.tolist(), strict=True)
    ]
    for row, item, traffic in zip(asked.taken_by.tolist(), asked.taken, asked.taken_traffic.tolist(), strict=True):
        chosen[row].taken[item] = traffic
    payload: dict[str, list[object]] = {c.name: [None] * len(chosen) for c in columns if c.role == "payload"}
    vectors = {c.name: np.zeros((len(chosen), dims[c.name]), np.float32) for c in columns if c.role == "vector"}
    unusable: dict[int, str] = {}
    by_place = sorted(range(len(chosen)), key=lambda at: chosen[at].place)
    for number, file in enumerate(pinned.files):
        left = [at for at in by_place if chosen[at].place[0] == number]
        if not columns or not left:
            continue
        rows = np.array([chosen[at].place[1] for at in left], np.int64)
        for _, table, within in read_around(store, file, rows, [column.name for column in columns]):
            these, left = left[: len(within)], left[len(within) :]
            taken = take_rows(table, within)
            for column in columns:
                field, faults = taken.schema.field(column.name), dict[int, str]()
                if column.role == "payload":
                    read, faults = payload_values(taken.column(column.name), field)
                    for at, value in zip(these, read, strict=True):
                        payload[column.name][at] = value
                else:
                    kind, dim = vector_kind(field, column.stated), dims[column.name]
                    made, faults = vectors_of(taken.column(column.name), dim, metric=metric, kind=kind)
                    vectors[column.name][these] = made
                for place, reason in faults.items():
                    unusable.setdefault(these[place], f"{column.name!r}: {reason}")
    return QuerySet(
        traffic=np.array([query.traffic for query in chosen]),
        rows=tuple(f"{pinned.files[query.place[0]].path} row {query.place[1]}" for query in chosen),
        payload=payload,
        vectors=vectors,
        unusable=unusable,
        taken=tuple(query.taken for query in chosen),
        all_traffic=asked.all_traffic,
    )
