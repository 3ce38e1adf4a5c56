"""What one pass over a gallery costs, by the row groups and the codec that its file was written with.

python -m benchmarks.read_pass [--rows 200000] [--dim 384] [--repeat 3]

Each pass runs in a process of its own: it cuts the file into chunks as a run does, reads ids, old vectors and texts of
every chunk, and checks what it has read. Printed per file: seconds (the best of the repetitions), rows decoded, and the
process's peak memory beyond what it had before it opened the file; and the ratios to the file of small row groups.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import Span, in_one_pass, read_spans
from fastfill_ray.inputs.table import Column, pin
from fastfill_ray.ordering.partition import cut_chunks

GROUPS = (2_048, 122_880, 1_000_000)
CODECS = ("zstd", "snappy")
COLUMNS = [Column("ids", "id", "id"), Column("old vectors", "embedding", "vector"), Column("payload", "text")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.read_pass", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(read_pass(options.only)))
        return
    print(f"{options.rows:,} x {options.dim} float32 with ids and texts, pyarrow {pa.__version__}")
    print("| codec | rows per group | MB | s | ratio | rows decoded | ratio | peak MB | ratio |\n|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            files = [write(Path(folder), options.rows, options.dim, rows, codec) for rows in GROUPS]
            passes: list[list[dict[str, Any]]] = [[] for _ in files]
            for _ in range(options.repeat):  # in turn, so that noise meets all of them
                for found, file in zip(passes, files, strict=True):
                    found.append(in_own_process(file))
            base = best(passes[0])
            for rows, file, found in zip(GROUPS, files, passes, strict=True):
                print(line(codec, rows, file.stat().st_size, best(found), base))


def write(folder: Path, rows: int, dim: int, group_rows: int, codec: str) -> Path:
    """A gallery of one file."""
    rng = np.random.default_rng(0)
    values = pa.array(rng.standard_normal(rows * dim, dtype=np.float32))
    offsets = pa.array(np.arange(rows + 1, dtype=np.int64) * dim)
    texts = [f"text {row} " + "word " * (row % 40) for row in range(rows)]
    table = pa.table(
        {"id": np.arange(rows), "embedding": pa.LargeListArray.from_arrays(offsets, values), "text": texts}
    )
    path = folder / f"{codec}-{group_rows}.parquet"
    pq.write_table(table, path, row_group_size=group_rows, compression=codec)
    return path


def in_own_process(file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.read_pass", "--only", str(file)]
    measured: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured


def read_pass(path: Path) -> dict[str, Any]:
    """Every chunk of the file read and checked once: seconds, rows decoded, peak memory in MB."""
    decoded = count_decoded()
    store, resources = InputStore(), ResourcesConfig()
    before = peak_kb()
    start = time.perf_counter()
    (file,) = pin(store, store.find(str(path)), COLUMNS).files
    chunks = cut_chunks(
        [(file.row_groups, file.read_bytes)], chunk_rows=resources.chunk_rows, chunk_bytes=resources.chunk_bytes
    )
    row, total = 0, 0.0
    for group in in_one_pass((Span(file, start, rows) for _, start, rows in chunks), lambda span: span):
        for span, table in zip(group, read_spans(store, group, [column.name for column in COLUMNS]), strict=True):
            ids = table.column("id").to_numpy()
            assert ids[0] == row == span.start, "chunks come in order"
            assert ids[-1] == row + span.rows - 1, "and are whole"
            total += sum(float(chunk.values[0].as_py()) for chunk in table.column("embedding").chunks)
            row += table.num_rows
    seconds = time.perf_counter() - start
    assert row == file.rows, "every row is read"
    assert np.isfinite(total)
    return {"seconds": seconds, "decoded": sum(decoded), "peak_mb": (peak_kb() - before) / 1024}


def peak_kb() -> int:
    """The most memory that this program had (``ru_maxrss`` would count what its parent had when it started it)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def count_decoded() -> list[int]:
    """The rows of every batch that pyarrow decodes from now on."""
    counts: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iterate(self, *arguments, **options):
            counts.append(len(batch))
            yield batch

    pq.ParquetFile.iter_batches = counted
    return counts


def best(passes: list[dict[str, Any]]) -> dict[str, Any]:
    return min(passes, key=lambda measured: float(measured["seconds"]))


def line(codec: str, group_rows: int, size: int, found: dict[str, Any], base: dict[str, Any]) -> str:
    cells = [codec, f"{group_rows:,}", f"{size / 1e6:.0f}"]
    for name, shown in (("seconds", ".2f"), ("decoded", ","), ("peak_mb", ".0f")):
        cells += [format(found[name], shown), f"{found[name] / base[name]:.2f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
