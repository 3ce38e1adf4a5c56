"""What a request is refused for before anything starts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import ConfigError
from fastfill_ray.inputs.locate import InputStore, Listing
from fastfill_ray.stages.preflight import check_output, list_inputs


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of input in the home folder, which is the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gallery").mkdir()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "gallery" / "a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.mark.parametrize("written", ["{0}", "file://{0}", "FILE://{0}", "gallery", "~/gallery", "link", "file://{0}/"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_output_inside_an_input_is_refused_however_both_are_written(
    gallery: Path, scheme: str, written: str
) -> None:
    listings = list_inputs(InputStore(), {"gallery.path": f"{scheme}{gallery}"})
    place = written.format(gallery)
    for output in (place, f"{place}/out"):
        with pytest.raises(ConfigError, match=rf"output: {output} lies in gallery\.path {gallery}"):
            check_output(output, listings)
    for output in (f"{place.rstrip('/')}-out", f"{scheme}{gallery.parent}/out"):
        check_output(output, listings)


@pytest.mark.parametrize("output", ["s3://bucket/gallery", "S3://bucket/gallery/", "s3://bucket/gallery/out"])
def test_an_output_inside_an_input_on_s3_is_refused(output: str) -> None:
    listings = {"gallery.path": Listing((), folders=("s3://bucket/gallery",))}
    with pytest.raises(ConfigError, match="lies in"):
        check_output(output, listings)
    check_output(output.replace("gallery", "gallery2"), listings)
