"""The acceptance benchmark of quality. Nothing is downloaded; results are one JSON file per set and seed.

    python -m benchmarks.quality --cache sets --out results [--sets digits ...] [--seeds 0 1 2] [--paper]
    python -m benchmarks.quality --out results --tables > tables.md

A file that exists is not measured again, so a broken run goes on where it stopped, and two processes may share the
sets or seeds among them. Trained maps are kept under `--out`, too. One core is enough (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from benchmarks.quality.material import SETS, Limits
from benchmarks.quality.measure import measure
from benchmarks.quality.tables import render
from benchmarks.results import measure_missing, read_results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, help="where benchmark sets are kept; built there if missing")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON files are kept")
    parser.add_argument("--paper", action="store_true", help="also the published size and schedule, at seed 0")
    parser.add_argument("--tables", action="store_true", help="measure nothing: print what --out holds as Markdown")
    given = parser.parse_args(arguments)
    if given.tables:
        print(render(read_results(given.out, given.sets, given.seeds)))
        return
    if given.cache is None:
        parser.error("--cache is needed to measure")
    measured = partial(measure, cache=given.cache, limits=Limits(), paper=given.paper, folder=given.out / "maps")
    measure_missing(given.out, given.sets, given.seeds, measured)


if __name__ == "__main__":
    main()
