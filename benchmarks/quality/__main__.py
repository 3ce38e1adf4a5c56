"""The acceptance benchmark of quality. Nothing is downloaded; results are one JSON file per set and seed.

    python -m benchmarks.quality --cache sets --out results [--sets digits ...] [--seeds 0 1 2] [--paper]
    python -m benchmarks.quality --out results --tables > tables.md

A file that exists is not measured again, so a broken run goes on where it stopped, and two processes may share the
sets or seeds among them. Trained maps are kept under `--out`, too. One core is enough (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse

from benchmarks.quality.material import SETS, Limits
from benchmarks.quality.measure import measure
from benchmarks.quality.tables import render
from benchmarks.results import command_line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--paper", action="store_true", help="also the published size and schedule, at seed 0")
    command_line(
        parser,
        arguments,
        sets=SETS,
        seeds=[0, 1, 2],
        measure=lambda name, seed, given: measure(
            name, seed, cache=given.cache, limits=Limits(), paper=given.paper, folder=given.out / "maps"
        ),
        render=render,
    )


if __name__ == "__main__":
    main()
