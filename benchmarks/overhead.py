"""What a run costs beside its models: a synthetic gallery whose old and new model cost next to nothing.

python -m benchmarks.overhead [--rows 100000 1000000] [--queries 0 1000] [--linear] [--engine in_process] [--folder DIR]

32 dimensions become 64, in files of 250,000 rows with row groups of 65,536; five versions. Each run is a process of
its own, and must end with every item once, new, and with the answers of brute force; each wave must have written new
segments of its own items alone. Printed: seconds by stage and their sum, CPU-seconds (which tell more where others use
the machine), both for a further million, peak memory of the driver and of any process of the run, bytes written by
folder, and as a multiple of final index and vectors. `auto` chooses kernel ridge and `expected_gain` here, which map
every item three times; with --linear it is ridge, ordered by uncertainty.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from benchmarks.results import markdown
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

LATENT, OLD_DIM, NEW_DIM, CLASSES = 24, 32, 64, 100
FILE_ROWS, GROUP_ROWS = 250_000, 65_536
CHECKED = 20  # queries whose answers are compared with brute force
MEASURING = ("arms", "evaluate")
# Looking through all processes takes 13 ms: at ten times a second it took a twentieth of two cores.
SAMPLED_EVERY_S = 0.5


def matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


class NewModel:
    """A linear map of the latent factors, which are the payload, as bytes."""

    def __call__(self, batch: dict[str, Sequence[bytes]], role: str) -> np.ndarray:
        return latent(batch["x"]) @ matrix(1, LATENT, NEW_DIM)


def latent(payload: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(payload), np.float32).reshape(-1, LATENT)


def table(rows: int, seed: int, first: int) -> pa.Table:
    """Items: latent factors around class centres, what the old model makes of them, and the class as label."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, rows)
    x = (matrix(3, CLASSES, LATENT)[classes] + rng.standard_normal((rows, LATENT))).astype(np.float32)
    old = (np.tanh(x[:, : LATENT - 6]) @ matrix(2, LATENT - 6, OLD_DIM)).astype(np.float32)
    payload = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * LATENT), rows, [None, pa.py_buffer(x)])
    return pa.table(
        {
            "id": np.arange(first, first + rows),
            "x": payload.cast(pa.binary()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old.reshape(-1)), OLD_DIM),
            "label": classes,
        }
    )


def write_gallery(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        part = table(min(FILE_ROWS, rows - start), 10 + number, start)
        pq.write_table(part, folder / f"{number:04d}.parquet", row_group_size=GROUP_ROWS)


def config_of(folder: Path, rows: int, queries: int, *, linear: bool) -> dict[str, Any]:
    config = {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["x"]},
        "new_model": {"embedder": "benchmarks.overhead:NewModel", "dim": NEW_DIM, "batch_size": 1024},
        "pairs": {"count": min(20_000, rows // 20)},
        "waves": [0.1, 0.25, 0.5, 1.0],
        "serving": {"max_regression": 1.0},  # whether the new model is better is not the question here
        "output": str(folder / "out"),
    }
    if linear:
        config |= {"alignment": {"method": "ridge"}, "policy": {"name": "uncertainty"}}
        config["serving"]["stale_mode"] = "aligned"  # type: ignore[index]
    if queries:
        config["gallery"]["label_column"] = "label"  # type: ignore[index]
        config["queries"] = {
            "path": str(folder / "queries.parquet"),
            "payload_columns": ["x"],
            "label_column": "label",
            "old_vector_column": "embedding",
        }
    return config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[0, 1000], help="labelled ones")
    parser.add_argument("--linear", action="store_true", help="a linear map, and the order that costs nothing")
    parser.add_argument("--engine", choices=["ray", "in_process"], default="ray")
    parser.add_argument("--folder", type=Path, help="where galleries and outputs go, and stay; else a temporary one")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(run(options.only, options.rows[0], options.queries[0], options.engine, linear=options.linear)))
        return
    versions = f"faiss {faiss.__version__}, numpy {np.__version__}, pyarrow {pa.__version__}"
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary)
        results = []
        for queries, rows in itertools.product(options.queries, sorted(options.rows)):
            results.append(measure(place / f"{rows}-{queries}", rows, queries, options.engine, linear=options.linear))
            print(stages_line(results[-1]), flush=True)
    print("\n" + markdown(HEAD, lines(results)))


def measure(folder: Path, rows: int, queries: int, engine: str, *, linear: bool) -> dict[str, Any]:
    """One run in a process of its own, watched from this one."""
    write_gallery(folder / "gallery", rows)
    pq.write_table(table(max(queries, CHECKED), 5, 0), folder / "queries.parquet")
    command = [sys.executable, "-m", "benchmarks.overhead", "--only", str(folder), "--engine", engine]
    command += ["--rows", str(rows), "--queries", str(queries), *["--linear"] * linear]
    with open(folder / "stderr.log", "wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        peaks: Counter[int] = Counter()
        busy: dict[int, float] = {}
        while process.poll() is None:
            for pid, resident, cpu_s in usage(process.pid):
                peaks[pid] = max(peaks[pid], resident)
                busy[pid] = max(busy.get(pid, 0.0), cpu_s)
            time.sleep(SAMPLED_EVERY_S)
    assert process.stdout is not None
    assert process.returncode == 0, (folder / "stderr.log").read_text()[-2000:]
    measured: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    check_answers(folder)
    return {
        **measured,
        "rows": rows,
        "queries": queries,
        "driver": peaks.pop(process.pid),
        "worker": max(peaks.values(), default=0),
        "cpu": sum(busy.values()),
        "written": check_written(folder, rows),
    }


def usage(root: int) -> Iterator[tuple[int, int, float]]:
    """(pid, bytes of its own, CPU-seconds so far) of a process and of all below it. Pages that it shares, such as
    libraries, are left out.
    """
    children: dict[int, list[int]] = {}
    used: dict[int, tuple[int, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            parent, ticks = int(fields[1]), int(fields[11]) + int(fields[12])
            _, pages, shared = map(int, (stat.parent / "statm").read_text().split()[:3])
        except (OSError, ValueError):  # it has ended
            continue
        pid = int(stat.parent.name)
        children.setdefault(parent, []).append(pid)
        used[pid] = ((pages - shared) * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK"))
    below = [root]
    while below:
        pid = below.pop()
        below += children.get(pid, [])
        yield pid, *used.get(pid, (0, 0.0))


def run(folder: Path, rows: int, queries: int, engine: str, *, linear: bool) -> dict[str, Any]:
    """The run itself: {"seconds": by stage, "total": from the first to the last}."""
    config, start = config_of(folder, rows, queries, linear=linear), time.monotonic()
    result = ff.run_backfill(config) if engine == "ray" else _run(load_config(config), InProcessEngine())
    last = result.state.versions[-1]
    assert (last.rows, last.new_rows) == (rows, rows), "every item is there once, and new"
    return {"seconds": result.seconds, "total": time.monotonic() - start}


def check_answers(folder: Path) -> None:
    """The published version answers as brute force does."""
    queries = latent(pq.read_table(folder / "queries.parquet").column("x").to_pylist()[:CHECKED])
    queries = (queries @ matrix(1, LATENT, NEW_DIM)).astype(np.float32)
    _, found = ff.open_index(str(folder / "out")).search(queries, k=10)
    faiss.normalize_L2(queries)
    best = [(np.empty((CHECKED, 0), np.float32), np.empty((CHECKED, 0), np.int64))]
    for path in sorted((folder / "gallery").iterdir()):
        read = pq.read_table(path, columns=["id", "x"])
        vectors = (latent(read.column("x").to_pylist()) @ matrix(1, LATENT, NEW_DIM)).astype(np.float32)
        faiss.normalize_L2(vectors)
        scores, places = faiss.knn(queries, vectors, 10, faiss.METRIC_INNER_PRODUCT)
        best.append((scores, read.column("id").to_numpy()[places]))
    scores, ids = (np.concatenate(part, axis=1) for part in zip(*best, strict=True))
    expected = np.take_along_axis(ids, np.argsort(-scores, axis=1, kind="stable")[:, :10], axis=1)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert same > 0.999, f"of the ten best of brute force {same:.1%} were found"


def check_written(folder: Path, rows: int) -> dict[str, float]:
    """Bytes per folder under the output root, and of what the last version is made of."""
    files = open_files(str(folder / "out"))
    state = read_state(files)
    known: set[str] = set()
    for version in state.versions:
        segments = segments_of(files, version)
        fresh = sum(segment.rows for segment in segments if segment.index.path not in known)
        before = state.versions[version.wave - 1].new_rows if version.wave else 0
        # Version 0 is of all items; a wave's segments are of the items that have become new in it.
        assert fresh == (version.new_rows - before if version.wave else rows), "a wave writes its own items alone"
        known |= {segment.index.path for segment in segments}
    written: Counter[str] = Counter()
    for path in files.list(""):
        written[path.partition("/")[0]] += (folder / "out" / path).stat().st_size
    final = sum(reference.size for segment in segments for reference in segment.files)
    vectors = sum((folder / "out" / path).stat().st_size for path in files.list("vectors"))
    vectors += sum((folder / "out" / path).stat().st_size for path in files.list("pairs"))
    return {**written, "final": final + vectors}


HEAD = (
    *("rows", "queries", "s", "CPU s", "s a further million", "CPU s a further million", "measuring"),
    *("driver MB", "any other MB", "written GB", "ratio"),
)


def lines(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    before: dict[str, Any] | None = None
    for result in results:
        further = {"total": "", "cpu": ""}
        if before is not None and before["queries"] == result["queries"]:
            millions = (result["rows"] - before["rows"]) / 1e6
            further = {name: f"{(result[name] - before[name]) / millions:.1f}" for name in further}
        written = dict(result["written"])
        final = written.pop("final")
        measuring = sum(result["seconds"].get(stage, 0.0) for stage in MEASURING) / result["total"]
        yield [
            f"{result['rows']:,}",
            f"{result['queries']:,}",
            f"{result['total']:.1f}",
            f"{result['cpu']:.1f}",
            *further.values(),
            f"{measuring:.0%}",
            f"{result['driver'] / 1e6:.0f}",
            f"{result['worker'] / 1e6:.0f}",
            f"{sum(written.values()) / 1e9:.2f}",
            f"{sum(written.values()) / final:.2f}",
        ]
        before = result


def stages_line(result: dict[str, Any]) -> str:
    stages = sorted(result["seconds"].items(), key=lambda pair: -pair[1])
    spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages if seconds >= 0.05)
    written = sorted(result["written"].items(), key=lambda pair: -pair[1])
    folders = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in written)
    return f"{result['rows']:,} items, {result['queries']:,} queries: {result['total']:.1f} s: {spent} (MB: {folders})"


if __name__ == "__main__":
    main()
