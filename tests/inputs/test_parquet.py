"""The user's own Parquet files: what is refused before anything starts, and slices that equal the plain table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, InputChanged, InputError, StorageError
from fastfill_ray.inputs.kinds import read_ids, vector_kind, vectors_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import (
    Span,
    TableInput,
    check_pin,
    id_type_of,
    pin,
    read_rows,
    read_spans,
    vector_dim_of,
)
from fastfill_ray.ordering.partition import cut_chunks
from fastfill_ray.storage import s3_client
from fastfill_ray.storage.s3_client import Limits
from tests.faults import flip_bit
from tests.s3_proxy import S3Proxy

COLUMNS = {"gallery.id_column": "id", "gallery.old_vector_column": "embedding"}
STORE = InputStore()


def vectors(rows: list[list[float] | None] | None = None, *, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([[1.0, 2.0, 3.0]] * 4 if rows is None else rows, kind or pa.list_(pa.float32()))


def table(*, ids: pa.Array | list[Any] | None = None, embedding: pa.Array | None = None, **more: Any) -> pa.Table:
    embedding = vectors() if embedding is None else embedding
    ids = pa.array(range(len(embedding)), pa.int64()) if ids is None else ids
    return pa.table({"id": ids, "embedding": embedding, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gallery").mkdir()
    return tmp_path / "gallery"


def pinned(path: Path, columns: dict[str, str] = COLUMNS) -> TableInput:
    return pin(STORE, str(path), columns)


def dim_of(path: Path) -> int:
    return vector_dim_of(STORE, pinned(path), "embedding", "float32")


# Footers


def test_a_pin_holds_what_the_footers_say(folder: Path) -> None:
    pq.write_table(table(other=["unread" * 50] * 4), folder / "b.parquet", row_group_size=3)
    pq.write_table(table(other=[""] * 4), folder / "a.parquet")
    found = pinned(folder)
    assert [Path(file.path).name for file in found.files] == ["a.parquet", "b.parquet"]
    assert [file.row_groups for file in found.files] == [(4,), (3, 1)]
    assert [file.size for file in found.files] == [Path(file.path).stat().st_size for file in found.files]
    assert (found.rows, found.files[1].rows) == (8, 4)
    assert found.types == {"id": "int64", "embedding": "list<element: float>"}
    assert found == pinned(folder)
    # What chunks are sized by: only the columns that are read, as they are in memory.
    narrow = pinned(folder, {"key": "id"}).files
    assert (
        32
        <= narrow[0].read_bytes
        < found.files[0].read_bytes
        < pinned(folder, COLUMNS | {"x": "other"}).files[1].read_bytes
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,embedding\n1,2\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused_by_name(folder: Path, content: bytes) -> None:
    pq.write_table(table(), folder / "a.parquet")
    (folder / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.parquet: .*(not a readable Parquet file|cannot be read)"):
        pinned(folder)


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01])
def test_a_truncated_file_is_refused_by_name(folder: Path, kept: float) -> None:
    pq.write_table(table(), folder / "a.parquet")
    data = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"b\.parquet: not a readable Parquet file of \d+ bytes.*truncated"):
        pinned(folder)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (table(ids=list("abcd")), "'id' is string, but int64"),
        (table(embedding=vectors(kind=pa.list_(pa.float64()))), "'embedding' is list<element: double>, but list<"),
        (pa.table({"id": [1]}), "'embedding' is missing, but list<"),
    ],
)
def test_a_schema_that_differs_names_both_files_and_the_column(folder: Path, second: pa.Table, what: str) -> None:
    pq.write_table(table(), folder / "a.parquet")
    pq.write_table(second, folder / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: column") as caught:
        pinned(folder)
    assert what in str(caught.value)
    assert "a.parquet. All files must have one schema" in str(caught.value)


def test_columns_that_are_not_read_may_differ(folder: Path) -> None:
    pq.write_table(table(extra=[1] * 4), folder / "a.parquet")
    pq.write_table(table(extra=["x"] * 4, more=[0] * 4), folder / "b.parquet")
    assert pinned(folder).rows == 8


def test_a_missing_column_names_the_config_key_and_what_is_there(folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet")
    with pytest.raises(ConfigError, match=r"gallery\.label_column: column 'label' is not in .*found id, embedding"):
        pinned(folder, COLUMNS | {"gallery.label_column": "label"})


def test_an_extension_type_is_read_by_its_storage(folder: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    pq.write_table(table(embedding=tensors), folder / "a.parquet", row_group_size=1)
    assert dim_of(folder) == 3
    read = read_rows(STORE, pinned(folder).files[0], ["embedding"])
    kind = vector_kind(read.schema.field("embedding"))
    np.testing.assert_array_equal(vectors_of(read.column("embedding"), 3, kind=kind)[0], values)


def test_an_empty_folder_and_a_path_to_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        pinned(folder)
    with pytest.raises(InputError, match="does not exist"):
        pinned(folder / "missing")


# Ids


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([3, 1], pa.uint32()), [3, 1]),
        (pa.array([-(2**63), 2**63 - 1], pa.int64()), [-(2**63), 2**63 - 1]),
        (pa.array(["b", ""], pa.string()), ["b", ""]),
        (pa.array(["é", "b"], pa.large_string()), ["é", "b"]),
    ],
)
def test_ids_come_back_as_given_in_the_runs_type(folder: Path, ids: pa.Array, expected: list[Any]) -> None:
    pq.write_table(table(ids=ids, embedding=vectors([[1.0], [2.0]])), folder / "a.parquet")
    found = pinned(folder)
    kind = id_type_of(found, "id")
    read = read_ids(read_rows(STORE, found.files[0], ["id"]), "id", kind)
    assert read.dtype == (np.int64 if isinstance(expected[0], int) else object)
    assert read.tolist() == expected
    assert kind == ("int64" if isinstance(expected[0], int) else "string")


@pytest.mark.parametrize(
    "ids",
    [
        pa.nulls(4),
        pa.array([1.0, 2.0, 3.0, 4.0]),
        pa.array([True] * 4),
        pa.array([b"x"] * 4),
        pa.array([1, 2, 3, 4], pa.uint64()),
        pa.array([[1]] * 4),
        pa.array([0, 1, 2, 3], pa.timestamp("us")),
    ],
    ids=lambda ids: str(ids.type),
)
def test_an_id_type_that_is_neither_integers_nor_strings_is_refused(folder: Path, ids: pa.Array) -> None:
    pq.write_table(table(ids=ids), folder / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: id column 'id' is .*; int64 or string is expected"):
        id_type_of(pinned(folder), "id")


# Vectors


@pytest.mark.parametrize(
    "embedding",
    [
        vectors(),
        vectors(kind=pa.list_(pa.float16(), 3)),
        vectors(kind=pa.large_list(pa.float64())),
        pa.array([np.ones(3, "<f4").tobytes()] * 4, pa.binary(12)),
        vectors([None, [1.0, 2.0, 3.0], [1.0], [1.0, 2.0, 3.0]]),
    ],
    ids=lambda embedding: str(embedding.type),
)
def test_the_dimension_is_read_from_the_type_or_the_first_rows(folder: Path, embedding: pa.Array) -> None:
    pq.write_table(table(embedding=embedding), folder / "a.parquet")
    pq.write_table(table(embedding=embedding[:0]), folder / "empty.parquet")
    assert dim_of(folder) == 3


def test_lists_of_another_length_in_one_file_name_both_files(folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet")
    pq.write_table(table(embedding=vectors([[1.0, 2.0]])), folder / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: .*vectors of 2 dims, expected 3 as in .*a\.parquet"):
        dim_of(folder)


@pytest.mark.parametrize(
    ("embedding", "why"),
    [
        (vectors([None, None]), "the first 256 rows of column 'embedding' are all null"),
        (vectors([[float("nan")] * 3] * 2), "none of the first 2 rows .*non_finite"),
        (pa.array([1.0, 2.0]), "expected vectors"),
        (pa.array([["a"], ["b"]]), "expected vectors"),
        (pa.array([b"12345"] * 2, pa.binary(5)), "5 bytes are not a whole number of float32 elements"),
    ],
)
def test_a_column_without_usable_vectors_is_refused_by_name(folder: Path, embedding: pa.Array, why: str) -> None:
    pq.write_table(table(embedding=embedding), folder / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet: .*{why}"):
        dim_of(folder)


def test_a_gallery_without_rows_is_refused(folder: Path) -> None:
    pq.write_table(table(embedding=vectors([])), folder / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the gallery has no rows"):
        dim_of(folder)


# Rows


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_slice_across_row_groups_equals_the_plain_table(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(st.integers(0, 40))
    plain = table(embedding=vectors([[float(i), 0.0] for i in range(rows)]), text=[f"row {i}" for i in range(rows)])
    path = tmp_path_factory.getbasetemp() / "slices.parquet"
    path.unlink(missing_ok=True)
    pq.write_table(plain, path, row_group_size=data.draw(st.integers(1, 12)))
    file = pinned(path).files[0]
    start = data.draw(st.integers(0, rows))
    wanted = data.draw(st.integers(0, rows - start))
    found = read_rows(STORE, file, ["text", "id", "text"], start=start, rows=wanted)
    assert found.select(["id", "text"]).to_pylist() == plain.slice(start, wanted).select(["id", "text"]).to_pylist()
    assert read_rows(STORE, file, ["id"], start=start).column("id").to_pylist() == list(range(start, rows))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch that pyarrow decodes."""
    counts: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iterate(self, *arguments, **options):
            counts.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    return counts


@pytest.mark.parametrize("group_rows", [3, 100, 1000, 1024, 5000])
def test_a_pass_decodes_every_row_once_whatever_the_row_groups(
    folder: Path, group_rows: int, decoded: list[int]
) -> None:
    plain = table(embedding=vectors([[float(row)] for row in range(5000)]))
    pq.write_table(plain, folder / "a.parquet", row_group_size=group_rows)
    file = pinned(folder).files[0]
    chunks = cut_chunks([(file.row_groups, file.read_bytes)], chunk_rows=128, chunk_bytes=1 << 30)
    spans = [Span(file, start, rows) for _, start, rows in chunks]
    parts = list(read_spans(STORE, spans, ["id", "embedding"]))
    assert [part.num_rows for part in parts] == [span.rows for span in spans]
    assert pa.concat_tables(parts).to_pydict() == plain.to_pydict()
    assert sum(decoded) == 5000


def test_a_slice_costs_its_row_groups_up_to_its_end(folder: Path, decoded: list[int]) -> None:
    pq.write_table(table(embedding=vectors([[0.0]] * 12)), folder / "a.parquet", row_group_size=6)
    for start, rows, cost in ((6, 2, 2), (8, 2, 4), (4, 4, 10), (0, 12, 12)):
        decoded.clear()
        read_rows(STORE, pinned(folder).files[0], ["id"], start=start, rows=rows)
        assert sum(decoded) == cost


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_spans_of_several_files_in_any_order_equal_the_plain_tables(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("spans")
    for name in "ab":
        rows = data.draw(st.integers(1, 30))
        plain = table(ids=[f"{name}{row}" for row in range(rows)], embedding=vectors([[0.0]] * rows))
        pq.write_table(plain, base / f"{name}.parquet", row_group_size=data.draw(st.integers(1, 12)))
    spans, expected = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        file = data.draw(st.sampled_from(pinned(base).files))
        start = data.draw(st.integers(0, file.rows))
        spans.append(Span(file, start, data.draw(st.integers(0, file.rows - start))))
        name = Path(file.path).stem
        expected.append([f"{name}{row}" for row in range(start, start + spans[-1].rows)])
    found = [part.column("id").to_pylist() for part in read_spans(STORE, spans, ["id"])]
    assert found == expected


def rewrite(path: Path) -> None:
    pq.write_table(table(ids=[9, 9, 9, 9]), path)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: pq.write_table(table(embedding=vectors([[1.0]])), path), "changed after planning: size"),
        (rewrite, "changed after planning"),
        (touch, "changed after planning"),
        (Path.unlink, "vanished after planning"),
    ],
)
def test_a_file_that_changed_or_vanished_after_pinning_is_told(
    folder: Path, change: Callable[[Path], None], why: str
) -> None:
    path = folder / "a.parquet"
    pq.write_table(table(), path)
    os.utime(path, ns=(0, 0))  # so that rewriting it changes its time on any clock
    file = pinned(folder).files[0]
    check_pin(STORE, file)
    change(path)
    for use in (lambda: check_pin(STORE, file), lambda: read_rows(STORE, file, ["id"])):
        with pytest.raises(InputChanged, match=rf"a\.parquet: {why}"):
            use()


def test_a_damaged_page_is_refused_by_name_and_rows(folder: Path) -> None:
    path = folder / "a.parquet"
    pq.write_table(table(), path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = path.read_bytes()
    at = data.index(np.arange(4, dtype="<i8").tobytes())
    path.write_bytes(flip_bit(data, 8 * at + 3))
    with pytest.raises(InputError, match=r"a\.parquet: rows 0\.\.4 cannot be read"):
        read_rows(STORE, pinned(folder).files[0], ["id"])


def test_an_object_on_s3_is_read_by_its_pin_and_a_new_one_under_its_name_is_told(
    folder: Path, bucket: str, moto_endpoint: str
) -> None:
    client, store = boto3.client("s3", endpoint_url=moto_endpoint), InputStore(moto_endpoint)

    def upload(ids: list[int]) -> None:
        pq.write_table(table(ids=ids), folder / "a.parquet")
        client.put_object(Bucket=bucket, Key="gallery/a.parquet", Body=(folder / "a.parquet").read_bytes())

    upload([5, 6, 7, 8])
    found = pin(store, f"s3://{bucket}/gallery", COLUMNS)
    file = found.files[0]
    assert file.path == f"s3://{bucket}/gallery/a.parquet"
    assert vector_dim_of(store, found, "embedding") == 3
    rows = read_rows(store, file, ["id"], start=1, rows=2)
    assert rows.column("id").to_pylist() == [6, 7]
    upload([5, 6, 7, 9])  # of the same size
    with pytest.raises(InputChanged, match="changed after planning"):
        read_rows(store, file, ["id"])
    client.delete_object(Bucket=bucket, Key="gallery/a.parquet")
    with pytest.raises(InputChanged, match="vanished after planning"):
        read_rows(store, file, ["id"])


def test_a_gallery_on_s3_is_read_through_faults_and_a_store_that_stays_silent_is_named(
    folder: Path, bucket: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(), folder / "a.parquet")
    monkeypatch.setattr(s3_client, "LIMITS", Limits(request_s=0.3))
    with S3Proxy(moto_endpoint) as proxy:
        client, store = boto3.client("s3", endpoint_url=moto_endpoint), InputStore(proxy.endpoint)
        client.upload_file(str(folder / "a.parquet"), bucket, "gallery/a.parquet")
        found = pin(store, f"s3://{bucket}/gallery", COLUMNS)
        for method, fault in product(("GET", "HEAD"), ("silence_middle", "reset_middle", "drop_after", "busy")):
            proxy.method, proxy.faults = method, [fault]
            rows = read_rows(store, found.files[0], ["id", "embedding"])
            assert rows.equals(table().select(["id", "embedding"]).cast(rows.schema))
            assert not proxy.faults
        monkeypatch.setattr(s3_client, "LIMITS", Limits(request_s=0.2, call_s=1.0))
        for kind in ("silence_before", "silence_middle"):
            with store.open(found.files[0].path) as handle:
                proxy.reset(1.0, [kind])
                with pytest.raises(StorageError, match=r"gallery/a\.parquet: GetObject did not succeed .*same command"):
                    pq.ParquetFile(handle).read()
            for use in (lambda: read_rows(store, found.files[0], ["id"]), lambda: store.find(f"s3://{bucket}/gallery")):
                with pytest.raises(StorageError, match=r"gallery.*did not succeed .*same command"):
                    use()
            proxy.reset()


def test_a_store_that_does_not_answer_is_not_called_a_changed_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(), folder / "a.parquet")
    file = pinned(folder).files[0]

    def refuse(self: InputStore, path: str) -> None:
        raise InputError(f"input {path!r} cannot be read") from PermissionError("no")

    monkeypatch.setattr(InputStore, "find", refuse)
    with pytest.raises(InputError, match="cannot be read") as caught:
        check_pin(STORE, file)
    assert not isinstance(caught.value, InputChanged)
