"""What `simulate` costs: 5,000 audit items, 1,000 queries, four maps, all orders and forms. Time, and peak memory.

OMP_NUM_THREADS=1 python -m benchmarks.simulate_time --cache sets
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

from benchmarks.quality.material import MAP, items_of
from benchmarks.sets import load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.experiment.candidate import Candidate, MapView
from fastfill_ray.experiment.experiment import Report
from fastfill_ray.experiment.heldout import Evidence, hold_out
from fastfill_ray.simulation import simulate, train_maps

METHODS: tuple[Method, ...] = ("kernel", "ridge", "fastfill", "fct")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_time", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="where benchmark sets are kept")
    built = load_set("docstrings", parser.parse_args().cache)
    pairs = items_of(built, built.split(0))
    start, used = time.monotonic(), time.process_time()
    simulation = simulate(pairs, methods=METHODS, metric=built.metric)
    wall, processor = time.monotonic() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(simulation.table())
    curves, items = len(simulation.data["curves"]), simulation.data["items"]
    print(f"{curves} curves of {items}: {wall:.0f} s, of the processor {processor:.0f} s")
    print(f"peak memory {peak:.1f} GiB")
    maps = train_maps(pairs, ["ridge"], "default", None, seed=0, stream=sys.stderr)
    evidence = Evidence(pairs, None, built.metric, maps, None, 0)
    calibration, audit = (hold_out(evidence, split, ["random"]) for split in ("calibration", "audit"))
    start = time.monotonic()
    Report(calibration, audit, MAP, MAP).curve(Candidate(MapView("ridge"), 1.0, "random", "scale_offset_by_wave"))
    print(f"one more curve, fitted on calibration and traced on audit: {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
