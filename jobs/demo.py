"""`make demo`: a real gallery, a real old model, a real better one, and a backfill to watch, kill, resume and search.

Ctrl-C or kill -9 at any time; the same command goes on where it was. `--set a.b=c` and `--until` work as in the job.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fastfill_ray import run_backfill
from fastfill_ray.process import guarded

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="demo-data", help="where the input and the run are kept")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument("--until", metavar="plan|version0|wave:K", help="stop after it")
    arguments = parser.parse_args()
    return guarded(lambda: run(Path(arguments.dir).resolve(), arguments.set, arguments.until), last=True)


def run(folder: Path, more: list[str], until: str | None) -> int:
    from demo_data import build_demo_input  # it takes a second, in which Ctrl-C must be heard

    start = time.monotonic()
    print("building the demo's input, unless it is there...", file=sys.stderr)
    given = build_demo_input(folder / "input")
    print(
        f"{given.num_items:,} docstrings in {given.gallery}, a log of {given.num_events:,} searches for them "
        f"({time.monotonic() - start:.1f} s)",
        file=sys.stderr,
    )
    places = {
        "gallery.path": given.gallery,
        "queries.log_path": given.log,
        "output": folder / "run",
    }
    overrides = [f"{key}={path}" for key, path in places.items()]
    result = run_backfill(CONFIG, overrides=[*overrides, *more], until=until)
    print(result.text("make demo"))
    print(f"Search: .venv/bin/fastfill-ray search {folder / 'run'} --config {CONFIG} --text 'read a file line by line'")
    return 0 if result.finished else result.exit_code  # a held version is what the gate is for, and no failure here


if __name__ == "__main__":
    sys.exit(main())
