"""The job as a cluster runs it, from nothing to the last version."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.cluster import head, submit, work_folder

pytestmark = pytest.mark.slow


def test_a_submitted_job_ends_succeeded(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(synthetic.config(tmp_path, alignment={"method": "ridge"})))
    with head(tmp_path) as address:
        submitted = submit(address, config, "--working-dir", ".", cwd=work_folder(tmp_path / "work"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    state = read_state(open_files(str(tmp_path / "out")))
    assert state.finished
    assert state.versions[-1].new_rows == 600
