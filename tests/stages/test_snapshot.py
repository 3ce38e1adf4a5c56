"""What the footers of a gallery say: the line at the start, and what its stages are called by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.config import load_config, plan_settings
from fastfill_ray.errors import ConfigError, InputError
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


def with_column(path: Path, name: str, values: pa.Array) -> None:
    pq.write_table(pq.read_table(path).append_column(name, values), path)


def test_a_version_column_is_looked_for_in_every_file_and_must_hold_single_values(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60, shards=2)
    files = [tmp_path / "gallery" / f"part-00{i}.parquet" for i in range(2)]
    with pytest.raises(ConfigError, match=r"gallery\.version_column: column 'at' is not in .*; found id, x, label"):
        inspected(tmp_path, version_column="at")
    with_column(files[0], "at", pa.array(range(30)))
    with pytest.raises(
        InputError, match=r"part-001\.parquet: column 'at' \(gallery\.version_column\) is missing, but other files"
    ):
        inspected(tmp_path, version_column="at")
    with_column(files[1], "at", pa.array(["a"] * 30))  # of another kind: digests of it differ, no more
    assert inspected(tmp_path, version_column="at").rows == 60
    assert inspected(tmp_path, version_column="label").rows == 60
    for name, values in (("list", [[1]] * 30), ("struct", [{"a": 1}] * 30)):
        for path in files:
            with_column(path, name, pa.array(values))
        with pytest.raises(InputError, match=rf"part-000\.parquet: column '{name}' is {name}<.*a version is a single"):
            inspected(tmp_path, version_column=name)
    with pytest.raises(InputError, match=r"column 'embedding' is list<.*a version is a single value"):
        inspected(tmp_path, version_column="embedding")


def test_a_version_may_stand_in_the_folders_name(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "flat", rows=60, shards=2)
    for number in range(2):
        (tmp_path / "gallery" / f"day={number}").mkdir(parents=True)
        (tmp_path / "flat" / f"part-00{number}.parquet").rename(tmp_path / "gallery" / f"day={number}" / "a.parquet")
    found = inspected(tmp_path, version_column="day")
    assert [file.constants for file in found.gallery.files] == [(("day", 0),), (("day", 1),)]


def test_a_version_column_that_is_not_configured_changes_no_fingerprint(tmp_path: Path) -> None:
    config = load_config(synthetic.config(tmp_path))
    synthetic.write_gallery(tmp_path / "gallery", rows=60)
    assert inspected(tmp_path).fingerprint == inspected(tmp_path, version_column=None).fingerprint
    assert "version_column" not in plan_settings(config, exclude_defaults=True)["gallery"]
    dated = load_config(synthetic.config(tmp_path, gallery={"version_column": "label"}))
    assert plan_settings(dated, exclude_defaults=True) != plan_settings(config, exclude_defaults=True)
