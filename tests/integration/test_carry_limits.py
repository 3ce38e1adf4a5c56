"""Where a new plan must not trust, or cannot find, what plans before it have left."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import synthetic
from tests.living import Living, gallery_of, without


@pytest.fixture
def living(tmp_path: Path) -> Living:
    return gallery_of(tmp_path, rows=150)


def test_another_payload_column_is_another_payload_also_of_files_that_are_as_before(living: Living) -> None:
    living.run()
    for name, items in living.files.items():
        path = living.folder / "gallery" / name
        other = pa.array([np.roll(item.x, 3) for item in items.values()])
        pq.write_table(pq.read_table(path).append_column("y", other), path, row_group_size=64)
    living.run()
    embedded = len(living.embedded())
    living.due |= {synthetic.marker(np.roll(item.x, 3)[0]) for item in living.items.values()}

    class Other(synthetic.StubEmbedder):
        def __call__(self, batch: dict, role: str) -> np.ndarray:
            return super().__call__({"x": batch["y"]}, role)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "StubEmbedder", Other)
        living.sections["gallery"] = {"payload_columns": ["y"]}
        result = living.run()
    assert len(living.embedded()) == embedded + 450
    assert result.state.versions[-1].stale_rows == 0


def test_whoever_comes_after_the_last_key_is_embedded_as_well(living: Living) -> None:
    """Old vectors change, and with them priorities: none may fall behind the end of the last wave."""
    living.run(until="wave:1")
    name = "part-001.parquet"
    living.write(name, {key: living.changed(item, "old") for key, item in living.files[name].items()})
    result = living.run()
    assert result.state.versions[-1].stale_rows == 0
    assert result.state.versions[-1].fraction == 1


@pytest.mark.parametrize("lost", ["vectors", "pairs"])
def test_where_receipts_are_gone_the_segments_say_what_is_new(living: Living, lost: str) -> None:
    living.run(until="wave:1")
    root = Path(living.root)
    if lost == "vectors":
        [folder] = (root / "vectors").glob("*/wave=01")
        shutil.rmtree(folder)
    else:
        for path in (root / "pairs").glob("*/c*.receipt.json"):
            path.unlink()
    living.write("part-009.parquet", {9000 + i: living.new_item() for i in range(10)})
    result = living.run()
    living.check_all_new(result.state.versions[-1])
    living.verify()


def test_another_objective_on_a_finished_root_is_measured_on_what_is_new(living: Living) -> None:
    living.run()
    living.sections["objective"] = {"relevance": "new_model", "metric": "recall@10"}
    living.sections["gallery"] = {"label_column": None}
    result = living.run()
    assert result.state.versions[-1].fraction == 1
    assert result.state.versions[-1].verdict.publish, result.state.versions[-1].verdict.reason


@pytest.mark.parametrize("until", [None, "plan", "version0"])
def test_pairs_of_a_start_that_was_killed_before_its_plan_are_not_embedded_again(
    living: Living, until: str | None
) -> None:
    if until is not None:
        living.run(until=until)
        living.sections["seed"] = 1  # an order of its own, with other pairs
    assert living.run_killed(units=2)
    first, *_ = sorted(living.files)
    living.write(first, without(living.files[first], list(living.files[first])[:20]))
    living.sections["seed"] = 2
    living.check_all_new(living.finish().state.versions[-1])
    living.check_embedded_once()
