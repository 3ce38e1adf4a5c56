"""What pandas, polars, DuckDB, Ray, datasets and deltalake write is a gallery: whole runs, and what they serve."""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Any

import datasets
import deltalake
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fastfill_ray as ff
from fastfill_ray.errors import ConfigError
from fastfill_ray.log.records import Version
from fastfill_ray.retrieval.metrics import per_query
from fastfill_ray.retrieval.ranking import rank_hits
from tests import synthetic
from tests.integration.conftest import in_process
from tests.integration.test_relevance import metric
from tests.segments import segments_in

ROWS, PAIRS = 300, 110
X, CLASSES = synthetic.latent(ROWS)
OLD, NEW = synthetic.old_vectors(X), synthetic.new_vectors(X)
DIM = synthetic.OLD_DIM


def labels(rows: Sequence[int] | range) -> list[str]:
    return [f"class-{CLASSES[row]}" for row in rows]


def frame(rows: Sequence[int] | range, **columns: Any) -> pd.DataFrame:
    """Rows as pandas holds them; columns: other values than the usual ones."""
    values = {"id": list(rows), "x": list(X[rows]), "label": labels(rows), "embedding": list(OLD[rows])}
    return pd.DataFrame({**values, **columns})


def backfilled(root: Path, *, until: str | None = None, **sections: Any) -> tuple[ff.BackfillResult, str]:
    """A run of one wave over root/gallery, and what it said; ``embedded`` tells afterwards what the embedder saw."""
    journal = root / "journal"
    journal.mkdir(exist_ok=True)
    (root / "control.json").write_text(json.dumps({"journal": str(journal)}))
    said = io.StringIO()
    config = synthetic.config(root, **{"pairs": {"count": PAIRS}, "waves": [1.0], **sections})
    result = in_process(config, until=until, stream=said)
    return result, said.getvalue()


def embedded(root: Path) -> list[str]:
    """The marker of every item that was embedded, sorted."""
    return sorted(line for file in (root / "journal").iterdir() for line in file.read_text().split())


def markers(rows: Sequence[int] | range) -> list[str]:
    return sorted(synthetic.marker(X[row, 0]) for row in rows)


def held(root: Path, version: Version) -> list[Any]:
    """The ids that a version's segments hold, in no order."""
    files = [root / "out" / segment.ids.path for segment in segments_in(root / "out", version)]
    return [value for file in files for value in pq.read_table(file).column("id").to_pylist()]


def assert_complete(root: Path, result: ff.BackfillResult, ids: Sequence[Any], rows: Sequence[int] | range) -> None:
    """Each of the items was embedded from its own payload, is held by every version, and is found by its new vector.

    Args:
        ids: of `rows`, in their order.
    """
    assert result.finished
    for version in result.state.versions:
        assert Counter(held(root, version)) == Counter(ids)
    assert embedded(root) == markers(rows)
    _, found = ff.open_index(str(root / "out")).search(NEW[list(rows)], k=1)
    assert found[:, 0].tolist() == list(ids)


def assert_map_of_labels(result: ff.BackfillResult, ids: Sequence[int | str] = range(ROWS)) -> None:
    """The published version's mAP by label is that of a plain loop over all items, asked with the audit items."""
    audit = synthetic.drawn_pairs(ids, PAIRS)["audit"]
    unit = NEW / np.linalg.norm(NEW, axis=1, keepdims=True)
    scores = unit[audit] @ unit.T
    relevant = CLASSES[audit][:, None] == CLASSES[None]
    mine = np.arange(ROWS)[None] == audit[:, None]
    scores, relevant = scores[~mine].reshape(len(audit), -1), relevant[~mine].reshape(len(audit), -1)
    plain = per_query(rank_hits(scores, relevant), relevant.sum(axis=1))["map"]
    found = metric(result.state.versions[-1].metrics, "gallery", "label", "map")
    assert found.value == pytest.approx(np.nanmean(plain), abs=1e-6)
    assert 0.3 < found.value < 1


def test_shards_of_pandas_polars_and_duckdb_with_uuids_are_one_gallery(tmp_path: Path) -> None:
    """UUIDs as text, large text, text of a category and UUID; lists of four kinds; the first shard is empty."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    ids = [str(uuid.UUID(int=row * 2**90 + row)) for row in range(ROWS)]
    parts = [range(i * 60, (i + 1) * 60) for i in range(5)]

    def shard(part: range) -> pd.DataFrame:
        return frame(part, id=[ids[row] for row in part])

    shard(parts[0]).iloc[:0].to_parquet(folder / "0-empty.parquet")
    categories = shard(parts[0]).astype({"id": "category", "label": "category"})
    categories.to_parquet(folder / "1-pandas.parquet")
    for number, kind in ((1, pl.Array(pl.Float32, DIM)), (2, pl.List(pl.Float64))):
        columns = {"id": shard(parts[number])["id"].tolist(), "x": X[parts[number]].tolist()}
        polars = pl.DataFrame({**columns, "label": labels(parts[number])})
        polars = polars.with_columns(pl.Series("embedding", OLD[parts[number]].tolist(), dtype=kind))
        polars.write_parquet(folder / f"2-polars-{number}.parquet")
    for number, kind in ((3, f"FLOAT[{DIM}]"), (4, "FLOAT[]")):
        rows = shard(parts[number])  # noqa: F841 - DuckDB reads it by its name
        query = f"SELECT id::UUID AS id, x, label, embedding::{kind} AS embedding FROM rows"
        duckdb.sql(f"COPY ({query}) TO '{folder}/3-duckdb-{number}.parquet' (FORMAT parquet)")
    kinds = {pq.read_schema(path).field("embedding").type for path in folder.iterdir()}
    assert len(kinds) > 3, "there would be nothing to compare"
    result, said = backfilled(tmp_path)
    assert f"gallery: 300 items in 6 files; old vectors: {DIM} x float32 (list)" in said
    assert_complete(tmp_path, result, ids, range(ROWS))
    assert_map_of_labels(result, ids)


def test_integers_of_several_tools_and_tensors_of_ray_are_one_gallery(tmp_path: Path) -> None:
    """Nullable Int64, categories of integers, UInt64, DECIMAL(18, 0) as ids; tensors V1 and V2 beside lists."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    parts = [range(i * 60, (i + 1) * 60) for i in range(5)]
    pandas = frame(parts[0], id=pd.array(list(parts[0]), "Int64"), label=pd.array(CLASSES[parts[0]], "Int32"))
    pandas.to_parquet(folder / "a.parquet")
    categories = frame(parts[1], id=pd.Categorical(parts[1]), label=CLASSES[parts[1]].astype(float))
    categories.to_parquet(folder / "b.parquet")
    arrow = importlib.import_module("ray.data._internal.tensor_extensions.arrow")
    for name, part, kind in (("c", parts[2], arrow.ArrowTensorType), ("d", parts[3], arrow.ArrowTensorTypeV2)):
        tensors = {}
        for column, values in (("x", X), ("embedding", OLD)):
            tensor = kind(values.shape[1:], pa.float32())
            storage = pa.array(values[part].tolist(), tensor.storage_type)
            tensors[column] = pa.ExtensionArray.from_storage(tensor, storage)
        ids = pa.array(list(part), pa.uint64())
        pq.write_table(pa.table({"id": ids, "label": CLASSES[part], **tensors}), folder / f"{name}.parquet")
    rows = frame(parts[4], label=CLASSES[parts[4]])  # noqa: F841 - DuckDB reads it by its name
    query = "SELECT id::DECIMAL(18, 0) AS id, x, label::DECIMAL(4, 1) AS label, embedding FROM rows"
    duckdb.sql(f"COPY ({query}) TO '{folder}/e.parquet' (FORMAT parquet)")
    result, _ = backfilled(tmp_path)
    assert_complete(tmp_path, result, list(range(ROWS)), range(ROWS))
    assert_map_of_labels(result)


@pytest.mark.parametrize("case", ["float16 bytes", "int8"])
def test_vectors_of_fewer_bits_teach_the_same_as_their_float32(tmp_path: Path, case: str) -> None:
    """Every item's predicted variance and priority is that of a gallery of the same values as float32."""
    least = np.abs(OLD).max() / 127
    exact = OLD.astype(np.float16) if case == "float16 bytes" else np.round(OLD / least).astype(np.int8)
    written = [row.tobytes() for row in exact] if case == "float16 bytes" else list(exact)
    stated = {"vector_dtype": "float16"} if case == "float16 bytes" else {}
    scores = []
    for name, vectors, given in (("few", written, stated), ("plain", list(exact.astype(np.float32)), {})):
        (tmp_path / name / "gallery").mkdir(parents=True)
        frame(range(ROWS), embedding=vectors).to_parquet(tmp_path / name / "gallery" / "a.parquet")
        result, said = backfilled(tmp_path / name, until="plan", gallery=given)
        kinds = {"float16 bytes": "float16 (bytes)", "int8": "int8 (list)"}
        assert f"{DIM} x {kinds[case] if name == 'few' else 'float32 (list)'}" in said
        assert result.state.plan is not None
        files = (tmp_path / name / "out" / "scores" / result.state.plan.scores).glob("c*.*.parquet")
        files = [file for file in files if not file.name.startswith("chunks.")]
        scores.append(
            sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["id"])
        )
    assert len(scores[0]) == ROWS
    assert scores[0] == scores[1]


@pytest.mark.parametrize("tool", ["pandas", "polars", "duckdb"])
def test_partitions_of_a_tool_are_a_label(tmp_path: Path, tool: str) -> None:
    """The metric says that the label was read for each item. Only polars writes the column into the files, too."""
    folder = tmp_path / "gallery"
    rows = frame(range(ROWS), label=[f"class {label}/é=%" for label in CLASSES])
    if tool == "pandas":
        rows.to_parquet(folder, partition_cols=["label"])
    elif tool == "polars":
        columns = {name: [list(v) for v in rows[name]] for name in ("x", "embedding")}
        polars = pl.DataFrame({"id": rows["id"].tolist(), **columns, "label": rows["label"].tolist()})
        polars.write_parquet(folder, partition_by="label", mkdir=True)
    else:
        duckdb.sql(f"COPY (SELECT * FROM rows) TO '{folder}' (FORMAT parquet, PARTITION_BY (label))")
    files = list(folder.rglob("*.parquet"))
    assert len(files) >= len(set(CLASSES.tolist()))
    assert {"label" in pq.ParquetFile(path).schema_arrow.names for path in files} == {tool == "polars"}
    result, _ = backfilled(tmp_path)
    assert_complete(tmp_path, result, list(range(ROWS)), range(ROWS))
    audit = synthetic.drawn_pairs(range(ROWS), PAIRS)["audit"]
    answered = sum((CLASSES[row] == CLASSES).sum() > 1 for row in audit)
    found = metric(result.state.versions[-1].metrics, "gallery", "label", "map")
    unit = NEW / np.linalg.norm(NEW, axis=1, keepdims=True)
    values = []
    for row in audit:
        others = np.arange(ROWS) != row
        relevant = (CLASSES[row] == CLASSES)[others][None]
        ranks = rank_hits((unit[row] @ unit[others].T)[None], relevant)
        values.append(per_query(ranks, relevant.sum(axis=1))["map"][0])
    assert (found.queries, found.value) == (answered, pytest.approx(np.nanmean(values), abs=1e-6))


def test_a_delta_table_is_refused_and_its_live_files_are_the_gallery(tmp_path: Path) -> None:
    """The command of the message, run as it stands; what it prints is the list to give."""
    table = tmp_path / "gallery"
    rows = pa.Table.from_pandas(frame(range(ROWS)), preserve_index=False)
    deltalake.write_deltalake(str(table), rows.slice(0, 200))
    deltalake.write_deltalake(str(table), rows.slice(200), mode="append")
    deltalake.DeltaTable(str(table)).delete("id < 90")
    dead = {row for path in table.glob("*.parquet") for row in pq.read_table(path)["id"].to_pylist()}
    assert dead == set(range(ROWS)), "the deleted rows lie there"
    with pytest.raises(ConfigError, match=r"gallery\.path: .* a Delta table") as caught:
        backfilled(tmp_path)
    assert not (tmp_path / "out").exists()
    command = str(caught.value).split("given as a list: ")[1].split(" . If")[0]
    words = [sys.executable, *shlex.split(command)[1:]]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    result, _ = backfilled(tmp_path, gallery={"path": printed.stdout.splitlines()})
    served = Counter(held(tmp_path, result.state.versions[-1]))
    assert served == Counter(range(90, ROWS))
    assert embedded(tmp_path) == markers(range(90, ROWS))


class ImageEmbedder:
    """The new vector of the item whose number is the picture's first pixel."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        pictures = [Image.open(io.BytesIO(value["bytes"])).convert("RGB") for value in batch["image"]]
        pixels: list[Any] = [picture.getpixel((0, 0)) for picture in pictures]
        return NEW[[red + 256 * green for red, green, _ in pixels]]


def test_images_of_datasets_cost_their_own_row_if_they_are_corrupt_or_missing(tmp_path: Path) -> None:
    """Rows stay with their old vectors' place in the index, and each good one is found by what its own picture says."""
    CORRUPT, MISSING = 7, 250
    pictures: list[dict[str, Any] | None] = []
    for row in range(ROWS):
        sink = io.BytesIO()
        Image.new("RGB", (2, 2), (row % 256, row // 256, 0)).save(sink, "PNG")
        pictures.append({"bytes": sink.getvalue()[:20] if row == CORRUPT else sink.getvalue(), "path": None})
    pictures[MISSING] = None
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=sorted(set(labels(range(ROWS))))),
            "embedding": datasets.List(datasets.Value("float32"), length=DIM),
        }
    )
    ids = [f"picture {row}" for row in range(ROWS)]
    columns = {"id": ids, "image": pictures, "label": CLASSES.tolist(), "embedding": OLD.tolist()}
    (tmp_path / "gallery").mkdir()
    whole = datasets.Dataset.from_dict(columns, features=features)
    for shard in range(2):
        whole.shard(2, shard, contiguous=True).to_parquet(tmp_path / "gallery" / f"{shard}.parquet")
    result, _ = backfilled(
        tmp_path,
        gallery={"payload_columns": ["image"]},
        new_model={"embedder": f"{__name__}:ImageEmbedder", "kwargs": {}},
    )
    assert result.finished
    faults = {
        fault.id: fault.reason
        for folder in ("pairs/*/c*.receipt.json", "vectors/**/*.receipt.json")
        for path in (tmp_path / "out").glob(folder)
        for fault in synthetic.receipt_at(path).quarantined
    }
    assert set(faults) == {ids[CORRUPT], ids[MISSING]}
    assert "'NoneType' object is not subscriptable" in faults[ids[MISSING]]
    assert re.search("OSError|UnidentifiedImageError|SyntaxError", faults[ids[CORRUPT]])
    for version in result.state.versions:
        assert Counter(held(tmp_path, version)) == Counter(ids)
    good = [row for row in range(ROWS) if row not in (CORRUPT, MISSING)]
    _, found = ff.open_index(str(tmp_path / "out")).search(NEW[good], k=1)
    assert found[:, 0].tolist() == [ids[row] for row in good]


def test_files_by_whatever_name_and_row_groups_of_any_size_are_read(tmp_path: Path) -> None:
    """pandas' one row group beside Ray's small ones; names as tools write them; a text that is no UTF-8 in one row."""
    folder = tmp_path / "gallery"
    (folder / "_year=2023").mkdir(parents=True)
    raw = [b"caf\xe9" if row == 150 else b"good" for row in range(ROWS)]
    texts = pa.Array.from_buffers(pa.string(), ROWS, pa.array(raw).buffers())
    rows = pa.Table.from_pandas(frame(range(ROWS)), preserve_index=False).append_column("text", texts)
    pq.write_table(rows.slice(0, 80), folder / "_year=2023" / "a.pq", row_group_size=7)
    pq.write_table(rows.slice(80, 60), folder / "b.PARQUET")
    frame(range(140, 145), text=["good"] * 5).to_parquet(folder / "c.parquet.gzip", compression="gzip")
    pq.write_table(rows.slice(145, 95), folder / "d")
    (folder / "README.md").write_text("no data")
    (tmp_path / "elsewhere").mkdir()
    pq.write_table(rows.slice(240), tmp_path / "elsewhere" / "e.snappy.parquet")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    result, said = backfilled(tmp_path, gallery={"payload_columns": ["x", "text"]})
    assert "gallery.path: 5 files read, 1 skipped (README.md: no Parquet)" in said
    assert result.finished
    assert Counter(held(tmp_path, result.state.versions[-1])) == Counter(range(ROWS))
    assert embedded(tmp_path) == markers([row for row in range(ROWS) if row != 150])
    good = [row for row in range(ROWS) if row != 150]
    _, found = ff.open_index(str(tmp_path / "out")).search(NEW[good], k=1)
    assert found[:, 0].tolist() == good


def test_new_items_of_pandas_are_absent_until_embedded_and_judgements_of_zero_do_not_count(tmp_path: Path) -> None:
    """The first 256 rows have no old vector; the queries are polars', the graded judgements DuckDB's."""
    num, new = 600, 256
    x, classes = synthetic.latent(num, seed=4)
    columns = {"id": range(num), "x": list(x), "label": classes}
    (tmp_path / "gallery").mkdir()
    old = [None] * new + list(synthetic.old_vectors(x[new:]))
    pd.DataFrame({**columns, "embedding": old}).to_parquet(tmp_path / "gallery" / "a.parquet")
    asked = np.arange(0, num, 15)
    noise = np.random.default_rng(6).normal(size=(len(asked), synthetic.LATENT)).astype(np.float32)
    values = x[asked] + noise
    queries = tmp_path / "queries.parquet"
    pl.DataFrame({"id": [f"q{row}" for row in asked], "x": values.tolist()}).write_parquet(queries)
    unit, ask = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in map(synthetic.new_vectors, (x, values)))
    ranked = np.argsort(-(ask @ unit.T), axis=1)
    # The first hit was judged 0, the second 1, the fifth 2, the twentieth 3.
    judged = [
        (place, {int(hits[0]): 0, int(hits[1]): 1, int(hits[4]): 2, int(hits[19]): 3})
        for place, hits in enumerate(ranked)
    ]
    rows = [(f"q{asked[place]}", item, grade) for place, grades in judged for item, grade in grades.items()]
    query = "SELECT q AS query_id, i::UINTEGER AS item_id, s::FLOAT AS relevance FROM (VALUES "
    query += f"{', '.join(map(str, rows))}) t(q, i, s)"
    duckdb.sql(f"COPY ({query}) TO '{tmp_path}/qrels.parquet' (FORMAT parquet)")
    sections = {
        "gallery": {"label_column": None},
        "queries": {"path": str(queries), "payload_columns": ["x"], "qrels_path": str(tmp_path / "qrels.parquet")},
        "objective": {"relevance": "qrels", "metric": "ndcg@10"},
        "old_model": {"embedder": "tests.synthetic:OldEmbedder"},
        "pairs": {"count": 200},
    }
    result, said = backfilled(tmp_path, **sections)
    assert f"600 items in 1 file; old vectors: {DIM} x float32 (list)" in said
    assert result.finished
    pairs = np.concatenate(list(synthetic.drawn_pairs(range(num), 200).values()))
    absent = set(range(new)) - set(pairs.tolist())
    first, last = result.state.versions
    assert set(held(tmp_path, first)) == set(range(num)) - absent
    assert (first.absent, last.absent) == (len(absent), 0)
    assert Counter(held(tmp_path, last)) == Counter(range(num))
    assert embedded(tmp_path) == sorted(map(synthetic.marker, x[:, 0]))
    assert metric(last.metrics, "gallery", "qrels", "cmc@1").value == 0, "the first hit was judged not relevant"
    assert metric(last.metrics, "gallery", "qrels", "cmc@5").value == 1
    assert metric(last.metrics, "gallery", "qrels", "recall@10").value == pytest.approx(2 / 3)
    assert metric(last.metrics, "gallery", "qrels", "mrr").value == pytest.approx(1 / 2)
    found, ideal = 1 / log2(3) + 2 / log2(6), 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert metric(last.metrics, "gallery", "qrels", "ndcg@10").value == pytest.approx(found / ideal)
