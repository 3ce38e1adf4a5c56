"""The user's own files: found, pinned, and read again from what the pin says."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.locate import open_input, stat_input
from fastfill_ray.storage.s3 import s3_filesystem

NAMES = ["b.parquet", "a.parquet", "year=2020/c.parquet", "_SUCCESS", "notes.txt", ".d.parquet", "_tmp/e.parquet"]
WANTED = ["a.parquet", "b.parquet", "year=2020/c.parquet"]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """A folder with NAMES in it, each a Parquet file of one row, and the endpoint it is read with."""
    endpoint = None if request.param == "local" else request.getfixturevalue("moto_endpoint")
    for name in NAMES:
        (tmp_path / "gallery" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"name": [name]}), tmp_path / "gallery" / name)
    if endpoint is None:
        return str(tmp_path / "gallery"), None
    bucket = request.getfixturevalue("bucket")
    s3_filesystem(endpoint).put(f"{tmp_path}/gallery/", f"{bucket}/gallery/", recursive=True)
    return f"s3://{bucket}/gallery", endpoint


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_its_parquet_files_sorted_without_hidden_ones(place: tuple[str, str | None], slash: str) -> None:
    folder, endpoint = place
    found = stat_input(folder + slash, s3_endpoint=endpoint)
    assert [file.path for file in found] == [f"{folder}/{name}" for name in WANTED]


def test_a_pinned_path_is_opened_and_pinned_again_the_same(place: tuple[str, str | None]) -> None:
    folder, endpoint = place
    for file, name in zip(stat_input(folder, s3_endpoint=endpoint), WANTED, strict=True):
        assert stat_input(file.path, s3_endpoint=endpoint) == [file]
        filesystem, path = open_input(file.path, s3_endpoint=endpoint)
        with filesystem.open(path, "rb") as handle:
            assert pq.read_table(handle)["name"].to_pylist() == [name]
        assert filesystem.info(path)["size"] == file.size


def test_a_file_that_changes_at_the_same_size_has_another_tag(place: tuple[str, str | None]) -> None:
    folder, endpoint = place
    path = f"{folder}/a.parquet"
    before = stat_input(path, s3_endpoint=endpoint)[0]
    filesystem, inner = open_input(path, s3_endpoint=endpoint)
    filesystem.pipe_file(inner, filesystem.cat_file(inner)[::-1])
    if endpoint is None:
        os.utime(inner, ns=(0, int(before.tag) + 1))
    after = stat_input(path, s3_endpoint=endpoint)[0]
    assert after.size == before.size
    assert after.tag != before.tag


def test_nothing_there_is_an_input_error_naming_the_path(place: tuple[str, str | None], tmp_path: Path) -> None:
    folder, endpoint = place
    with pytest.raises(InputError, match="gallery-2' does not exist"):
        stat_input(f"{folder}-2", s3_endpoint=endpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty.* no \*\.parquet"):
        stat_input(str(tmp_path / "empty"))


def test_another_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="hdfs"):
        open_input("hdfs://host/gallery")


def test_a_relative_path_becomes_absolute_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert stat_input("a.parquet")[0].path == stat_input(f"file://{tmp_path}/a.parquet")[0].path
    assert stat_input("a.parquet")[0].path == str(tmp_path / "a.parquet")
