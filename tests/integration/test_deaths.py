"""Embedders that end their process, hang, or cannot be built, in a real pool: the guilty rows and no others are
quarantined, or the run ends with an error that says what happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import Pool
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.errors import EmbedderError
from fastfill_ray.inputs.changes import payload_digests
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.table import Column, pin
from fastfill_ray.stages.batches import Space
from fastfill_ray.stages.embed import Job, Unit, grouped, pool_work, read_items, read_vectors
from fastfill_ray.storage.files import open_files
from tests.deadly import DIM, notes, vector_of, wait_until_gone


def make_work(
    folder: Path,
    rows: Sequence[str],
    rows_per_unit: int,
    *,
    embedder: str = "Deadly",
    build: str = "",
    old_build: str = "",
) -> tuple[Job, list[Unit]]:
    """A job whose items are `rows`, embedded two at a time, and its units."""
    (folder / "notes").mkdir()
    pq.write_table(pa.table({"id": range(len(rows)), "x": list(rows)}), folder / "items.parquet")
    store = InputStore()
    (file,) = pin(store, store.find(str(folder / "items.parquet")), [Column("gallery.id_column", "id", "id")]).files
    spaces = {
        name: Space(f"tests.deadly:{embedder}", {"build": how, "folder": str(folder / "notes")}, DIM, "ip", 2)
        for name, how in (("new", build), ("old", old_build))
    }
    job = Job(open_files(str(folder / "out")), store, "id", "int64", ("x",), ("x",), spaces, retry_delays_s=(0, 0, 0))
    return job, [
        Unit(
            unit=f"c{start:08d}", folder="pairs/f", file=file, start=start, length=rows_per_unit, rows=rows_per_unit,
            role="item", model="new",
        )
        for start in range(0, len(rows), rows_per_unit)
    ]  # fmt: skip


@contextmanager
def pool_of(job: Job, units: list[Unit], *, call_timeout_s: float = 120, together: bool = True) -> Iterator[Pool[Unit]]:
    """A pool of `units` in one block, or in a block each."""
    resources = ResourcesConfig(embed_actors=(1, 2), cpus_per_actor=0.5, call_timeout_s=call_timeout_s)
    blocks = [[group] if together else [[unit] for unit in group] for group in grouped(units)]
    engine = RayEngine()
    with (
        engine.session(print),
        closing(engine.run_pool(pool_work(job), blocks, resources)) as pool,
    ):
        yield pool


def test_rows_that_kill_hang_or_raise_are_quarantined_and_no_others(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guilty = {
        1: ("segfault", "killed the process: signal 11 SIGSEGV"),
        6: ("backtrack", "no answer within 3 s (resources.call_timeout_s)"),
        8: ("SystemExit", "embedder raised SystemExit: 0"),
        11: ("KeyboardInterrupt", "embedder raised KeyboardInterrupt:"),
    }
    rows = [guilty[row][0] if row in guilty else str(row) for row in range(16)]
    rows[9] = "once"
    job, units = make_work(tmp_path, rows, 4)
    units[0] = units[0].model_copy(update={"folder": "queries/f", "role": "query"})
    with pool_of(job, units, call_timeout_s=3) as pool:
        receipts = {unit.unit: receipt for unit, receipt in pool}
    assert set(receipts) == {unit.unit for unit in units}
    bad = {fault.row: fault.reason for receipt in receipts.values() for fault in receipt.quarantined}
    assert bad == {row: reason for row, (_, reason) in guilty.items()}
    ids, vectors = read_vectors(job.files, receipts.values(), DIM)
    assert dict(zip(ids, vectors[:, 0].tolist(), strict=True)) == {
        row: vector_of(word) for row, word in enumerate(rows) if row not in guilty
    }
    said = [record.getMessage() for record in caplog.records if "ended 2 processes" in record.getMessage()]
    assert {text.split()[1] for text in said} == {"c00000000", "c00000004"}


@pytest.mark.slow
def test_with_a_preparer_the_same_rows_are_quarantined_and_all_others_have_the_same_vectors(
    ray_session: None, tmp_path: Path
) -> None:
    guilty = {
        1: ("raise", "embedder raised ValueError: cannot be read"),
        6: ("exit", "killed the process: exit code 3"),
        9: ("late raise", "embedder raised ValueError: cannot be read"),
        13: ("late exit", "killed the process: exit code 3"),
    }
    rows = [guilty[row][0] if row in guilty else str(row) for row in range(24)]
    rows[18] = "early exit"
    job, units = make_work(tmp_path, rows, 4, embedder="Prepared")
    with pool_of(job, units, together=False) as pool:
        receipts = {unit.unit: receipt for unit, receipt in pool}
    bad = {fault.row: fault.reason for receipt in receipts.values() for fault in receipt.quarantined}
    assert bad == {row: reason for row, (_, reason) in guilty.items()}
    ids, vectors = read_vectors(job.files, receipts.values(), DIM)
    assert dict(zip(ids, vectors[:, 0].tolist(), strict=True)) == {
        row: 1 if row == 18 else row + 1 for row in range(24) if row not in guilty
    }
    known = read_items(job.files, receipts.values()).column("payload").to_pylist()
    assert known == payload_digests(pa.table({"x": rows}), ["x"]).take(pa.array(ids)).to_pylist()
    assert notes(tmp_path / "notes", "embedded prepared")
    prepared, called = (set(notes(tmp_path / "notes", what)) for what in ("prepared", "called"))
    assert not prepared & called, "in processes that embed nothing"
    assert len(prepared) >= 3, "two rows have ended such a process"


@pytest.mark.slow
def test_an_actor_that_cannot_be_built_three_times_ends_the_run(ray_session: None, tmp_path: Path) -> None:
    job, units = make_work(tmp_path, ["0", "1", "2", "3"], 4, old_build="exit")
    query = units[0].model_copy(update={"folder": "queries/f", "role": "query", "model": "old"})
    with (
        pool_of(job, [query]) as pool,
        pytest.raises(EmbedderError, match=r"'tests\.deadly:Deadly' cannot be built: killed the process: exit code 3"),
    ):
        next(pool)
    assert len(notes(tmp_path / "notes", "built")) == 3


@pytest.mark.slow
def test_a_pool_that_stops_gives_up_what_is_suspect_and_leaves_no_process(ray_session: None, tmp_path: Path) -> None:
    job, units = make_work(tmp_path, ["0", "exit"] * 60, 120)
    with pool_of(job, units) as pool, ThreadPoolExecutor(1) as thread:
        came = thread.submit(list, pool)
        while len(notes(tmp_path / "notes", "built")) < 4:  # two of them were actors
            assert not came.done()
            time.sleep(0.05)
        pool.stop()
        assert came.result() == []
    assert len(notes(tmp_path / "notes", "built")) < 60, "it was not waited for to its end"
    for pid in notes(tmp_path / "notes", "built"):
        wait_until_gone(pid)
