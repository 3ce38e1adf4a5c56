"""What a night costs on a gallery that is all new: 1 % of its rows changed, in 4 of 40 files, twice; then none.

python -m benchmarks.night_shift [--rows 1000000] [--folder DIR]

The models cost next to nothing, so that what is timed is everything else. It asserts that exactly the changed items are
embedded, that only the changed files are read, that the new segment holds the changed rows alone, that answers are
those of brute force, and that a night without a change writes nothing. Printed: seconds, rows decoded of the gallery,
objects and bytes written. The fixed start is the night without a change; any other one loads libraries and measures its
version, too, so that the ratio needs some 200,000 items to hold.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import os
import platform
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastfill_ray as ff
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.inputs import parquet
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

DIM, CLASSES, FILES, CHANGED_FILES, CHANGED_SHARE = 16, 100, 40, 4, 0.01
MOST_QUIET_S, MOST_RATIO = 10.0, 0.1
# Over a file with something due in each of its chunks: the check of its rows (ids, old vectors, labels), their digests
# (payloads, labels), the embedding (ids, payloads), and what stands beside the ids of the new segment (ids, labels).
PASSES = 4
_embedded: Counter[str] = Counter()


def matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


class NewModel:
    """A linear map of the payload, which counts the items it is given."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        _embedded[role] += len(batch["x"])
        return np.array(batch["x"], np.float32) @ matrix(1, DIM, DIM)


@dataclass
class Gallery:
    """Payloads x (rows, DIM) around class centres, and classes (rows,), in FILES files."""

    folder: Path
    x: np.ndarray
    classes: np.ndarray

    @classmethod
    def make(cls, folder: Path, rows: int) -> Gallery:
        rng = np.random.default_rng(0)
        classes = rng.integers(0, CLASSES, rows)
        gallery = cls(folder, (matrix(3, CLASSES, DIM)[classes] + matrix(4, rows, DIM)).astype(np.float32), classes)
        folder.mkdir(parents=True)
        for number in range(FILES):
            gallery.write(number)
        return gallery

    @property
    def edges(self) -> list[int]:
        return np.linspace(0, len(self.x), FILES + 1).astype(int).tolist()

    def path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.parquet"

    def write(self, number: int) -> None:
        start, end = self.edges[number : number + 2]
        x = self.x[start:end]
        old = np.tanh(x[:, : DIM - 4]) @ matrix(2, DIM - 4, DIM)
        columns = {
            "id": np.arange(start, end),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), DIM),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old.reshape(-1)), DIM),
            "label": self.classes[start:end],
        }
        pq.write_table(pa.table(columns), self.path(number))

    def change(self, night: int) -> tuple[list[int], np.ndarray]:
        """Other payloads for some rows of some files: the files' numbers, and the rows."""
        numbers = (np.linspace(0, FILES - 2, CHANGED_FILES).astype(int) + night).tolist()
        rng = np.random.default_rng(7 + night)
        each = int(len(self.x) * CHANGED_SHARE) // CHANGED_FILES
        rows = np.concatenate([rng.choice(np.arange(*self.edges[n : n + 2]), each, replace=False) for n in numbers])
        self.x[rows] += matrix(70 + night, len(rows), DIM)
        for number in numbers:
            self.write(number)
        return numbers, np.sort(rows)


@dataclass
class Measured:
    """One run: seconds, rows decoded of the gallery by file, items embedded, objects written {path: size}."""

    result: ff.BackfillResult
    seconds: float
    decoded: Counter[str]
    embedded: int
    written: dict[str, int]


def count_decoded() -> Counter[str]:
    """The rows of every batch that is decoded from now on, by the name of the file."""
    counts: Counter[str] = Counter()
    at = parquet._ForwardReader.__init__
    iterate = pq.ParquetFile.iter_batches
    names: dict[int, str] = {}

    def opened(self: Any, reader: pq.ParquetFile, file: parquet.PinnedFile, *rest: Any) -> None:
        names[id(reader)] = Path(file.path).name
        at(self, reader, file, *rest)

    def counted(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in iterate(self, *arguments, **options):
            counts[names[id(self)]] += len(batch)
            yield batch

    parquet._ForwardReader.__init__ = opened  # type: ignore[method-assign]
    pq.ParquetFile.iter_batches = counted
    return counts


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """{path of every file: (size, mtime in ns)}."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            stat = os.stat(os.path.join(place, name))
            found[os.path.relpath(os.path.join(place, name), folder)] = (stat.st_size, stat.st_mtime_ns)
    return found


def measure(config: dict[str, Any], decoded: Counter[str], profile: Path | None = None) -> Measured:
    root = Path(config["output"])
    before, items = listing(root), _embedded["item"]
    decoded.clear()
    profiler = cProfile.Profile()
    start = time.perf_counter()
    if profile is not None:
        profiler.enable()
    result = _run(load_config(config), InProcessEngine())
    profiler.disable()
    seconds = time.perf_counter() - start
    if profile is not None:
        profiler.dump_stats(profile)
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(70)
    after = listing(root)
    written = {path: size for path, (size, mtime) in after.items() if before.get(path) != (size, mtime)}
    return Measured(result, seconds, Counter(decoded), _embedded["item"] - items, written)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night_shift", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where gallery and output go; a temporary folder by default")
    parser.add_argument("--profile", type=Path, help="profile the night; the figures go to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        nights(options.folder or Path(temporary), options.rows, options.profile)


def config_of(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["x"], "label_column": "label"},
        "new_model": {"embedder": "benchmarks.night_shift:NewModel", "dim": DIM, "batch_size": 1024},
        "alignment": {"method": "ridge"},  # what `auto` adds to the first run would flatter the night
        "policy": {"name": "uncertainty"},
        "pairs": {"count": min(20_000, rows // 20)},
        "waves": [0.1, 0.25, 0.5, 1.0],
        "serving": {"stale_mode": "aligned", "max_regression": 1.0},
        "output": str(folder / "out"),
    }


def nights(folder: Path, rows: int, profile: Path | None) -> None:
    gallery = Gallery.make(folder / "gallery", rows)
    config = config_of(folder, rows)
    decoded = count_decoded()
    first = measure(config, decoded)
    # The trial of the model embeds two of them before.
    assert rows <= first.embedded <= rows + 2, "every item is embedded once"
    check_answers(config, gallery, np.arange(0, rows, rows // 20))
    several = [one_night(config, gallery, decoded, night, profile) for night in range(2)]
    quiet = measure(config, decoded)
    assert not quiet.written, f"written: {sorted(quiet.written)}"
    assert not quiet.decoded, "nothing is read"
    assert not quiet.embedded, "nothing is embedded"

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"pyarrow {pa.__version__}, faiss {faiss.__version__}")  # fmt: skip
    changed_rows = rows // FILES * CHANGED_FILES
    print(
        f"{rows:,} items in {FILES} files; a night: {CHANGED_SHARE:.0%} changed, in {CHANGED_FILES} files of "
        f"{changed_rows:,} rows"
    )
    print("| run | s | beyond the fixed start | ratio | items embedded | rows decoded | passes | objects | MB |")
    print("|" + "---|" * 9)
    whole = first.seconds - quiet.seconds
    nightly = [(f"night {number}", night, changed_rows) for number, night in enumerate(several, start=1)]
    for name, each, of in (("first", first, rows), *nightly, ("no change", quiet, rows)):
        beyond, read = each.seconds - quiet.seconds, sum(each.decoded.values())
        print(
            f"| {name} | {each.seconds:.2f} | {beyond:.2f} | {beyond / whole:.3f} | {each.embedded:,} | {read:,} "
            f"| {read / of:.2f} | {len(each.written):,} | {sum(each.written.values()) / 1e6:.2f} |"
        )
    night = several[-1]
    for kind, group in itertools.groupby(sorted(night.written), key=lambda path: path.split("/")[0]):
        paths = list(group)
        print(
            f"  the last night wrote {kind}: {len(paths)} objects, {sum(night.written[p] for p in paths) / 1e6:.3f} MB"
        )
    print("  seconds of the last night:", {k: round(v, 2) for k, v in night.result.seconds.items()})
    assert quiet.seconds <= MOST_QUIET_S, f"{quiet.seconds:.1f} s without a change"
    for night in several:
        assert night.seconds - quiet.seconds <= MOST_RATIO * whole, "a night costs more than a tenth of the first run"


def one_night(
    config: dict[str, Any], gallery: Gallery, decoded: Counter[str], number: int, profile: Path | None
) -> Measured:
    """Some rows changed, and the same command once more."""
    rows, files = len(gallery.x), open_files(config["output"])
    before = segments_of(files, read_state(files).versions[-1])
    numbers, changed = gallery.change(number)
    night = measure(config, decoded, profile)
    assert night.embedded == len(changed), f"{night.embedded} items embedded, {len(changed)} changed"
    names = {gallery.path(number).name for number in numbers}
    assert set(night.decoded) == names, f"files read: {sorted(night.decoded)}"
    changed_rows = sum(gallery.edges[n + 1] - gallery.edges[n] for n in numbers)
    assert sum(night.decoded.values()) <= PASSES * changed_rows, night.decoded
    last = night.result.state.versions[-1]
    assert (last.rows, last.new_rows) == (rows, rows), "every item is there once, and new"
    there = {segment.index.path for segment in before}
    fresh = [segment for segment in segments_of(files, last) if segment.index.path not in there]
    assert sum(segment.rows for segment in fresh) == len(changed), "segments of changed rows only"
    check_answers(config, gallery, changed[:: len(changed) // 20])
    return night


def check_answers(config: dict[str, Any], gallery: Gallery, rows: np.ndarray) -> None:
    """The items themselves are their own best hits, and the others are those of brute force."""
    vectors = gallery.x @ matrix(1, DIM, DIM)
    faiss.normalize_L2(vectors)
    _, found = ff.open_index(config["output"]).search(vectors[rows], k=10)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(vectors)
    _, expected = exact.search(vectors[rows], 10)
    same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert found[:, 0].tolist() == rows.tolist()
    assert same > 0.99, f"of the ten best of brute force {same:.1%} were found"


if __name__ == "__main__":
    from benchmarks import night_shift  # the module whose counter the embedder, loaded by its name, counts in

    night_shift.main()
