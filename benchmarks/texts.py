"""A gallery of real texts for benchmarks: docstrings of installed packages, and a MiniLM that keeps times."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.embedders.protocol import Role
from fastfill_ray.embedders.text import MiniLM, WordLlamaEmbedder
from fastfill_ray.types import F32
from jobs.demo_data import DemoSpec, find_sources, read_docstrings, select_items

OLD_DIM, NEW_DIM = 64, 384
SPEC = DemoSpec(max_items=1 << 20, max_items_per_label=1 << 20)


@dataclass(frozen=True)
class Call:
    """One call of the model: in which process, from when to when on the machine's monotonic clock, of how many rows."""

    pid: int
    start_s: float
    end_s: float
    rows: int


class TimedMiniLM(MiniLM):
    """MiniLM that appends a line per call to a file of its process in `calls`."""

    def __init__(self, calls: str, threads: int | None = None) -> None:
        super().__init__(threads=threads)
        self._calls = calls

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> F32:
        start_s = time.monotonic()
        vectors = super().__call__(batch, role)
        with (Path(self._calls) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps([os.getpid(), start_s, time.monotonic(), len(vectors)]) + "\n")
        return vectors


def read_calls(folder: Path) -> list[Call]:
    """What ``TimedMiniLM`` has left there, by time."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((Call(*json.loads(line)) for line in lines), key=lambda call: call.start_s)


def rate(calls: Sequence[Call]) -> float:
    """Items/s between the first call's begin and the last one's end."""
    return sum(call.rows for call in calls) / (max(call.end_s for call in calls) - calls[0].start_s)


def idle_share(calls: Sequence[Call]) -> float:
    """Share of the embedders' time between the first call and the last one that was in no call."""
    span_s = max(call.end_s for call in calls) - calls[0].start_s
    busy_s = sum(call.end_s - call.start_s for call in calls)
    return 1 - busy_s / (span_s * len({call.pid for call in calls}))


def texts(rows: int) -> list[str]:
    """So many docstrings without their first sentences, each once, of source files drawn at random.

    Raises:
        ValueError: fewer are installed.
    """
    sources = list(find_sources(SPEC))
    drawn = [sources[place] for place in np.random.default_rng(0).permutation(len(sources))]
    # Some texts stand in several places.
    items = select_items(itertools.islice(read_docstrings(drawn), 2 * rows), SPEC)
    if len(items) < rows:
        raise ValueError(f"--rows {rows}: the installed packages have {len(items)} docstrings; ask for fewer")
    return [items[place].text for place in np.linspace(0, len(items) - 1, rows).astype(int)]


def write_gallery(folder: Path, rows: Sequence[str], files: int = 4) -> None:
    """Parquet files of ids 0..N-1, texts and old vectors (N, OLD_DIM)."""
    folder.mkdir(parents=True)
    old = WordLlamaEmbedder(dim=OLD_DIM)({"text": rows}, "item")
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        table = pa.table(
            {
                "id": part,
                "text": [rows[row] for row in part],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old[part].ravel()), OLD_DIM),
            }
        )
        pq.write_table(table, folder / f"{number:02d}.parquet")


def of_pool(name: str, doc: str | None, rows: int, measure: Callable[[Path, int, int, int], None]) -> None:
    """The command line of a benchmark of pools.

    Args:
        doc: its module's. rows: by default. measure: (folder, rows, actors, rows of a chunk).
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--chunk-rows", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where everything goes; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.folder or Path(temporary), options.rows, options.actors, options.chunk_rows)


def start_ray(num_cpus: int) -> None:
    """A Ray of this machine with the settings that a run gives the one that it starts."""
    import ray

    from fastfill_ray.engine.session import keep_idle_workers

    keep_idle_workers()
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)


def hardware() -> str:
    """What the figures were measured on, for the table's head."""
    import ray
    import torch

    cores = len(os.sched_getaffinity(0))
    versions = f"Python {platform.python_version()}, Ray {ray.__version__}, torch {torch.__version__}"
    return f"{platform.machine()}, {cores} cores, {versions}, pyarrow {pa.__version__}"
