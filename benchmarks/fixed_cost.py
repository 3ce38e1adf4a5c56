"""What the smallest real run costs: 2,000 digits with real Ray, in a fresh process, and where each second goes.

python -m benchmarks.fixed_cost [--folder DIR]

scikit-learn's digits that the networks have not seen, and copies of them moved by a pixel. Everything is at its default
(map, order and calibration are chosen) but for the pairs, which are 400. Asserted: the last version holds every item,
new, and answers as brute force does. Printed: seconds of the whole process, by stage, and those that the driver waits
for Ray: for its start, for the first result of each call (workers start and import, actors load the model), for the
others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.results import markdown

ROWS, PAIRS = 2_000, 400
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fixed_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where gallery and output go; a temporary folder by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        run(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.folder or Path(temporary))


def measure(folder: Path) -> None:
    import faiss
    import ray
    import torch

    config = write_input(folder)
    start = time.time()
    child = [sys.executable, "-m", "benchmarks.fixed_cost", "--child", json.dumps(config)]
    done = subprocess.run(child, stdout=subprocess.PIPE, check=True, text=True)
    total = time.time() - start
    check(config)
    spent = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{ROWS:,} digits; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}; Python "
        f"{platform.python_version()}, ray {ray.__version__}, torch {torch.__version__}, faiss {faiss.__version__}\n"
    )
    parts = {
        "the interpreter and imports": spent["run_at"] - start,
        **spent["stages"],
        "Ray: start": spent["ray"]["start"],
        "Ray: end": spent["ray"]["end"],
        "the interpreter's end": start + total - spent["done_at"],
    }
    lines = [[name, f"{seconds:.1f}", f"{seconds / total:.0%}"] for name, seconds in parts.items()]
    print(markdown(["part", "seconds", "share"], [*lines, ["whole process", f"{total:.1f}", ""]]))
    print("\nStages may overlap.\n")
    calls = [
        [name, str(call["calls"]), f"{call['to_first_s']:.1f}", f"{call['after_s']:.1f}"]
        for name, call in spent["calls"].items()
    ]
    print(markdown(["calls of Ray", "number", "seconds to the first result", "seconds after it"], calls))


# The input, and the answer


def write_input(folder: Path) -> dict[str, Any]:
    """A gallery of digits, and the config of a run over it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.digits import NEW_DIM, OLD_DIM, DigitsEmbedder, build_digits

    digits = build_digits(folder / "digits")
    held_out = pq.read_table(digits.gallery)
    images = np.stack(held_out.column("image").to_pylist()).astype(np.float32).reshape(-1, 8, 8)
    moved = np.concatenate([images, np.roll(images, 1, axis=1), np.roll(images, 1, axis=2)])[:ROWS].reshape(ROWS, 64)
    old = DigitsEmbedder(str(digits.old_weights))({"image": list(moved)}, "item")
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "image": pa.array(list(moved), pa.list_(pa.float32())),
            "label": np.resize(held_out.column("label").to_numpy(), ROWS),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old.ravel()), OLD_DIM),
        }
    )
    gallery = folder / "gallery"
    gallery.mkdir()
    pq.write_table(table, gallery / "digits.parquet")
    return {
        "gallery": {"path": str(gallery), "payload_columns": ["image"], "label_column": "label"},
        "new_model": {
            "embedder": "tests.digits:DigitsEmbedder",
            "kwargs": {"weights": str(digits.new_weights)},
            "dim": NEW_DIM,
            "metric": "l2",
        },
        "pairs": {"count": PAIRS},
        "serving": {"max_regression": 1.0},  # whether the new model is better is not the question here
        "output": str(folder / "out"),
    }


def check(config: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    import fastfill_ray as ff
    from tests.digits import DigitsEmbedder

    images = pq.read_table(config["gallery"]["path"]).column("image").to_pylist()
    vectors = DigitsEmbedder(**config["new_model"]["kwargs"])({"image": images}, "item")
    index = ff.open_index(config["output"])
    assert index.rows == ROWS
    assert not index.needs_old_queries
    scores, _ = index.search(vectors[:100], 10)
    distances = np.square(vectors[:100, None].astype(np.float64) - vectors[None]).sum(axis=2)
    expected = -np.sort(distances, axis=1)[:, :10]
    assert np.allclose(scores, expected, rtol=1e-3, atol=1e-2 * distances.mean() ** 0.5)


# The run


@dataclass
class Calls:
    """What the calls of one kind took, in seconds."""

    calls: int = 0
    to_first_s: float = 0.0
    after_s: float = 0.0


@dataclass
class Times:
    """What the driver waits for. ray: its start and end, in seconds."""

    ray: dict[str, float] = field(default_factory=dict)
    calls: dict[str, Calls] = field(default_factory=dict)

    @contextmanager
    def session(self, session: Any) -> Iterator[None]:
        start = time.perf_counter()
        with session:
            self.ray["start"] = time.perf_counter() - start
            try:
                yield
            finally:
                start = time.perf_counter()
        self.ray["end"] = time.perf_counter() - start

    def whole(self, name: str, call: Callable[[], T]) -> T:
        """A call with one result."""
        start, of_kind = time.perf_counter(), self._one_more(name)
        try:
            return call()
        finally:
            of_kind.to_first_s += time.perf_counter() - start

    def each(self, name: str, results: Iterator[T]) -> Iterator[T]:
        """A call with many results. What the driver does between them does not count."""
        of_kind, first = self._one_more(name), True
        while True:
            start = time.perf_counter()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                spent = time.perf_counter() - start
                if first:
                    of_kind.to_first_s += spent
                else:
                    of_kind.after_s += spent
            first = False
            yield result

    def _one_more(self, name: str) -> Calls:
        of_kind = self.calls.setdefault(name, Calls())
        of_kind.calls += 1
        return of_kind


def run(config: dict[str, Any]) -> None:
    """The run in the child process. Its last line on stdout is JSON."""
    from fastfill_ray.backfill import _run
    from fastfill_ray.config import load_config
    from fastfill_ray.engine.ray_engine import RayEngine

    times = Times()

    class TimedPool:
        def __init__(self, pool: Any) -> None:
            self._pool, self._results = pool, times.each("pool of embedders", pool)

        def __iter__(self) -> Any:
            return self._results

        def __next__(self) -> Any:
            return next(self._results)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._pool, name)

        def close(self) -> None:
            times.whole("pool's close", self._pool.close)

    class TimedEngine(RayEngine):
        def session(self, say: Any) -> Any:
            return times.session(super().session(say))

        def run_tasks(self, function: Any, *rest: Any, **named: Any) -> Any:
            name = named.get("name", "tasks")
            return times.each(f"tasks: {name}", iter(super().run_tasks(function, *rest, **named)))

        def exchange(self, *given: Any, **named: Any) -> Any:
            return times.whole("exchange", lambda: RayEngine.exchange(self, *given, **named))

        def run_once(self, *given: Any) -> Any:
            return times.whole("one call in an actor's place", lambda: RayEngine.run_once(self, *given))

        def run_units(self, *given: Any) -> Any:
            return times.each("units", iter(super().run_units(*given)))

        def run_pool(self, *given: Any) -> Any:
            return TimedPool(times.whole("pool's start", lambda: RayEngine.run_pool(self, *given)))

        def train(self, *given: Any) -> Any:
            return times.whole("training", lambda: RayEngine.train(self, *given))

    run_at = time.time()
    result = _run(load_config(config), TimedEngine())
    done_at, last = time.time(), result.state.versions[-1]
    assert (last.rows, last.new_rows) == (ROWS, ROWS), "every item is there once, and new"
    calls = {name: asdict(of_kind) for name, of_kind in times.calls.items()}
    print(
        json.dumps({"run_at": run_at, "done_at": done_at, "stages": result.seconds, "ray": times.ray, "calls": calls})
    )


if __name__ == "__main__":
    main()
