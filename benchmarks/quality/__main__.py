"""The acceptance benchmark of quality. Nothing is downloaded; results are one JSON file per set and seed.

    python -m benchmarks.quality --cache sets --out results [--sets digits ...] [--seeds 0 1 2] [--paper]
    python -m benchmarks.quality --out results --tables > tables.md

A file that exists is not measured again, so a broken run goes on where it stopped, and two processes may share the
sets or seeds among them. One core is enough (OMP_NUM_THREADS=1): three to ten minutes of it per set and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.quality.material import SETS, Limits
from benchmarks.quality.measure import measure
from benchmarks.quality.tables import render


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
        found = [json.loads(path.read_text()) for path in sorted(given.out.glob("*-seed*.json"))]
        print(render([one for one in found if one["set"] in given.sets and one["seed"] in given.seeds]))
        return
    if given.cache is None:
        parser.error("--cache is needed to measure")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        for seed in given.seeds:
            path = given.out / f"{name}-seed{seed}.json"
            if path.exists():
                print(f"{path} exists", file=sys.stderr)
                continue
            found = measure(name, seed, given.cache, Limits(), paper=given.paper)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
            part.replace(path)


if __name__ == "__main__":
    main()
