"""What was embedded for an item stands beside its vector, and beside its id in every new segment."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.inputs.changes import payload_digests, version_digests
from fastfill_ray.log.records import Segment
from tests import synthetic
from tests.integration.conftest import in_process
from tests.segments import segments_in

ROWS = 600


def test_new_segments_hold_the_digests_of_their_items_and_stale_ones_none(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", rows=ROWS)
    known: dict[int, tuple[bytes, bytes | None]] = {}
    for path in (tmp_path / "gallery").iterdir():
        table = pq.read_table(path)
        dates = pa.array([None if value % 5 == 0 else value for value in range(len(table))], pa.timestamp("us"))
        table = table.append_column("at", dates)
        pq.write_table(table, path)
        digests = zip(payload_digests(table, ["x"]).to_pylist(), version_digests(table, "at").to_pylist(), strict=True)
        known |= dict(zip(table.column("id").to_pylist(), digests, strict=True))
    result = in_process(synthetic.config(tmp_path, gallery={"version_column": "at"}), until="wave:1")
    segments = [segment for version in result.state.versions for segment in segments_in(result.output, version)]
    new = [beside(tmp_path, segment) for segment in segments if segment.state == "new"]
    assert sum(table.num_rows for table in new) > 0
    for table in new:
        held = zip(table.column("payload").to_pylist(), table.column("version").to_pylist(), strict=True)
        assert list(held) == [known[value] for value in table.column("id").to_pylist()]
    for segment in segments:
        if segment.state == "stale":
            assert beside(tmp_path, segment).column_names == ["id", "label"]
    # What is read as the new vectors is these alone.
    for path in (tmp_path / "out").glob("vectors/*/wave=*/c*.parquet"):
        assert pq.read_schema(path).names == ["id", "vector"]
    items = list((tmp_path / "out").glob("vectors/*/wave=*/items.*.parquet"))
    assert items
    assert {tuple(pq.read_schema(path).names) for path in items} == {("key", "payload", "version")}


def beside(root: Path, segment: Segment) -> pa.Table:
    return pq.read_table(root / "out" / segment.ids.path)
