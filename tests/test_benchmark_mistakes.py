"""The benchmark of mistakes makes them as a user would, and knows what may not come of one."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from benchmarks.mistakes import Mistake, make, mistakes, run, write_config


def test_each_mistake_is_made_in_a_config_that_is_right_otherwise(tmp_path: Path) -> None:
    names = [mistake.name for mistake in mistakes()]
    assert len(set(names)) == len(names) >= 25
    write_config(tmp_path / "backfill.yaml", tmp_path, {"new_model.dim": 768, "storage.s3_endpoint": None})
    config = yaml.safe_load((tmp_path / "backfill.yaml").read_text())
    assert (config["new_model"]["dim"], config["storage"]) == (768, {"s3_endpoint": None})
    assert config["gallery"]["path"] == f"{tmp_path}/gallery"


def test_the_last_message_counts_and_a_traceback_is_a_fault(tmp_path: Path) -> None:
    said = make(Mistake("unknown key", {"gallery.format": "parquet"}), tmp_path)
    assert (said.code, said.faults) == (2, ())
    assert said.message.startswith("ConfigError: ")
    code, lines = run([sys.executable, "-c", "raise ValueError('bad')"], tmp_path, {})
    assert code == 1
    assert [line for _, line in lines if line.startswith(("Traceback", "ValueError"))] == [
        "Traceback (most recent call last):",
        "ValueError: bad",
    ]
