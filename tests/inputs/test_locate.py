"""The user's own files: found, pinned, and read again from what the pin says."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.storage.s3 import s3_filesystem

NAMES = ["b.parquet", "a.parquet", "year=2020/c.parquet", "_SUCCESS", "notes.txt", ".d.parquet", "_tmp/e.parquet"]
WANTED = ["a.parquet", "b.parquet", "year=2020/c.parquet"]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, InputStore]:
    """A folder with NAMES in it, each a Parquet file of one row, and the store that reads it."""
    endpoint = None if request.param == "local" else request.getfixturevalue("moto_endpoint")
    for name in NAMES:
        (tmp_path / "gallery" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"name": [name]}), tmp_path / "gallery" / name)
    if endpoint is None:
        return str(tmp_path / "gallery"), InputStore()
    bucket = request.getfixturevalue("bucket")
    s3_filesystem(endpoint).put(f"{tmp_path}/gallery/", f"{bucket}/gallery/", recursive=True)
    return f"s3://{bucket}/gallery", InputStore(endpoint)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_its_parquet_files_sorted_without_hidden_ones(place: tuple[str, InputStore], slash: str) -> None:
    folder, store = place
    found = store.find(folder + slash)
    assert [file.path for file in found] == [f"{folder}/{name}" for name in WANTED]


def test_a_pinned_path_is_opened_and_pinned_again_the_same(place: tuple[str, InputStore]) -> None:
    folder, store = place
    for file, name in zip(store.find(folder), WANTED, strict=True):
        assert store.find(file.path) == [file]
        with store.open(file.path) as handle:
            assert pq.read_table(handle)["name"].to_pylist() == [name]
        filesystem, path = store.filesystem(file.path)
        assert filesystem.info(path)["size"] == file.size


def test_a_file_that_changes_at_the_same_size_has_another_tag(place: tuple[str, InputStore]) -> None:
    folder, store = place
    path = f"{folder}/a.parquet"
    before = store.find(path)[0]
    filesystem, inner = store.filesystem(path)
    filesystem.pipe_file(inner, filesystem.cat_file(inner)[::-1])
    if store.s3_endpoint is None:
        os.utime(inner, ns=(0, int(before.tag) + 1))
    after = store.find(path)[0]
    assert after.size == before.size
    assert after.tag != before.tag


def test_nothing_there_is_an_input_error_naming_the_path(place: tuple[str, InputStore], tmp_path: Path) -> None:
    folder, store = place
    with pytest.raises(InputError, match="gallery-2' does not exist"):
        store.find(f"{folder}-2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty.* no \*\.parquet"):
        InputStore().find(str(tmp_path / "empty"))


def test_another_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="hdfs"):
        InputStore().open("hdfs://host/gallery")


def test_a_relative_path_becomes_absolute_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert InputStore().find("a.parquet")[0].path == InputStore().find(f"file://{tmp_path}/a.parquet")[0].path
    assert InputStore().find("a.parquet")[0].path == str(tmp_path / "a.parquet")


def test_a_store_travels_to_workers_with_its_endpoint_and_nothing_else() -> None:
    store = InputStore("http://127.0.0.1:9")
    store.filesystem("s3://bucket/gallery")  # connected or not: the copy is the same
    assert pickle.loads(pickle.dumps(store)) == store
    assert vars(pickle.loads(pickle.dumps(store))) == {"s3_endpoint": "http://127.0.0.1:9"}


def test_an_endpoint_with_credentials_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds credentials"):
        InputStore("http://user:canary@127.0.0.1:9").find("s3://bucket/gallery")
