"""What deleting ids costs, and what searches are worth after it: of Flat, IVF and HNSW segments.

python -m benchmarks.delete [--rows 1000000] [--delete 1000] [--factories Flat IVF1024,Flat HNSW16]

A root of one version is written as a run writes it: records through the log, segments of 100,000 rows, 64 dims, cosine.
Half of the deleted ids are those that 200 queries find first, half are random. Asserted: no deleted id is returned, by
the published version or the next one; Flat is exact; the others find at least what a search of k + deleted would have
kept; an UNDELETE brings back every hit. Printed: seconds of the command in a process of its own, bytes that it wrote,
seconds of the first ``refresh`` after it and of a second one after another DELETE, milliseconds per query and recall@10
(against brute force over live rows) before and after, of a search of k + deleted; then what the next version's deletion
vectors cost, and what they spare who opens it.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
import pyarrow as pa

import fastfill_ray as ff
from benchmarks.results import markdown
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.index.deletion_vector import fresh_path
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.index.segment import build_index, search_exactly, train_template
from fastfill_ray.index.segment_list import listed, segments_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import FileRef, Init, Plan, Publish, Segment, Verdict, Version
from fastfill_ray.ordering.ids import combine_digests, ids_digest
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.delete import delete
from fastfill_ray.stages.hide import hide_deleted
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.arrow import table_bytes
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import segment_paths
from fastfill_ray.storage.refs import put_file, tagged
from fastfill_ray.types import F32, I64

DIM, LATENT, CLASSES, QUERIES, K, SEGMENT_ROWS, PLAN = 64, 24, 100, 200, 10, 100_000, "plan"
T = TypeVar("T")


@dataclass(frozen=True)
class Gallery:
    """items (N, DIM) and queries (Q, DIM) around class centres; the id of an item is its row.

    deleted: (D,) ids. live: (Q, K) ids of the best items that are not deleted, by brute force; before: (Q, K) of all.
    """

    items: F32
    queries: F32
    deleted: I64
    before: I64
    live: I64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delete", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--delete", type=int, default=1000, help="ids that are deleted")
    parser.add_argument("--factories", nargs="+", default=["Flat", "IVF1024,Flat", "HNSW16"])
    options = parser.parse_args()
    print(
        f"{options.rows:,} x {DIM}, {options.delete:,} ids deleted, {QUERIES} queries; {os.cpu_count()} cores, "
        f"{faiss.omp_get_max_threads()} threads, {platform.machine()}; faiss {faiss.__version__}, pyarrow "
        f"{pa.__version__}, Python {platform.python_version()}"
    )
    gallery = make_gallery(options.rows, options.delete)
    measured: list[dict[str, str]] = []
    for factory in options.factories:
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(Path(folder), gallery, factory))
    print(markdown(["", *options.factories], [[name, *(m[name] for m in measured)] for name in measured[0]]))


def make_gallery(rows: int, num_deleted: int) -> Gallery:
    rng = np.random.default_rng(0)
    centres, lift = rng.standard_normal((CLASSES, LATENT)), rng.standard_normal((LATENT, DIM))

    def draw(count: int) -> F32:
        latent = centres[rng.integers(0, CLASSES, count)] + rng.standard_normal((count, LATENT))
        return (latent @ lift).astype(np.float32)

    items, queries = draw(rows), draw(QUERIES)
    _, best = search_exactly(items, queries, K + num_deleted, "cosine")
    popular = np.unique(best[:, :K])[: num_deleted // 2]
    others = rng.permutation(np.setdiff1d(np.arange(rows), popular))[: num_deleted - len(popular)]
    deleted = np.sort(np.concatenate([popular, others]))
    # Of K + D best at most D are deleted, so that K live ones are among them.
    gone = np.isin(best, deleted)
    live = np.take_along_axis(best, np.argsort(gone, axis=1, kind="stable")[:, :K], axis=1)
    return Gallery(items, queries, deleted, best[:, :K], live)


def measure(folder: Path, gallery: Gallery, factory: str) -> dict[str, str]:
    """One column of the table."""
    root, files = str(folder / "root"), open_files(str(folder / "root"))
    log = commit_first(files, gallery.items, factory)
    opening_s, index = timed(lambda: ff.open_index(root))
    before_s, (_, hits_before) = timed(lambda: index.search(gallery.queries, K))
    over_s, (_, fetched) = timed(lambda: index.search(gallery.queries, K + len(gallery.deleted)))
    dropped = np.isin(fetched, gallery.deleted)
    over_fetched = np.take_along_axis(fetched, np.argsort(dropped, axis=1, kind="stable")[:, :K], axis=1)

    ids = write_ids_file(folder / "ids.txt", gallery.deleted)
    size = bytes_under(folder / "root")
    command_s, _ = timed(lambda: run_command("delete", root, ids))
    written = bytes_under(folder / "root") - size
    refresh_s, changed = timed(index.refresh)
    assert changed, "other ids are deleted now"
    after_s, (_, hits) = timed(lambda: index.search(gallery.queries, K))
    check_hits(hits, over_fetched, gallery, factory)

    other = np.setdiff1d(np.arange(len(gallery.items)), np.concatenate([gallery.deleted, gallery.live.ravel()]))[:1]
    delete(files, InputStore(), write_ids_file(folder / "other.txt", other))
    again_s, changed = timed(index.refresh)
    assert changed
    delete(files, InputStore(), str(folder / "other.txt"), "UNDELETE")

    plain_s, _ = timed(lambda: ff.open_index(root))
    size = bytes_under(folder / "root")
    vectors_s, segments = timed(lambda: with_vectors(files, log))
    vectors_bytes = bytes_under(folder / "root") - size
    commit(files, log, segments, Deleted.read(files, log.state.deletions).fingerprint)
    flagged_s, next_version = timed(lambda: ff.open_index(root))
    assert (next_version.version, next_version.rows) == (1, len(gallery.items) - len(gallery.deleted))
    assert np.array_equal(next_version.search(gallery.queries, K)[1], hits), "the next version answers alike"
    run_command("undelete", root, ids)
    assert index.refresh()
    assert index.version == 1
    assert np.array_equal(index.search(gallery.queries, K)[1], hits_before), "an UNDELETE brings every hit back"
    return {
        "`delete`, a process of its own: s": f"{command_s:.2f}",
        "bytes written": f"{written:,}",
        "`refresh` after it: s": f"{refresh_s:.2f}",
        "`refresh` after one more DELETE: s": f"{again_s:.3f}",
        "search before: ms per query": f"{1000 * before_s / QUERIES:.2f}",
        "search after": f"{1000 * after_s / QUERIES:.2f}",
        "search of k + deleted": f"{1000 * over_s / QUERIES:.2f}",
        "recall@10 before": f"{recall(hits_before, gallery.before):.4f}",
        "recall@10 after": f"{recall(hits, gallery.live):.4f}",
        "recall@10 of k + deleted": f"{recall(over_fetched, gallery.live):.4f}",
        "deletion vectors of the next version: s": f"{vectors_s:.1f}",
        "bytes of them": f"{vectors_bytes:,}",
        "opened before the DELETE: s": f"{opening_s:.1f}",
        "opened after it": f"{plain_s:.1f}",
        "the next version opened": f"{flagged_s:.1f}",
    }


def check_hits(hits: I64, over_fetched: I64, gallery: Gallery, factory: str) -> None:
    assert not np.isin(hits, gallery.deleted).any(), "no deleted id is returned"
    assert (hits >= 0).all(), "k hits are k live hits"
    found, at_least = recall(hits, gallery.live), recall(over_fetched, gallery.live)
    assert found >= at_least - 1e-3, f"{factory}: recall {found}, of a search of k + deleted {at_least}"
    assert factory != "Flat" or found > 0.9999, f"Flat finds {found} of what brute force finds"


def recall(hits: I64, expected: I64) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(hits.tolist(), expected.tolist(), strict=True)]))


# A root of one version, and of the next


def commit_first(files: Files, items: F32, factory: str) -> Log:
    """Version 0, published: INIT, CLAIM, PLAN, VERSION, PUBLISH."""
    template = train_template(factory, DIM, "cosine", items[:SEGMENT_ROWS])
    starts = range(0, len(items), SEGMENT_ROWS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        segments = list(pool.map(lambda start: put_segment(files, template, items, start), starts))
    log = Log(files)
    log.initialise(Init(id_type="int64", metric="cosine", old_dim=DIM, new_dim=DIM, old_space="old", new_space="new"))
    log.claim()
    unused = FileRef(path="unused", size=0, sha256="")
    log.append(
        Plan(
            plan=PLAN, request="", settings={}, snapshot="", pairs="", alignment="", scores="", method="ridge",
            policy="random", stale_mode="aligned", waves=(1.0,), thresholds=(0,), wave_rows=(0, len(items)),
            rows=len(items), ids_digest=combine_digests(s.ids_digest for s in segments), unusable_rows=0,
            factory=factory, stale_factory=factory, segment_rows=SEGMENT_ROWS, units=unused, templates={}, objective="",
            baselines={}, baseline_queries=None, version_waves=(0, 1),
        )
    )  # fmt: skip
    commit(files, log, segments, "")
    return log


def put_segment(files: Files, template: bytes, items: F32, start: int) -> Segment:
    vectors, bucket = items[start : start + SEGMENT_ROWS], start // SEGMENT_ROWS
    index_path, ids_path = segment_paths(PLAN, 0, bucket, "new", 1, uuid.uuid4().hex)
    ids = range(start, start + len(vectors))
    return Segment(
        bucket=bucket, wave=0, state="new", space="new", dim=DIM, rows=len(vectors), ids_digest=ids_digest(ids),
        index=tagged(files, put_file(files, index_path, build_index(template, vectors, "cosine"))),
        ids=tagged(files, put_file(files, ids_path, table_bytes(pa.table({"id": pa.array(ids, pa.int64())})))),
    )  # fmt: skip


def with_vectors(files: Files, log: Log) -> list[Segment]:
    """The newest version's segments as the next one would have them."""
    state = log.read()
    context = Context(InProcessEngine(), files, InputStore(), Progress(io.StringIO()))
    deleted, before = Deleted.read(files, state.deletions), state.versions[-1]
    return hide_deleted(context, deleted, segments_of(files, before), partial(fresh_path, PLAN, 1), before)


def commit(files: Files, log: Log, segments: list[Segment], deletions: str) -> None:
    """The next version, published. deletions: the fingerprint of those that its vectors are made by."""
    number, rows = len(log.state.versions), sum(segment.plan_rows for segment in segments)
    deleted = sum(segment.deletion.deleted_rows for segment in segments if segment.deletion is not None)
    log.append(
        Version(
            version=number, plan=PLAN, wave=number, **listed(files, PLAN, segments), rows=rows, new_rows=rows,
            quarantined=0, absent=0, deleted=deleted, deletions=deletions, fraction=1.0,
            ids_digest=combine_digests(segment.plan_ids_digest for segment in segments), metrics=(),
            query_metrics=None, verdict=Verdict(publish=True, reason="a benchmark"), seconds=0.0, final=False,
        )
    )  # fmt: skip
    log.append(Publish(version=number))


# Measuring


def timed(act: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def run_command(name: str, root: str, ids: str) -> None:
    code = "import sys; from fastfill_ray.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, name, root, "--ids", ids]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_ids_file(path: Path, ids: I64) -> str:
    path.write_text("".join(f"{i}\n" for i in ids))
    return str(path)


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
