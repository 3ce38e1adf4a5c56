"""The level that an export keeps of a real root: as high as its scores are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import fastfill_ray as ff
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import RefusedError
from fastfill_ray.export import export_version
from fastfill_ray.stages.export_manifest import ExportRequest
from tests import synthetic
from tests.integration.conftest import Workshop, in_process


def test_the_level_of_a_cosine_is_a_cosine_and_a_folder_with_other_files_is_refused(
    workshop: Workshop, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    in_process(workshop.config(root), until="version0")
    made = export_version(
        str(root), str(tmp_path / "to"), ExportRequest(None, True), engine=InProcessEngine(), stream=io.StringIO()
    )
    # The stub model's vectors are some times longer than 1.
    scores, _ = ff.open_index(str(root)).search(synthetic.new_vectors(workshop.x[:50]), k=10)
    assert made.level is not None
    assert 0 < made.level <= 1
    assert made.level == pytest.approx(float(np.mean(scores[:, -1])), abs=0.2)
    # What is taken away or cut afterwards, the same command makes again.
    files = sorted((tmp_path / "to" / "data").iterdir())
    whole = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(whole[1][:100])
    again = export_version(
        str(root), str(tmp_path / "to"), ExportRequest(None, True), engine=InProcessEngine(), stream=io.StringIO()
    )
    assert [(tmp_path / "to" / file.path).stat().st_size for file in again.files] == [file.size for file in again.files]
    assert again.rows == made.rows
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "part.parquet").write_bytes(b"PAR1")
    with pytest.raises(RefusedError, match=r"holds data/part.parquet, and there is no export.json"):
        export_version(
            str(root),
            str(tmp_path / "other"),
            ExportRequest(None, True),
            engine=InProcessEngine(),
            stream=io.StringIO(),
        )
