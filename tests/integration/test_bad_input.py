"""Input that cannot be used is refused before anything is embedded, by a typed error that names what is wrong."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray import backfill
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import (
    AlignmentFailed,
    ConfigError,
    EmbedderError,
    InputError,
    QuarantineExceeded,
    SpaceMismatch,
    StoreUnsupported,
)
from fastfill_ray.storage.local import LocalFiles
from tests import synthetic
from tests.integration.conftest import Workshop, in_process
from tests.segments import segments_in

Spoil = Callable[[Path], Any]


def with_vectors(table: pa.Table, vectors: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with other old vectors."""
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Spoil:
    def spoil(gallery: Path) -> None:
        path = gallery / "part-001.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return spoil


def rewrite_all_null(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(with_vectors(table, pa.nulls(table.num_rows, pa.list_(pa.float32()))), path)


def not_utf8(rows: int, bad: int) -> pa.Array:
    """Texts, of which one is no UTF-8: Arrow takes a string column at its word."""
    values = [b"caf\xe9" if row == bad else f"text {row}".encode() for row in range(rows)]
    return pa.Array.from_buffers(pa.string(), rows, pa.array(values, pa.binary()).buffers())


def with_ids(values: Callable[[list[int]], list[int | None]]) -> Spoil:
    return rewrite(lambda t: t.set_column(0, "id", pa.array(values(t.column("id").to_pylist()), pa.int64())))


SPOILT: dict[str, tuple[Spoil, str]] = {
    "not Parquet": (lambda g: (g / "part-001.parquet").write_text("id,x\n1,2\n"), r"part-001\.parquet: not a readable"),
    "truncated": (
        lambda g: (g / "part-001.parquet").write_bytes((g / "part-001.parquet").read_bytes()[:-100]),
        r"part-001\.parquet: not a readable Parquet file",
    ),
    "another schema": (
        rewrite(lambda t: t.set_column(0, "id", t.column("id").cast(pa.string()))),
        r"part-001\.parquet: column 'id' .*is string, so string, but int64 in .*part-000\.parquet",
    ),
    "a null id": (with_ids(lambda ids: [None, *ids[1:]]), r"part-001\.parquet row 0: id column 'id' is null"),
    "a label that is not UTF-8": (
        rewrite(lambda t: t.set_column(2, "label", not_utf8(t.num_rows, bad=7))),
        r"part-001\.parquet: gallery\.label_column 'label': row 7 is b'caf\\xe9', which is not UTF-8",
    ),
    "an id twice in a file": (with_ids(lambda ids: [ids[1], *ids[1:]]), r"occur more than once.*row 0 and .*row 1"),
    "an id in two files": (with_ids(lambda ids: [3, *ids[1:]]), r"3 at .*part-000\.parquet row 0 and .*part-001"),
    "vectors of another length": (
        rewrite(lambda t: with_vectors(t, pa.array([[1.0, 2.0]] * t.num_rows, pa.list_(pa.float32())))),
        r"part-001\.parquet: column 'embedding' holds vectors of 2 dims, expected 8",
    ),
    "vectors all null": (
        lambda g: [rewrite_all_null(path) for path in sorted(g.glob("*.parquet"))],
        r"part-000\.parquet: column 'embedding' .* holds no vector in any row of 3 files",
    ),
    "no vectors": (
        rewrite(lambda t: with_vectors(t, t.column("label"))),
        r"part-001\.parquet: column 'embedding' is string",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_gallery_that_cannot_be_used_is_refused_before_any_embedding(
    fault: str, workshop: Workshop, tmp_path: Path
) -> None:
    spoil, message = SPOILT[fault]
    shutil.copytree(workshop.folder / "gallery", tmp_path / "gallery")
    spoil(tmp_path / "gallery")
    journal = tmp_path / "journal"
    journal.mkdir()
    workshop.control(journal=str(journal))
    config = workshop.config(tmp_path / "out", gallery={"path": str(tmp_path / "gallery")})
    with pytest.raises(InputError, match=message):
        in_process(config)
    assert not list(journal.iterdir())
    assert not (tmp_path / "out" / "log").exists()


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "non_finite"), (0.0, "zero_norm")], ids=["nan", "zero"])
def test_too_many_unusable_vectors_fail_while_ids_are_checked(tmp_path: Path, value: float, reason: str) -> None:
    spoilt = dict.fromkeys(range(0, 600, 20), [value] * synthetic.OLD_DIM)
    synthetic.write_gallery(tmp_path / "gallery", unusable=spoilt)
    with pytest.raises(
        InputError, match=rf"30 of 600 rows cannot be used, at most 10 .*row 0 \(id 3\): {reason}.*quarantine\.max_rows"
    ):
        in_process(synthetic.config(tmp_path, alignment={"method": "ridge"}, new_model={"metric": "cosine"}))
    assert not (tmp_path / "out" / "pairs").exists(), "nothing was embedded"


def test_an_integer_label_that_cannot_be_stored_among_floats_is_refused_before_any_embedding(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    for number, path in enumerate(sorted((tmp_path / "gallery").iterdir())):
        table = pq.read_table(path)
        values = [2**53 + 1 if row == 7 and number == 1 else row for row in range(table.num_rows)]
        labels = pa.array(values, pa.int64() if number else pa.float64())
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    message = (
        r"part-001\.parquet: gallery\.label_column 'label': row 7 is 9007199254740993\. .* cast the column to string"
    )
    with pytest.raises(InputError, match=message):
        in_process(synthetic.config(tmp_path))
    assert not (tmp_path / "out" / "pairs").exists(), "nothing was embedded"


def test_too_few_pairs_with_an_old_vector_are_refused_before_any_embedding(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", unusable=dict.fromkeys(range(500)))
    with pytest.raises(
        ConfigError, match=r"pairs: only \d+ of 84 train pairs have an old vector that can be used; at least 32 .*Raise"
    ):
        in_process(synthetic.config(tmp_path, gallery={"label_column": None}, objective={"relevance": "new_model"}))
    tables = (path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.parquet"))
    assert {path.parts[0] for path in tables} == {"ledger", "sample"}, "nothing was embedded"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"gallery": {"label_column": "lable"}},
            r"gallery\.label_column: column 'lable' is not in .*found id, x, label",
        ),
        ({"gallery": {"payload_columns": ["text"]}}, r"gallery\.payload_columns\[0\]: column 'text'"),
        ({"waves": [0.1, 0.15]}, r"waves: the last is 0\.15 = 90 items, but the pairs alone are 120 of 600"),
        ({"pairs": {"count": 700}}, r"pairs\.count: found 700, the gallery has 600 rows"),
        ({"pairs": {"count": 40}, "waves": [0.3, 1.0]}, r"pairs\.count 40 .* gives 28 train pairs; at least 32"),
        ({"index": {"factory": "Flatt"}}, r"index\.factory 'Flatt' cannot be used"),
        ({"index": {"factory": "IVF999,Flat"}}, r"999 lists, but there are 240 vectors"),
        ({"index": {"factory": "PQ16"}}, r"256 centroids, but there are 240 vectors"),
        ({"index": {"factory": "IDMap,Flat"}}, r"index\.factory 'IDMap,Flat' .*row numbers\. Leave IDMap out"),
        ({"index": {"stale_factory": "PQ3"}}, r"index\.stale_factory 'PQ3' cannot be used with dim 16"),
        # 8 old dims and 16 new ones, and one vector of each pair.
        (
            {"index": {"factory": "PQ16x4"}, "serving": {"stale_mode": "fused"}},
            r"index\.stale_factory \(of fused vectors\) 'PQ16x4' cannot be used with dim 24",
        ),
        (
            {"index": {"stale_factory": "IVF200,Flat"}, "serving": {"stale_mode": "fused"}},
            r"index\.stale_factory .* has 200 lists, but there are 120 vectors",
        ),
        (
            {"queries": {"old_vector_column": "x"}},
            r"queries\.old_vector_column: column 'x' holds vectors of 12 dims, exp",
        ),
        ({"queries": {"new_vector_column": "x"}}, r"queries\.new_vector_column: .* expected 16 as new_model\.dim"),
        (
            {"queries": {"label_column": "number"}},
            r"queries\.label_column: column 'number' is integer, but gallery\.label",
        ),
        ({"queries": {"id_column": "name"}}, r"queries\.id_column: column 'name' is not in"),
    ],
)
def test_a_request_that_cannot_work_is_refused_before_anything_starts(
    sections: dict[str, Any], message: str, workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(tmp_path / "out")
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(section, dict) and name in config else section
    with pytest.raises(ConfigError, match=message):
        in_process(config)
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_gallery_is_refused(workshop: Workshop) -> None:
    with pytest.raises(ConfigError, match=r"output: .* lies in gallery\.path"):
        in_process(workshop.config(workshop.folder / "gallery" / "out"))


class NoCluster(InProcessEngine):
    def session(self, *_: object) -> AbstractContextManager[None]:
        raise AssertionError("a cluster was waited for")


def test_an_output_that_cannot_be_used_is_refused_before_a_cluster_is_waited_for(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_writers(self: LocalFiles, path: str, data: bytes) -> bool:
        self.put_data(path, data)
        return True

    monkeypatch.setattr(LocalFiles, "put_new", two_writers)
    with pytest.raises(StoreUnsupported, match="does not create objects exclusively"):
        _run(load_config(workshop.config(tmp_path / "out")), NoCluster())


@pytest.mark.parametrize("run", ["in_process"], indirect=True)  # what is planned, whose engine no refusal looks at
def test_a_root_of_another_model_is_refused_before_the_gallery_is_read(
    workshop: Workshop, root: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "take_snapshot", lambda *_, **__: pytest.fail("the gallery was read"))
    with pytest.raises(SpaceMismatch, match="new_space"):
        in_process(workshop.config(root(), new_model={"kwargs": {"control": "elsewhere.json"}}))


def test_a_classifier_of_another_dim_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    np.savez(tmp_path / "head.npz", weight=np.zeros((6, 5), np.float32), bias=np.zeros(6, np.float32))
    config = workshop.config(tmp_path / "out", new_model={"classifier": str(tmp_path / "head.npz")})
    with pytest.raises(ConfigError, match=r"new_model\.classifier .*weight is \(6, 5\).* expected \(C, 16\)"):
        in_process(config)


def test_errors_survive_the_way_from_a_worker(workshop: Workshop, ray_session: None, tmp_path: Path) -> None:
    """An embedder that cannot be built fails in an actor; the caller gets our error, not Ray's wrapping of it."""
    config = workshop.config(tmp_path / "out", new_model={"embedder": "tests.synthetic:NoSuchEmbedder"})
    with pytest.raises(EmbedderError, match=r"tests\.synthetic.* has no attribute 'NoSuchEmbedder'"):
        ff.run_backfill(config)
    assert not (tmp_path / "out" / "log").exists(), "a typing error must not bind the root to a model"


BAD_QUERIES: dict[str, tuple[str, Callable[[pa.Table], pa.Array], str]] = {
    "an id twice": ("id", lambda t: pa.array(["q"] * t.num_rows), r"60 queries have 1 distinct ids"),
    "a group": ("group", lambda t: not_utf8(t.num_rows, 9), r"queries\.group_column 'group': row 9 is b'caf\\xe9'"),
    "a label": ("label", lambda t: not_utf8(t.num_rows, 9), r"queries\.label_column 'label': row 9 is b'caf\\xe9'"),
}


@pytest.mark.parametrize("fault", BAD_QUERIES)
def test_queries_that_say_nothing_clear_are_refused_before_anything_starts(
    fault: str, workshop: Workshop, tmp_path: Path
) -> None:
    name, column, message = BAD_QUERIES[fault]
    table = pq.read_table(workshop.folder / "queries" / "queries.parquet")
    changed = table.set_column(table.schema.get_field_index(name), name, column(table))
    pq.write_table(changed, tmp_path / "queries.parquet")
    config = workshop.config(tmp_path / "out")
    config["queries"] |= {"path": str(tmp_path / "queries.parquet"), "group_column": "group"}
    with pytest.raises(InputError, match=message):
        in_process(config)
    assert not (tmp_path / "out").exists(), "the gallery was not read"


def test_judgements_of_which_none_is_above_zero_are_refused_before_anything_starts(
    workshop: Workshop, tmp_path: Path
) -> None:
    table = pq.read_table(workshop.folder / "queries" / "qrels.parquet")
    pq.write_table(table.append_column("score", pa.array([0] * table.num_rows)), tmp_path / "qrels.parquet")
    config = workshop.config(tmp_path / "out")
    config["queries"]["qrels_path"] = str(tmp_path / "qrels.parquet")
    with pytest.raises(InputError, match=r"qrels\.parquet: no judgement of these queries has a grade above 0"):
        in_process(config)
    assert not (tmp_path / "out").exists(), "the gallery was not read"


def test_queries_that_cannot_be_embedded_are_not_dropped_in_silence(workshop: Workshop, tmp_path: Path) -> None:
    x = pq.read_table(workshop.folder / "queries" / "queries.parquet").column("x").to_pylist()
    workshop.control(bad={synthetic.marker(row[0]): "raise" for row in x[:11]})
    with pytest.raises(QuarantineExceeded, match=r"queries, new model: 11 of 60 rows .*this row cannot be read"):
        in_process(workshop.config(tmp_path / "out"))
    workshop.control()


def test_pairs_that_no_map_can_be_fitted_on_are_refused_by_name(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery", unusable=dict.fromkeys(range(600), [1.0] * synthetic.OLD_DIM))
    with pytest.raises(AlignmentFailed, match="the old vectors of all 84 pairs are the same"):
        in_process(synthetic.config(tmp_path, alignment={"method": "ridge"}))


def test_a_text_that_is_no_utf8_costs_its_own_row_and_the_run_goes_on(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    for path in (tmp_path / "gallery").iterdir():
        table = pq.read_table(path)
        texts = [b"caf\xe9" if row in (5, 100) else b"good" for row in range(table.num_rows)]
        bad = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts).buffers())
        pq.write_table(table.append_column("text", bad), path, row_group_size=64)
    log = io.StringIO()
    result = in_process(synthetic.config(tmp_path, gallery={"payload_columns": ["x", "text"]}), stream=log)
    assert "gallery: 600 items in 3 files; old vectors: 8 x float32 (list)" in log.getvalue().splitlines()[0]
    assert result.finished
    faults = [
        (fault.row, fault.reason)
        for folder in ("pairs/*/c*.receipt.json", "vectors/**/*.receipt.json")
        for path in (tmp_path / "out").glob(folder)
        for fault in synthetic.receipt_at(path).quarantined
    ]
    assert sorted(faults) == [(row, "payload column 'text': not UTF-8") for row in (5, 5, 5, 100, 100, 100)]
    # In the index they stay stale: every item is served.
    assert sum(segment.rows for segment in segments_in(result.output, result.state.plan_versions[-1])) == 600
