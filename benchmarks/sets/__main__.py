"""Build every set, or read it, and print what it holds and how well either model retrieves.

    python -m benchmarks.sets --cache DIR [NAME ...]

One line per set, figures on the audit rows of split 0. Labels: at most 1,000 of the rows are queries, the gallery is
all of them, the query itself excluded. new/h: new queries over ridge-mapped old vectors, the map fitted on train.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.sets.base import BenchmarkSet
from benchmarks.sets.load import NAMES, load_set
from fastfill_ray.alignment.linear import ridge
from fastfill_ray.retrieval.metrics import per_query_by_relevance

MAX_QUERIES = 1_000


def score(queries: NDArray[np.float32], items: NDArray[np.float32], metric: str) -> NDArray[np.float64]:
    """(Q, N) float64 scores, higher is nearer: cosine, or the negative squared distance up to a constant per query."""
    q, x = queries.astype(np.float64), items.astype(np.float64)
    if metric == "cosine":
        q, x = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (q, x))
        return np.asarray(q @ x.T)
    scores: NDArray[np.float64] = 2.0 * q @ x.T - np.square(x).sum(axis=1)
    return scores


def describe(built: BenchmarkSet) -> str:
    """The set's line: sizes, classes, then each pair of models, then the groups."""
    parts = built.split(0)
    audit = parts["audit"]
    old, new, labels = built.old[audit], built.new[audit], built.labels[audit]
    mapped = ridge(built.old[parts["train"]], built.new[parts["train"]])(old).astype(np.float32)
    asked = np.random.default_rng(0).permutation(len(audit))[:MAX_QUERIES]
    relevant = labels[asked, None] == labels[None, :]
    relevant[np.arange(len(asked)), asked] = False
    found = [
        f"{built.name}: {len(built.labels)} items, {len(np.unique(built.labels))} classes, "
        + ", ".join(f"{name} {len(rows)}" for name, rows in parts.items())
    ]
    groups = None if built.groups is None else built.groups[audit][asked]
    for pair, queries, items in (("old/old", old, old), ("new/new", new, new), ("new/h", new, mapped)):
        scores = score(queries[asked], items, built.metric)
        scores[np.arange(len(asked)), asked] = -np.inf
        values = per_query_by_relevance(scores, {"": relevant}, {"": relevant.sum(axis=1)})[""]
        line = f"{pair} CMC@1 {np.nanmean(values['cmc@1']):.3f} mAP {np.nanmean(values['map']):.3f}"
        if groups is not None:
            line += "".join(f" {name} {np.nanmean(values['map'][groups == name]):.3f}" for name in sorted(set(groups)))
        found.append(line)
    if built.query_item is not None and built.queries_old is not None and built.queries_new is not None:
        row_of = np.full(len(built.labels), -1)
        row_of[audit] = np.arange(len(audit))
        chosen = np.flatnonzero(row_of[built.query_item] >= 0)
        sought = row_of[built.query_item[chosen]]
        for pair, queries, items in (
            ("old/old", built.queries_old, old),
            ("new/new", built.queries_new, new),
            ("new/h", built.queries_new, mapped),
        ):
            best = score(queries[chosen], items, built.metric).argmax(axis=1)
            found.append(f"{pair} known-item R@1 {(best == sought).mean():.3f} of {len(chosen)}")
    return "; ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the benchmark sets and print one line for each.")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the built sets")
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=f"one of {', '.join(NAMES)}")
    arguments = parser.parse_args()
    for name in arguments.names:
        print(describe(load_set(name, arguments.cache)), flush=True)


if __name__ == "__main__":
    main()
