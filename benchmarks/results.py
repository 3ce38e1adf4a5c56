"""Results as one JSON file per set and seed: written whole, and never measured again once they exist."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def measure_missing(
    folder: Path, sets: Iterable[str], seeds: Sequence[int], measure: Callable[[str, int], Result]
) -> None:
    """Measure each (set, seed) whose file is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sets:
        for seed in seeds:
            path = folder / f"{name}-seed{seed}.json"
            if path.exists():
                print(f"{path} exists", file=sys.stderr)
            else:
                write_whole(path, json.dumps(measure(name, seed), indent=1, allow_nan=False).encode() + b"\n")


def command_line(
    parser: ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    sets: Iterable[str],
    seeds: Sequence[int],
    measure: Callable[[str, int, Namespace], Result],
    render: Callable[[list[Result]], str],
) -> None:
    """The command of a benchmark by set and seed: measure what is missing, or print the tables of what is there.

    Args:
        parser: with what the benchmark asks beyond that. seeds: those measured unless told otherwise.
        measure: (set, seed, what was given) -> its result.
    """
    parser.add_argument("--sets", nargs="+", choices=list(sets), default=list(sets))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--cache", type=Path, help="where benchmark sets are kept; built there if missing")
    parser.add_argument("--out", type=Path, required=True, help="where the JSON files are kept")
    parser.add_argument("--tables", action="store_true", help="measure nothing: print what --out holds as Markdown")
    given = parser.parse_args(arguments)
    if given.tables:
        print(render(read_results(given.out, given.sets, given.seeds)))
        return
    if given.cache is None:
        parser.error("--cache is needed to measure")
    measure_missing(given.out, given.sets, given.seeds, lambda name, seed: measure(name, seed, given))


def main_with_maps(
    module: str,
    doc: str,
    arguments: Sequence[str] | None,
    *,
    sets: Iterable[str],
    measure: Callable[..., Result],
    render: Callable[[list[Result]], str],
    seeds: Sequence[int] = (0, 1, 2),
) -> None:
    """``command_line`` of `measure(set, seed, cache=..., folder=...)`, which keeps its maps beside the results."""
    command_line(
        ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0]),
        arguments,
        sets=sets,
        seeds=seeds,
        measure=lambda name, seed, given: measure(name, seed, cache=given.cache, folder=given.out / "maps"),
        render=render,
    )


def read_results(folder: Path, sets: Sequence[str], seeds: Sequence[int]) -> list[Result]:
    """The results that are there, in the order of `sets`, then of `seeds`."""
    paths = [folder / f"{name}-seed{seed}.json" for name in sets for seed in seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def write_whole(path: Path, content: bytes) -> None:
    """The file appears with all of its content or not at all, also beside other processes."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
