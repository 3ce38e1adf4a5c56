"""Rows of several units as batches of one model: sorted by length, so that little is padded; results in order.

Legend: n rows of a table, dim components per vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa

from fastfill_ray.embedders.prepared import PreparedEmbedder
from fastfill_ray.embedders.protocol import Embedder, Role, embed_rows, may_pass
from fastfill_ray.stages.prepare import is_prepared, longest_first, read_payload, read_prepared
from fastfill_ray.types import F32, I64


@dataclass(frozen=True)
class Space:
    """A model as the pool builds it: ``module:Class``, its kwargs, what it must return."""

    embedder: str
    kwargs: dict[str, Any] = field(repr=False)  # Ray Data shows the arguments of its operators
    dim: int
    metric: str
    batch_size: int


def embed_tables(
    tables: Sequence[pa.Table],
    payload: Sequence[str],
    space: Space,
    role: Role,
    model: Embedder,
    *,
    retry_delays_s: Sequence[float] = (),
) -> list[tuple[F32, dict[int, str]]]:
    """Per table its vectors (n, dim) and {row: reason} of those that have none; see ``embed_rows``.

    The rows of all tables share batches, longest texts first. Rows whose call raised are embedded again, all after one
    wait. A row whose payload cannot be read is not shown to the embedder, and has that for its reason.

    Args:
        tables: as they were read, or prepared; see ``prepare_table``.
        payload: the columns that the embedder reads.
    """
    together: list[list[int]] = []  # tables of one schema: what it says of a column says how to read it
    for number, table in enumerate(tables):
        group = next((each for each in together if tables[each[0]].schema.equals(table.schema, True)), None)
        if group is None:
            together.append([number])
        else:
            group.append(number)
    embedded: dict[int, tuple[F32, dict[int, str]]] = {}
    for group in together:
        whole = pa.concat_tables([tables[number] for number in group])
        vectors, unusable = _embed_table(whole, payload, space, role, model, retry_delays_s)
        start = 0
        for number in group:
            end = start + tables[number].num_rows
            reasons = {row - start: reason for row, reason in unusable.items() if start <= row < end}
            embedded[number] = vectors[start:end], reasons
            start = end
    return [embedded[number] for number in range(len(tables))]


def _embed_table(
    table: pa.Table, payload: Sequence[str], space: Space, role: Role, model: Embedder, retry_delays_s: Sequence[float]
) -> tuple[F32, dict[int, str]]:
    vectors = np.zeros((table.num_rows, space.dim), np.float32)
    unusable: dict[int, str] = {}
    for rows, read, call in _ways(table, payload, model):
        for delay_s in (0.0, *retry_delays_s):
            if len(rows) == 0:
                break
            time.sleep(delay_s)
            for first in range(0, len(rows), space.batch_size):
                part = rows[first : first + space.batch_size]
                for row in part.tolist():
                    unusable.pop(row, None)
                batch, unreadable = read(part)
                unusable |= unreadable
                part = part[[row not in unreadable for row in part.tolist()]]
                if len(part) == 0:
                    continue
                found, faults = embed_rows(call, batch, role, space.dim, metric=space.metric)
                vectors[part] = found
                unusable |= {int(part[row]): reason for row, reason in faults.items()}
            rows = rows[[may_pass(unusable.get(row, "")) for row in rows.tolist()]]
    return vectors, unusable


_Way: TypeAlias = tuple[I64, Callable[[I64], tuple[dict[str, Any], dict[int, str]]], Embedder]
"""Rows in the order in which they are embedded; what reads a batch, with reasons where it cannot; what embeds it."""


def _ways(table: pa.Table, payload: Sequence[str], model: Embedder) -> Iterator[_Way]:
    rows, prepared = longest_first(table, payload), is_prepared(table)
    if prepared.any():
        of_prepared: Any = cast(PreparedEmbedder, model).embed_prepared
        yield rows[prepared[rows]], lambda part: (read_prepared(table, part), {}), of_prepared
    yield rows[~prepared[rows]], partial(read_payload, table, payload), model
