"""Hold a finished run against plain numpy and a direct run of the model.

    python benchmarks/check_run.py CONFIG ROOT [--set a.b=c ...]

Prints, and exits 1 if one fails:
- every version holds every gallery id exactly once;
- the last version's CMC@1, mAP and R@1 (gallery scope) equal a plain numpy search over its stored vectors to 1e-6;
- 200 random stored vectors equal a direct run of the embedder to 1e-4;
- what the last version answers through `open_index` is what numpy answers.

Reads the config's gallery and queries (local files) and the Parquet vectors under ROOT; needs no Ray.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from fastfill_ray.embedders.protocol import load_embedder
from fastfill_ray.index.verify import verify
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

SAMPLE = 200
METRICS_SHOWN = (("label", "cmc@1"), ("label", "map"), ("qrels", "recall@1"))


def read(path: str | tuple[str, ...]) -> pa.Table:
    return pq.read_table(path if isinstance(path, str) else list(path))


def stored_vectors(root: str, plan: str, pairs: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N,) and new vectors (N, E) of every Parquet file that waves and pairs left."""
    from pathlib import Path

    files = [*Path(root, "vectors", plan).rglob("c*.parquet"), *Path(root, "pairs", pairs).glob("c*.parquet")]
    tables = [pq.read_table(path) for path in sorted(files)]
    table = pa.concat_tables(tables)
    vectors = table.column("vector").combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return np.array(table.column("id").to_pylist(), dtype=object), vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain_figures(scores: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """CMC@1, mAP and R@1 as the textbook says, one query at a time."""
    first, precisions, recalls = [], [], []
    for row, truth in zip(scores, relevant, strict=True):
        if not truth.any():
            continue
        ranked = truth[np.argsort(-row, kind="stable")]
        ranks = np.flatnonzero(ranked) + 1
        first.append(float(ranked[0]))
        precisions.append(float(np.mean(np.arange(1, len(ranks) + 1) / ranks)))
        recalls.append(float(ranked[0]) / truth.sum())
    return {"cmc@1": np.mean(first), "map": np.mean(precisions), "recall@1": np.mean(recalls)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("root")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    config = ff.load_config(arguments.config, arguments.set)
    files = open_files(arguments.root)
    state = read_state(files)
    assert state.plan is not None
    assert config.queries is not None
    start = time.monotonic()
    failures = 0

    def check(what: str, good: bool) -> None:
        nonlocal failures
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what}")

    gallery = read(config.gallery.path)
    rows = gallery.num_rows
    for found in verify(files):
        version = state.version(found.version)
        assert version is not None
        whole = found.rows == rows and version.ids_digest == state.plan.ids_digest
        check(f"version {found.version}: {found.rows} ids, each once, of {rows} in the gallery", whole)

    ids, vectors = stored_vectors(arguments.root, state.plan.plan, state.plan.pairs)
    check(f"{len(ids)} stored vectors, {len(set(ids))} distinct ids", len(set(ids)) == len(ids) == rows)
    row_of = {item: row for row, item in enumerate(gallery.column(config.gallery.id_column).to_pylist())}
    order = np.argsort([row_of[item] for item in ids])
    ids, vectors = ids[order], vectors[order]

    embedder = load_embedder(config.new_model.embedder, dict(config.new_model.kwargs))
    queries = read(config.queries.path)
    columns = {name: queries.column(name).to_pylist() for name in config.queries.payload_columns}
    asked = np.asarray(embedder(columns, "query"), dtype=np.float32)
    scores = unit(asked) @ unit(vectors).T if config.new_model.metric == "cosine" else asked @ vectors.T

    labels = np.array(gallery.column(config.gallery.label_column).to_pylist(), dtype=object)
    asked_labels = np.array(queries.column(config.queries.label_column).to_pylist(), dtype=object)
    relevant = {"label": asked_labels[:, None] == labels[None, :], "qrels": np.zeros(scores.shape, bool)}
    judged = read(config.queries.qrels_path)
    query_of = {name: row for row, name in enumerate(queries.column(config.queries.id_column).to_pylist())}
    for query, item in zip(judged.column("query_id").to_pylist(), judged.column("item_id").to_pylist(), strict=True):
        relevant["qrels"][query_of[query], row_of[item]] = True
    plain = {name: plain_figures(scores, truth) for name, truth in relevant.items()}
    last = state.plan_versions[-1]
    recorded = {
        (m.relevance, m.metric): m.value
        for m in last.metrics
        if m.scope == "gallery" and m.calibrated and m.group is None and m.metric in METRICS
    }
    for relevance, metric in METRICS_SHOWN:
        here, there = recorded[relevance, metric], plain[relevance][metric]
        check(
            f"{relevance} {metric}: recorded {here:.8f}, numpy {there:.8f}, differ {abs(here - there):.1e}",
            abs(here - there) <= 1e-6,
        )

    chosen = np.random.default_rng(0).choice(rows, SAMPLE, replace=False)
    batch = {
        name: [gallery.column(name)[int(row)].as_py() for row in chosen] for name in config.gallery.payload_columns
    }
    direct = np.asarray(embedder(batch, "item"), dtype=np.float32)
    worst = float(np.abs(direct - vectors[chosen]).max())
    check(
        f"{SAMPLE} random stored vectors against a direct run of the model: differ by at most {worst:.1e}",
        worst <= 1e-4,
    )

    index = ff.open_index(arguments.root, last.version)
    served, found_ids = index.search(asked, k=10)
    best = np.take_along_axis(scores, np.argsort(-scores, axis=1)[:, :10], axis=1)
    check(
        f"open_index: top 10 scores differ by at most {np.abs(served - best).max():.1e}",
        np.abs(served - best).max() < 1e-5,
    )
    same = float(np.mean(found_ids[:, 0] == ids[np.argmax(scores, axis=1)]))
    check(f"open_index: first hit equals numpy's for {same:.1%} of {len(asked)} queries", same > 0.999)
    print(f"{time.monotonic() - start:.0f} s; {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
