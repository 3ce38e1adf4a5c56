"""Where a whole run spends its time, on a synthetic gallery whose models cost nothing.

python -m benchmarks.run_profile [--rows 1000000] [--engine ray] [--folder DIR] [--fixed] [--compare]

1,000 labelled queries, five versions. Printed: seconds by stage, and the share of measuring (the arms, and the
evaluation of every version) and of choosing. It asserts that the last version holds every item once and that its
answers are those of brute force. --compare runs the same without labels and queries first, and prints the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine

LATENT, OLD_DIM, NEW_DIM, CLASSES, QUERIES = 24, 48, 64, 100, 1000
MEASURING, CHOOSING = ("arms", "evaluate"), ("choose",)


def matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


class NewModel:
    """A linear map of the latent factors in the payload."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        return np.array(batch["x"], np.float32) @ matrix(1, LATENT, NEW_DIM)


def items(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latent factors (rows, LATENT) around class centres, and classes (rows,)."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, rows)
    return (matrix(3, CLASSES, LATENT)[classes] + rng.standard_normal((rows, LATENT))).astype(np.float32), classes


def table(rows: int, seed: int, first: int) -> pa.Table:
    x, classes = items(rows, seed)
    old = np.tanh(x[:, : LATENT - 6]) @ matrix(2, LATENT - 6, OLD_DIM)
    return pa.table(
        {
            "id": np.arange(first, first + rows),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), LATENT),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old.astype(np.float32).reshape(-1)), OLD_DIM),
            "label": classes,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_profile", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--engine", choices=["in_process", "ray"], default="in_process")
    parser.add_argument(
        "--folder", type=Path, help="where the gallery and the output go; a temporary folder by default"
    )
    parser.add_argument("--fixed", action="store_true", help="map, order and stale mode are given, nothing is chosen")
    parser.add_argument("--compare", action="store_true", help="run it without labels and queries, too")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, faiss {faiss.__version__}"
    )
    took = {}
    for labelled in (False, True) if options.compare else (True,):
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.folder or Path(temporary)) / ("labelled" if labelled else "unlabelled")
            took[labelled] = profile(
                folder, options.rows, options.files, options.engine, labelled=labelled, fixed=options.fixed
            )
    if options.compare:
        pairs = zip(took[True], took[False], strict=True)
        wall, processor = (f"{with_queries / without:.2f}" for with_queries, without in pairs)
        print(
            f"with {QUERIES:,} labelled queries against without: {wall} of the seconds, {processor} of the processor's"
        )


def profile(
    folder: Path, rows: int, files: int, engine: str, *, labelled: bool = True, fixed: bool = False
) -> tuple[float, float]:
    """One run, checked; its seconds, and those of this process' processor."""
    (folder / "gallery").mkdir(parents=True)
    edges = np.linspace(0, rows, files + 1).astype(int).tolist()
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        pq.write_table(table(end - start, 10 + number, start), folder / "gallery" / f"{number:03d}.parquet")
    config: dict[str, Any] = {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["x"]},
        "new_model": {"embedder": "benchmarks.run_profile:NewModel", "dim": NEW_DIM, "batch_size": 1024},
        "pairs": {"count": min(20_000, rows // 20)},
        "waves": [0.1, 0.25, 0.5, 1.0],
        "serving": {"max_regression": 1.0},  # whether the new model is better is not the question here
        "output": str(folder / "out"),
    }
    if labelled:
        pq.write_table(table(QUERIES, 5, 0), folder / "queries.parquet")
        config["gallery"]["label_column"] = "label"
        config["queries"] = {
            "path": str(folder / "queries.parquet"),
            "payload_columns": ["x"],
            "label_column": "label",
            "old_vector_column": "embedding",
        }
    if fixed:
        config |= {"alignment": {"method": "ridge"}, "policy": {"name": "random"}}
        config["serving"]["stale_mode"] = "aligned"
    start, used = time.monotonic(), time.process_time()
    result = ff.run_backfill(config) if engine == "ray" else _run(load_config(config), InProcessEngine())
    took = time.monotonic() - start, time.process_time() - used
    seconds, total = result.seconds, sum(result.seconds.values())
    last = result.state.versions[-1]
    assert (last.rows, last.new_rows) == (rows, rows), "every item is there once, and new"
    check_answers(folder, rows)
    for name, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        print(f"{name:12} {spent:8.1f} s {spent / total:6.1%}")
    asked = "labelled queries" if labelled else "no queries"
    print(f"{rows:,} items, {asked}, {len(result.state.versions)} versions, {engine}: {took[0]:.0f} s")
    for what, names in (("measuring", MEASURING), ("choosing", CHOOSING)):
        print(f"{what}: {sum(seconds.get(name, 0.0) for name in names) / total:.1%}")
    return took


def check_answers(folder: Path, rows: int) -> None:
    x, _ = items(QUERIES, 5)
    queries = (x[:20] @ matrix(1, LATENT, NEW_DIM)).astype(np.float32)
    _, found = ff.open_index(str(folder / "out")).search(queries, k=10)
    gallery = np.concatenate(
        [np.stack(pq.read_table(path).column("x").to_pylist()) for path in sorted((folder / "gallery").iterdir())]
    )
    exact = faiss.IndexFlatIP(NEW_DIM)
    vectors = (gallery.astype(np.float32) @ matrix(1, LATENT, NEW_DIM)).astype(np.float32)
    faiss.normalize_L2(vectors)
    faiss.normalize_L2(queries)
    exact.add(vectors)
    _, expected = exact.search(queries, 10)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert same > 0.999, f"of the ten best of brute force {same:.1%} were found"


if __name__ == "__main__":
    main()
