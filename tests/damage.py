"""Every kind of file under an output root, damaged on purpose, and what the same command makes of it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import FastfillError
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.index.verify import verify
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import Version
from fastfill_ray.retrieval import ranking
from fastfill_ray.stages.delete import delete
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import record_path
from tests import synthetic
from tests.faults import flip_bit

# {kind of file: (state of the root, patterns)}. "wave": version 1 is served and wave 2 is embedded, but in no version.
# "plan": there is a plan, no version. "bare": as "wave", in the shortest config, which searches no segment.
# "deleted": as "wave", and a DELETE hides rows of every segment.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "log record": ("wave", ("log/*.json",)),
    "snapshot": ("wave", ("snapshots/*/snapshot.json",)),
    "snapshot, no version": ("plan", ("snapshots/*/snapshot.json",)),
    "ledger": ("plan", ("ledger/*/c*.parquet", "ledger/*/c*.receipt.json")),
    "sample": ("plan", ("sample/*/sample.*.parquet", "sample/*/receipt.json")),
    "stage receipt": ("wave", ("[acps]*/*/receipt.json",)),
    "chunk receipt": ("wave", ("vectors/*/wave=02/*.receipt.json", "evaluation/*/*/*.receipt.json")),
    "pair receipt": ("plan", ("pairs/*/c*.receipt.json",)),
    "pairs": ("wave", ("pairs/*/pairs.*.parquet",)),
    "pair vectors": ("plan", ("pairs/*/c*.parquet",)),
    "query vectors": ("wave", ("evaluation/*/*/q*.parquet",)),
    "alignment": ("wave", ("alignment/*/model.*", "alignment/*/alignment.*")),
    "choice": ("wave", ("choice/*/choice.*",)),
    "scores": ("wave", ("scores/*/*.parquet",)),
    "work list": ("wave", ("vectors/*/units.*.parquet",)),
    "work file": ("plan", ("vectors/*/rows.*.parquet",)),
    "wave vectors": ("wave", ("vectors/*/wave=02/c*.parquet",)),
    "template": ("plan", ("index/*/template-*.faiss",)),
    "segment": ("wave", ("index/*/w*.faiss",)),
    "segment ids": ("wave", ("index/*/w*.ids.parquet",)),
    "segment, shortest config": ("bare", ("index/*/w*.faiss", "index/*/w*.ids.parquet")),
    "hits": ("wave", ("evaluation/*/s*.parquet", "evaluation/*/s*.receipt.json")),
    "evaluation": ("wave", ("evaluation/*/old-old.*.parquet", "evaluation/*/wave-01.*.parquet")),
    "items of pairs": ("plan", ("pairs/*/items.*.parquet",)),
    "items of a wave": ("wave", ("vectors/*/wave=02/items.*.parquet",)),
    "deletion vector": ("deleted", ("index/*/w*.deletion.parquet",)),
    "segment with a deletion vector": ("deleted", ("index/*/w*.faiss", "index/*/w*.ids.parquet")),
}
MUTATIONS = ("flip", "truncate", "swap", "append", "remove")

NAMED, MADE_AGAIN, NOT_READ = "error that names it", "made again and said", "not read"
WRONG_FILE, TRACEBACK, SILENT = "ERROR THAT DOES NOT NAME IT", "TRACEBACK", "SILENTLY WRONG"


@dataclass(frozen=True)
class Outcome:
    """What came of one damaged file: one of the words above, and what was said."""

    kind: str
    path: str
    mutation: str
    word: str
    said: str


class Bench:
    """A small run in some states, and fresh damaged copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._copies = folder, 0
        ids, x, classes = synthetic.write_gallery(folder / "gallery", rows=300, shards=2)
        synthetic.write_queries(folder / "queries", ids, x, classes, rows=40)
        self.run("plan", folder / "plan", until="plan")
        shutil.copytree(folder / "plan", folder / "wave")
        for state in ("wave", "bare", "deleted"):
            root = folder / state
            if state == "deleted":
                shutil.copytree(folder / "plan", root)
                (folder / "deleted.txt").write_text("\n".join(map(str, ids[::3].tolist())))
                delete(open_files(str(root)), InputStore(), str(folder / "deleted.txt"))
            self.run(state, root, until="wave:1")
            before = read_state(open_files(str(root))).next_seq
            self.run(state, root, until="wave:2")
            # As if the driver had died before it committed version 2. Its segments stay, as those of a killed one do.
            for seq in range(before + 1, read_state(open_files(str(root))).next_seq):
                (root / record_path(seq)).unlink()

    def config(self, state: str, root: Path) -> dict[str, Any]:
        """The config of a state, for any copy of it."""
        sections: dict[str, Any] = {
            "pairs": {"count": 110},
            "waves": [0.5, 0.8, 1.0],
            "index": {"segment_rows": 150},
            "output": str(root),
        }
        if state == "bare":
            sections |= {"gallery": {"label_column": None}, "objective": {"relevance": "new_model"}}
        else:
            sections |= synthetic.with_queries(self.folder)
        return synthetic.config(self.folder, **sections)

    def run(self, state: str, root: Path, *, until: str) -> str:
        """The same command, without Ray. Returns what it said."""
        stream = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking, "_COMPLETE_SCORES", 0)  # as large galleries are measured: hits are kept
            patch.setattr(ranking, "_DEPTH", 50)
            _run(load_config(self.config(state, root)), InProcessEngine(), until=until, stream=stream)
        return stream.getvalue()

    def copy(self, state: str) -> Path:
        """A fresh copy of a root."""
        self._copies += 1
        root = self.folder / f"copy-{self._copies}"
        shutil.copytree(self.folder / state, root)
        return root

    def paths(self, kind: str) -> list[str]:
        """The files of a kind in its state."""
        state, patterns = KINDS[kind]
        root = self.folder / state
        return sorted(str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern))

    def try_one(self, kind: str, mutation: str, rng: np.random.Generator) -> Outcome:
        """Damage one file of a copy, run the same command on it, and look at what it left."""
        state, paths = KINDS[kind][0], self.paths(kind)
        path = paths[int(rng.integers(len(paths)))]
        root = self.copy(state)
        try:
            # The ids of a wave's stale segment and of its new one may be the same bytes: to swap those is no damage.
            data, suffix = (root / path).read_bytes(), (root / path).suffix
            others = [other for other in paths if other.endswith(suffix) and (root / other).read_bytes() != data]
            damaged = {path, *damage(root, path, mutation, others, rng)}
            word, said = self._outcome(state, root, damaged)
            return Outcome(kind, path, mutation, word, said)
        finally:
            shutil.rmtree(root)

    def _outcome(self, state: str, root: Path, damaged: set[str]) -> tuple[str, str]:
        try:
            said = self.run(state, root, until="version0" if state == "plan" else "wave:2")
        except FastfillError as error:
            text = f"{type(error).__name__}: {error}"
            return (NAMED if any(path in text for path in damaged) else WRONG_FILE), text
        except Exception as error:
            return TRACEBACK, repr(error)
        try:
            newest = read_state(open_files(str(root))).versions[-1]
            verify(open_files(str(root)), newest.version)
        except Exception as error:
            return SILENT, repr(error)
        if any(path in said for path in damaged):
            return MADE_AGAIN, said
        # What nobody read may stay as it is, unless the new version names it.
        return (SILENT if damaged & _named(open_files(str(root)), newest) else NOT_READ), said


def _named(files: Files, version: Version) -> set[str]:
    paths = [ref.path for segment in segments_of(files, version) for ref in segment.files]
    return {*paths, *([version.query_metrics.path] if version.query_metrics is not None else [])}


def damage(root: Path, path: str, mutation: str, others: list[str], rng: np.random.Generator) -> set[str]:
    """Damage a file. Returns the paths that were damaged beside it."""
    file = root / path
    data = file.read_bytes()
    if mutation == "remove":
        file.unlink()
        return set()
    if mutation == "swap" and others:
        other = others[int(rng.integers(len(others)))]
        file.write_bytes((root / other).read_bytes())
        (root / other).write_bytes(data)
        return {other}
    changes: dict[str, Callable[[], bytes]] = {
        "flip": lambda: flip_bit(data, int(rng.integers(len(data) * 8))),
        "truncate": lambda: data[: int(rng.integers(len(data)))],
        "append": lambda: data + rng.bytes(int(rng.integers(1, 64))),
        # Alone of its kind: two halves of it change places.
        "swap": lambda: data[len(data) // 2 :] + data[: len(data) // 2],
    }
    file.write_bytes(changes[mutation]())
    return set()


def table(outcomes: list[Outcome]) -> str:
    """How often each outcome came, per kind of file."""
    words = (NAMED, MADE_AGAIN, NOT_READ, WRONG_FILE, TRACEBACK, SILENT)
    lines = ["| file | tries | " + " | ".join(words) + " |", "|---|" + "---:|" * (len(words) + 1)]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of_kind = [outcome.word for outcome in outcomes if outcome.kind == kind]
        lines.append(f"| {kind} | {len(of_kind)} | " + " | ".join(str(of_kind.count(word)) for word in words) + " |")
    return "\n".join(lines)
