"""What an export costs beside a plain rewrite of the same files with pyarrow.

python -m benchmarks.export [--rows 1000000] [--dim 64] [--segments 4] [--repeat 3] [--ray]

A root is written as a run writes it, cosine, Flat: half of the segments are stale and calibrated. It is exported as it
is, baked, and baked after a DELETE of 1 % of the ids, for which every id is hashed. Asserted first: every live id once,
with its vector; and of a baked export that inner products find what ``open_index`` finds. Then export and rewrite run
in turn, each in a process of its own, without Ray: medians, the median of the ratios, and the peak memory of the
process. The rewrite reads each file of the export and writes it with the same row groups and codecs; the export reads
the index instead, checks its bytes, bakes, and makes its files durable. --ray also times the whole command on a fresh
local Ray, its start included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from benchmarks.read_pass import peak_kb
from benchmarks.results import markdown
from benchmarks.search import PLAN, commit, put_segments
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.export import bake_queries, export_version
from fastfill_ray.index.segment import train_template
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.stages.export_manifest import ExportRequest
from fastfill_ray.storage.arrow import matrix_column, table_bytes
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt
from fastfill_ray.storage.refs import put_file
from fastfill_ray.types import F32, I64

IDENTITY, STALE = Calibration(), Calibration(scale=1.2, offset=-0.1)
# Whether it is baked, and after a DELETE.
MODES = {"as it is": (False, False), "baked": (True, False), "baked, 1 % deleted": (True, True)}
QUERIES, K, PAIRS = 50, 10, 200


def main() -> None:
    parser = large_root_parser("export", __doc__)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measured(*options.only)))
        return
    print(f"{size_of(options)}; {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for mode, (baked, is_deleted) in MODES.items():
            root, whole = Path(folder, "root"), Path(folder, "whole")
            items, deleted = make_root(root, options.rows, options.dim, options.segments, is_deleted=is_deleted)
            alone(mode, root, whole)
            check(root, whole, items, deleted, baked=baked)
            lines.append([mode, *compare(mode, root, whole, options.repeat)])
            if options.ray:
                start = time.perf_counter()
                command = ["-m", "fastfill_ray.cli", "export", str(root), "--to", f"{folder}/ray", "--json"]
                subprocess.run([sys.executable, *command, *["--baked"] * baked], check=True, capture_output=True)
                lines[-1].append(f"{time.perf_counter() - start:.1f}")
                shutil.rmtree(f"{folder}/ray")
            shutil.rmtree(whole)
            shutil.rmtree(root)
    head = ["", "MB", "rewrite: s", "export: s", "median ratio", "rewrite: peak MB", "export: peak MB"]
    print(markdown([*head, *["on Ray, with its start: s"] * options.ray], lines))


def large_root_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Of a benchmark of this folder that exports a large root, each time in a process of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also the command on Ray")
    parser.add_argument("--only", nargs=3, metavar=("WHAT", "FROM", "TO"), help=argparse.SUPPRESS)
    return parser


def size_of(options: argparse.Namespace) -> str:
    return f"{options.rows:,} x {options.dim} float32 in {options.segments} segments"


def machine() -> str:
    return (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.machine()}; pyarrow {pa.__version__}, faiss "
        f"{faiss.__version__}, Python {platform.python_version()}"
    )


def make_root(root: Path, rows: int, dim: int, count: int, *, is_deleted: bool) -> tuple[F32, I64]:
    """Its items (N, E) by id, and the deleted ids."""
    random = np.random.default_rng(0)
    items = unit_rows(random.standard_normal((rows, dim), dtype=np.float32))
    files, template = open_files(str(root)), train_template("Flat", dim, "cosine", items[:10_000])
    segments = [
        segment.model_copy(update={"state": "stale", "space": "aligned", "wave": 1, "calibration": STALE})
        if number % 2
        else segment
        for number, segment in enumerate(put_segments(files, items, template, count, [IDENTITY]))
    ]
    deleted = np.sort(random.permutation(rows)[: rows // 100 * is_deleted])
    commit(files, segments, deleted)
    pairs = table_bytes(pa.table({name: matrix_column(items[:PAIRS]) for name in ("new", "old")}))
    output = put_file(files, f"pairs/{PLAN}/pairs.parquet", pairs)
    put_receipt(files, stage_receipt("pairs", PLAN), Receipt(unit="pairs", outputs=(output,), rows=PAIRS))
    return items, deleted


def check(root: Path, whole: Path, items: F32, deleted: I64, *, baked: bool) -> None:
    """Assert what the export holds."""
    table = pq.read_table(whole / "data", columns=["id", "vector"])
    ids = table.column("id").to_numpy()
    assert np.array_equal(np.sort(ids), np.setdiff1d(np.arange(len(items)), deleted))
    stored = np.concatenate([c.values.to_numpy() for c in table.column("vector").chunks]).reshape(len(ids), -1)
    if not baked:
        np.testing.assert_allclose(stored, items[ids], atol=1e-6)  # an index normalises what is normalised
        return
    queries = unit_rows(np.random.default_rng(1).standard_normal((QUERIES, items.shape[1]), dtype=np.float32))
    scores, found = ff.open_index(str(root)).search(queries, K)
    asked = bake_queries(whole / "manifest.json", queries)
    flat = faiss.IndexFlatIP(stored.shape[1])
    flat.add(stored)
    products, rows = flat.search(asked, K)
    assert np.array_equal(ids[rows], found)
    np.testing.assert_allclose(products, scores, atol=1e-5)


def compare(mode: str, root: Path, whole: Path, repeat: int) -> list[str]:
    """The cells of a line."""
    exports, rewrites = [], []
    for _ in range(repeat):  # in turn, so that noise meets both
        exports.append(alone(mode, root, whole.parent / "export"))
        rewrites.append(alone("rewrite", whole, whole.parent / "rewrite"))
        shutil.rmtree(whole.parent / "export")
        shutil.rmtree(whole.parent / "rewrite")
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(exports, rewrites, strict=True)]
    seconds = [statistics.median(each["seconds"] for each in kind) for kind in (rewrites, exports)]
    peaks = [max(each["peak_mb"] for each in kind) for kind in (rewrites, exports)]
    size = sum(path.stat().st_size for path in (whole / "data").iterdir()) / 1e6
    return [
        f"{size:.0f}",
        *(f"{each:.2f}" for each in seconds),
        f"{statistics.median(ratios):.2f}",
        *(f"{each:.0f}" for each in peaks),
    ]


def alone(what: str, source: Path, to: Path) -> dict[str, Any]:
    """Seconds and peak memory of a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.export", "--only", what, str(source), str(to)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def measured(what: str, source: str, to: str) -> dict[str, Any]:
    start = time.perf_counter()
    if what == "rewrite":
        rewrite(Path(source), Path(to))
    else:
        with open(os.devnull, "w") as stream:
            export_version(source, to, ExportRequest(baked=MODES[what][0]), engine=InProcessEngine(), stream=stream)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_kb() / 1024}


def rewrite(source: Path, to: Path) -> None:
    """Every file read and written again as it was."""
    to.mkdir()
    for path in sorted((source / "data").iterdir()):
        with pq.ParquetFile(path) as file:
            columns = [file.metadata.row_group(0).column(leaf) for leaf in range(file.metadata.num_columns)]
            pq.write_table(
                file.read(),
                to / path.name,
                row_group_size=file.metadata.row_group(0).num_rows,
                compression={c.path_in_schema: c.compression.replace("UNCOMPRESSED", "NONE") for c in columns},
                use_dictionary=["state"],
                write_statistics=[c.path_in_schema for c in columns if c.is_stats_set],
                write_page_checksum=True,
            )


if __name__ == "__main__":
    main()
