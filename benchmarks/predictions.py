"""Whether what a plan predicts is what is measured: galleries of 400 to 20,000 items, whole runs, every version.

    OMP_NUM_THREADS=1 python -m benchmarks.predictions --cache sets --out results/predictions [--sets digits-400 ...]
    python -m benchmarks.predictions --out results/predictions --tables

One JSON file per gallery and seed; what exists is not measured again. Each is a run with `auto` throughout on the
in-process engine, in a temporary folder; the vectors are those of the benchmark sets, so nothing is embedded. A version
is predicted well if the value that is measured lies inside the predicted interval. Beside it stands the interval
without a correction for the size of the gallery: the same objective, on the audit items alone.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results import Result, command_line, markdown
from benchmarks.sets import BenchmarkSet, load_set
from benchmarks.zipf.traffic import zipf
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.experiment.experiment import Findings, Question, Report, run_experiment
from fastfill_ray.experiment.heldout import Evidence, hold_out
from fastfill_ray.experiment.search import Watcher
from fastfill_ray.report.prediction import promises
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.stages import choose
from fastfill_ray.types import F32


@dataclass(frozen=True)
class Gallery:
    """Some items of a benchmark set, and what a run over them is asked.

    by_users: whether the set's own queries ask; else the audit items do. objective: "relevance/metric"; with relevance
    `log` the set's queries are asked again and again by Zipf's law, in a log that names the item that each seeks.
    """

    data: str
    rows: int
    pairs: int
    objective: str
    by_users: bool = False

    @property
    def waves(self) -> list[float]:
        return [wave for wave in (0.25, 0.5, 0.75, 1.0) if wave * self.rows > self.pairs]


LOG_EVENTS = 4000
GALLERIES = {
    "digits-400": Gallery("digits", 400, 160, "new_model/recall@10"),
    "digits-1700": Gallery("digits", 1700, 500, "label/map"),
    "docstrings-400": Gallery("docstrings", 400, 160, "label/map", by_users=True),
    "docstrings-1000": Gallery("docstrings", 1000, 400, "qrels/recall@1", by_users=True),
    "docstrings-1000-log": Gallery("docstrings", 1000, 400, "log/mrr"),
    "docstrings-3000": Gallery("docstrings", 3000, 800, "label/map"),
    "docstrings-9500": Gallery("docstrings", 9500, 1500, "qrels/recall@1", by_users=True),
    "docstrings-9500-log": Gallery("docstrings", 9500, 1500, "log/mrr"),
    "glyphs-1000": Gallery("glyphs", 1000, 500, "label/cmc@1"),
    "glyphs-5000": Gallery("glyphs", 5000, 1000, "label/map"),
    "glyphs-10000": Gallery("glyphs-biased", 10_000, 1200, "new_model/recall@10"),
    "glyphs-20000": Gallery("glyphs", 20_000, 2000, "label/map"),
}


class StoredVectors:
    """The new model: vectors that are there already, by their row. Queries bring their own."""

    def __init__(self, path: str) -> None:
        self._vectors = np.load(path, mmap_mode="r")

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> F32:
        return np.asarray(self._vectors[np.array(batch["row"], np.int64)], np.float32)


def write_input(gallery: Gallery, built: BenchmarkSet, seed: int, folder: Path) -> dict[str, Any]:
    """Gallery, vectors and queries as files, and the config of a run over them."""
    rng = np.random.default_rng([seed, gallery.rows])
    rows = np.sort(rng.permutation(len(built.labels))[: gallery.rows])
    table = {
        "id": rows,
        "row": np.arange(len(rows)),
        "embedding": pa.array(list(built.old[rows]), pa.list_(pa.float32())),
        "label": built.labels[rows],
    }
    pq.write_table(pa.table(table), folder / "gallery.parquet")
    np.save(folder / "new.npy", built.new[rows])
    relevance, metric = gallery.objective.split("/")
    config: dict[str, Any] = {
        "gallery": {"path": str(folder / "gallery.parquet"), "payload_columns": ["row"], "label_column": "label"},
        "new_model": {
            "embedder": "benchmarks.predictions:StoredVectors",
            "kwargs": {"path": str(folder / "new.npy")},
            "dim": built.new.shape[1],
            "metric": built.metric,
        },
        "objective": {"relevance": relevance, "metric": metric},
        "pairs": {"count": gallery.pairs},
        "waves": gallery.waves,
        "output": str(folder / "out"),
        "seed": seed,
    }
    if gallery.by_users:
        config["queries"] = _write_queries(built, rows, folder)
    if relevance == "log":
        config["queries"] = _write_log(built, rows, folder, seed)
    return config


def _write_queries(built: BenchmarkSet, rows: np.ndarray, folder: Path) -> dict[str, Any]:
    """The set's own queries whose items are in the gallery; the config's part."""
    if built.query_item is None or built.queries_new is None or built.query_labels is None:
        raise ValueError(f"set {built.name!r} has no queries of its own")
    asking = np.flatnonzero(np.isin(built.query_item, rows))
    vectors = pa.array(list(built.queries_new[asking]), pa.list_(pa.float32()))
    queries = {"id": asking, "label": built.query_labels[asking], "new": vectors}
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    pq.write_table(pa.table({"query_id": asking, "item_id": built.query_item[asking]}), folder / "qrels.parquet")
    return {
        "path": str(folder / "queries.parquet"),
        "payload_columns": ["id"],  # nothing is embedded: vectors are given
        "label_column": "label",
        "new_vector_column": "new",
        "qrels_path": str(folder / "qrels.parquet"),
    }


def _write_log(built: BenchmarkSet, rows: np.ndarray, folder: Path, seed: int) -> dict[str, Any]:
    """LOG_EVENTS events of the set's queries whose items are in the gallery, by Zipf's law; the config's part."""
    if built.query_item is None or built.queries_new is None or built.queries_old is None:
        raise ValueError(f"set {built.name!r} has no queries of its own")
    rng = np.random.default_rng(seed)
    asking = rng.permutation(np.flatnonzero(np.isin(built.query_item, rows)))
    events = asking[rng.choice(len(asking), LOG_EVENTS, p=zipf(len(asking)))]
    vectors = {"new": built.queries_new[events], "old": built.queries_old[events]}
    log: dict[str, Any] = {name: pa.array(list(of), pa.list_(pa.float32())) for name, of in vectors.items()}
    log |= {"query": events, "item_id": built.query_item[events]}
    log["time"] = pa.array(np.arange(LOG_EVENTS) * 1_000_000, pa.timestamp("us"))
    pq.write_table(pa.table(log), folder / "log.parquet")
    return {
        "log_path": str(folder / "log.parquet"),
        "payload_columns": ["query"],  # nothing is embedded: vectors are given
        "new_vector_column": "new",
        "old_vector_column": "old",
    }


def uncorrected(evidence: Evidence, question: Question, findings: Findings) -> tuple[Interval, ...]:
    """The same objective of the same winner, predicted on the audit items as if they were the gallery."""
    winner = findings.choice.winner
    calibration, audit = (hold_out(evidence, split, [winner.policy]) for split in ("calibration", "audit"))
    report = Report(calibration, audit, findings.chosen_by, findings.predicted_by)
    values = report.at(winner, question.fractions, question.fractions, evidence)
    return tuple(mean_interval(of_version, seed=evidence.seed) for of_version in values)


def measure(name: str, seed: int, cache: Path) -> Result:
    """A whole run over one gallery: per version what was predicted, in which scope, and what was measured."""
    gallery, start = GALLERIES[name], time.monotonic()
    seen: list[tuple[Evidence, Question, Findings]] = []

    def spy(evidence: Evidence, question: Question, watcher: Watcher) -> Findings:
        findings = run_experiment(evidence, question, watcher)
        seen.append((evidence, question, findings))
        return findings

    with tempfile.TemporaryDirectory() as folder:
        config = write_input(gallery, load_set(gallery.data, cache), seed, Path(folder))
        with patch.object(choose, "run_experiment", spy):
            state = _run(load_config(config), InProcessEngine(), stream=io.StringIO()).state
    [(evidence, question, findings)] = seen
    versions = []
    for promise, plain in zip(promises(state), uncorrected(evidence, question, findings), strict=True):
        predicted, measured = promise.prediction, promise.measured.get(promise.prediction.scope)
        if measured is None:
            raise RuntimeError(f"{name}: version {promise.version} is not measured in scope {predicted.scope}")
        versions.append(
            {
                "fraction": predicted.fraction,
                "scope": predicted.scope,
                "objective": f"{predicted.relevance}/{predicted.metric}",
                "predicted": [predicted.value, predicted.low, predicted.high],
                "uncorrected": [plain.value, plain.low, plain.high] if plain.queries else None,
                "measured": measured.value,
            }
        )
    seconds = round(time.monotonic() - start, 1)
    print(f"{name}, seed {seed}: {findings.choice.winner}, {seconds} s", file=sys.stderr, flush=True)
    return {
        "gallery": name,
        "seed": seed,
        "rows": gallery.rows,
        "pairs": gallery.pairs,
        "asked": gallery.objective,
        "winner": str(findings.choice.winner),
        "seconds": seconds,
        "versions": versions,
    }


def inside(version: dict[str, Any], key: str) -> bool:
    """Whether the measured value lies in the interval `key`."""
    _, low, high = version[key]
    return bool(low <= version["measured"] <= high)


def _cells(result: Result, version: dict[str, Any]) -> list[str]:
    def interval(key: str) -> str:
        if version[key] is None:
            return "-"
        value, low, high = version[key]
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    return [
        f"{result['gallery']} ({result['pairs']:,} pairs)",
        f"{version['objective']} ({version['scope']})",
        f"{100 * version['fraction']:.0f} %",
        interval("uncorrected"),
        interval("predicted"),
        f"{version['measured']:.3f}",
        "yes" if inside(version, "predicted") else "no",
    ]


def render(results: list[Result]) -> str:
    """Every version, then the share that lies inside and the mean width, with and without the correction."""
    head = ("gallery", "objective (scope)", "new", "uncorrected", "predicted", "measured", "inside")
    lines = [_cells(result, version) for result in results for version in result["versions"]]
    return "\n".join([markdown(head, lines), "", *_summary(results)])


def _summary(results: list[Result]) -> list[str]:
    lines = []
    for scopes in (("gallery",), ("audit",), ("gallery", "audit")):
        of_scope = [v for result in results for v in result["versions"] if v["scope"] in scopes]
        known = [version for version in of_scope if version["uncorrected"] is not None]
        if not known:
            continue
        parts = []
        for key, versions in (("predicted", of_scope), ("uncorrected", known)):
            share = mean(inside(version, key) for version in versions)
            width = mean(version[key][2] - version[key][1] for version in versions)
            error = mean(abs(version[key][0] - version["measured"]) for version in versions)
            parts.append(
                f"{key}: {100 * share:.0f} % of {len(versions)} inside, mean width {width:.3f}, mean error {error:.3f}"
            )
        lines.append(f"- Scope {' and '.join(scopes)}: {'; '.join(parts)}.")
    whole = sum(all(inside(version, "predicted") for version in result["versions"]) for result in results)
    return [*lines, f"- Galleries of which every version lies inside: {whole} of {len(results)}."]


def main(arguments: Sequence[str] | None = None) -> None:
    command_line(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter),
        arguments,
        sets=GALLERIES,
        seeds=[0],
        measure=lambda name, seed, given: measure(name, seed, given.cache),
        render=render,
    )


if __name__ == "__main__":
    main()
