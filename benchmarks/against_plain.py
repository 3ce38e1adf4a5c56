"""A whole run against plain Ray Data and one index: how much longer it takes, and how much earlier it serves.

python -m benchmarks.against_plain [--rows 10000] [--actors 2] [--folder DIR]

Docstrings, MiniLM, objective `new_model`, map and order fixed. Plain is read_parquet -> map_batches (as many actors,
the same batches) -> write_parquet, then one Flat index of what was written. Both find Ray running, and load models.
Asserted first: both hold every item once, and the last version's answers are the plain index's. A version serves a
share of the new model's quality when that is its recall@10 of the new model's own top 10, on the audit items; it serves
from the moment in which it is published.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data

import fastfill_ray as ff
from benchmarks.texts import NEW_DIM, hardware, of_pool, start_ray, texts, write_gallery
from fastfill_ray.embedders.text import MiniLM

WAVES = [0.2, 0.4, 0.6, 0.8, 1.0]
BATCH_SIZE, QUERIES = 64, 200
SHARES = (0.95, 0.99)


def main() -> None:
    of_pool("against_plain", __doc__, 10_000, measure)


def measure(folder: Path, rows: int, actors: int, chunk_rows: int) -> None:
    everything = texts(rows)
    write_gallery(folder / "gallery", everything)
    queries = MiniLM()({"text": everything[:: max(1, rows // QUERIES)]}, "query")
    # One more than the embedders hold: beside them plain Ray Data would never get to read, or to write.
    start_ray(actors + 1)
    try:
        plain_s, index = plain(folder, actors)
        run_s, published = run(folder, actors, chunk_rows)
    finally:
        ray.shutdown()
    check(folder, index, queries, rows)
    print(hardware())
    print(f"{rows:,} texts, {actors} embedders of one thread")
    print("| | s | of plain |\n|---|---|---|")
    print(f"| plain Ray Data and one index | {plain_s:.1f} | 1.00 |")
    for share in SHARES:
        served_s = next((at_s for at_s, quality in published if quality >= share), None)
        if served_s is not None:
            print(f"| {share:.0%} of the new model's quality served | {served_s:.1f} | {served_s / plain_s:.2f} |")
    print(f"| the run at 100 % | {run_s:.1f} | {run_s / plain_s:.2f} |\n")
    for at_s, quality in published:
        print(f"published after {at_s:.1f} s: recall@10 {quality:.3f}")


class Plain(MiniLM):
    """As anybody would write it."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"id": batch["id"], "vector": super().__call__({"text": batch["text"].tolist()}, "item")}


def plain(folder: Path, actors: int) -> tuple[float, faiss.Index]:
    """Seconds, and the index."""
    start = time.monotonic()
    (
        ray.data.read_parquet(str(folder / "gallery"), columns=["id", "text"])
        # As many blocks as keep every actor busy: by itself it reads a gallery of this size as one, for one actor.
        .repartition(8 * actors)
        .map_batches(
            Plain,
            fn_constructor_kwargs={"threads": 1},
            batch_size=BATCH_SIZE,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        .write_parquet(str(folder / "plain"))
    )
    table = pq.read_table(folder / "plain")
    index = faiss.IndexIDMap(faiss.IndexFlatIP(NEW_DIM))
    vectors = np.stack([np.asarray(vector, np.float32) for vector in table.column("vector").to_pylist()])
    index.add_with_ids(vectors, table.column("id").to_numpy())
    faiss.write_index(index, str(folder / "plain.faiss"))
    return time.monotonic() - start, index


class _Publications(io.StringIO):
    """The driver's lines; keeps when each version was said to be there."""

    def __init__(self) -> None:
        super().__init__()
        self.at_s: list[float] = []

    def write(self, text: str) -> int:
        if text.startswith("version ") and ", published" in text:
            self.at_s.append(time.monotonic())
        return super().write(text)


def run(folder: Path, actors: int, chunk_rows: int) -> tuple[float, list[tuple[float, float]]]:
    """Seconds, and per version when it was published and its recall@10."""
    config = {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["text"]},
        "new_model": {
            "embedder": "fastfill_ray.embedders.text:MiniLM",
            "kwargs": {"threads": 1},
            "dim": NEW_DIM,
            "metric": "cosine",
            "batch_size": BATCH_SIZE,
        },
        "pairs": {"count": folder_rows(folder) // 5},
        "objective": {"relevance": "new_model", "metric": "recall@10"},
        "alignment": {"method": "ridge"},
        "policy": {"name": "uncertainty"},
        "serving": {"stale_mode": "aligned", "max_regression": 1.0},
        "waves": WAVES,
        "resources": {"embed_actors": [actors, actors], "chunk_rows": chunk_rows},
        "output": str(folder / "out"),
    }
    lines = _Publications()
    start = time.monotonic()
    result = ff.run_backfill(config, stream=lines)
    seconds = time.monotonic() - start
    print(lines.getvalue())
    versions = [version for version in result.state.versions if version.verdict.publish]
    qualities = [
        next(
            each.value
            for each in version.metrics
            if (each.scope, each.relevance, each.metric, each.calibrated) == ("audit", "new_model", "recall@10", True)
        )
        for version in versions
    ]
    return seconds, [(at_s - start, value) for at_s, value in zip(lines.at_s, qualities, strict=True)]


def folder_rows(folder: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in (folder / "gallery").iterdir())


def check(folder: Path, index: faiss.Index, queries: Sequence[Any], rows: int) -> None:
    served = ff.open_index(str(folder / "out"))
    assert served.rows == index.ntotal == rows, "both hold every item once"
    _, found = served.search(np.asarray(queries, np.float32), k=10)
    _, expected = index.search(np.asarray(queries, np.float32), 10)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert same > 0.995, f"of the ten best of the plain index {same:.1%} were found"


if __name__ == "__main__":
    main()
