"""Items without an old vector are no fault: they are absent until they are embedded, and are embedded first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Version
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import in_process
from tests.segments import segments_in

ROWS, NEW = 900, range(300)  # the first file, so that the first rows say nothing of the dimension


@pytest.mark.parametrize("column", ["null", "missing"])
def test_items_without_an_old_vector_are_embedded_first(tmp_path: Path, column: str) -> None:
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery", rows=ROWS, unusable=dict.fromkeys(NEW))
    if column == "missing":
        path = tmp_path / "gallery" / "part-000.parquet"
        pq.write_table(pq.read_table(path).drop_columns("embedding"), path)
    journal = tmp_path / "journal"
    journal.mkdir()
    (tmp_path / "control.json").write_text(f'{{"journal": "{journal}"}}')
    config = synthetic.config(tmp_path, pairs={"count": 200}, waves=[0.6, 1.0])
    result = in_process(config, until="wave:1")
    first, second = result.state.versions
    pairs = sum(segment.rows for segment in segments_in(tmp_path / "out", first) if segment.state == "new")
    new = set(ids[list(NEW)].tolist())
    assert pairs == 200
    assert first.absent == len(new - held(tmp_path, first)) > 150
    assert first.rows == ROWS - first.absent
    assert new <= held(tmp_path, second), "all of them are in the first wave"
    assert (second.rows, second.absent, second.new_rows) == (ROWS, 0, 540)
    result = in_process(config)
    assert result.finished
    assert [version.rows for version in result.state.versions] == [ROWS - first.absent, ROWS, ROWS]
    embedded = [line for path in journal.iterdir() for line in path.read_text().split()]
    assert sorted(embedded) == sorted(synthetic.marker(value) for value in x[:, 0])
    verify(open_files(str(tmp_path / "out")))
    _, found = ff.open_index(str(tmp_path / "out")).search(synthetic.new_vectors(x[:5]), k=1)
    assert found[:, 0].tolist() == ids[:5].tolist()


def held(root: Path, version: Version) -> set[int]:
    """The ids that a version's segments hold."""
    files = [root / "out" / segment.ids.path for segment in segments_in(root / "out", version)]
    return set(np.concatenate([pq.read_table(path).column("id").to_numpy() for path in files]).tolist())
