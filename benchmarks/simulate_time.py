"""What `simulate` costs: 5,000 audit items, 1,000 queries, four maps, all orders and forms. Time, and peak memory.

OMP_NUM_THREADS=1 python -m benchmarks.simulate_time --cache sets
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

from benchmarks.quality.material import pairs_table
from benchmarks.sets import load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.experiment.candidate import Candidate
from fastfill_ray.experiment.search import carry
from fastfill_ray.simulation import simulate, splits, train_maps

METHODS: tuple[Method, ...] = ("kernel", "ridge", "fastfill", "fct")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_time", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where benchmark sets are kept")
    built = load_set("docstrings", parser.parse_args().cache)
    table = pairs_table(built, built.split(0))
    start, used = time.monotonic(), time.process_time()
    found = simulate(table, methods=METHODS, metric=built.metric)
    wall, processor = time.monotonic() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(found.table())
    print(
        f"{len(found.data['curves'])} curves of {found.data['items']}: {wall:.0f} s, of the processor {processor:.0f} s"
    )
    print(f"peak memory {peak:.1f} GiB")
    trained = train_maps(table, ("ridge",), "default", None, 0, sys.stderr)
    both = splits(table, None, trained, ["random"], None, built.metric, 0)
    start = time.monotonic()
    pairs = [(split.scene, split.views["ridge"]) for split in both]
    carry(pairs[0], pairs[1], Candidate("ridge", 1.0, "random", "scale_offset_by_wave"), "label", "map", seed=0)
    print(f"one more curve, fitted on calibration and traced on audit: {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
