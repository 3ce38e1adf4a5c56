"""Waves of MiniLM through the engine against a bare loop in as many processes: items/s, and how idle the embedders are.

python -m benchmarks.wave [--rows 12000] [--actors 2] [--folder DIR]

The bare loop deals the same rows, sorted by length, longest first, batch by batch to processes that have loaded the
model. Asserted first: every item has a vector, and both gave the same ones. Rates and idle shares are taken between the
first batch and the last one over all waves; half of the bare loop runs before and half after, since machines are noisy.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray

import fastfill_ray as ff
from benchmarks.texts import (
    NEW_DIM,
    Call,
    TimedMiniLM,
    hardware,
    idle_share,
    of_pool,
    rate,
    read_calls,
    start_ray,
    texts,
    write_gallery,
)

WAVES = [0.1, 0.25, 0.5, 1.0]
BATCH_SIZE = 64


def main() -> None:
    of_pool("wave", __doc__, 12_000, measure)


def measure(folder: Path, rows: int, actors: int, chunk_rows: int) -> None:
    everything = texts(rows)
    write_gallery(folder / "gallery", everything)
    halves = np.split(np.random.default_rng(0).permutation(rows), [rows // 2])
    before = bare(folder / "before", everything, halves[0], actors)
    calls = waves(folder, actors, chunk_rows)
    after = bare(folder / "after", everything, halves[1], actors)
    worst, num_embedded = check(folder, rows)
    assert num_embedded == sum(call.rows for call in calls), "a wave embeds each of its items once"
    print(hardware())
    print(
        f"{num_embedded:,} texts in {len(WAVES)} waves, {actors} embedders of one thread; vectors differ by {worst:.1e}"
    )
    print("| | items/s | idle |\n|---|---|---|")
    for name, each in (("bare loop, before", before), ("waves", calls), ("bare loop, after", after)):
        print(f"| {name} | {rate(each):.1f} | {idle_share(each):.1%} |")
    bare_rate = rows / (span_s(before) + span_s(after))
    print(f"\nwaves against bare loop: {rate(calls) / bare_rate:.3f} x items/s")


def span_s(calls: Sequence[Call]) -> float:
    return sum(call.rows for call in calls) / rate(calls)


def bare(folder: Path, everything: Sequence[str], rows: np.ndarray, actors: int) -> list[Call]:
    """A process per embedder takes the next batch of the same list when it is through with one."""
    folder.mkdir()
    order = rows[np.argsort([-len(everything[row]) for row in rows], kind="stable")]
    batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order), BATCH_SIZE)]
    context = multiprocessing.get_context("spawn")
    loaded, taken = context.Barrier(actors), context.Value("i", 0)
    work = (str(folder), [[everything[row] for row in batch] for batch in batches], loaded, taken)
    processes = [context.Process(target=_loop, args=(number, *work)) for number in range(actors)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    made = {number: vectors for path in folder.glob("*.npz") for number, vectors in np.load(path).items()}
    np.savez(folder / "all.npz", ids=order, vectors=np.concatenate([made[str(n)] for n in range(len(batches))]))
    return read_calls(folder)


def _loop(process: int, folder: str, batches: list[list[str]], loaded: Any, taken: Any) -> None:
    model = TimedMiniLM(folder, threads=1)
    loaded.wait()
    made = {}
    while True:
        with taken.get_lock():
            number, taken.value = taken.value, taken.value + 1
        if number >= len(batches):
            break
        made[str(number)] = model({"text": batches[number]}, "item")
    np.savez(f"{folder}/{process}.npz", **made)


def waves(folder: Path, actors: int, chunk_rows: int) -> list[Call]:
    """The calls of all waves of a run; what comes before them, the pairs', is left out."""
    (folder / "calls").mkdir()
    config = {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["text"]},
        "new_model": {
            "embedder": "benchmarks.texts:TimedMiniLM",
            "kwargs": {"calls": str(folder / "calls"), "threads": 1},
            "dim": NEW_DIM,
            "metric": "cosine",
            "batch_size": BATCH_SIZE,
        },
        "pairs": {"count": min(1000, folder_rows(folder) // 4)},
        "objective": {"relevance": "new_model", "metric": "recall@10"},
        "alignment": {"method": "procrustes"},
        "policy": {"name": "random"},
        "serving": {"stale_mode": "aligned", "max_regression": 1.0},  # whether versions are good is not the question
        "waves": WAVES,
        "resources": {"embed_actors": [actors, actors], "chunk_rows": chunk_rows},
        "output": str(folder / "out"),
    }
    start_ray(actors)
    try:
        ff.run_backfill(config, until="version0")
        num_before = len(read_calls(folder / "calls"))
        ff.run_backfill(config)
    finally:
        ray.shutdown()
    return read_calls(folder / "calls")[num_before:]


def folder_rows(folder: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in (folder / "gallery").iterdir())


def check(folder: Path, rows: int) -> tuple[float, int]:
    """The largest difference of a component to the bare loop's, and how many items the waves embedded.

    Every item has one vector, of the pairs or of a wave.
    """
    expected = np.zeros((rows, NEW_DIM), np.float32)
    for name in ("before", "after"):
        with np.load(folder / name / "all.npz") as made:
            expected[made["ids"]] = made["vectors"]
    made_ids, worst, of_waves = [], 0.0, 0
    for path in sorted((folder / "out").rglob("*.parquet")):
        if pq.read_schema(path).names != ["id", "vector"]:
            continue
        table = pq.read_table(path)
        ids = table.column("id").to_numpy()
        vectors = np.stack(table.column("vector").to_numpy())
        worst = max(worst, float(np.abs(vectors - expected[ids]).max()))
        made_ids.append(ids)
        of_waves += len(ids) * ("vectors" in path.parts)
    assert np.array_equal(np.sort(np.concatenate(made_ids)), np.arange(rows)), "every item has one vector"
    assert worst < 1e-4, f"the vectors differ by {worst} from the bare loop's"
    return worst, of_waves


if __name__ == "__main__":
    main()
