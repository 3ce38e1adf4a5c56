"""A synthetic gallery with latent factors, and stub embedders: small, deterministic, misbehaving on request."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.ordering.partition import smallest, split_pairs, split_sizes
from fastfill_ray.stages import trial
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import SPLITS, Split

LATENT, OLD_DIM, NEW_DIM, CLASSES = 12, 8, 16, 6
EVENTS = 1500  # of ``write_log``


def _matrix(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def new_vectors(x: np.ndarray) -> np.ndarray:
    """What the stub model returns for latent factors x (N, LATENT): (N, NEW_DIM) float32."""
    return (x @ _matrix(1, (LATENT, NEW_DIM))).astype(np.float32)


class StubEmbedder:
    """The new model: a fixed linear map of the payload column `x`. What it does wrong is read from a file at each call.

    Args:
        control: JSON file {"journal": folder, "sleep_s": seconds per batch, "bad": {marker: "raise" | "nan"}, "fault":
            "shape" | "count"}; absent means good. A row is marked by the first value of its `x`.
            Journal files, one per process, list the marker of every item that is embedded for the run, not of those
            that the model is tried on. Not part of a plan's identity.
    """

    def __init__(self, control: str) -> None:
        self._control = Path(control)

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        control = json.loads(self._control.read_text()) if self._control.exists() else {}
        time.sleep(control.get("sleep_s", 0))
        x = np.array(batch["x"], dtype=np.float32)
        marks = [control.get("bad", {}).get(marker(value)) for value in x[:, 0]]
        if "raise" in marks:
            raise ValueError("this row cannot be read")
        vectors = new_vectors(x)
        vectors[[mark == "nan" for mark in marks]] = np.nan
        if "journal" in control and role == "item" and not is_trial():
            with open(Path(control["journal"]) / f"{os.getpid()}.txt", "a") as file:
                file.writelines(f"{marker(value)}\n" for value in x[:, 0])
        if control.get("fault") == "shape":
            return vectors[:, :-1]
        return vectors[:-1] if control.get("fault") == "count" else vectors


def is_trial() -> bool:
    return any(frame.f_code.co_filename == trial.__file__ for frame, _ in traceback.walk_stack(None))


def marker(value: float) -> str:
    """How control files and journals call a row."""
    return repr(float(np.float32(value)))


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


def item_ids(rows: int) -> np.ndarray:
    """The ids (rows,) of ``write_gallery``."""
    return np.arange(rows) * 7 + 3


def write_gallery(
    folder: Path,
    *,
    rows: int = 600,
    shards: int = 3,
    ids: str = "int64",
    unusable: dict[int, list[float] | None] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parquet shards with columns id, x, label, group, embedding (lists; `unusable` rows are replaced by what it says).

    Returns ids, latent factors (rows, LATENT), classes (rows,).
    """
    folder.mkdir(parents=True, exist_ok=True)
    x, classes = latent(rows)
    numbers = item_ids(rows)
    names = numbers if ids == "int64" else np.array([f"item-{number}" for number in numbers], dtype=object)
    old: list[Any] = list(old_vectors(x))
    for row, value in (unusable or {}).items():
        old[row] = value
    for shard, part in enumerate(np.array_split(np.arange(rows), shards)):
        table = pa.table(
            {
                "id": names[part],
                "x": pa.array(list(x[part])),
                "label": [f"class-{label}" for label in classes[part]],
                "group": [f"group-{label % 3}" for label in classes[part]],
                "embedding": pa.array([old[row] for row in part], pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, folder / f"part-{shard:03d}.parquet", row_group_size=64)
    return names, x, classes


def write_queries(folder: Path, ids: np.ndarray, x: np.ndarray, classes: np.ndarray, *, rows: int = 60) -> np.ndarray:
    """Noisy copies of random items as queries, with their labels and judgements. Returns which items (rows,)."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.random.default_rng(1).choice(len(x), rows, replace=False)  # some audit items among them: judged ones
    values = x[chosen] + 0.3 * _matrix(8, (rows, LATENT))
    pq.write_table(
        pa.table({"query_id": [f"q{i}" for i in range(rows)], "item_id": ids[chosen].tolist()}),
        folder / "qrels.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "id": [f"q{i}" for i in range(rows)],
                "x": pa.array(list(values.astype(np.float32))),
                "label": [f"class-{label}" for label in classes[chosen]],
                "group": [f"group-{label % 3}" for label in classes[chosen]],
                "number": classes[chosen],
            }
        ),
        folder / "queries.parquet",
    )
    return chosen


def write_log(folder: Path, ids: np.ndarray, x: np.ndarray, *, with_items: bool = True) -> Path:
    """A log of users who mean one of some popular items, by Zipf, and ask for what is near it in one of two ways.

    Columns x, time and, unless told otherwise, item_id: the item that was meant.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    popular = rng.permutation(len(ids))[:150]
    shares = 1 / np.arange(1, len(popular) + 1)
    meant = popular[rng.choice(len(popular), EVENTS, p=shares / shares.sum())]
    way = rng.integers(0, 2, EVENTS)
    off = 0.4 * np.random.default_rng(12).normal(size=(len(x), 2, LATENT))
    columns: dict[str, Any] = {
        "x": pa.array(list((x[meant] + off[meant, way]).astype(np.float32))),
        "time": pa.array(np.arange(EVENTS) * 1_000_000, pa.timestamp("us")),
    }
    if with_items:
        columns["item_id"] = ids[meant]
    path = folder / "log.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=400)
    return path


def with_queries(root: Path) -> dict[str, Any]:
    """Sections of ``config`` for what ``write_queries`` wrote to root/queries, and for the old model."""
    return {
        "queries": {
            "path": str(root / "queries" / "queries.parquet"),
            "payload_columns": ["x"],
            "label_column": "label",
            "qrels_path": str(root / "queries" / "qrels.parquet"),
        },
        "old_model": {"embedder": "tests.synthetic:OldEmbedder"},
    }


def drawn_pairs(ids: Sequence[Any] | np.ndarray, count: int, *, seed: int = 0) -> dict[Split, np.ndarray]:
    """Which of a gallery's rows are drawn as pairs, ascending, by split; ids: in the order of its rows."""
    keys = item_keys(np.asarray(ids) if np.asarray(ids).dtype == np.int64 else list(ids))
    chosen = np.sort(smallest(keys, count, seed))
    splits = split_pairs(keys[chosen], split_sizes(len(keys), count, (0.7, 0.15, 0.15)), seed)
    return {split: chosen[splits == split] for split in SPLITS}


def receipt_at(path: Path) -> Receipt:
    """The receipt in a file under a local root; its checksum is not looked at."""
    fields = json.loads(path.read_bytes())
    del fields["sha256"]
    return Receipt.model_validate(fields)


def config(root: Path, **sections: Any) -> dict[str, Any]:
    """A config for the gallery under root/gallery, writing to root/out; `sections` are merged one level deep."""
    values: dict[str, Any] = {
        "gallery": {"path": str(root / "gallery"), "payload_columns": ["x"], "label_column": "label"},
        "new_model": {
            "embedder": "tests.synthetic:StubEmbedder",
            "kwargs": {"control": str(root / "control.json")},
            "dim": NEW_DIM,
            "batch_size": 16,
        },
        # What `auto` would find out with five maps; tests/integration/test_auto.py lets it.
        "alignment": {"method": "ridge"},
        "policy": {"name": "uncertainty"},
        "serving": {"stale_mode": "aligned"},
        "pairs": {"count": 120},
        "waves": [0.3, 0.6, 1.0],
        "resources": {"embed_actors": [1, 1], "chunk_rows": 50},
        "output": str(root / "out"),
    }
    for name, section in sections.items():
        merged = isinstance(section, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **section} if merged else section
    return values
