"""Which files a run reads, and what it says of those that it does not; whole runs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.errors import ConfigError
from tests import synthetic
from tests.integration.conftest import Workshop, in_process
from tests.s3_proxy import S3Proxy

ONE_WAVE = {"waves": [1.0], "resources": {"embed_actors": [1, 1], "chunk_rows": 200}}


@pytest.fixture
def gallery(workshop: Workshop, tmp_path: Path) -> Path:
    """The workshop's gallery with names as tools write them, and with what is no data."""
    folder = tmp_path / "gallery"
    shutil.copytree(workshop.folder / "gallery", folder)
    first, *others = sorted(folder.iterdir())
    first.rename(folder / "first.parquet.gzip")
    (tmp_path / "elsewhere").mkdir()
    for file in others:
        file.rename(tmp_path / "elsewhere" / f"{file.name.removesuffix('.parquet')}.PARQUET")
    (folder / "_year=2023").symlink_to(tmp_path / "elsewhere")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "READ\x1bME.md").write_text("no data")
    return folder


def ids_of(path: Path) -> list[Any]:
    """All ids that the published version serves."""
    index = ff.open_index(str(path))
    _, ids = index.search(np.ones((1, synthetic.NEW_DIM), np.float32), k=600)
    return sorted(ids[0].tolist())


def test_a_run_reads_by_content_and_says_what_it_skipped_once(
    gallery: Path, workshop: Workshop, tmp_path: Path
) -> None:
    said = io.StringIO()
    config = workshop.config(tmp_path / "out", gallery={"path": str(gallery)}, **ONE_WAVE)
    result = in_process(config, stream=said)
    assert result.finished
    assert ids_of(tmp_path / "out") == sorted(workshop.ids.tolist())
    number = len(list((tmp_path / "elsewhere").iterdir())) + 1
    line = f'gallery.path: {number} files read, 2 skipped (READ\\x1bME.md: no Parquet; _SUCCESS: begins with "_")'
    assert [each for each in said.getvalue().splitlines() if "skipped" in each] == [line]
    said = io.StringIO()
    assert in_process(config, stream=said).finished
    assert "skipped" not in said.getvalue(), "a start that finds everything done reads nothing"


def test_a_list_of_files_is_the_gallery_in_any_order(workshop: Workshop, tmp_path: Path) -> None:
    files = [str(path) for path in sorted((workshop.folder / "gallery").iterdir())]
    config = workshop.config(tmp_path / "out", gallery={"path": files}, **ONE_WAVE)
    config["queries"]["path"] = [config["queries"]["path"]]
    planned = in_process(config, until="plan")
    config["gallery"]["path"] = files[::-1]
    config["queries"]["path"] = config["queries"]["path"][0]
    result = in_process(config)
    assert result.finished
    assert [plan.plan for plan in result.state.plans] == [plan.plan for plan in planned.state.plans]
    assert ids_of(tmp_path / "out") == sorted(workshop.ids.tolist())
    config["gallery"]["path"] = files[:-1]
    config["output"] = str(tmp_path / "fewer")
    assert in_process(config, until="plan").state.plan.rows == pq.read_table(files[:-1]).num_rows  # type: ignore[union-attr]


def test_a_table_of_a_format_is_refused_by_its_key(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.folder / "gallery", tmp_path / "gallery")
    (tmp_path / "gallery" / "_delta_log").mkdir()
    with pytest.raises(ConfigError, match=r"^gallery\.path: input .* is a Delta table.*file_uris"):
        in_process(workshop.config(tmp_path / "out", gallery={"path": str(tmp_path / "gallery")}))
    config = workshop.config(tmp_path / "out")
    shutil.copytree(workshop.folder / "queries", tmp_path / "queries")
    (tmp_path / "queries" / ".hoodie").mkdir()
    config["queries"]["path"] = str(tmp_path / "queries")
    with pytest.raises(ConfigError, match=r"^queries\.path: input .* is a Hudi table"):
        in_process(config)
    assert not (tmp_path / "out").exists()


def test_an_output_that_a_link_in_the_gallery_leads_to_is_refused(gallery: Path, workshop: Workshop) -> None:
    out = gallery.parent / "elsewhere" / "run"
    config = workshop.config(out, gallery={"path": str(gallery)})
    with pytest.raises(ConfigError, match=r"output: .*elsewhere/run lies in gallery\.path .*elsewhere"):
        in_process(config)
    (gallery.parent / "by-link").symlink_to(gallery)
    with pytest.raises(ConfigError, match=r"by-link/run lies in gallery\.path"):
        in_process(workshop.config(gallery.parent / "by-link" / "run", gallery={"path": str(gallery)}))


@pytest.mark.slow  # tests/inputs/test_locate.py reads a public bucket in the default suite
def test_input_is_read_without_credentials_and_output_written_with_them(
    workshop: Workshop, bucket: str, moto_endpoint: str
) -> None:
    client = boto3.client("s3", endpoint_url=moto_endpoint)
    for file in (workshop.folder / "gallery").iterdir():
        client.upload_file(str(file), bucket, f"gallery/{file.name}", ExtraArgs={"ACL": "public-read"})
    with S3Proxy(moto_endpoint) as proxy:
        config = synthetic.config(
            workshop.folder,
            gallery={"path": f"s3://{bucket}/gallery"},
            output=f"s3://{bucket}/run",
            storage={"s3_endpoint": proxy.endpoint, "anonymous": True},
        )
        assert in_process(config, until="plan").state.plan is not None
        objects = [each for each in proxy.handled if each.path.startswith(f"/{bucket}/")]
        read = {each.signed for each in objects if each.path.startswith(f"/{bucket}/gallery/")}
        written = {each.signed for each in objects if each.path.startswith(f"/{bucket}/run/")}
        assert (read, written) == ({False}, {True})
