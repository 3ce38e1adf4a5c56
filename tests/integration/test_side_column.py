"""A run with side vectors: what the stale segments of version 0 hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from fastfill_ray.alignment.maps import Alignment
from tests import synthetic
from tests.integration.conftest import OTHERS, PAIRS, in_process
from tests.segments import segments_in


def test_stale_items_are_mapped_from_their_old_and_their_side_vectors(tmp_path: Path) -> None:
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery")
    # The four factors that the old model lost. Two rows are unusable: a pair teaches nothing, the other one is absent.
    side = x[:, synthetic.OLD_DIM :].astype(np.float16)
    values: list[Any] = list(side)
    bad_pair, absent = int(PAIRS[3]), int(OTHERS[200])
    values[bad_pair], values[absent] = None, None
    for path, part in zip(sorted((tmp_path / "gallery").iterdir()), np.array_split(np.arange(600), 3), strict=True):
        column = pa.array([values[row] for row in part], pa.list_(pa.float16(), 4))
        pq.write_table(pq.read_table(path).append_column("side", column), path, row_group_size=64)
    config = synthetic.config(tmp_path, gallery={"side_column": "side"}, alignment={"method": "ridge"})
    version = in_process(config, until="version0").state.versions[0]
    assert (version.rows, version.new_rows, version.absent) == (599, 120, 1)

    [info_path] = (tmp_path / "out" / "alignment").rglob("alignment.*.json")
    [weights_path] = (tmp_path / "out" / "alignment").rglob("model.*.safetensors")
    alignment = Alignment.load(weights_path.read_bytes(), json.loads(info_path.read_text()))
    assert alignment.side_dim == 4
    vectors, _ = alignment(synthetic.old_vectors(x), side.astype(np.float32))
    new = synthetic.new_vectors(x)
    assert np.square(vectors - new).mean() < 1e-3 * np.square(new).mean(), "old and side vectors hold all factors"
    vectors[PAIRS] = new[PAIRS]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = new[:20] / np.linalg.norm(new[:20], axis=1, keepdims=True)
    [stale] = {segment.calibration for segment in segments_in(tmp_path / "out", version) if segment.state == "stale"}
    scores = queries @ vectors.T
    scores[:, OTHERS] = stale.scale * scores[:, OTHERS] + stale.offset
    scores[:, absent] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    found, found_ids = ff.open_index(str(tmp_path / "out"), 0).search(new[:20], k=5)
    assert np.allclose(found, np.take_along_axis(scores, order, axis=1), atol=1e-4)
    assert (found_ids == ids[order]).mean() > 0.9, "all but ties"
