"""What ``export --since`` writes beside what differs, and what it takes beside a full export.

python -m benchmarks.since [--rows 1000000] [--dim 64] [--segments 4] [--repeat 3] [--changes-only] [--ray]

First a gallery of 1,200 items is moved, and changes on the way: files lose and gain items, payloads change, a version
is rolled back. After each event two full exports say which items differ; what is written is asserted to be those, and
what a store holds then to be the full export. `in segments that are other files` is what has to be looked at: without a
comparison all of it would be written. Then a large root, cosine, Flat: segments are rebuilt in another order of their
items, of which 1 % changed. Asserted: these are written. Each export runs in a process of its own, without Ray:
medians, the median of the ratios, and the peak memory of the process. There all ids that are compared are in it; --ray
adds what the process of the command takes on a local Ray, whose workers are beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.export import STALE, large_root_parser, machine, make_root, size_of
from benchmarks.read_pass import peak_kb
from benchmarks.results import markdown
from benchmarks.search import PLAN, put_segment
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.export import export_version, read_export
from fastfill_ray.index.segment import train_template
from fastfill_ray.index.segment_list import listed, segments_of
from fastfill_ray.log.records import Publish, Segment
from fastfill_ray.stages.export_changes import PortionReader, changes_since
from fastfill_ray.stages.export_manifest import ExportRequest, Manifest
from fastfill_ray.storage.commit_log import Log, read_state
from fastfill_ray.storage.files import open_files
from fastfill_ray.types import F32, I64

if TYPE_CHECKING:
    from tests.living import Living

CHANGED = 100  # one item of so many


def main() -> None:
    parser = large_root_parser("since", __doc__)
    parser.add_argument("--changes-only", action="store_true", help="leave the large root out")
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measured(*options.only, on_ray=options.ray)))
        return
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        head = ["event", "items that differ", "in segments that are other files", "written"]
        print(markdown(head, changes(Path(folder))), flush=True)
    if options.changes_only:
        return
    print(f"\n{size_of(options)}, baked\n")
    lines = []
    for what, rebuilt in ((f"one of {options.segments} rebuilt", (1,)), ("all rebuilt", range(options.segments))):
        with tempfile.TemporaryDirectory() as folder:
            lines.append([what, *large(Path(folder), options, tuple(rebuilt))])
    head = ["", "items that differ", "written", "full export: s", "--since: s", "median ratio", "full: peak MB"]
    print(markdown([*head, "--since: peak MB", *["--since on Ray: peak MB of the command"] * options.ray], lines))


# A gallery that changes


def changes(folder: Path) -> Iterator[list[str]]:
    """The cells of a line per event."""
    from tests.living import gallery_of  # it brings in torch, which would count as memory of the exports below

    living = gallery_of(
        folder / "here",
        files=6,
        alignment={"method": "procrustes"},
        serving={"stale_mode": "aligned", "calibration": "no_scale", "max_regression": 1.0},
        gallery={"max_removed": 1.0},
        resources={"chunk_rows": 50},
        index={"segment_rows": 300},
    )
    run(living, "version0")
    held, rows = living.exported(folder / "first")
    for number, event in enumerate(events(living)):
        looked_at = segments_looked_at(living, held)
        since, written = living.exported(folder / f"since-{number}", held)
        _, whole = living.exported(folder / f"whole-{number}")
        gone = [
            key
            for file in since.deleted
            for key in pq.read_table(folder / f"since-{number}" / file.path).column("id").to_pylist()
        ]
        differ = {key for key in whole if key not in rows or not is_same(whole[key], rows[key])}
        assert set(written) == differ, event
        store = {**{key: row for key, row in rows.items() if key not in gone}, **written}
        assert store.keys() == whole.keys(), event
        assert all(is_same(store[key], whole[key]) for key in whole), event
        held, rows = since, whole
        yield [event, f"{len(differ):,}", f"{looked_at:,}", f"{len(written):,}"]


def events(living: Living) -> Iterator[str]:
    from tests.living import without

    names = sorted(living.files)
    run(living, "wave:1")
    yield "wave 1"
    dropped = list(living.files[names[1]])[:10]
    living.edit(names[1], lambda items: {**without(items, dropped), **living.new_items(50_000, 5)})
    run(living, "wave:1")
    yield "a file loses 10 items and gains 5"
    living.write("part-new.parquet", living.new_items(60_000, 30))
    run(living, "wave:1")
    yield "a file of 30 comes"
    few = list(living.files[names[2]])[:7]
    living.edit(names[2], lambda items: {k: living.changed(v) if k in few else v for k, v in items.items()})
    run(living, "wave:1")
    yield "7 payloads of a file change"
    living.rename(names[3], "renamed.parquet")
    run(living, "wave:1")
    yield "a file is renamed"
    run(living, "wave:2")
    yield "wave 2"
    run(living, None, living.state().published[-2])
    yield "rolled back by one"
    run(living, None)
    yield "waves 2 and 3"
    living.edit(names[0], lambda items: {**without(items, list(items)[:10]), **living.new_items(70_000, 5)})
    run(living, None)
    yield "a file loses 10 items and gains 5"


def run(living: Living, until: str | None, rollback: int | None = None) -> None:
    """A rollback, or a run. What they say is not for here."""
    command = partial(living.run, until=until) if rollback is None else partial(living.rollback, rollback)
    stdout, stderr = sys.stdout, sys.stderr
    try:
        sys.stdout = sys.stderr = io.StringIO()
        command()
    finally:
        sys.stdout, sys.stderr = stdout, stderr


def is_same(one: tuple[str, F32], other: tuple[str, F32]) -> bool:
    return one[0] == other[0] and bool(np.allclose(one[1], other[1], rtol=1e-5, atol=1e-6))


def segments_looked_at(living: Living, held: Manifest) -> int:
    """Rows of what is served in segments that are not the files that a store's are of."""
    files, state = open_files(living.root), read_state(open_files(living.root))
    version = state.version(state.serving) if state.serving is not None else None
    assert version is not None
    reader = PortionReader(files, state.deletions)
    came, _ = changes_since(reader, state, version, held.held)
    return sum(len(reader.ids(portion)) for portion in came)


# A large root


def large(folder: Path, options: argparse.Namespace, rebuilt: Sequence[int]) -> list[str]:
    """The cells of a line, without its name."""
    root, held = folder / "root", folder / "held"
    items, _ = make_root(root, options.rows, options.dim, options.segments, is_deleted=False)
    alone(root, "", held)
    changed = rebuild(root, items, rebuilt)
    full, since = [], []
    for _ in range(options.repeat):  # in turn, so that noise meets both
        for kind, base, found in (("full", "", full), ("since", str(held), since)):
            found.append(alone(root, base, folder / kind))
            if kind == "since":
                ids = np.sort(pq.read_table(folder / kind / "data", columns=["id"]).column("id").to_numpy())
                assert np.array_equal(ids, changed)
            shutil.rmtree(folder / kind)
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(since, full, strict=True)]
    on_ray = [alone(root, str(held), folder / "ray", on_ray=True)] * options.ray
    return [
        f"{len(changed):,}",
        f"{since[0]['rows']:,}",
        *(f"{statistics.median(each['seconds'] for each in kind):.2f}" for kind in (full, since)),
        f"{statistics.median(ratios):.2f}",
        *(f"{max(each['peak_mb'] for each in kind):.0f}" for kind in (full, since)),
        *(f"{each['peak_mb']:.0f}" for each in on_ray),
    ]


def rebuild(root: Path, items: F32, rebuilt: Sequence[int]) -> I64:
    """Version 1: some segments in another order of their items, and the ids of those that changed."""
    files, random = open_files(str(root)), np.random.default_rng(1)
    log = Log(files)
    version = log.read().versions[0]
    segments = list(segments_of(files, version))
    template = train_template("Flat", items.shape[1], "cosine", items[:10_000])
    bounds = np.cumsum([0, *(segment.rows for segment in segments)])
    changed, items = [np.empty(0, np.int64)], items.copy()
    for number in rebuilt:
        ids = random.permutation(np.arange(bounds[number], bounds[number + 1]))
        some = ids[: len(ids) // CHANGED]
        items[some] = random.standard_normal((len(some), items.shape[1]), dtype=np.float32)
        changed.append(some)
        segments[number] = _in_place_of(segments[number], put_segment(files, items, template, ids, number, STALE))
    log.claim()
    log.append(version.model_copy(update={"version": 1, "wave": 1, **listed(files, PLAN, segments)}))
    log.append(Publish(version=1))
    return np.sort(np.concatenate(changed))


def _in_place_of(segment: Segment, made: Segment) -> Segment:
    """What was made, with everything but its files as it was."""
    return segment.model_copy(update={"index": made.index, "ids": made.ids})


def alone(root: Path, since: str, to: Path, *, on_ray: bool = False) -> dict[str, Any]:
    """An export in a process that does nothing else; since: "" for a full one."""
    command = [sys.executable, "-m", "benchmarks.since", "--only", str(root), since, str(to), *["--ray"] * on_ray]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def measured(root: str, since: str, to: str, *, on_ray: bool) -> dict[str, Any]:
    start = time.perf_counter()
    request = ExportRequest(baked=True, since=read_export(since) if since else None)
    engine = None if on_ray else InProcessEngine()
    manifest = export_version(root, to, request, engine=engine, stream=io.StringIO())
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_kb() / 1024, "rows": manifest.rows}


if __name__ == "__main__":
    main()
