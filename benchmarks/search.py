"""What it costs that a version is many segments: ``Index.search`` beside one FAISS index of the same items.

python -m benchmarks.search [--rows 200000] [--segments 40] [--factories Flat IVF1024,Flat] [--repeat 30]

A root is written as a run writes it, 256 dims, cosine. It is searched as it is, with 1 % of its ids deleted, and with
five calibrations in turn over its segments. The one index lies in large pages, as a version does. It is searched with
normalised queries and a selector of the same live items; its rows are turned into ids, too. Asserted first: with one
calibration both give the same ids, also for IVF, whose lists are the same; with five, the scores are those of five such
indexes. Then both are timed in turn, each time with other queries: medians, and the median of the ratios, for batches
of 1, 16 and 256, on one thread and on all.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

import fastfill_ray as ff
from benchmarks.results import markdown
from fastfill_ray.index.deletions import write_ids
from fastfill_ray.index.reader import Index
from fastfill_ray.index.segment import HiddenRows, build_index, in_large_pages, load_index, train_template
from fastfill_ray.index.segment_list import listed
from fastfill_ray.log.records import Delete, FileRef, Init, Plan, Publish, Segment, Verdict, Version
from fastfill_ray.ordering.ids import combine_digests, ids_digest
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.similarity import unit_rows
from fastfill_ray.storage.arrow import table_bytes
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import segment_paths
from fastfill_ray.storage.refs import put_file
from fastfill_ray.types import F32, I64

DIM, LATENT, CLASSES, K, BATCHES, PLAN = 256, 32, 200, 10, (1, 16, 256), "plan"
FIVE = [Calibration(scale=1 + step / 20, offset=step / 50) for step in range(5)]
CASES = (("", FIVE[:1], 0.0), ("1 % deleted", FIVE[:1], 0.01), ("5 calibrations", FIVE, 0.0))
Search = Callable[[F32], tuple[F32, I64]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--segments", type=int, default=40)
    parser.add_argument("--factories", nargs="+", default=["Flat", "IVF1024,Flat"])
    parser.add_argument("--repeat", type=int, default=30, help="times that each batch of 16 is timed")
    options = parser.parse_args()
    print(
        f"{options.rows:,} x {DIM} in {options.segments} segments, k = {K}; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, {platform.machine()}; faiss {faiss.__version__}, Python {platform.python_version()}"
    )
    random = np.random.default_rng(0)
    centres, lift = random.standard_normal((CLASSES, LATENT)), random.standard_normal((LATENT, DIM))

    def draw(count: int) -> F32:
        latent = centres[random.integers(0, CLASSES, count)] + random.standard_normal((count, LATENT))
        return (latent @ lift + 0.3 * random.standard_normal((count, DIM))).astype(np.float32)

    items, queries = draw(options.rows), unit_rows(draw(2048))
    for factory in options.factories:
        template = train_template(factory, DIM, "cosine", items[:60_000])
        for name, calibrations, part in CASES:
            deleted = np.sort(random.permutation(options.rows)[: int(part * options.rows)])
            with tempfile.TemporaryDirectory() as folder:
                files = open_files(folder)
                commit(files, put_segments(files, items, template, options.segments, calibrations), deleted)
                version = ff.open_index(folder)
            compare(f"{factory} {name}".strip(), version, items, template, queries, deleted, calibrations, options)


def compare(
    name: str,
    version: Index,
    items: F32,
    template: bytes,
    queries: F32,
    deleted: I64,
    calibrations: Sequence[Calibration],
    options: argparse.Namespace,
) -> None:
    """Assert that both find the same, then time them and print a table."""
    one = one_index(items, template, np.arange(len(items)), deleted)
    check(version, one, items, template, queries[:256], deleted, calibrations, options.segments)
    lines = []
    for threads in sorted({1, os.cpu_count() or 1}):
        faiss.omp_set_num_threads(threads)
        for batch in BATCHES:
            repeat = max(5, options.repeat * 16 // (batch + 15))
            times = interleaved([one, lambda q: version.search(q, K)], queries, batch, repeat)
            ratio = statistics.median(mine / base for base, mine in zip(*times, strict=True))
            base_ms, mine_ms = (1000 * statistics.median(each) for each in times)
            least = min(times[1]) / min(times[0])
            lines.append([str(threads), str(batch), f"{base_ms:.2f}", f"{mine_ms:.2f}", f"{ratio:.2f}", f"{least:.2f}"])
    print(f"\n{name}\n")
    head = ["threads", "queries", "one index: ms", "the version: ms", "median ratio", "ratio of the fastest"]
    print(markdown(head, lines), flush=True)


def check(
    version: Index,
    one: Search,
    items: F32,
    template: bytes,
    queries: F32,
    deleted: I64,
    calibrations: Sequence[Calibration],
    segments: int,
) -> None:
    for batch in BATCHES:
        scores, ids = version.search(queries[:batch], K)
        if len(calibrations) == 1:
            assert np.array_equal(ids, one(queries[:batch])[1])
            continue
        parts = np.array_split(np.arange(len(items)), segments)
        found = [
            calibration.scale * one_index(items, template, np.concatenate(parts[n :: len(calibrations)]), deleted)(
                queries[:batch]
            )[0] + calibration.offset
            for n, calibration in enumerate(calibrations)
        ]  # fmt: skip
        assert np.allclose(scores, -np.sort(-np.concatenate(found, axis=1))[:, :K], atol=1e-5)


def one_index(items: F32, template: bytes, ids: I64, deleted: I64) -> Search:
    """A search of one FAISS index of some items, for the ids of those that are not deleted."""
    data = build_index(template, items[ids], "cosine")
    index: Any = load_index(in_large_pages(data), dim=DIM, metric="cosine", rows=len(ids), name="one index")
    library: Any = faiss
    parameters = None
    if (hidden := HiddenRows.of(np.flatnonzero(np.isin(ids, deleted)), len(ids))) is not None:
        is_ivf = isinstance(index, faiss.IndexIVF)
        parameters = library.SearchParametersIVF() if is_ivf else library.SearchParameters()
        parameters.sel = hidden.live
        if is_ivf:
            parameters.nprobe = index.nprobe

    def search(queries: F32, _memory: HiddenRows | None = hidden) -> tuple[F32, I64]:
        scores, rows = index.search(queries, K, params=parameters)
        return scores, ids[rows]

    return search


def interleaved(searches: Sequence[Callable[[F32], Any]], queries: F32, batch: int, repeat: int) -> list[list[float]]:
    """Seconds of each search at each time; each time all have the same queries, and the next time others."""
    times: list[list[float]] = [[] for _ in searches]
    for number in range(-1, repeat):  # the first time warms up
        some = queries[np.arange(number * batch, (number + 1) * batch) % len(queries)]
        order = range(len(searches)) if number % 2 else reversed(range(len(searches)))
        for which in order:
            start = time.perf_counter()
            searches[which](some)
            if number >= 0:
                times[which].append(time.perf_counter() - start)
    return times


def put_segments(
    files: Files, items: F32, template: bytes, count: int, calibrations: Sequence[Calibration]
) -> list[Segment]:
    """Items (N, E) in so many segments, each with the next of the calibrations; an id is the item's row."""
    return [
        put_segment(files, items, template, ids, bucket, calibrations[bucket % len(calibrations)])
        for bucket, ids in enumerate(np.array_split(np.arange(len(items)), count))
    ]


def commit(files: Files, segments: Sequence[Segment], deleted: I64) -> None:
    """Version 0, published, of these segments; then a DELETE."""
    log, dim, rows = Log(files), segments[0].dim, sum(segment.rows for segment in segments)
    new_rows = sum(segment.rows for segment in segments if segment.state == "new")
    log.initialise(Init(id_type="int64", metric="cosine", old_dim=dim, new_dim=dim, old_space="old", new_space="new"))
    log.claim()
    digest, nothing = combine_digests(s.ids_digest for s in segments), FileRef(path="unused", size=0, sha256="")
    log.append(
        Plan(
            plan=PLAN, request="", settings={}, snapshot="", pairs=PLAN, alignment="", scores="", method="ridge",
            policy="random", stale_mode="aligned", waves=(1.0,), thresholds=(0,), wave_rows=(0, rows),
            rows=rows, ids_digest=digest, unusable_rows=0, factory="", stale_factory="",
            segment_rows=rows, units=nothing, templates={}, objective="", baselines={}, baseline_queries=None,
            version_waves=(0, 1),
        )
    )  # fmt: skip
    log.append(
        Version(
            version=0, plan=PLAN, wave=0, **listed(files, PLAN, segments), rows=rows, new_rows=new_rows,
            quarantined=0, absent=0, deleted=0, deletions="", fraction=new_rows / rows, ids_digest=digest, metrics=(),
            query_metrics=None, verdict=Verdict(publish=True, reason="benchmark"), seconds=0.0, final=True,
        )
    )  # fmt: skip
    log.append(Publish(version=0))
    if len(deleted):
        salt = uuid.uuid4().hex
        file = write_ids(files, pa.array(deleted), salt)
        log.append_deletion(lambda state: Delete(ids=file, rows=len(deleted), salt=salt))


def put_segment(files: Files, items: F32, template: bytes, ids: I64, bucket: int, calibration: Calibration) -> Segment:
    index_path, ids_path = segment_paths(PLAN, 0, bucket, "new", 1, uuid.uuid4().hex)
    return Segment(
        bucket=bucket, wave=0, state="new", space="new", dim=items.shape[1], rows=len(ids),
        ids_digest=ids_digest(ids.tolist()),
        index=put_file(files, index_path, build_index(template, items[ids], "cosine")),
        ids=put_file(files, ids_path, table_bytes(pa.table({"id": pa.array(ids)}))),
        calibration=calibration,
    )  # fmt: skip


if __name__ == "__main__":
    main()
