"""Whatever the Arrow types, row groups and order of the files: what a run reads equals a plain dict of rows.

Or a typed error names the file and the column. `pytest -m slow` draws ten times as many galleries.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfill_ray.config import GalleryConfig, ResourcesConfig
from fastfill_ray.errors import InputError
from fastfill_ray.inputs.gallery import Source, item_weights, mapped_vectors
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.labels import labels_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import Span, read_spans
from fastfill_ray.inputs.payload import payload_values
from fastfill_ray.stages.snapshot import inspect_gallery

DIM = 4
STORE = InputStore()
Encode = Callable[[Sequence[Any]], pa.Array]


def typed(kind: pa.DataType) -> Encode:
    return lambda values: pa.array(values, kind)


def as_dictionary(kind: pa.DataType) -> Encode:
    return lambda values: pa.array(values, kind).dictionary_encode()


def as_bytes(kind: pa.DataType, dtype: str) -> Encode:
    return lambda values: pa.array([None if v is None else np.array(v, dtype).tobytes() for v in values], kind)


def as_tensors(values: Sequence[Any]) -> pa.Array:
    """Null tensors have a storage of null lists."""
    kind = pa.fixed_shape_tensor(pa.float32(), [DIM])
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


# What each kind of column can be written as, value for value.
INT_IDS: list[Encode] = [
    *map(typed, (pa.int16(), pa.int32(), pa.int64(), pa.uint16(), pa.uint32(), pa.uint64())),
    as_dictionary(pa.int64()),
    lambda values: pa.array([Decimal(value) for value in values], pa.decimal128(20, 0)),
]
TEXTS: list[Encode] = [
    *map(typed, (pa.string(), pa.large_string(), pa.string_view())),
    as_dictionary(pa.string()),
    lambda values: pa.array([None if v is None else v.encode() for v in values], pa.binary()),
]
UUIDS: list[Encode] = [
    typed(pa.string()),
    lambda values: pa.array([uuid.UUID(value).bytes for value in values], pa.binary(16)),
    lambda values: pa.array([uuid.UUID(value).bytes for value in values], pa.uuid()),
]
VECTORS: list[Encode] = [
    *(typed(pa.list_(kind)) for kind in (pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64())),
    typed(pa.large_list(pa.float32())),
    typed(pa.list_(pa.float32(), DIM)),
    typed(pa.list_(pa.field("element", pa.float64(), nullable=False))),
    as_bytes(pa.binary(4 * DIM), "<f4"),
    as_bytes(pa.binary(), "<f4"),
    as_tensors,
]
NUMBERS: list[Encode] = [
    *map(typed, (pa.int8(), pa.int64(), pa.float32(), pa.float64())),
    lambda values: pa.array([None if v is None else Decimal(v) for v in values], pa.decimal128(10, 2)),
]
LISTS: list[Encode] = [typed(pa.list_(pa.string())), typed(pa.large_list(pa.large_string()))]

WHOLE = st.integers(-7, 7)  # exact in every type
VECTOR = st.lists(WHOLE.filter(bool), min_size=DIM, max_size=DIM)
WORD = st.text(st.characters(codec="utf-8"), max_size=6)


@st.composite
def galleries(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[pa.Table], list[int]]:
    """Rows, the files that hold them in this order, and their rows per row group."""
    ids, encode_ids = draw(
        st.sampled_from(
            [
                (st.integers(0, 2**15 - 1), INT_IDS),
                (st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), TEXTS),
                (st.uuids().map(str), UUIDS),
            ]
        )
    )
    labels, encode_labels = draw(
        st.sampled_from(
            [
                (st.none() | WORD, TEXTS),
                (st.none() | WHOLE, NUMBERS),
                (st.none() | st.lists(WORD, min_size=1, max_size=3, unique=True), LISTS),
            ]
        )
    )
    columns = {
        "old": (st.none() | VECTOR, VECTORS),
        "label": (labels, encode_labels),
        "weight": (st.integers(0, 9), NUMBERS),
        "text": (st.none() | WORD, TEXTS[:-1]),
    }
    keys = draw(st.lists(ids, min_size=1, max_size=24, unique=True))
    rows = [{"id": key, **{name: draw(values) for name, (values, _) in columns.items()}} for key in keys]
    rows[0]["old"] = rows[0]["old"] or [1] * DIM
    encodings = {"id": encode_ids, **{name: encode for name, (_, encode) in columns.items()}}
    edges = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    files, groups = [], []
    for start, end in zip([0, *edges], [*edges, len(rows)], strict=True):
        part = rows[start:end]
        arrays: dict[str, pa.Array] = {}
        for name, encode in encodings.items():
            values = [row[name] for row in part]
            empty = name in ("old", "label", "text") and all(value is None for value in values)
            if empty and draw(st.booleans()):
                arrays[name] = pa.nulls(len(part))
            else:
                arrays[name] = draw(st.sampled_from(encode))(values)
        if name_lacks := draw(st.booleans()) and all(row["old"] is None for row in part):
            assert name_lacks
            del arrays["old"]
        names = draw(st.permutations(sorted(arrays)))
        files.append(pa.table({name: arrays[name] for name in names}))
        groups.append(draw(st.integers(1, 9)))
    return rows, files, groups


def write(folder: Path, files: Sequence[pa.Table], groups: Sequence[int]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, (table, rows) in enumerate(zip(files, groups, strict=True)):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=rows, store_schema=number % 2 == 0)


CONFIG: dict[str, Any] = {
    "old_vector_column": "old",
    "vector_dtype": "float32",
    "payload_columns": ["text"],
    "label_column": "label",
    "weight_column": "weight",
}


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of the gallery as a run reads them, in the order of the files."""
    config = GalleryConfig(path=str(folder), **CONFIG)
    snapshot = inspect_gallery(STORE, STORE.find(str(folder)), config, ResourcesConfig(chunk_rows=5))
    source = Source(STORE, config, snapshot.id_type, snapshot.old_dim, "ip")
    spans = [Span(snapshot.gallery.files[chunk.file], chunk.start, chunk.rows) for chunk in snapshot.chunks]
    rows: list[dict[str, Any]] = []
    for span, table in zip(spans, read_spans(STORE, spans, ["id", "old", "label", "weight", "text"]), strict=True):
        ids = read_ids(table, "id", snapshot.id_type, path=span.file.path, start=span.start).tolist()
        old, _, unusable = mapped_vectors(table, source)
        assert set(unusable.values()) <= {"null_vector"}
        texts, unreadable = payload_values(table.column("text"), table.schema.field("text"))
        assert not unreadable
        labels = labels_of(table.column("label")).tolist()
        weights = item_weights(table, source, span)
        assert weights is not None
        for row in range(table.num_rows):
            rows.append(
                {
                    "id": ids[row],
                    "old": None if row in unusable else old[row].tolist(),
                    "label": list(labels[row]) if isinstance(labels[row], tuple) else labels[row],
                    "weight": float(weights[row]),
                    "text": texts[row],
                }
            )
    return rows


def check(gallery: tuple[list[dict[str, Any]], list[pa.Table], list[int]], folder: Path) -> None:
    rows, files, groups = gallery
    write(folder, files, groups)
    assert read(folder) == rows


@given(galleries())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_read_equals_the_rows_that_were_written(tmp_path_factory: pytest.TempPathFactory, gallery: Any) -> None:
    check(gallery, tmp_path_factory.getbasetemp() / "any-schema")


@pytest.mark.slow
@given(galleries())
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_read_equals_the_rows_that_were_written_a_thousand_times(
    tmp_path_factory: pytest.TempPathFactory, gallery: Any
) -> None:
    check(gallery, tmp_path_factory.getbasetemp() / "any-schema-slow")


WRONG: dict[str, list[Encode]] = {
    "id": [lambda v: pa.array([0.5] * len(v)), lambda v: pa.array([True] * len(v))],
    "old": [lambda v: pa.array(["x"] * len(v)), lambda v: pa.array([1.0] * len(v))],
    "label": [lambda v: pa.array([{"a": 1}] * len(v)), lambda v: pa.array([0] * len(v), pa.timestamp("us"))],
    "weight": [lambda v: pa.array(["heavy"] * len(v)), lambda v: pa.array([True] * len(v))],
}


@given(galleries(), st.sampled_from(sorted(WRONG)), st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_column_of_another_kind_is_refused_with_its_file(
    tmp_path_factory: pytest.TempPathFactory, gallery: Any, column: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-schema-wrong"
    _, files, groups = gallery
    number = data.draw(st.sampled_from([i for i, table in enumerate(files) if table.num_rows]))
    wrong = data.draw(st.sampled_from(WRONG[column]))(range(files[number].num_rows))
    kept = files[number].drop_columns([column]) if column in files[number].column_names else files[number]
    files[number] = kept.append_column(column, wrong)
    write(folder, files, groups)
    with pytest.raises(InputError, match=rf"{number}\.parquet: .*{column}"):
        read(folder)
