"""Scoring a gallery against a plain loop over the same files: pyarrow reads, torch maps, pyarrow writes.

python -m benchmarks.scoring [--rows 2000000] [--dim 256] [--threads 2] [--maps ridge kernel fastfill]

Both run in this process with the same threads and the same maps, of random weights. The loop knows the dim, checks
nothing, and keeps ids and log-variances in one file per gallery file; scoring checks ids and vectors, hashes ids, gives
each item its order key, and leaves chunks of 2,048 rows with digests and receipts, durably. The log-variances of both
are compared first, by id. Printed: rows/s of each, the ratio, and what of a loop's seconds is the map.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.results import markdown
from fastfill_ray.alignment.maps import Alignment, AnyMap, Method, make_map
from fastfill_ray.alignment.uncertainty import ResidualModel
from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.ordering.policies import Reference
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.score import Scorer, score
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery, source_of
from fastfill_ray.stages.train import TrainedAlignment
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.refs import put_file
from fastfill_ray.types import canonical

FILE_ROWS, GROUP_ROWS, LANDMARKS = 250_000, 65_536, 4096
MAPS: tuple[Method, ...] = ("ridge", "kernel", "fastfill")
SPACES = {"old": "old", "new": "new"}
BATCH_ROWS = 4096  # of the loop: the fastest of 1,024 to 65,536


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pa.set_cpu_count(options.threads)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, pyarrow {pa.__version__}"
    print(f"{options.threads} threads of {os.cpu_count()} cores, {platform.machine()}, {versions}")
    print(f"{options.rows:,} x {options.dim} to {options.dim}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_gallery(folder / "gallery", options.rows, options.dim)
        found = [compare(folder, method, options.rows, options.dim) for method in options.maps]
    print(markdown(("map", "loop rows/s", "scoring rows/s", "ratio", "map's share of the loop"), found))


def write_gallery(folder: Path, rows: int, dim: int) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        size = min(FILE_ROWS, rows - start)
        values = np.random.default_rng(number).standard_normal((size, dim), dtype=np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
        table = pa.table({"id": np.arange(start, start + size), "embedding": vectors, "text": ["nothing"] * size})
        pq.write_table(table, folder / f"{number:04d}.parquet", row_group_size=GROUP_ROWS)


def random_map(method: Method, dim: int) -> tuple[AnyMap, ResidualModel | None]:
    torch.manual_seed(0)
    mapping, residuals = make_map(method, "default", dim, dim, landmarks=LANDMARKS).eval(), None
    for name, tensor in mapping.state_dict().items():
        if name in ("landmarks", "weight"):
            tensor.normal_()
        elif name == "gamma":
            tensor.fill_(1 / (2 * dim))
    if method != "fastfill":
        residuals = ResidualModel(dim, dim)
        residuals.weight.normal_(std=0.01)
        residuals.constants.copy_(torch.tensor([0.0, -10.0, 10.0]))
    return mapping, residuals


def compare(folder: Path, method: Method, rows: int, dim: int) -> list[str]:
    mapping, residuals = random_map(method, dim)
    config = load_config(
        {
            "gallery": {"path": str(folder / "gallery"), "payload_columns": ["text"]},
            "new_model": {"embedder": "unused:Unused", "dim": dim},
            "output": str(folder / method),
        }
    )
    files, store = open_files(config.output), InputStore()
    alignment = Alignment(
        method, "default", old_scale=1.0, new_scale=1.0, mapping=mapping, residuals=residuals, dims=(dim, dim)
    )
    snapshot = inspect_gallery(store, store.find(str(config.gallery.path)), config.gallery, config.resources)
    scorer = scorer_of(files, store, config, snapshot, alignment)
    context = Context(InProcessEngine(), files, store, Progress(io.StringIO()))
    start = time.monotonic()
    scores = score(context, scorer, snapshot, {snapshot.chunks[0].unit: (0,)}, {})
    scoring_s = time.monotonic() - start
    start = time.monotonic()
    map_s = sum(loop(folder / "gallery", folder / "plain", mapping, residuals))
    loop_s = time.monotonic() - start
    plain = pq.read_table(folder / "plain")
    ours = pa.concat_tables(
        pq.read_table(folder / method / reference.path, columns=["id", "log_variance"])
        for reference in scores.chunks.values()
    )
    assert ours.num_rows == plain.num_rows == rows
    first, second = (each.sort_by("id").column("log_variance").to_numpy() for each in (ours, plain))
    np.testing.assert_allclose(first, second, atol=1e-3)
    return [
        method,
        f"{rows / loop_s:,.0f}",
        f"{rows / scoring_s:,.0f}",
        f"{loop_s / scoring_s:.2f}",
        f"{map_s / loop_s:.0%}",
    ]


def scorer_of(
    files: Files, store: InputStore, config: BackfillConfig, snapshot: Snapshot, alignment: Alignment
) -> Scorer:
    weights, info = alignment.save()
    trained = TrainedAlignment(
        "benchmark",
        put_file(files, "alignment/benchmark/model.safetensors", weights),
        put_file(files, "alignment/benchmark/alignment.json", canonical({**info, "spaces": SPACES})),
    )
    source = source_of(store, config, snapshot)
    return Scorer(files, source, trained, SPACES, "uncertainty", None, 0, Reference(), "")


def loop(gallery: Path, out: Path, mapping: AnyMap, residuals: ResidualModel | None) -> Iterator[float]:
    """What somebody writes who has the map and wants its log-variances; the seconds that the map takes."""
    out.mkdir(exist_ok=True)
    schema = pa.schema([("id", pa.int64()), ("log_variance", pa.float32())])
    for path in sorted(gallery.iterdir()):
        with torch.inference_mode(), pq.ParquetWriter(out / path.name, schema, compression="zstd") as writer:
            for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["id", "embedding"]):
                column = batch.column("embedding")
                old = torch.from_numpy(column.flatten().to_numpy().reshape(len(column), -1))
                start = time.monotonic()
                aligned, log_variance = mapping(old)
                if log_variance is None and residuals is not None:
                    log_variance = residuals(old, aligned)
                yield time.monotonic() - start
                writer.write_table(pa.table([batch.column("id"), pa.array(log_variance.numpy())], schema=schema))


if __name__ == "__main__":
    main()
