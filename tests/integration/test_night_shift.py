"""A night in which little changed: which files are read, and what is written. Counts; the seconds are a benchmark's."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.inputs import parquet
from fastfill_ray.stages import compare
from fastfill_ray.stages.snapshot import read_snapshot
from fastfill_ray.storage.files import open_files
from tests.living import Living, gallery_of


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows that are decoded of each file of the gallery, by its name.

    Left out are the few rows of each file in which a start looks for the dimension of lists.
    """
    counts: Counter[str] = Counter()
    make = pq.ParquetFile

    class Counting(make):  # type: ignore[misc, valid-type]
        def __init__(self, handle: object, **options: object) -> None:
            super().__init__(handle, **options)
            self._name = Path(str(getattr(handle, "name", getattr(handle, "path", "")))).name

        def iter_batches(self, *arguments: object, **options: object) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(*arguments, **options):
                counts[self._name] += 0 if options["columns"] == ["embedding"] else len(batch)
                yield batch

    monkeypatch.setattr(parquet.pq, "ParquetFile", Counting)
    return counts


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """{path of every file: (size, mtime in ns)}."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Living:
    living = gallery_of(tmp_path_factory.mktemp("finished"), files=4, rows=150)
    living.run()
    return living


def change(living: Living, name: str, rows: int) -> None:
    items = dict(living.files[name])
    for key in list(items)[:rows]:
        items[key] = living.new_item()
    living.write(name, items)


def test_a_night_reads_the_files_that_changed_and_writes_what_changed(finished: Living, decoded: Counter[str]) -> None:
    living, root = finished, Path(finished.root)
    files = open_files(living.root)
    segments = {segment.index.path for segment in segments_of(files, living.state().versions[-1])}
    embedded, before = living.embedded(), listing(root)
    change(living, "part-001.parquet", 5)
    decoded.clear()
    result = living.run()
    last = result.state.versions[-1]
    living.check_all_new(last)
    assert len(living.embedded()) == len(embedded) + 5
    # Of the file keys and digests in one pass; of the chunk with what is due its payloads, and what stands beside ids.
    plan = result.state.plan
    assert plan is not None
    chunk = read_snapshot(files, plan.snapshot).chunk_rows[0][2]
    assert {name: rows for name, rows in decoded.items() if rows} == {"part-001.parquet": 150 + 2 * chunk}
    [fresh] = [segment for segment in segments_of(files, last) if segment.index.path not in segments]
    assert fresh.rows == 5
    written = Counter(path.split("/")[0] for path, stat in listing(root).items() if before.get(path) != stat)
    buckets = {segment.bucket for segment in segments_of(files, last) if segment.deletion is not None}
    assert buckets, "what changed is hidden where it was"
    # Of the one file: its keys and digests with their receipts, a work file, vectors and items of its due chunk.
    assert (written["ledger"], written["changes"], written["snapshots"]) == (2, 2, 1)
    assert {"pairs", "scores", "alignment", "choice", "sample"}.isdisjoint(written), written
    assert sum(written.values()) < 40, written


def test_a_night_without_a_change_reads_and_writes_nothing(finished: Living, decoded: Counter[str]) -> None:
    before = listing(Path(finished.root))
    decoded.clear()
    finished.run()
    assert not any(decoded.values())
    assert listing(Path(finished.root)) == before


def test_a_report_that_is_gone_comes_back(finished: Living) -> None:
    path = Path(finished.root) / "reports" / "report.html"
    page = path.read_bytes()
    path.unlink()
    finished.run()
    assert path.read_bytes() == page


def test_a_comparison_of_what_is_wanted_is_that_of_everything(
    finished: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, root = finished, Path(finished.root)
    kept = root.with_name("kept")
    change(living, "part-002.parquet", 9)
    shutil.copytree(root, kept)
    found = []
    for bound in (compare.PARTITION_ROWS, 0):
        monkeypatch.setattr(compare, "PARTITION_ROWS", bound)
        before = set(listing(root))
        plan = living.run(until="plan").state.plan
        assert plan is not None
        compared = {path for path in set(listing(root)) - before if path.startswith("compared/")}
        found.append(({path for path in compared if "high" not in pq.read_schema(root / path).names}, plan.changes))
        shutil.rmtree(root)
        shutil.copytree(kept, root)
    assert found[0] == found[1]
    assert found[0][0]
