"""Rows of several units as batches of one model: sorted by length, so that little is padded; results in order.

Legend: n rows of a table, dim components per vector.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.embedders.protocol import MAX_REASON_CHARS, Embedder, Role, embed_rows, may_pass
from fastfill_ray.inputs.payload import payload_values
from fastfill_ray.sanitize import one_line
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
    rows = _longest_first(table, payload)
    for delay_s in (0.0, *retry_delays_s):
        if len(rows) == 0:
            break
        time.sleep(delay_s)
        for first in range(0, len(rows), space.batch_size):
            part = rows[first : first + space.batch_size]
            for row in part.tolist():
                unusable.pop(row, None)
            batch, unreadable = _read_payload(table, payload, part)
            unusable |= unreadable
            part = part[[row not in unreadable for row in part.tolist()]]
            if len(part) == 0:
                continue
            found, faults = embed_rows(model, batch, role, space.dim, metric=space.metric)
            vectors[part] = found
            unusable |= {int(part[row]): reason for row, reason in faults.items()}
        rows = rows[[may_pass(unusable.get(row, "")) for row in rows.tolist()]]
    return vectors, unusable


def _longest_first(table: pa.Table, payload: Sequence[str]) -> I64:
    """All rows (n,) by the bytes of their texts: a batch is padded to its longest text. Without texts, as they are."""
    lengths = np.zeros(table.num_rows, np.int64)
    for name in payload:
        column = table.column(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lengths += pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
    return np.argsort(-lengths, kind="stable")


def _read_payload(table: pa.Table, names: Sequence[str], rows: I64) -> tuple[dict[str, list[object]], dict[int, str]]:
    """The payload columns of those of `rows` that can be read, as the embedder takes them, and {row: reason} of the
    others.
    """
    columns = {name: payload_values(table.column(name), table.schema.field(name), rows) for name in names}
    reasons: dict[int, str] = {}
    for name, (_, faults) in columns.items():
        for place, fault in faults.items():
            reasons.setdefault(int(rows[place]), one_line(f"payload column {name!r}: {fault}", MAX_REASON_CHARS))
    kept = [place for place, row in enumerate(rows.tolist()) if row not in reasons]
    return {name: [values[place] for place in kept] for name, (values, _) in columns.items()}, reasons
