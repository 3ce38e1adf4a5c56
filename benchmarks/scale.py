"""What the driver of a run holds, and for how long it works, by the number of items: 10^7, 10^8, 10^9.

python -m benchmarks.scale [--items 10000000 100000000 1000000000] [--row-bytes 1000] [--chunk-rows N] [--trace]

No gallery is made. Files, ids and priorities follow from their numbers and are made part by part, and go through the
functions that a run's driver calls, in a local root: the snapshot and its chunks, the parts of the ledger, the score
files, the thresholds of the waves, the work list, the units, their receipts, the buckets and the segments. All of it is
held at the same time, as a run holds it. What a run's tasks do (reading, mapping, embedding, building) is left out, but
for the making and counting of keys.

Asserted first, by a second pass over all keys: every wave has as many items as its share says, to the item. A 24-bit
priority is shared by 60 of 10^9 items, so that every threshold falls between items of one priority.

Each size runs in a process of its own. Printed per step: seconds of its processor, and the highest memory of the
process (RSS) while it ran; with --trace also what Python itself had allocated at most (tracemalloc; the seconds are
then not comparable).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

import fastfill_ray.backfill
import fastfill_ray.engine.ray_engine
from benchmarks.results import markdown
from fastfill_ray.index.segment_list import listed, read_segments
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.inputs.table import TableInput
from fastfill_ray.log.records import FileRef, Segment
from fastfill_ray.ordering.ids import hash_ids, seeded_hash
from fastfill_ray.ordering.partition import cut_chunks, cut_parts, items_per_task
from fastfill_ray.ordering.schedule import LADDER
from fastfill_ray.ordering.waves import (
    KEY_SPACE,
    Histogram,
    find_thresholds,
    key_histogram,
    order_key,
    wave_of,
    wave_targets,
)
from fastfill_ray.stages.build import gallery_buckets
from fastfill_ray.stages.keys import ScoredChunk, scored_groups
from fastfill_ray.stages.known import num_partitions
from fastfill_ray.stages.ledger import key_groups, ledger_parts
from fastfill_ray.stages.plan import in_buckets, wave_units
from fastfill_ray.stages.snapshot import Snapshot, read_snapshot
from fastfill_ray.stages.work import ChunkWork, RowWork, WorkList, count_rows, put_work_list, read_work_list
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import items_output, segment_paths, snapshot_path, unit_output, work_path
from fastfill_ray.storage.receipts import Receipt, Receipts
from fastfill_ray.storage.sealed import seal_file
from fastfill_ray.types import U64, Bools

FILE_ROWS, GROUP_ROWS, SEGMENT_ROWS, PAIRS = 250_000, 65_536, 1_000_000, 20_000
DIM, PLAN = 64, "abcdefabcdefabcd"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**7, 10**8, 10**9])
    parser.add_argument("--row-bytes", type=int, default=1000, help="of a row of the gallery, as it is read")
    parser.add_argument("--chunk-rows", type=int, help="resources.chunk_rows; auto by default")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measured(options.only, options.row_bytes, options.chunk_rows, trace=options.trace)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}; files of {FILE_ROWS:,} rows, "
        f"row groups of {GROUP_ROWS:,}, {options.row_bytes} bytes a row; waves end at {', '.join(map(str, LADDER))}"
    )
    results = []
    for items in options.items:
        arguments = [f"--only={items}", f"--row-bytes={options.row_bytes}"]
        arguments += [f"--chunk-rows={options.chunk_rows}"] * (options.chunk_rows is not None)
        arguments += ["--trace"] * options.trace
        command = [sys.executable, "-m", "benchmarks.scale", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout))
    print(table(options.items, results, trace=options.trace))


def table(sizes: Sequence[int], results: Sequence[dict[str, dict[str, float]]], *, trace: bool) -> str:
    """One line per step, and per thing that is counted."""
    head = ["", *(f"{items:.0e} items: {what}" for items in sizes for what in ("s", "peak MB"))]
    lines = []
    for step in results[0]["seconds"]:
        values = [(result["seconds"][step], result["peak_mb"][step]) for result in results]
        lines.append([step, *(text for s, mb in values for text in (f"{s:.1f}", f"{mb:.0f}"))])
    everything = [(sum(result["seconds"].values()), max(result["peak_mb"].values())) for result in results]
    lines.append(["**all**", *(text for s, mb in everything for text in (f"{s:.1f}", f"{mb:.0f}"))])
    ratios = [peak / everything[0][1] for _, peak in everything]
    lines.append(["peak, against the first", *(text for ratio in ratios for text in ("", f"{ratio:.2f}"))])
    if trace:
        traced = [result["counts"].pop("traced MB") for result in results]
        lines.append(["Python's own allocations", *(text for mb in traced for text in ("", f"{mb:.0f}"))])
    counts = [
        [name, *(f"{result['counts'][name]:,.{int(name.startswith('MB'))}f}" for result in results)]
        for name in results[0]["counts"]
    ]
    return f"{markdown(head, lines)}\n\n{markdown(['', *(f'{items:.0e} items' for items in sizes)], counts)}"


@dataclass
class Meter:
    """Seconds and highest memory of each step."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step."""
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark begins anew
        start = time.process_time()
        yield
        self.seconds[name] = time.process_time() - start
        self.peak_mb[name] = memory_mb("VmHWM")


def memory_mb(mark: str) -> float:
    """A mark of this process in /proc, in MB."""
    marks = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(marks[mark].split()[0]) * 1024 / 1e6


@dataclass(frozen=True)
class Gallery:
    """Items by their numbers: which have an old vector, a priority, and are pairs."""

    items: int

    def keys(self, start: int, rows: int) -> tuple[U64, Bools]:
        """Order keys (rows,) of a run of items, and which are pairs."""
        numbers = np.arange(start, start + rows, dtype=np.int64)
        hashed = hash_ids(numbers)
        # Exponential, of 24 bits: log-variances and gains are skewed like that.
        uniform = ((seeded_hash(hashed, 1) >> np.uint64(40)) + np.uint64(1)).astype(np.float32) / np.float32(1 << 24)
        return order_key(-np.log(uniform), hashed), numbers % (self.items // PAIRS) == 0


def digest(*names: object) -> str:
    """64 hex digits."""
    return hashlib.sha256(repr(names).encode()).hexdigest()


def measured(items: int, row_bytes: int, chunk_rows: int | None, *, trace: bool) -> dict[str, dict[str, float]]:
    """{seconds, peak_mb: per step; counts: of what}, the answer asserted."""
    if trace:
        tracemalloc.start()
    meter, gallery = Meter(), Gallery(items)
    base_mb = memory_mb("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        files = open_files(folder)
        with meter.step("snapshot, its chunks"):
            snapshot = stored_snapshot(files, items, row_bytes, chunk_rows)
            starts = np.cumsum([0, *(chunk.rows for chunk in snapshot.chunks)]).tolist()
        with meter.step("parts of the ledger, their receipts"):
            parts = ledger_parts(snapshot)
            ledger = Receipts()
            for part in parts:
                ledger[part.unit] = receipt_of(snapshot.ledger, part.unit, part.rows, 1)
            partitions = num_partitions(items)
            groups_of_keys = key_groups(parts)
            tasks = -(-len(groups_of_keys) // items_per_task(len(groups_of_keys), partitions))
        with meter.step("score files"):
            scores = score_files(snapshot)
        is_pair_of = pair_offsets(gallery, snapshot, starts)
        with meter.step("groups of score files"):
            groups = scored_groups(snapshot, scores, is_pair_of, {}, {})
        targets = wave_targets(LADDER, items, PAIRS)
        runs = list(runs_of(groups, starts))
        with meter.step("thresholds (all cores' counting on one)"):
            cuts = thresholds(gallery, runs, targets)
        with meter.step("second pass: rows put into waves"):
            placed, ends = place(gallery, groups, starts, cuts)
        assert ends == targets, f"waves end at {ends}, their shares are {targets}"
        with meter.step("work list, stored and read"):
            work = stored_work(files, snapshot, placed)
            del placed
        with meter.step("units of all waves"):
            units = wave_units(PLAN, len(LADDER), snapshot, work)
        with meter.step("receipts of all units"):
            receipts = {wave: Receipts() for wave in units}
            for wave, of_wave in units.items():
                for unit in of_wave:
                    receipts[wave][unit.unit] = receipt_of(unit.folder, unit.unit, unit.rows, 2)
        with meter.step("buckets"):
            buckets = gallery_buckets(snapshot, work)
        with meter.step("segments, stored and read"):
            segments = stored_segments(files, len(buckets))
        counts: dict[str, float] = {
            "files": len(snapshot.gallery.files),
            "chunks": len(snapshot.chunks),
            "rows of the largest chunk": max(chunk.rows for chunk in snapshot.chunks),
            "tasks over score files": len(groups),
            "units": sum(map(len, units.values())),
            "parts of the ledger": len(ledger),
            "tasks over keys": tasks,
            "partitions of keys": partitions,
            "pieces of keys (5 kB each in a Ray driver)": tasks * partitions,
            "segments": len(segments),
            "MB before the first step": base_mb,
            "MB of the snapshot": sum(path.stat().st_size for path in Path(folder).glob("snapshots/*/*")) / 1e6,
            "MB of the work list": sum(path.stat().st_size for path in Path(folder).glob("vectors/*/*")) / 1e6,
            "MB of the list of segments": sum(path.stat().st_size for path in Path(folder).glob("index/*/*")) / 1e6,
        }
        assert sum(map(len, receipts.values())) == counts["units"]
        if trace:
            counts["traced MB"] = tracemalloc.get_traced_memory()[1] / 1e6
    return {"seconds": meter.seconds, "peak_mb": meter.peak_mb, "counts": counts}


def stored_snapshot(files: Files, items: int, row_bytes: int, chunk_rows: int | None) -> Snapshot:
    """A snapshot as a run makes it of footers, written and read."""
    sizes = [FILE_ROWS] * (items // FILE_ROWS) + [items % FILE_ROWS] * (items % FILE_ROWS > 0)
    pinned = []
    for number, rows in enumerate(sizes):
        groups = (GROUP_ROWS,) * (rows // GROUP_ROWS) + (rows % GROUP_ROWS,) * (rows % GROUP_ROWS > 0)
        path = f"s3://bucket/gallery/part-{number:06d}.parquet"
        tag = digest("file", number)[:32]
        pinned.append(
            PinnedFile(path=path, size=rows * row_bytes, tag=tag, row_groups=groups, read_bytes=rows * row_bytes)
        )
    chunks = cut_chunks(
        [(file.row_groups, file.read_bytes) for file in pinned],
        chunk_rows="auto" if chunk_rows is None else chunk_rows,
        chunk_bytes=32 << 20,
    )
    made = Snapshot(
        fingerprint=PLAN,
        gallery=TableInput(files=tuple(pinned), kinds={}, vectors={}),
        id_type="int64",
        old_dim=DIM,
        chunk_rows=tuple(chunks),
        parts=tuple(cut_parts(chunks, [file.row_groups for file in pinned])),
        ledger=f"ledger/{PLAN}",
    )
    path = snapshot_path(PLAN)
    files.put_new(path, seal_file(path, made))
    return read_snapshot(files, PLAN)


def receipt_of(folder: str, unit: str, rows: int, outputs: int) -> Receipt:
    """A receipt as a worker writes it."""
    digests = [digest(folder, unit, number) for number in range(outputs)]
    paths = [unit_output(folder, unit, digests[0]), *(items_output(folder, unit, each) for each in digests[1:])]
    return Receipt(
        unit=unit,
        outputs=tuple(
            FileRef(path=path, size=200 + rows * DIM * 4, sha256=each)
            for path, each in zip(paths, digests, strict=True)
        ),
        rows=rows,
        ids_digest=digests[0][:32],
        seconds=rows / 1000,
        details={"space": PLAN},
    )


def score_files(snapshot: Snapshot) -> dict[str, FileRef]:
    """{unit: score file}, of the receipts of all chunks."""
    receipts = Receipts()
    for chunk in snapshot.chunks:
        receipts[chunk.unit] = receipt_of(f"scores/{PLAN}", chunk.unit, chunk.rows, 1)
    return {unit: receipts[unit].outputs[0] for unit in sorted(receipts)}


def pair_offsets(gallery: Gallery, snapshot: Snapshot, starts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """{unit: offsets of its pairs}."""
    step = gallery.items // PAIRS
    found = {}
    for chunk, start in zip(snapshot.chunks, starts[:-1], strict=True):
        if offsets := tuple(range(-start % step, chunk.rows, step)):
            found[chunk.unit] = offsets
    return found


def runs_of(groups: Sequence[Sequence[ScoredChunk]], starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(First item, items) of each group of chunks."""
    number = 0
    for group in groups:
        yield starts[number], starts[number + len(group)] - starts[number]
        number += len(group)


def thresholds(gallery: Gallery, runs: Sequence[tuple[int, int]], targets: Sequence[int]) -> list[int]:
    """As ``stages.keys.thresholds`` finds them, of keys that are made here instead of read."""

    def histograms(prefixes: Sequence[int], level: int) -> Iterator[Histogram]:
        for start, rows in runs:
            keys, is_pair = gallery.keys(start, rows)
            yield key_histogram(keys[~is_pair], prefixes, level)

    return find_thresholds(targets, histograms)


def place(
    gallery: Gallery, groups: Sequence[Sequence[ScoredChunk]], starts: Sequence[int], cuts: Sequence[int]
) -> tuple[list[ChunkWork], list[int]]:
    """The chunks' entries in the work list, and how many items have a key of at least each of `cuts`, counted apart."""
    placed: list[ChunkWork] = []
    ends = np.zeros(len(cuts), np.int64)
    for number, group in enumerate(groups):
        file = digest("rows", number)
        reference = FileRef(path=work_path(PLAN, file), size=70_000, sha256=file)
        for chunk in group:
            start = starts[len(placed)]
            keys, is_pair = gallery.keys(start, starts[len(placed) + 1] - start)
            assert tuple(np.flatnonzero(is_pair)) == chunk.pairs
            ordered = keys[~is_pair]
            ends += [int((ordered >= np.uint64(cut)).sum()) if cut < KEY_SPACE else 0 for cut in cuts]
            rows = RowWork.of_due(wave_of(keys, is_pair, cuts), np.ones(len(keys), bool))
            counted = count_rows(chunk.unit, rows, lambda: np.zeros((0, 2), np.uint64), len(cuts) + 2)
            placed.append(counted.placed(file=reference))
    return placed, ends.tolist()


def stored_work(files: Files, snapshot: Snapshot, placed: list[ChunkWork]) -> WorkList:
    """The work list, stored with the plan and read by who makes its versions."""
    reference = put_work_list(files, PLAN, in_buckets(placed, snapshot, SEGMENT_ROWS))
    work = read_work_list(files, reference)
    assert work.chunks[-1].due == placed[-1].due
    assert sum(work.wave_rows) == snapshot.rows
    return work


def stored_segments(files: Files, buckets: int) -> tuple[Segment, ...]:
    """The segments in the middle of a run, new ones of the pairs and of some waves, stale ones of the others."""
    made = []
    for bucket in range(buckets):
        for wave in range(len(LADDER) + 1):
            state = "new" if wave < 3 else "stale"
            name = digest("segment", bucket, wave)
            paths = segment_paths(PLAN, wave, bucket, "new" if wave < 3 else "stale", 1, name[:32])
            index, ids = (FileRef(path=path, size=10**7, sha256=name, tag=name[:32]) for path in paths)
            made.append(
                Segment(
                    bucket=bucket,
                    wave=wave,
                    state="new" if state == "new" else "stale",
                    space="new" if state == "new" else "aligned",
                    dim=DIM,
                    rows=100_000,
                    ids_digest=name[:32],
                    index=index,
                    ids=ids,
                )
            )
    return read_segments(files, FileRef.model_validate(listed(files, PLAN, made)["segments"]))


# What a driver has imported.
assert fastfill_ray.backfill
assert fastfill_ray.engine.ray_engine

if __name__ == "__main__":
    main()
