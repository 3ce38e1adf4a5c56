"""What the footers of a gallery say: the line at the start, and what its stages are called by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.config import load_config
from fastfill_ray.errors import InputError
from fastfill_ray.inputs.gallery import Source, old_vectors
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery
from fastfill_ray.types import fingerprint
from tests import synthetic


def inspected(root: Path, **gallery: Any) -> Snapshot:
    config = load_config(synthetic.config(root, gallery=gallery))
    return inspect_gallery(InputStore(), InputStore().find(config.gallery.path), config.gallery, config.resources)


def as_bytes(path: Path, dtype: str) -> np.ndarray:
    """The gallery file's old vectors rewritten as bytes. Returns them (N, d) in that type."""
    table = pq.read_table(path)
    vectors = np.array(table.column("embedding").to_pylist(), np.float32).astype(np.dtype(dtype).newbyteorder("<"))
    raw = pa.array([row.tobytes() for row in vectors], pa.binary())
    pq.write_table(table.set_column(table.column_names.index("embedding"), "embedding", raw), path)
    return vectors


def test_the_first_line_says_items_files_dim_and_element_type(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=1200)
    assert str(inspected(tmp_path)) == "1,200 items in 3 files; old vectors: 8 x float32 (list)"
    synthetic.write_gallery(tmp_path / "one" / "gallery", rows=60, shards=1)
    as_bytes(tmp_path / "one" / "gallery" / "part-000.parquet", "float16")
    found = inspected(tmp_path / "one", vector_dtype="float16")
    assert str(found) == "60 items in 1 file; old vectors: 8 x float16 (bytes)"


def test_bytes_are_read_as_the_config_states_and_as_nothing_else(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60, shards=1)
    path = tmp_path / "gallery" / "part-000.parquet"
    vectors = as_bytes(path, "float16")
    with pytest.raises(InputError, match=r"part-000\.parquet: column 'embedding' is binary.*Set gallery\.vector_dtype"):
        inspected(tmp_path)
    snapshot = inspected(tmp_path, vector_dtype="float16")
    config = load_config(synthetic.config(tmp_path, gallery={"vector_dtype": "float16"}))
    source = Source(InputStore(), config.gallery, "int64", snapshot.old_dim, "cosine")
    found, unusable = old_vectors(pq.read_table(path), source)
    np.testing.assert_array_equal(found, vectors.astype(np.float32))
    assert unusable == {}
    # The same bytes, read as another type of the same width, are other vectors: nothing of the first may be reused.
    assert inspected(tmp_path, vector_dtype="bfloat16").fingerprint != snapshot.fingerprint


def test_a_column_that_is_read_anyway_is_checked_once_it_is_also_label_group_or_weight(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60, shards=1)
    path = tmp_path / "gallery" / "part-000.parquet"
    table = pq.read_table(path)
    for name in ("one", "two"):
        table = table.append_column(name, pa.array(range(60)))
    pq.write_table(table, path)

    def found(**more: str) -> Snapshot:
        gallery = {"payload_columns": ["x", "one", "two"], "label_column": None, **more}
        config = load_config(synthetic.config(tmp_path, gallery=gallery, objective={"relevance": "new_model"}))
        return inspect_gallery(InputStore(), InputStore().find(config.gallery.path), config.gallery, config.resources)

    plain = found()
    assert plain.fingerprint == fingerprint([plain.gallery.model_dump(mode="json"), "id", "embedding"])
    keys = ("label_column", "group_column", "weight_column")
    named = [found(**{key: name}) for key in keys for name in ("one", "two")]
    assert len({snapshot.fingerprint for snapshot in (plain, *named)}) == 7
