"""How workers read the gallery: its old vectors, side vectors, weights, labels and groups.

Legend: N rows, D old dim, S dim of the side vectors. Vectors are float32; rows that cannot be used are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fastfill_ray.config import GalleryConfig
from fastfill_ray.inputs.kinds import naming, read_weights, vector_kind, vectors_of, weight_kind, weights_of
from fastfill_ray.inputs.labels import check_stored, groups_of, labels_of, stored_groups, stored_labels
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import Span
from fastfill_ray.types import F32, IdType, Metric, Objects

# Why a row cannot be used whose old vector is null: it is a new item, and no fault.
NO_VECTOR = "null_vector"


def old_vectors(table: pa.Table, source: Source) -> tuple[np.ndarray, dict[int, str]]:
    """The old vectors (N, D) of gallery rows, and {row: reason} of those that cannot be used; all, without a column."""
    name = source.config.old_vector_column
    if name is None:
        return np.zeros((table.num_rows, source.old_dim), np.float32), dict.fromkeys(range(table.num_rows), NO_VECTOR)
    kind = vector_kind(table.schema.field(name), source.config.vector_dtype)
    return vectors_of(table.column(name), source.old_dim, metric=source.metric, kind=kind)


def mapped_columns(config: GalleryConfig) -> list[str]:
    """The gallery columns that ``mapped_vectors`` reads."""
    return [name for name in (config.old_vector_column, config.side_column) if name is not None]


def mapped_vectors(table: pa.Table, source: Source) -> tuple[np.ndarray, np.ndarray | None, dict[int, str]]:
    """What an alignment reads of gallery rows.

    Returns:
        Old vectors (N, D); side vectors (N, S), None without a side column; {row: reason} of the rows of which either
        cannot be used. A side vector of zeros is as good as any other.
    """
    old, unusable = old_vectors(table, source)
    name = source.config.side_column
    if name is None or source.side_dim is None:
        return old, None, unusable
    kind = vector_kind(table.schema.field(name), source.config.vector_dtype)
    side, bad = vectors_of(table.column(name), source.side_dim, kind=kind)
    reasons = {row: f"gallery.side_column: {reason}" for row, reason in bad.items()}
    return old, side, dict(sorted((reasons | unusable).items()))


def item_weights(table: pa.Table, source: Source, span: Span) -> F32 | None:
    """The weights (N,) float32 of a span's rows; None without a weight column.

    Raises:
        InputError: a weight that is null, not a number, not finite or negative: names the file and the row in it.
    """
    name = source.config.weight_column
    if name is None:
        return None
    return read_weights(table, name, key="gallery.weight_column", path=span.file.path, start=span.start)


def item_priorities(table: pa.Table, source: Source, span: Span) -> F32 | None:
    """The user's own priorities (N,) float32 of a span's rows, NaN for null; None without a priority column.

    Raises:
        InputError: the column of this file holds no numbers.
    """
    name = source.config.priority_column
    if name is None:
        return None
    with naming(span.file.path):
        weight_kind(table.schema.field(name))
    return weights_of(table.column(name))


def item_labels(table: pa.Table, source: Source, span: Span) -> Objects | None:
    """The labels (N,) of a span's rows, see ``labels.labels_of``; None without a label column.

    Raises:
        InputError: one that cannot be read, or not be stored as the others are: names the file and the row in it.
    """
    name = source.config.label_column
    if name is None:
        return None
    where = f"{span.file.path}: gallery.label_column {name!r}"
    labels = labels_of(table.column(name), where=where, start=span.start)
    check_stored(labels, source.label_kind, where=where, start=span.start)
    return labels


def item_groups(table: pa.Table, source: Source, span: Span) -> Objects | None:
    """The groups (N,) of a span's rows as text, see ``labels.groups_of``; None without a group column.

    Raises:
        InputError: one that cannot be read: names the file and the row in it.
    """
    name = source.config.group_column
    if name is None:
        return None
    return groups_of(table.column(name), where=f"{span.file.path}: gallery.group_column {name!r}", start=span.start)


def stored_beside(table: pa.Table, source: Source, span: Span) -> dict[str, pa.ChunkedArray]:
    """What is kept beside the ids of a segment, where it is configured: ``label`` and ``group`` (N,).

    Raises: see ``item_labels`` and ``item_groups``.
    """
    config, beside = source.config, dict[str, pa.ChunkedArray]()
    if (name := config.label_column) is not None:
        where = f"{span.file.path}: gallery.label_column {name!r}"
        beside["label"] = stored_labels(table.column(name), source.label_kind, where=where, start=span.start)
    if (name := config.group_column) is not None:
        where = f"{span.file.path}: gallery.group_column {name!r}"
        beside["group"] = stored_groups(table.column(name), where=where, start=span.start)
    return beside


@dataclass(frozen=True)
class Source:
    """How workers read the gallery. label_kind: of its labels, see ``inputs.labels``."""

    store: InputStore
    config: GalleryConfig
    id_type: IdType
    old_dim: int
    metric: Metric
    side_dim: int | None = None
    label_kind: str | None = None
