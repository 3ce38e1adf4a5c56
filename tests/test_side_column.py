"""The side column before anything runs: what of it is refused, and which names it changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.gallery import Source, mapped_columns, mapped_vectors
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery
from fastfill_ray.types import fingerprint
from tests import synthetic

SIDE_DIM = 3


def configured(folder: Path, side: str | None) -> BackfillConfig:
    return load_config(synthetic.config(folder, gallery={"side_column": side}))


def inspected(config: BackfillConfig) -> Snapshot:
    return inspect_gallery(InputStore(), InputStore().find(config.gallery.path), config.gallery, config.resources)


def add_column(gallery: Path, make: Callable[[int], pa.Array], field: pa.Field | None = None) -> None:
    for path in sorted(gallery.iterdir()):
        table = pq.read_table(path)
        column = make(table.num_rows)
        pq.write_table(table.append_column(field or pa.field("side", column.type), column), path)


def random_vectors(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, SIDE_DIM)).astype(np.float16)


FORMS: dict[str, tuple[Callable[[int], pa.Array], pa.Field | None]] = {
    "lists of float64": (lambda n: pa.array(random_vectors(n).astype(float).tolist()), None),
    "fixed lists of float16": (lambda n: pa.array(list(random_vectors(n)), pa.list_(pa.float16(), SIDE_DIM)), None),
    "binary of float16": (
        lambda n: pa.array([row.tobytes() for row in random_vectors(n)], pa.binary(2 * SIDE_DIM)),
        pa.field("side", pa.binary(2 * SIDE_DIM), metadata={"dtype": "float16"}),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_side_vectors_come_in_the_formats_of_old_vectors(tmp_path: Path, form: str) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60, shards=1)
    add_column(tmp_path / "gallery", *FORMS[form])
    config = configured(tmp_path, "side")
    snapshot = inspected(config)
    assert (snapshot.old_dim, snapshot.side_dim) == (synthetic.OLD_DIM, SIDE_DIM)
    source = Source(InputStore(), config.gallery, "int64", snapshot.old_dim, "cosine", snapshot.side_dim)
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet", columns=mapped_columns(config.gallery))
    old, side, unusable = mapped_vectors(table, source)
    assert old.shape == (60, synthetic.OLD_DIM)
    assert side is not None
    assert np.array_equal(side, random_vectors(60).astype(np.float32))
    assert not unusable


def test_a_row_is_unusable_if_either_vector_is_and_a_side_vector_may_be_zero(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60, shards=1, unusable={1: None, 2: None})
    values: list[Any] = random_vectors(60).astype(float).tolist()
    values[2], values[3], values[4], values[5] = None, [1.0], [float("inf")] * SIDE_DIM, [0.0] * SIDE_DIM
    add_column(tmp_path / "gallery", lambda n: pa.array(values))
    config = configured(tmp_path, "side")
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet")
    source = Source(InputStore(), config.gallery, "int64", synthetic.OLD_DIM, "cosine", SIDE_DIM)
    assert mapped_vectors(table, source)[2] == {
        1: "null_vector",
        2: "null_vector",
        3: "gallery.side_column: wrong_dim: found 1, expected 3",
        4: "gallery.side_column: non_finite",
    }
    plain = replace(source, config=configured(tmp_path, None).gallery, side_dim=None)
    assert mapped_vectors(table, plain)[1:] == (None, {1: "null_vector", 2: "null_vector"})


def test_a_side_column_that_is_missing_or_holds_no_vectors_is_refused_before_anything_starts(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=60)
    with pytest.raises(ConfigError, match=r"gallery\.side_column: column 'side' is not in .*found id, x, label"):
        ff.run_backfill(configured(tmp_path, "side"))
    with pytest.raises(InputError, match=r"column 'label' is string, expected vectors"):
        ff.run_backfill(configured(tmp_path, "label"))
    assert not (tmp_path / "out").exists()


def test_names_change_only_where_a_side_column_is_set(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    add_column(tmp_path / "gallery", *FORMS["lists of float64"])
    plain, with_side = configured(tmp_path, None), configured(tmp_path, "side")
    before, after = inspected(plain), inspected(with_side)
    # Without side vectors nothing of them is in the names.
    label = ["gallery.label_column", "label"]
    assert before.fingerprint == fingerprint([before.gallery.model_dump(mode="json"), "id", "embedding", label])
    stored = {key: value for key, value in before.model_dump(mode="json").items() if key != "side_dim"}
    assert Snapshot.model_validate(stored) == before
    assert after.fingerprint != before.fingerprint
