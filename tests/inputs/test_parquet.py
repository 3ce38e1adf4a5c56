"""The user's own Parquet files: slices equal the plain table, whatever the row groups; what changed is found out."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence
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
from pyarrow.parquet import encryption

from fastfill_ray.errors import InputChanged, InputError, StorageError
from fastfill_ray.inputs import parquet
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import Span, check_pin, read_around, read_footer, read_rows, read_spans
from fastfill_ray.inputs.table import Column, TableInput, dim_of, pin
from fastfill_ray.ordering.partition import cut_chunks
from fastfill_ray.storage import s3_client
from fastfill_ray.storage.s3_client import Limits
from tests.faults import flip_bit
from tests.s3_proxy import S3Proxy

COLUMNS = (Column("gallery.id_column", "id", "id"), Column("gallery.old_vector_column", "embedding", "vector"))
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


def pinned(path: Path, columns: Sequence[Column] = COLUMNS) -> TableInput:
    return pin(STORE, STORE.find(str(path)), columns)


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


@pytest.mark.slow  # ten seconds and gigabytes
def test_a_nested_payload_in_a_row_group_of_more_than_2_gib_is_read_row_by_row(folder: Path) -> None:
    size = 256 << 20
    one = pa.StructArray.from_arrays([pa.array([b"x" * size]), pa.array(["a.png"])], names=["bytes", "path"])
    plain = pa.table({"id": range(10), "image": pa.chunked_array([one] * 10)})
    pq.write_table(plain, folder / "a.parquet", row_group_size=10, compression="zstd")
    del plain, one
    assert pq.read_metadata(folder / "a.parquet").row_group(0).total_byte_size > 2 << 30
    file = pinned(folder, (COLUMNS[0], Column("gallery.payload_columns[0]", "image"))).files[0]
    chunks = cut_chunks([(file.row_groups, file.read_bytes)], chunk_rows=2048, chunk_bytes=32 << 20)
    assert [rows for _, _, rows in chunks] == [1] * 10
    spans = [Span(file, start, rows) for _, start, rows in chunks]
    sizes = [len(part.column("image")[0]["bytes"].as_buffer()) for part in read_spans(STORE, spans, ["image"])]
    assert sizes == [size] * 10


def test_a_slice_costs_its_row_groups_up_to_its_end(folder: Path, decoded: list[int]) -> None:
    pq.write_table(table(embedding=vectors([[0.0]] * 12)), folder / "a.parquet", row_group_size=6)
    for start, rows, cost in ((6, 2, 2), (8, 2, 4), (4, 4, 10), (0, 12, 12)):
        decoded.clear()
        read_rows(STORE, pinned(folder).files[0], ["id"], start=start, rows=rows)
        assert sum(decoded) == cost


def test_spans_whose_values_repeat_are_held_by_what_they_are_and_not_by_what_the_file_holds(folder: Path) -> None:
    text = "word " * 400
    pq.write_table(pa.table({"text": [text] * 20_000}), folder / "a.parquet", row_group_size=5_000)
    file = pin(STORE, STORE.find(str(folder)), [Column("payload_columns", "text")]).files[0]
    assert file.read_bytes < 1 << 20
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_spans(STORE, [Span(file, start, 500) for start in range(0, 20_000, 500)], ["text"]):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 24 << 20, "of 40 MB"


@pytest.mark.parametrize("spans_of_a_request", [1, 2, 3])
def test_a_file_that_is_replaced_while_it_is_read_gives_no_row_of_the_other_one(
    folder: Path, spans_of_a_request: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, first in (("a.parquet", 0), ("other", 1000)):
        ids = list(range(first, first + 90))
        pq.write_table(table(ids=ids, embedding=vectors([[0.0]] * 90)), folder / name, row_group_size=30)
    file = pinned(folder / "a.parquet").files[0]
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", spans_of_a_request * 30 * 8)
    parts = read_spans(STORE, [Span(file, start, 30) for start in (0, 30, 60, 60)], ["id"])
    found = next(parts).column("id").to_pylist()
    (folder / "other").replace(folder / "a.parquet")
    for _ in range(spans_of_a_request - 1):  # they had been read, and seen to be of the file, before it was replaced
        found += next(parts).column("id").to_pylist()
    assert found == list(range(30 * spans_of_a_request))
    with pytest.raises(InputChanged, match=r"a\.parquet: changed after planning"):
        next(parts)


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


@given(rows=st.sets(st.integers(0, 199), min_size=1), group_rows=st.integers(1, 90), step=st.integers(1, 60))
@settings(max_examples=40)
def test_sampled_rows_of_a_large_file_are_read_in_steps(
    tmp_path_factory: pytest.TempPathFactory, rows: set[int], group_rows: int, step: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "sampled.parquet"
    pq.write_table(table(embedding=vectors([[0.0]] * 200)), path, row_group_size=group_rows)
    file = pinned(path).files[0]
    wanted = np.array(sorted(rows), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_BUFFER_BYTES", step * file.read_bytes // file.rows)
        found = list(read_around(STORE, file, wanted, ["id"]))
    assert [row for _, part, places in found for row in part.column("id").take(places).to_pylist()] == wanted.tolist()
    assert all(part.column("id").to_pylist()[0] == start for start, part, _ in found)
    assert max(part.num_rows for _, part, _ in found) <= step


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
    found = pin(store, store.find(f"s3://{bucket}/gallery"), COLUMNS)
    file = found.files[0]
    assert file.path == f"s3://{bucket}/gallery/a.parquet"
    assert dim_of(store, found, COLUMNS[1]) == 3
    rows = read_rows(store, file, ["id"], start=1, rows=2)
    assert rows.column("id").to_pylist() == [6, 7]
    upload([5, 6, 7, 9])  # of the same size
    with pytest.raises(InputChanged, match="changed after planning"):
        read_rows(store, file, ["id"])
    client.delete_object(Bucket=bucket, Key="gallery/a.parquet")
    with pytest.raises(InputChanged, match="vanished after planning"):
        read_rows(store, file, ["id"])


@pytest.mark.slow  # seconds of silence
def test_a_gallery_on_s3_is_read_through_faults_and_a_store_that_stays_silent_is_named(
    folder: Path, bucket: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(), folder / "a.parquet")
    monkeypatch.setattr(s3_client, "LIMITS", Limits(request_s=0.3))
    with S3Proxy(moto_endpoint) as proxy:
        client, store = boto3.client("s3", endpoint_url=moto_endpoint), InputStore(proxy.endpoint)
        client.upload_file(str(folder / "a.parquet"), bucket, "gallery/a.parquet")
        found = pin(store, store.find(f"s3://{bucket}/gallery"), COLUMNS)
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


class PlainKeys(encryption.KmsClient):  # type: ignore[misc]
    """Keys that are wrapped by nothing."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain_footer", [True, False])
@pytest.mark.parametrize("columns", [2, 2000], ids=["a short footer", "a long footer"])
def test_encrypted_columns_are_refused_by_the_files_name(tmp_path: Path, plain_footer: bool, columns: int) -> None:
    """Arrow would end the process when asked about such a column; without encryption the same footers are read."""
    table = pa.table({f"c{i}": [1, 2] for i in range(columns)})
    pq.write_table(table, tmp_path / "plain.parquet")
    properties = encryption.CryptoFactory(lambda _: PlainKeys()).file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(footer_key="f", column_keys={"k": ["c0"]}, plaintext_footer=plain_footer),
    )
    with pq.ParquetWriter(tmp_path / "secret.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    secret, plain = str(tmp_path / "secret.parquet"), str(tmp_path / "plain.parquet")
    footer = read_footer(InputStore(), InputStore().find(plain)[0])
    assert footer.metadata.equals(pq.read_metadata(plain))
    with pytest.raises(InputError, match=r"secret\.parquet: .*encrypted"):
        pin(InputStore(), InputStore().find(secret), [Column("gallery.id_column", "c0", "id")])
