"""What `simulate` costs: 5,000 audit items, 1,000 queries, five maps, all orders and forms. Time, and peak memory.

OMP_NUM_THREADS=1 python -m benchmarks.simulate_time --cache sets [--train 25000]

Pairs are docstrings under two text encoders. --train adds noisy copies of train pairs: what training costs then, not
what it is worth. It asserts first that a reported curve is that of ranking each state anew.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.material import MAP, items_of
from benchmarks.sets import load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.experiment.candidate import Candidate, MapView
from fastfill_ray.experiment.experiment import Report
from fastfill_ray.experiment.heldout import Evidence, hold_out
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.simulation import simulate, train_maps

METHODS: tuple[Method, ...] = ("kernel", "ridge", "procrustes", "fastfill", "fct")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_time", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where benchmark sets are kept")
    parser.add_argument("--train", type=int, default=0, help="train pairs; those of the set by default")
    options = parser.parse_args()
    built = load_set("docstrings", options.cache)
    pairs = with_copies(items_of(built, built.split(0)), options.train)
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}"
    print(f"{os.cpu_count()} cores, {platform.machine()}, {versions}")
    start = time.process_time()
    maps = train_maps(pairs, METHODS, "default", None, seed=0, stream=sys.stderr)
    training, peak_training = time.process_time() - start, peak_gib()
    check_curve(Evidence(pairs, None, built.metric, maps, None, 0))
    begun, start = time.monotonic(), time.process_time()
    simulation = simulate(pairs, alignments=maps, metric=built.metric)
    wall, choosing = time.monotonic() - begun, time.process_time() - start
    print(simulation.table())
    assert simulation.findings is not None
    print(f"chosen: {simulation.findings.choice.winner}")
    print(f"{len(simulation.data['curves'])} curves of {simulation.data['items']}")
    print(f"processor: {training:.0f} s of training, {choosing:.0f} s of choosing and reporting ({wall:.0f} s of time)")
    print(f"peak memory: {peak_training:.2f} GiB after training, {peak_gib():.2f} GiB at the end")


def with_copies(pairs: PairedItems, count: int) -> PairedItems:
    """The pairs with noisy copies of train pairs, until there are `count` of these."""
    train = pairs.part("train")
    added = max(0, count - len(train.ids))
    rng = np.random.default_rng(0)
    copies = train.take(rng.integers(0, len(train.ids), added))

    def noisy(vectors: np.ndarray) -> np.ndarray:
        spread = 0.3 * vectors.std()
        return vectors + (spread * rng.standard_normal(vectors.shape)).astype(np.float32)

    ids = np.arange(pairs.ids.max() + 1, pairs.ids.max() + 1 + added).astype(object)
    copies = replace(copies, ids=ids, old=noisy(copies.old), new=noisy(copies.new))
    columns = {}
    for name in ("ids", "old", "new", "split", "labels", "groups"):
        mine, theirs = getattr(pairs, name), getattr(copies, name)
        columns[name] = None if mine is None else np.concatenate([mine, theirs])
    return replace(pairs, **columns)


def check_curve(evidence: Evidence) -> None:
    """Asserts that a curve is that of every state's scores, ranked anew."""
    calibration, audit = (hold_out(evidence, split, ["random"]) for split in ("calibration", "audit"))
    candidate = Candidate(MapView("ridge"), 1.0, "random", "scale_offset_by_wave")
    report = Report(calibration, audit, MAP, MAP)
    few = audit.queries.first(100)
    shadow = audit.shadow(few)
    backfill, fitted = audit.backfill(candidate, few, shadow), report.fit(candidate)
    cutoffs = [0, 1000, len(backfill.order) // 2, len(backfill.order)]
    curve = backfill.trace(fitted, cutoffs)
    for point, cutoff in enumerate(cutoffs):
        for key, values in shadow.measure(backfill.served(fitted, cutoff)).items():
            np.testing.assert_array_equal(curve.values[key][point], values)


def peak_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
