"""A synthetic gallery with latent factors, and stub embedders: small, deterministic, and able to misbehave on request."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LATENT, OLD_DIM, NEW_DIM, CLASSES = 12, 8, 16, 6


def _matrix(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def new_vectors(x: np.ndarray) -> np.ndarray:
    """What the stub model returns for latent factors x (N, LATENT): (N, NEW_DIM) float32."""
    return (x @ _matrix(1, (LATENT, NEW_DIM))).astype(np.float32)


class StubEmbedder:
    """The new model: a fixed linear map of the payload column `x`.

    Args:
        journal: a folder; each embedded batch's first latent values are appended to a file of this process in it.
        sleep_s: seconds per batch. bad: {marker: fault}: rows whose first value is the marker raise, or come back as
            NaN, per "raise" or "nan". fault: what every batch suffers: "shape" or "count".
    """

    def __init__(
        self,
        journal: str | None = None,
        sleep_s: float = 0.0,
        bad: dict[str, str] | None = None,
        fault: str | None = None,
    ) -> None:
        self._journal, self._sleep, self._fault = journal, sleep_s, fault
        self._bad = {float(marker): fault for marker, fault in (bad or {}).items()}

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        x = np.array(batch["x"], dtype=np.float32)
        time.sleep(self._sleep)
        marks = [self._bad.get(float(value)) for value in x[:, 0]]
        if "raise" in marks:
            raise ValueError("this row cannot be read")
        vectors = new_vectors(x)
        vectors[[mark == "nan" for mark in marks]] = np.nan
        if self._journal is not None and role == "item":
            with open(Path(self._journal) / f"{os.getpid()}.txt", "a") as file:
                file.writelines(f"{value!r}\n" for value in x[:, 0].tolist())
        if self._fault == "shape":
            return vectors[:, :-1]
        return vectors[:-1] if self._fault == "count" else vectors


class OldEmbedder:
    """The old model: another linear map that loses four of the latent factors."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        return old_vectors(np.array(batch["x"], dtype=np.float32))


def old_vectors(x: np.ndarray) -> np.ndarray:
    return (x[:, :OLD_DIM] @ _matrix(2, (OLD_DIM, OLD_DIM))).astype(np.float32)


def latent(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latent factors (rows, LATENT) around class centres, and classes (rows,)."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, rows)
    centres = _matrix(3, (CLASSES, LATENT)) * 1.2
    return (centres[classes] + rng.normal(size=(rows, LATENT))).astype(np.float32), classes


def write_gallery(
    folder: Path, *, rows: int = 600, shards: int = 3, ids: str = "int64", row_group_rows: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parquet shards with columns id, x, label, embedding. Returns ids, latent factors, classes."""
    folder.mkdir(parents=True, exist_ok=True)
    x, classes = latent(rows)
    numbers = np.arange(rows) * 7 + 3
    names = numbers if ids == "int64" else np.array([f"item-{number}" for number in numbers], dtype=object)
    old = old_vectors(x)
    for shard, part in enumerate(np.array_split(np.arange(rows), shards)):
        table = pa.table(
            {
                "id": names[part],
                "x": pa.array(list(x[part])),
                "label": [f"class-{label}" for label in classes[part]],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(old[part].reshape(-1)), OLD_DIM),
            }
        )
        pq.write_table(table, folder / f"part-{shard:03d}.parquet", row_group_size=row_group_rows)
    return names, x, classes


def write_queries(folder: Path, *, rows: int = 60, gallery_ids: Sequence[Any] | None = None, x: np.ndarray | None = None) -> None:
    """Queries with labels; with `gallery_ids` and `x`, noisy copies of items with judgements of them."""
    folder.mkdir(parents=True, exist_ok=True)
    values, classes = latent(rows, seed=9)
    if gallery_ids is not None and x is not None:
        chosen = np.random.default_rng(5).choice(len(x), rows, replace=False)
        values = x[chosen] + 0.3 * _matrix(8, (rows, LATENT))
        pq.write_table(
            pa.table({"query_id": [f"q{i}" for i in range(rows)], "item_id": [gallery_ids[i] for i in chosen]}),
            folder / "qrels.parquet",
        )
    pq.write_table(
        pa.table(
            {
                "id": [f"q{i}" for i in range(rows)],
                "x": pa.array(list(values.astype(np.float32))),
                "label": [f"class-{label}" for label in classes],
            }
        ),
        folder / "queries.parquet",
    )


def config(root: Path, **sections: Any) -> dict[str, Any]:
    """A config for the synthetic gallery under root/gallery, writing to root/out; `sections` are merged one level deep."""
    values: dict[str, Any] = {
        "gallery": {"path": str(root / "gallery"), "payload_columns": ["x"], "label_column": "label"},
        "new_model": {"embedder": "tests.synthetic:StubEmbedder", "dim": NEW_DIM, "metric": "cosine", "batch_size": 16},
        "pairs": {"count": 120},
        "waves": [0.3, 0.6, 1.0],
        "resources": {"embed_actors": [1, 1], "chunk_rows": 50},
        "output": str(root / "out"),
    }
    for name, section in sections.items():
        merged = isinstance(section, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if merged else section
    return values
