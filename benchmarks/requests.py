"""How many requests a run sends to its store and to the gallery's, and for what: per chunk, unit, segment and record.

python -m benchmarks.requests [--items 100000] [--chunk-rows 512] [--segment-rows 25000]

A whole run of 32 -> 64 dims with a numpy embedder, in this process, on local files; every call that a store on S3 turns
into a request is counted: ``get`` is a GET, ``stat`` a HEAD, ``list`` a LIST per 1,000 names, ``put_new`` a conditional
PUT, ``put_data`` a PUT (one more per 50 MB and two around them for larger objects), ``delete`` a DELETE; of the
gallery's files each read is a GET of a range, each look at the pin a HEAD. Asserted first: the last version holds every
item once, and new. Printed: requests by what they are about, and per what there is of that; bytes beside them.

In this process one reader serves all tasks, and keeps the work file that it has read last: where each unit is read by
another process, that is one GET more per unit.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results import markdown
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.state import State
from fastfill_ray.stages.snapshot import read_snapshot
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.local import LocalFiles

LATENT, OLD_DIM, NEW_DIM, FILE_ROWS, GROUP_ROWS = 16, 32, 64, 25_000, 8_192
VERBS = {"put_new": "PUT", "put_data": "PUT", "get": "GET", "stat": "HEAD", "list": "LIST", "delete": "DELETE"}
SENT = ("PUT", "GET", "HEAD", "LIST", "DELETE")
# What a path under the root is about; the first that fits.
ABOUT = {
    "gallery": r"^gallery:",
    "ledger (per part)": r"^ledger/",
    "scores (per chunk)": r"^scores/.*/c[0-9a-f]{16}\.",
    "receipts of waves (per unit)": r"^vectors/.*/wave=\d+/.*receipt\.json$",
    "vectors of waves (per unit)": r"^vectors/.*/wave=\d+/.*parquet$",
    "pairs (per chunk with pairs)": r"^pairs/.*/(items\.)?c[0-9a-f]{16}\.",
    "work files (per chunk)": r"^vectors/[^/]*/rows\.",
    "segments (per segment built)": r"^index/.*-b\d+-",
    "log (per record)": r"^log/",
    "the rest (per version)": "",
}


class Embedder:
    """Linear, and costs nothing."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        vectors: np.ndarray = np.asarray(list(batch["x"]), np.float32) @ matrix(1, LATENT, NEW_DIM)
        return vectors


def matrix(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


class Requests:
    """Requests and bytes by (what they are about, verb)."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()
        self.size: Counter[tuple[str, str]] = Counter()

    def add(self, path: str, verb: str, size: int = 0, number: int = 1) -> None:
        about = next(name for name, pattern in ABOUT.items() if re.search(pattern, path))
        self.count[about, verb] += number
        self.size[about, verb] += size

    def counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of ``Files``, counted."""

        def call(files: LocalFiles, path: str, *data: bytes) -> Any:
            result = method(files, path, *data)
            if name == "list":
                self.add(f"{path}/" if path else "", "LIST", number=max(1, math.ceil(len(result) / 1000)))
            else:
                self.add(path, VERBS[name], len(result) if name == "get" else sum(map(len, data)))
            return result

        return call

    def open(self, store: InputStore, path: str) -> Any:
        return _Counted(_open(store, path), self)

    def find(self, store: InputStore, path: str | Sequence[str]) -> Any:
        self.add("gallery:", "HEAD")
        return _find(store, path)


_open, _find = InputStore.open, InputStore.find


class _Counted:
    """A file of the gallery; each read is a request."""

    def __init__(self, handle: IO[bytes], requests: Requests) -> None:
        self._handle, self._requests = handle, requests

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(size)
        self._requests.add("gallery:", "GET", len(data))
        return data

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--chunk-rows", type=int, default=512)
    parser.add_argument("--segment-rows", type=int, default=25_000)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, pyarrow {pa.__version__}; "
        f"{options.items:,} items in files of {FILE_ROWS:,} rows, row groups of {GROUP_ROWS:,}"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_gallery(Path(folder) / "gallery", options.items)
        requests = Requests()
        with counting(requests):
            state = run(Path(folder), options.items, options.chunk_rows, options.segment_rows)
        print(tables(requests, counts_of(str(Path(folder) / "out"), state, requests), options.items))


def write_gallery(folder: Path, items: int) -> None:
    folder.mkdir()
    for number, start in enumerate(range(0, items, FILE_ROWS)):
        rows = min(FILE_ROWS, items - start)
        x = matrix(10 + number, rows, LATENT)
        columns = {
            "id": np.arange(start, start + rows),
            "x": pa.FixedSizeListArray.from_arrays(x.ravel(), LATENT),
            "embedding": pa.FixedSizeListArray.from_arrays((x @ matrix(2, LATENT, OLD_DIM)).ravel(), OLD_DIM),
        }
        pq.write_table(pa.table(columns), folder / f"{number:03d}.parquet", row_group_size=GROUP_ROWS)


@contextmanager
def counting(requests: Requests) -> Iterator[None]:
    """While it is entered, every request is counted."""
    with ExitStack() as patched:
        for name in VERBS:
            method = requests.counted(name, getattr(LocalFiles, name))
            patched.enter_context(mock.patch.object(LocalFiles, name, method))
        # As functions, so that they become methods.
        patched.enter_context(mock.patch.object(InputStore, "open", lambda store, path: requests.open(store, path)))
        patched.enter_context(mock.patch.object(InputStore, "find", lambda store, path: requests.find(store, path)))
        yield


def run(folder: Path, items: int, chunk_rows: int, segment_rows: int) -> State:
    config = {
        "gallery": {"path": str(folder / "gallery"), "payload_columns": ["x"]},
        "new_model": {"embedder": "benchmarks.requests:Embedder", "dim": NEW_DIM, "batch_size": 1024},
        "pairs": {"count": 2_000},
        "alignment": {"method": "ridge"},
        "policy": {"name": "uncertainty"},
        "serving": {"stale_mode": "aligned", "max_regression": 1.0},
        "waves": [0.05, 0.1, 0.25, 0.5, 1.0],
        "index": {"segment_rows": segment_rows},
        "resources": {"chunk_rows": chunk_rows},
        "output": str(folder / "out"),
    }
    state = _run(load_config(config), InProcessEngine()).state
    last = state.versions[-1]
    assert (last.rows, last.new_rows) == (items, items), "every item is there once, and new"
    return state


def counts_of(root: str, state: State, requests: Requests) -> dict[str, int]:
    """How many there are of what requests are about."""
    files, plan = open_files(root), state.plan
    assert plan is not None
    snapshot = read_snapshot(files, plan.snapshot)
    built = {segment.index.path for version in state.versions for segment in segments_of(files, version)}
    receipts = [path for path in files.list("vectors") if path.endswith("receipt.json")]
    with_pairs = [path for path in files.list("pairs") if re.search(r"/c[0-9a-f]{16}\.receipt", path)]
    return {
        "gallery": len(snapshot.chunk_rows),
        "ledger (per part)": len(snapshot.parts),
        "scores (per chunk)": len(snapshot.chunk_rows),
        "work files (per chunk)": len(snapshot.chunk_rows),
        "receipts of waves (per unit)": len(receipts),
        "vectors of waves (per unit)": len(receipts),
        "pairs (per chunk with pairs)": len(with_pairs),
        "segments (per segment built)": len(built),
        "log (per record)": len(files.list("log")),
        "the rest (per version)": len(state.versions),
    }


def tables(requests: Requests, counts: dict[str, int], items: int) -> str:
    lines = []
    for about in ABOUT:
        number = counts[about]
        each = [requests.count[about, verb] for verb in SENT]
        put, got = (sum(requests.size[about, verb] for verb in verbs) for verbs in (("PUT",), ("GET",)))
        name = "gallery (per chunk)" if about == "gallery" else about
        lines.append(
            [
                name,
                f"{number:,}",
                *(f"{count / number:.2f}" for count in each),
                f"{put / items:.1f}",
                f"{got / items:.1f}",
            ]
        )
    whole = [sum(requests.count[about, verb] for about in ABOUT) for verb in SENT]
    sizes = [sum(requests.size[about, verb] for about in ABOUT) / items for verb in ("PUT", "GET")]
    lines.append(["**all of the run**", "", *(f"{count:,}" for count in whole), *(f"{size:.1f}" for size in sizes)])
    return markdown(["what", "how many", *SENT, "bytes put per item", "bytes got per item"], lines)


if __name__ == "__main__":
    main()
