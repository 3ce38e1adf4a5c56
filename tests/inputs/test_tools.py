"""Ids, vectors and payloads as other tools write them to Parquet: the values that are read are the ones written."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.kinds import VectorKind, check_payload, id_kind, read_ids, vector_kind, vectors_of
from fastfill_ray.inputs.payload import payload_values

N, DIM = 5, 3
X = np.arange(N * DIM, dtype=np.float32).reshape(N, DIM) - 4
TEXTS = ["a", "é", "c\n", "", "日本"]
UUIDS = [uuid.UUID(int=2**100 * i + i) for i in range(N)]
IMAGES = np.arange(N * 2 * 4, dtype=np.uint8).reshape(N, 2, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


def ids(table: pa.Table, name: str) -> list[Any]:
    kind = id_kind(table.schema.field(name))
    assert kind is not None
    return list(read_ids(table, name, kind).tolist())


def payload(table: pa.Table, name: str) -> list[Any]:
    check_payload(table.schema.field(name))
    values, unreadable = payload_values(table.column(name), table.schema.field(name))
    assert unreadable == {}
    return values


def assert_vectors(table: pa.Table, name: str, kind: VectorKind, stated: str | None = None) -> None:
    """Column `name` holds X, as `kind`."""
    assert vector_kind(table.schema.field(name), stated) == kind
    vectors, unusable = vectors_of(table.column(name), DIM, metric="cosine", kind=kind)
    assert unusable == {}
    np.testing.assert_array_equal(vectors, X)


# pandas


def test_what_pandas_writes_is_read_as_it_was(path: Path) -> None:
    frame = pd.DataFrame(
        {
            "number": range(N),
            "nullable": pd.array(range(N), "Int32"),
            "unsigned": np.arange(N, dtype=np.uint64),
            "object": pd.array(TEXTS, dtype=object),
            "text": pd.array(TEXTS, "string"),
            "arrow": pd.array(TEXTS, pd.ArrowDtype(pa.string())),
            "category": pd.Categorical(["b", "a", "b", "a", "c"]),
            "numbers by category": pd.Categorical([3, 1, 3, 2, 1]),
            "uuid": UUIDS,
            "embedding": list(X),
            "doubles": [row.astype(float) for row in X],
            "int8": [row.astype(np.int8) for row in X],
            "float16": [row.astype(np.float16) for row in X],
            "bytes": [row.astype("<f2").tobytes() for row in X],
        },
        index=[9, 7, 5, 3, 1],
    )
    frame.to_parquet(path)
    table = pq.read_table(path)
    for name in ("number", "nullable", "unsigned"):
        assert ids(table, name) == list(range(N))
    for name in ("object", "text", "arrow"):
        assert ids(table, name) == payload(table, name) == TEXTS
    assert ids(table, "category") == payload(table, "category") == ["b", "a", "b", "a", "c"]
    assert ids(table, "numbers by category") == [3, 1, 3, 2, 1]
    assert ids(table, "uuid") == [str(value) for value in UUIDS]
    assert ids(table, "__index_level_0__") == [9, 7, 5, 3, 1]
    assert_vectors(table, "embedding", VectorKind("float32", None, "list"))
    assert_vectors(table, "doubles", VectorKind("float64", None, "list"))
    assert_vectors(table, "int8", VectorKind("int8", None, "list"))
    assert_vectors(table, "float16", VectorKind("float16", None, "list"))
    assert_vectors(table, "bytes", VectorKind("float16", None, "bytes"), "float16")


def test_a_pandas_column_with_a_hole_is_float_and_no_id(path: Path) -> None:
    pd.DataFrame({"id": [1, 2, None]}).to_parquet(path)
    with pytest.raises(InputError, match=r"id column 'id' is double: .*CAST\(id AS BIGINT\)"):
        id_kind(pq.read_schema(path).field("id"))


def test_an_empty_shard_of_pandas_says_nothing_or_the_same(path: Path) -> None:
    pd.DataFrame({"id": list("ab"), "embedding": [[1.0], [2.0]]}).iloc[:0].to_parquet(path)
    schema = pq.read_schema(path)
    assert id_kind(schema.field("id")) in (None, "string")
    assert vector_kind(schema.field("embedding")) is None


# polars


def test_what_polars_writes_is_read_as_it_was(path: Path) -> None:
    frame = pl.DataFrame(
        {
            "number": pl.Series(range(N), dtype=pl.UInt64),
            "decimal": pl.Series([Decimal(i) for i in range(N)], dtype=pl.Decimal(20, 0)),
            "text": TEXTS,
            "bytes": [text.encode() for text in TEXTS],
            "category": pl.Series(["b", "a", "b", "a", "c"], dtype=pl.Categorical),
            "enum": pl.Series(["b", "a", "b", "a", "c"], dtype=pl.Enum(["a", "b", "c"])),
            "array": pl.Series(X.tolist(), dtype=pl.Array(pl.Float32, DIM)),
            "list": pl.Series(X.tolist(), dtype=pl.List(pl.Float64)),
            "int8": pl.Series(X.astype(int).tolist(), dtype=pl.List(pl.Int8)),
            "nothing": [None] * N,
            "nested": [{"text": text, "tags": [text]} for text in TEXTS],
        }
    )
    frame.write_parquet(path)
    table = pq.read_table(path)
    assert ids(table, "number") == ids(table, "decimal") == list(range(N))
    assert ids(table, "text") == ids(table, "bytes") == payload(table, "text") == TEXTS
    assert ids(table, "category") == ids(table, "enum") == payload(table, "enum") == ["b", "a", "b", "a", "c"]
    assert_vectors(table, "array", VectorKind("float32", DIM, "list"))
    assert_vectors(table, "list", VectorKind("float64", None, "list"))
    assert_vectors(table, "int8", VectorKind("int8", None, "list"))
    assert vector_kind(table.schema.field("nothing")) is None
    assert payload(table, "nested") == [{"text": text, "tags": [text]} for text in TEXTS]


# DuckDB


def test_what_duckdb_writes_is_read_as_it_was(path: Path) -> None:
    vector = "[3 * i - 4, 3 * i - 3, 3 * i - 2]"
    query = f"""
        SELECT i::UBIGINT AS ubigint, i::DECIMAL(18, 0) AS decimal18, i::DECIMAL(38, 0) AS decimal38,
            i::HUGEINT AS huge, ('00000000-0000-0000-0000-00000000000' || i)::UUID AS uuid,
            'é' || i AS text, encode('é' || i) AS blob,
            (CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END)::ENUM('even', 'odd') AS enum,
            (i + 0.25)::DECIMAL(9, 2) AS price, {vector}::FLOAT[3] AS array_, {vector}::FLOAT[] AS list_,
            {vector}::TINYINT[] AS tiny, {{'text': 'é' || i}} AS nested
        FROM range({N}) t(i)
    """
    duckdb.connect().sql(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    table = pq.read_table(path)
    for name in ("ubigint", "decimal18", "decimal38"):
        assert ids(table, name) == list(range(N))
    assert ids(table, "uuid") == [str(uuid.UUID(int=i)) for i in range(N)]
    assert ids(table, "text") == ids(table, "blob") == payload(table, "text") == [f"é{i}" for i in range(N)]
    assert ids(table, "enum") == payload(table, "enum") == ["even", "odd", "even", "odd", "even"]
    # DuckDB writes 128-bit integers as double, which cannot tell large ones apart.
    with pytest.raises(InputError, match=r"id column 'huge' is double: .*CAST\(huge AS BIGINT\)"):
        ids(table, "huge")
    with pytest.raises(InputError, match=r"id column 'price' is decimal128\(9, 2\): .*CAST\(price AS BIGINT\)"):
        ids(table, "price")
    assert_vectors(table, "array_", VectorKind("float32", None, "list"))
    assert_vectors(table, "list_", VectorKind("float32", None, "list"))
    assert_vectors(table, "tiny", VectorKind("int8", None, "list"))
    assert payload(table, "price") == [Decimal(i) + Decimal("0.25") for i in range(N)]
    assert payload(table, "nested") == [{"text": f"é{i}"} for i in range(N)]


# Hugging Face datasets


def test_what_datasets_writes_is_read_as_it_was(path: Path) -> None:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "list": datasets.List(datasets.Value("float32")),
            "fixed": datasets.List(datasets.Value("float32"), length=DIM),
            "large": datasets.LargeList(datasets.Value("float16")),
            "image": datasets.Image(decode=False),
            "pixels": datasets.Array2D((2, 4), "uint8"),
            "row": datasets.Array2D((1, DIM), "float32"),
        }
    )
    images: list[dict[str, Any] | None] = [{"bytes": bytes([i]), "path": f"{i}.png"} for i in range(N)]
    images[1] = {"bytes": None, "path": __file__}  # one that was not embedded into the file
    images[2] = None
    columns = {
        "id": TEXTS,
        "list": X.tolist(),
        "fixed": X.tolist(),
        "large": X.astype(np.float16).tolist(),
        "image": images,
        "pixels": IMAGES.tolist(),
        "row": X[:, None].tolist(),
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path, batch_size=2)
    table = pq.read_table(path)
    assert ids(table, "id") == TEXTS
    assert_vectors(table, "list", VectorKind("float32", None, "list"))
    assert_vectors(table, "fixed", VectorKind("float32", DIM, "list"))
    assert_vectors(table, "large", VectorKind("float16", None, "list"))
    assert payload(table, "image") == images
    np.testing.assert_array_equal(np.array(payload(table, "pixels")), IMAGES)
    with pytest.raises(InputError, match=r"column 'row' .*expected vectors: lists of numbers"):
        vector_kind(table.schema.field("row"))


# Ray, by the classes that its write_parquet uses


def ray_table() -> pa.Table:
    # Not at the top: importing it registers its types in the process.
    arrow = importlib.import_module("ray.data._internal.tensor_extensions.arrow")
    first, second = arrow.ArrowTensorType((DIM,), pa.float32()), arrow.ArrowTensorTypeV2((DIM,), pa.float32())
    return pa.table(
        {
            "v1": pa.ExtensionArray.from_storage(first, pa.array(X.tolist(), first.storage_type)),
            "v2": pa.ExtensionArray.from_storage(second, pa.array(X.tolist(), second.storage_type)),
            "numpy": arrow.ArrowTensorArray.from_numpy(X.astype(np.float16)),
            "images": arrow.ArrowTensorArray.from_numpy(IMAGES),
            "various": arrow.ArrowVariableShapedTensorArray.from_numpy([IMAGES[i, : 1 + i % 2] for i in range(N)]),
        }
    )


def assert_tensors(table: pa.Table) -> None:
    assert_vectors(table, "v1", VectorKind("float32", DIM, "tensor"))
    assert_vectors(table, "v2", VectorKind("float32", DIM, "tensor"))
    assert_vectors(table, "numpy", VectorKind("float16", DIM, "tensor"))
    for name in ("images", "various"):
        with pytest.raises(InputError, match=r"vectors have one axis|expected vectors"):
            vector_kind(table.schema.field(name))
    images = payload(table, "images")
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.stack(images), IMAGES)
    assert [image.tolist() for image in payload(table, "various")] == [
        IMAGES[i, : 1 + i % 2].tolist() for i in range(N)
    ]


def through_ipc(table: pa.Table) -> pa.Table:
    """As a payload travels from a reader to an actor."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def test_tensors_of_ray_are_read_where_ray_is_imported(path: Path) -> None:
    pq.write_table(ray_table(), path)
    table = pq.read_table(path)
    assert isinstance(table.schema.field("v1").type, pa.ExtensionType)
    assert_tensors(table)
    assert_tensors(through_ipc(table))
    assert_tensors(pa.Table.from_batches(pq.ParquetFile(path).iter_batches(2)))


def test_tensors_of_ray_are_read_where_it_is_not_imported(path: Path) -> None:
    pq.write_table(ray_table(), path)
    code = (
        "import sys\n"
        "import pyarrow as pa, pyarrow.parquet as pq\n"
        "from tests.inputs import test_tools as tools\n"
        f"table = pq.read_table({str(path)!r})\n"
        "assert not isinstance(table.schema.field('v1').type, pa.BaseExtensionType)\n"
        "tools.assert_tensors(table)\n"
        "tools.assert_tensors(tools.through_ipc(table))\n"
        "assert 'ray' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


# pyarrow's own


def test_extension_types_of_arrow_are_read_by_their_storage(path: Path) -> None:
    stored = pa.array([value.bytes for value in UUIDS], pa.binary(16))
    table = pa.table(
        {
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), stored),
            "bytes": stored,
            "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(X),
            "images": pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES),
            "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps(text) for text in TEXTS])),
        }
    )
    pq.write_table(table, path)
    for found in (pq.read_table(path), through_ipc(table)):
        assert ids(found, "uuid") == ids(found, "bytes") == [str(value) for value in UUIDS]
        assert_vectors(found, "tensor", VectorKind("float32", DIM, "tensor"))
        np.testing.assert_array_equal(np.stack(payload(found, "images")), IMAGES)
        assert ids(found, "json") == payload(found, "json") == [json.dumps(text) for text in TEXTS]


def test_what_says_what_bytes_are_and_bytes_that_are_no_text_travel_to_the_actor(path: Path) -> None:
    raw = pa.array([b"a", b"caf\xe9", b"c"])
    bad = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    schema = pa.schema([pa.field("vector", pa.binary(6), metadata={"dtype": "float16"}), pa.field("text", pa.string())])
    vectors = pa.array([row.astype("<f2").tobytes() for row in X[:3]], pa.binary(6))
    table = pa.Table.from_arrays([vectors, bad], schema=schema)
    pq.write_table(table, path)
    for found in (pq.read_table(path), through_ipc(table)):
        assert vector_kind(found.schema.field("vector")) == VectorKind("float16", DIM, "bytes")
        values = payload_values(found.column("text"), found.schema.field("text"))
        assert values == (["a", None, "c"], {1: "not UTF-8"})
