"""What the gallery says of hits: found by the ledger, read by row groups, bounded, never an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.config import BackfillConfig
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages import lookup
from fastfill_ray.stages.lookup import Payloads, look_up
from fastfill_ray.stages.snapshot import Snapshot
from tests import synthetic
from tests.stages.test_ledger import config, context, snapshot_of


@pytest.fixture(params=["int64", "string"])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A gallery's root, its ids and latent factors: 600 items in 3 files of row groups of 64."""
    ids, x, _ = synthetic.write_gallery(tmp_path / "gallery", ids=request.param)
    return tmp_path, ids, x


def found(root: Path, given: BackfillConfig, snapshot: Snapshot, ids: list[int | str], **limits: int) -> Payloads:
    return look_up(context(root).files, InputStore(), given.gallery, snapshot, ids, **limits)


def test_items_are_found_wherever_they_lie_and_only_their_row_groups_are_read(
    gallery: tuple[Path, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ids, x = gallery
    given = config(root, payload_columns=["x", "label"])
    snapshot = snapshot_of(root, given)
    read: list[int] = []
    read_around = lookup.read_around

    def counted(*arguments: object) -> object:
        for start, table, places in read_around(*arguments):  # type: ignore[arg-type]
            read.append(table.num_rows)
            yield start, table, places

    monkeypatch.setattr(lookup, "read_around", counted)
    rows = [599, 0, 250, 201]
    payloads = found(root, given, snapshot, ids[rows].tolist())
    assert payloads.note == ""
    assert list(map(len, payloads.values.values())) == [2] * 4
    for row in rows:
        assert payloads.values[ids[row].item() if ids.dtype == np.int64 else ids[row]][0] == pytest.approx(
            x[row].tolist()
        )
    assert sum(read) < 100


def test_what_cannot_be_looked_up_is_said_and_the_rest_is_there(
    gallery: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    root, ids, _ = gallery
    given = config(root)
    snapshot = snapshot_of(root, given)
    wanted = ids[[0, 1, 599]].tolist()
    assert found(root, given, snapshot, wanted, most_rows=599).note.startswith("the gallery has 600 items, too many")
    cheap = found(root, given, snapshot, wanted, most_bytes=1)
    assert (list(cheap.values), cheap.note) == (
        wanted[:2],
        "1 of 3 hits lie in row groups that are too large to read for them",
    )
    os.utime(root / "gallery" / "part-000.parquet", (1, 1))
    changed = found(root, given, snapshot, wanted)
    assert (list(changed.values), changed.note) == (
        wanted[2:],
        "2 of 3 hits are in files that have changed since, or are gone",
    )
    (root / "gallery").rename(root / "elsewhere")
    assert "does not exist" in found(root, given, snapshot, wanted).note


def test_no_file_is_opened_that_the_config_does_not_name(gallery: tuple[Path, np.ndarray, np.ndarray]) -> None:
    """A root may have been written by others: its snapshot does not say which files are read."""
    root, ids, _ = gallery
    snapshot = snapshot_of(root, config(root))
    other = root / "other"
    synthetic.write_gallery(other / "gallery", rows=200)
    elsewhere = config(other)
    payloads = look_up(context(root).files, InputStore(), elsewhere.gallery, snapshot, ids[:2].tolist())
    assert (payloads.values, payloads.note) == ({}, "2 of 2 hits are in files that have changed since, or are gone")


def test_a_payload_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=200)
    path = tmp_path / "gallery" / "part-000.parquet"
    table = pq.read_table(path)
    texts = pa.Array.from_buffers(pa.string(), len(table), pa.array([b"\xff"] * len(table), pa.binary()).buffers())
    for each in (tmp_path / "gallery").iterdir():
        if each != path:
            each.unlink()
    pq.write_table(table.append_column("text", texts), path)
    given = config(tmp_path, payload_columns=["text"])
    payloads = found(tmp_path, given, snapshot_of(tmp_path, given), [3])
    assert dict(payloads.values) == {3: [None]}
