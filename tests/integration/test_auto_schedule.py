"""`pairs.count` and `waves` at `auto`: resolved once per order, and no other setting when the gallery has grown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.config import load_config
from fastfill_ray.errors import ConfigError
from fastfill_ray.log.preview import Preview
from fastfill_ray.stages.preview import preview
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import open_files
from tests.living import Living, small_gallery

AUTO: dict[str, Any] = {"pairs": {"count": "auto", "split": [0.48, 0.26, 0.26]}, "waves": "auto"}


def next_start(living: Living) -> Preview:
    config = load_config(living.config())
    return preview(open_files(living.root), config, living.state(), Progress(io.StringIO()))


def test_a_gallery_that_grows_over_two_nights_keeps_its_order(tmp_path: Path) -> None:
    living, said = small_gallery(tmp_path / "here", **AUTO), io.StringIO()
    living.run(until="wave:1", stream=said)
    assert "pairs: 84 of 249 items (auto); waves: 0.5, 1.0 (auto); objective: map by label\n" in said.getvalue()
    with pytest.raises(ConfigError, match=r"--until wave:3: .*K from 1 to 2 is expected; waves end at 0\.5, 1\.0"):
        living.run(until="wave:3")
    [root] = living.state().plans
    assert root.settings["pairs"]["count"] == root.settings["waves"] == "auto"

    for night in (1, 2):  # alone, 400 rows and more would be sampled and waved in another way
        living.write(f"part-9{night}0.parquet", living.new_items(9_000 * night, 300))
        assert next_start(living).action == "follow"
        said = io.StringIO()
        living.run(until="wave:1" if night == 1 else None, stream=said)
        assert "pairs: 84; waves: 0.5, 1.0 (both as planned before); objective" in said.getvalue()
        plan = living.state().plan
        assert plan is not None
        assert (plan.follows, plan.pairs, plan.waves, plan.num_sampled) == (root.plan, root.pairs, root.waves, 84)
        assert plan.thresholds[:-1] == root.thresholds[:-1]
        assert plan.settings["waves"] == "auto"
    living.check_all_new(living.state().versions[-1])
    with pytest.raises(ConfigError, match=r"--until wave:3: .*K from 1 to 2 is expected"):
        living.run(until="wave:3")

    # Written down, what `auto` became is the same order; another number is not.
    living.sections |= {"pairs": {"count": 84, "split": [0.48, 0.26, 0.26]}, "waves": [0.5, 1.0]}
    assert next_start(living).action == "follow"
    living.sections["pairs"] = {"count": 85, "split": [0.48, 0.26, 0.26]}
    assert next_start(living).action == "order anew"


def test_a_plan_that_is_not_finished_goes_on_with_the_pairs_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = small_gallery(tmp_path / "here", **AUTO)
    living.run(until="plan")
    # A later release may make another number of the same rows.
    monkeypatch.setattr("fastfill_ray.ordering.schedule.auto_pairs", lambda rows, split: 100)
    monkeypatch.setattr("fastfill_ray.ordering.schedule.auto_waves", lambda share: (0.9, 1.0))
    living.run(until="version0")
    [plan] = living.state().plans
    assert (plan.num_sampled, plan.waves, living.state().versions[0].new_rows) == (84, (0.5, 1.0), 84)


def test_given_waves_within_the_pairs_are_left_out_and_said(tmp_path: Path) -> None:
    living, said = small_gallery(tmp_path / "here", waves=[0.1, 0.33, 1.0]), io.StringIO()
    living.run(until="plan", stream=said)
    assert "pairs: 80 of 249 items; waves: 1.0 (0.1, 0.33 left out: the pairs alone reach that)" in said.getvalue()
    plan = living.state().plan
    assert plan is not None
    assert (plan.waves, plan.version_waves) == ((1.0,), (0, 1))
