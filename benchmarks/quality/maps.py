"""Trained maps that are kept on disk: the same pairs, method and seed are trained once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from benchmarks.results import write_whole
from fastfill_ray.alignment.maps import Alignment, Method
from fastfill_ray.alignment.pairs import pairs_digest, training_pairs
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.simulation import train_maps


def kept_maps(
    pairs: PairedItems,
    methods: Sequence[Method],
    classifier: Classifier | None,
    *,
    seed: int,
    folder: Path | None,
    stream: TextIO,
) -> dict[Method, Alignment]:
    """``simulation.train_maps`` at the default preset, but read from `folder` where it was trained before."""
    maps: dict[Method, Alignment] = {}
    for method in methods:
        digest = pairs_digest(training_pairs(pairs.part("train"), method, classifier), method, seed).hex()[:16]
        path = None if folder is None else folder / f"{method}-{digest}.json"
        if path is not None and path.exists():
            maps[method] = Alignment.load(_weights(path).read_bytes(), json.loads(path.read_text()))
            continue
        maps |= train_maps(pairs, [method], "default", classifier, seed=seed, stream=stream)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            weights, info = maps[method].save()
            write_whole(_weights(path), weights)
            write_whole(path, json.dumps(info).encode())  # written last: where it is, the weights are
    return maps


def _weights(path: Path) -> Path:
    return path.with_suffix(".safetensors")
