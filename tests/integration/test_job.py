"""The job as a cluster runs it, from nothing to the last version."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastfill_ray.report.prediction import promises
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


def test_a_submitted_job_with_a_query_log_is_measured_inside_what_was_predicted(tmp_path: Path) -> None:
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery")
    log = synthetic.write_log(tmp_path / "log", ids, x)
    config = tmp_path / "config.yaml"
    values = synthetic.config(
        tmp_path,
        queries={"log_path": str(log), "payload_columns": ["x"]},
        old_model={"embedder": "tests.synthetic:OldEmbedder"},
        policy={"name": "auto"},
        pairs={"count": 240},
        waves=[0.5, 0.7, 1.0],
    )
    config.write_text(yaml.safe_dump(values))
    with head(tmp_path) as address:
        submitted = submit(address, config, "--working-dir", ".", cwd=work_folder(tmp_path / "work"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    state = read_state(open_files(str(tmp_path / "out")))
    assert state.finished
    assert state.plan is not None
    assert state.plan.policy in ("demand", "taken")
    made = promises(state)
    assert len(made) == len(state.versions)
    for promise in made:
        measured = promise.measured["gallery"]
        assert promise.prediction.low <= measured.value <= promise.prediction.high
