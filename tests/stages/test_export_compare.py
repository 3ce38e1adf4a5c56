"""Ids of what came and of what went, compared part by part: what comes of it is what two sets say."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.log.records import Version
from fastfill_ray.stages import export, export_compare
from fastfill_ray.stages.export_changes import Changes, Held, PortionReader, changes_since
from fastfill_ray.stages.export_compare import compare
from fastfill_ray.stages.export_held import can_be_alike
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.local import LocalFiles
from tests.index.test_reader import Root
from tests.index.test_segment import vectors


def compared(root: Root, target: LocalFiles) -> Changes:
    """From version 0 to version 1."""
    state = read_state(root.files)
    version = state.version(1)
    assert isinstance(version, Version)
    reader = PortionReader(root.files, state.deletions)
    changed = changes_since(reader, state, version, Held(version=0, num_deletions=0))
    alike, put = partial(can_be_alike, by_wave=True), partial(export._put_deleted, target)
    return compare(InProcessEngine(), reader, changed, alike, put, Progress(io.StringIO()))


@pytest.mark.parametrize("id_type", ["int64", "string"])
@pytest.mark.parametrize("part_ids", [7, 1000])
def test_what_came_and_went_is_found_in_however_many_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_type: Literal["int64", "string"], part_ids: int
) -> None:
    monkeypatch.setattr(export_compare, "_PART_IDS", part_ids)
    root, target = Root(tmp_path / "root", id_type=id_type), LocalFiles(str(tmp_path / "to"))

    def ids(first: int, end: int) -> list[int] | list[str]:
        return [f"item {i}" for i in range(first, end)] if id_type == "string" else list(range(first, end))

    stays = root.segment(vectors(20), ids(0, 20))
    before = [root.segment(vectors(30, seed=n), ids(20 + 30 * n, 50 + 30 * n)) for n in range(2)]  # 20 to 79
    after = [root.segment(vectors(25, seed=5), ids(40, 65)), root.segment(vectors(40, seed=6), ids(70, 110))]
    root.commit(stays, *before)
    root.commit(stays, *after)
    found = compared(root, target)
    assert [upsert.portion.segment for upsert in found.upserted] == after
    assert [upsert.portion.rows for upsert in found.upserted] == [25, 40]
    assert [[each.segment for each in upsert.held] for upsert in found.upserted] == [before, before[1:]]
    deleted = [key for file in found.deleted for key in pq.read_table(tmp_path / "to" / file.path)["id"].to_pylist()]
    assert sorted(deleted) == sorted([*ids(20, 40), *ids(65, 70)])
    assert found.deleted_rows == len(deleted)
    assert compared(root, target) == found


def test_nothing_is_compared_where_nothing_changed(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    segment = root.segment(vectors(20), range(20))
    root.commit(segment)
    root.commit(segment)
    assert compared(root, LocalFiles(str(tmp_path / "to"))) == Changes(())
