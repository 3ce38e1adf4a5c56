"""The check of every row: what it leaves per file, what it reads again, and the pairs that are drawn from it."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.backfill import _run
from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import CorruptFile, InputError
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.ordering import partition
from fastfill_ray.ordering.ids import ids_digest, item_keys
from fastfill_ray.stages import draw, ledger
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.draw import Drawn, draw_pairs
from fastfill_ray.stages.ledger import key_groups, ledger_parts, read_keys, repeated_keys, take_snapshot
from fastfill_ray.stages.pairs import PairPlan, plan_pairs
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.faults import flip_bit

HALF = st.integers(0, 3)  # so that halves of keys meet


def context(root: Path) -> Context:
    return Context(InProcessEngine(), open_files(str(root / "out")), InputStore(), Progress(io.StringIO()))


def config(root: Path, *, chunk_rows: int = 50, metric: str = "cosine", **gallery: Any) -> BackfillConfig:
    values = synthetic.config(root, gallery=gallery, resources={"chunk_rows": chunk_rows})
    values["new_model"]["metric"] = metric
    return load_config(values)


def inspected(given: BackfillConfig, before: Snapshot | None = None) -> Snapshot:
    store = InputStore()
    return inspect_gallery(store, store.find(given.gallery.path), given.gallery, given.resources, before)


def snapshot_of(root: Path, given: BackfillConfig, *, limit: int = 10, before: Snapshot | None = None) -> Snapshot:
    """A snapshot as a start takes it."""
    found = inspected(given, before)
    source = Source(
        InputStore(),
        given.gallery,
        found.id_type,
        found.old_dim,
        given.new_model.metric,
        found.side_dim,
        found.label_kind,
    )
    return take_snapshot(context(root), found, source, limit=limit)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows of each gallery file that were checked, by its name."""
    rows: Counter[str] = Counter()
    read = ledger.read_spans

    def counted(store: InputStore, spans: Any, columns: list[str]) -> Iterator[pa.Table]:
        listed = list(spans)
        for span, table in zip(listed, read(store, listed, columns), strict=True):
            rows[Path(span.file.path).name] += span.rows
            yield table

    monkeypatch.setattr(ledger, "read_spans", counted)
    return rows


def rewrite(path: Path) -> None:
    """The same rows in another order."""
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(table.num_rows)[::-1].copy()), path, row_group_size=70)


# Parts


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_parts_hold_the_keys_of_all_items_in_the_order_of_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str
) -> None:
    monkeypatch.setattr(partition, "PART_ROWS", 100)
    names, _, _ = synthetic.write_gallery(tmp_path / "gallery", ids=ids)
    snapshot = snapshot_of(tmp_path, config(tmp_path))
    parts, files = ledger_parts(snapshot), context(tmp_path).files
    assert len(parts) == 9, "row groups of 64 in three files of 200"
    assert [part.rows for part in parts[:3]] == [64, 64, 72]
    assert [(span.start, span.rows) for span in parts[2].chunk_spans] == [(128, 32), (160, 32), (192, 8)]
    np.testing.assert_array_equal(np.concatenate([read_keys(files, part) for part in parts]), item_keys(names))
    assert snapshot.ids_digest == ids_digest(names.tolist())
    assert sum(len(group) for group in key_groups(parts)) == 9


def test_only_files_that_have_changed_are_read_again(tmp_path: Path, checked: Counter[str]) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    first = snapshot_of(tmp_path, config(tmp_path))
    assert checked == {"part-000.parquet": 200, "part-001.parquet": 200, "part-002.parquet": 200}
    checked.clear()
    assert snapshot_of(tmp_path, config(tmp_path)) == first
    assert not checked
    rewrite(tmp_path / "gallery" / "part-001.parquet")
    second = snapshot_of(tmp_path, config(tmp_path))
    assert checked == {"part-001.parquet": 200}
    assert second.fingerprint != first.fingerprint
    assert second.ids_digest == first.ids_digest
    assert second.ledger == first.ledger


def test_a_pass_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: Counter[str]
) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    put, done = ledger.put_receipt, []

    def killed(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "put_receipt", killed)
        with pytest.raises(KeyboardInterrupt):
            snapshot_of(tmp_path, config(tmp_path))
    checked.clear()
    snapshot_of(tmp_path, config(tmp_path))
    assert checked == {"part-002.parquet": 200}


def test_a_task_that_is_done_again_reads_only_what_it_had_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: Counter[str]
) -> None:
    monkeypatch.setattr(partition, "PART_ROWS", 100)
    synthetic.write_gallery(tmp_path / "gallery", shards=1)
    given = config(tmp_path)
    snapshot = snapshot_of(tmp_path, given)
    parts, files = ledger_parts(snapshot), context(tmp_path).files
    source = Source(InputStore(), given.gallery, "int64", snapshot.old_dim, "cosine", None, snapshot.label_kind)
    files.delete(f"{snapshot.ledger}/{parts[3].unit}.receipt.json")
    checked.clear()
    receipts = list(ledger.check_parts(files, source, parts))
    assert Counter(receipt.unit for receipt in receipts) == Counter(part.unit for part in parts)
    assert checked == {"part-000.parquet": parts[3].rows}


def test_what_a_check_depends_on_names_the_ledger(tmp_path: Path, checked: Counter[str]) -> None:
    synthetic.write_gallery(tmp_path / "gallery", unusable={5: [0.0] * synthetic.OLD_DIM})
    plain = snapshot_of(tmp_path, config(tmp_path, metric="ip"), limit=0)
    checked.clear()
    # A vector of zeros has no direction: what was checked for inner products was not checked for cosines.
    with pytest.raises(
        InputError, match=r"1 of 600 rows cannot be used, at most 0 .*part-000\.parquet row 5 \(id 38\)"
    ):
        snapshot_of(tmp_path, config(tmp_path), limit=0)
    assert checked.total() == 600
    cosine = snapshot_of(tmp_path, config(tmp_path))
    assert checked.total() == 600, "the rows were checked, and stay checked, although they were too many"
    grouped = snapshot_of(tmp_path, config(tmp_path, group_column="group"))
    sided = snapshot_of(tmp_path, config(tmp_path, side_column="x"))
    assert len({plain.ledger, cosine.ledger, grouped.ledger, sided.ledger}) == 4
    assert plain.ids_digest == cosine.ids_digest == grouped.ids_digest
    assert snapshot_of(tmp_path, config(tmp_path, payload_columns=["x", "label"])).ledger == cosine.ledger


def test_the_first_unusable_rows_of_every_part_are_named_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "PART_ROWS", 100)
    bad: dict[int, list[float] | None] = {row: [1.0] for row in range(0, 600, 50)}
    synthetic.write_gallery(tmp_path / "gallery", unusable={**bad, 1: None})
    with pytest.raises(
        InputError, match=r"12 of 600 rows.*part-000\.parquet row 0 .*row 150 .*part-001\.parquet row 0 "
    ):
        snapshot_of(tmp_path, config(tmp_path))
    assert snapshot_of(tmp_path, config(tmp_path), limit=12).rows == 600


# Ids that repeat


@given(st.lists(st.lists(st.tuples(HALF, HALF), max_size=8), min_size=1, max_size=4))
def test_keys_repeat_only_where_all_their_bytes_do(pieces: list[list[tuple[int, int]]]) -> None:
    arrays = [np.array(piece, np.uint64).reshape(-1, 2) for piece in pieces]
    counts = Counter(key for piece in pieces for key in piece)
    expected = sorted(key for key, count in counts.items() if count > 1)
    assert [tuple(key) for key in repeated_keys(*arrays).tolist()] == expected


def test_an_id_in_two_parts_is_named_at_both_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "PART_ROWS", 100)
    monkeypatch.setattr(ledger, "_PARTITION_ROWS", 100)
    synthetic.write_gallery(tmp_path / "gallery")
    path = tmp_path / "gallery" / "part-002.parquet"
    table = pq.read_table(path)
    ids = table.column("id").to_pylist()
    ids[150:153] = [3, 10, 10]  # the first ids of the first file
    pq.write_table(table.set_column(0, "id", pa.array(ids)), path, row_group_size=64)
    with pytest.raises(InputError, match=r"'id': 2 ids occur more than once: 3 at ") as refused:
        snapshot_of(tmp_path, config(tmp_path))
    for text in (
        r"3 at {0}/part-000.parquet row 0 and {0}/part-002.parquet row 150;",
        r"10 at {0}/part-000.parquet row 1 and {0}/part-002.parquet row 151 and {0}/part-002.parquet row 152.",
    ):
        assert text.format(tmp_path / "gallery") in str(refused.value)


# Chunks of files that were known before


def test_files_that_are_pinned_as_before_are_cut_as_before(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    first = inspected(config(tmp_path))
    rewrite(tmp_path / "gallery" / "part-001.parquet")
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet")
    pq.write_table(
        table.set_column(0, "id", pa.array(range(10**6, 10**6 + 200))), tmp_path / "gallery" / "added.parquet"
    )
    now = inspected(config(tmp_path, chunk_rows=20), first)
    fresh = inspected(config(tmp_path, chunk_rows=20))

    def units(snapshot: Snapshot, name: str) -> list[str]:
        paths = [file.path for file in snapshot.gallery.files]
        return [chunk.unit for chunk in snapshot.chunks if paths[chunk.file].endswith(name)]

    for name in ("part-000.parquet", "part-002.parquet"):
        assert units(now, name) == units(first, name) != units(fresh, name)
    for name in ("part-001.parquet", "added.parquet"):
        assert units(now, name) == units(fresh, name) != units(first, name)
    assert sum(rows for _, _, rows in now.chunk_rows) == sum(rows for _, _, rows in now.parts) == 800


# Pairs


def drawn_of(root: Path, given: BackfillConfig, snapshot: Snapshot) -> Drawn:
    return draw_pairs(context(root), snapshot, given.pairs.count, given.pairs.split, given.seed)


def keys_by_split(root: Path, snapshot: Snapshot, drawn: Drawn) -> dict[str, set[tuple[int, int]]]:
    found: dict[str, set[tuple[int, int]]] = {}
    keys = np.concatenate([read_keys(context(root).files, part) for part in ledger_parts(snapshot)])
    starts = dict(
        zip((c.unit for c in snapshot.chunks), np.cumsum([0, *(c.rows for c in snapshot.chunks)]), strict=False)
    )
    for unit, offsets in drawn.offsets.items():
        for offset, split in zip(offsets, drawn.split_of[unit], strict=True):
            found.setdefault(split, set()).add(tuple(keys[starts[unit] + offset].tolist()))
    return found


def test_pairs_are_those_of_the_whole_whatever_the_files_the_chunks_and_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = None
    for shards, chunk_rows, part_rows in ((1, 50, 1 << 20), (3, 7, 30), (5, 200, 64)):
        root = tmp_path / str(shards)
        names, _, _ = synthetic.write_gallery(root / "gallery", shards=shards)
        with monkeypatch.context() as patch:
            patch.setattr(partition, "PART_ROWS", part_rows)
            patch.setattr(ledger, "PART_ROWS", part_rows)
            given = config(root, chunk_rows=chunk_rows)
            snapshot = snapshot_of(root, given)
            found = keys_by_split(root, snapshot, drawn_of(root, given, snapshot))
        if expected is None:
            keys = item_keys(names)
            rows = synthetic.drawn_pairs(names, 120)
            expected = {split: set(map(tuple, keys[rows[split]].tolist())) for split in rows}
        assert found == expected


def test_where_too_few_hashes_lie_below_the_bound_all_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    given = config(tmp_path)
    snapshot = snapshot_of(tmp_path, given)
    plain = drawn_of(tmp_path, given, snapshot)
    (tmp_path / "out" / "sample").rename(tmp_path / "away")
    monkeypatch.setattr(draw, "hash_bound", lambda rows, count: 1 << 60)
    assert drawn_of(tmp_path, given, snapshot) == plain


def test_pairs_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    given = config(tmp_path)
    snapshot = snapshot_of(tmp_path, given)
    drawn = drawn_of(tmp_path, given, snapshot)
    monkeypatch.setattr(draw, "read_keys", None)
    assert drawn_of(tmp_path, given, snapshot) == drawn


def planned(root: Path, given: BackfillConfig) -> PairPlan:
    snapshot = snapshot_of(root, given)
    return plan_pairs(drawn_of(root, given, snapshot), given.gallery, snapshot, "space")


def test_the_same_pairs_of_files_that_are_pinned_as_before_keep_their_name(tmp_path: Path) -> None:
    names, _, _ = synthetic.write_gallery(tmp_path / "gallery")
    before = planned(tmp_path, config(tmp_path))
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet").slice(0, 5)
    added = tmp_path / "gallery" / "a-new.parquet"  # before the others: every row gets another number

    def is_drawn(start: int) -> bool:
        drawn = synthetic.drawn_pairs(np.concatenate([names, np.arange(start, start + 5)]), 120)
        return max(rows.max() for rows in drawn.values()) >= len(names)

    for some in (False, True):
        start = next(start for start in range(10**6, 10**7, 5) if is_drawn(start) == some)
        pq.write_table(table.set_column(0, "id", pa.array(range(start, start + 5))), added)
        after = planned(tmp_path, config(tmp_path))
        assert (after.fingerprint != before.fingerprint) == some
        assert (after.offsets != before.offsets) == some


# Damage


@pytest.mark.parametrize("pattern", ["*/c*.parquet", "*/c*.receipt.json"])
def test_a_damaged_part_is_made_again_by_the_command_that_wants_it(tmp_path: Path, pattern: str) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    given, out = config(tmp_path), tmp_path / "out"
    _run(given, InProcessEngine(), until="plan", stream=io.StringIO())
    path = sorted((out / "ledger").glob(pattern))[1]
    path.write_bytes(flip_bit(path.read_bytes(), 8 * 40))
    for gone in ("log", "sample"):  # so that the pairs are drawn again
        shutil.rmtree(out / gone)
    said = io.StringIO()
    result = _run(given, InProcessEngine(), until="plan", stream=said)
    assert f"damaged, made again: {path.relative_to(out)}" in said.getvalue()
    assert result.state.plan is not None


def test_a_receipt_that_is_gone_is_made_again_without_a_word_of_damage(tmp_path: Path, checked: Counter[str]) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    given = config(tmp_path)
    snapshot = snapshot_of(tmp_path, given)
    part = ledger_parts(snapshot)[1]
    (tmp_path / "out" / part.folder / f"{part.unit}.receipt.json").unlink()
    with pytest.raises(Exception, match=f"{part.unit}.receipt.json: not found"):
        read_keys(context(tmp_path).files, part)
    checked.clear()
    assert snapshot_of(tmp_path, given) == snapshot
    assert checked == {"part-001.parquet": 200}
    read_keys(context(tmp_path).files, part)


def test_a_snapshot_that_is_gone_is_made_again_only_with_the_plans_cut(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    given = config(tmp_path)
    found = inspected(given)
    source = Source(InputStore(), given.gallery, "int64", found.old_dim, "cosine", None, found.label_kind)
    with pytest.raises(CorruptFile, match=r"snapshot\.json: was damaged or gone.*Put resources\.chunk_rows"):
        take_snapshot(context(tmp_path), found, source, limit=0, cut="another")
    assert take_snapshot(context(tmp_path), found, source, limit=0, cut=found.cut).cut == found.cut
