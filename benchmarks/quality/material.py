"""What every part of the benchmark works on: a set's items drawn and split, the trained maps, the held-out parts.

Legend: N items of a part, Q queries.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks.quality.maps import kept_maps
from benchmarks.sets import BenchmarkSet, load_set
from fastfill_ray.alignment.maps import Method
from fastfill_ray.alignment.pairs import classifier_for
from fastfill_ray.experiment.candidate import Candidate, Objective, policies_allowed
from fastfill_ray.experiment.heldout import Evidence, HeldOut, hold_out
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.policies import LABELLED, Policy
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.simulation import in_order
from fastfill_ray.types import I64, SPLITS, Metric, Split

MAP = Objective("label", "map")
CMC = Objective("label", "cmc@1")
OVERLAP = Objective("new_model", "recall@10")
JUDGED = Objective("qrels", "recall@1")

# Of each benchmark set: the data, and whether its own queries ask (else the items do).
SETS = {
    "digits": ("digits", False),
    "docstrings": ("docstrings", False),
    "docstrings-qrels": ("docstrings", True),
    "glyphs": ("glyphs", False),
    "glyphs-biased": ("glyphs-biased", False),
}


@dataclass(frozen=True)
class Limits:
    """At most so many items of each part, drawn uniformly, and queries of each held-out part.

    equal: calibration and audit share what is not train in halves. methods: the maps that compete.
    """

    train: int = 2400
    calibration: int = 800
    audit: int = 2400
    queries: int = 800
    equal: bool = False
    methods: tuple[Method, ...] = ("kernel", "ridge", "procrustes", "fastfill", "fct")


@dataclass(frozen=True, eq=False)
class Material:
    """A set at one seed, ready to be measured.

    policies: every order that the data allows. evidence: all drawn items, without side vectors, and the trained maps.
    calibration, audit: the parts, asked by their own items, or by the set's own queries that seek one of these.
    """

    name: str
    built: BenchmarkSet
    limits: Limits
    objectives: tuple[Objective, ...]
    policies: tuple[Policy, ...]
    evidence: Evidence
    calibration: HeldOut
    audit: HeldOut

    @property
    def seed(self) -> int:
        return self.evidence.seed

    @property
    def metric(self) -> Metric:
        return self.evidence.metric

    @property
    def train(self) -> PairedItems:
        return self.evidence.pairs.part("train")

    @property
    def both(self) -> tuple[Objective, Objective]:
        """The objective of the relevance that users mean, and the overlap with the full new model."""
        return self.objectives[0], OVERLAP

    def tracks(self, objective: Objective) -> dict[str, list[Policy]]:
        """The orders of each track: gallery labels are an order's business only where the label is what is right."""
        label_free = {"label-free": [policy for policy in self.policies if policy not in LABELLED]}
        return label_free | ({"labelled": list(self.policies)} if objective in (MAP, CMC) else {})

    def rows(self, split: Split) -> I64:
        """Rows (N,) of the set that a part holds."""
        rows: I64 = self.evidence.pairs.part(split).ids.astype(np.int64)
        return rows

    def audit_of(self, rows: I64, candidates: Sequence[Candidate]) -> HeldOut:
        """Other rows of the set as the audit part, every item asks; with what the candidates read."""
        pairs = items_of(self.built, {split: self.rows(split) for split in SPLITS} | {"audit": rows})
        maps = {method: self.evidence.maps[method] for method in dict.fromkeys(c.view.method for c in candidates)}
        return hold_out(replace(self.evidence, pairs=pairs, maps=maps), "audit", [c.policy for c in candidates])


def prepare(
    name: str, seed: int, cache: Path, limits: Limits, *, folder: Path | None = None, stream: TextIO = sys.stderr
) -> Material:
    """Draw the items of `name`, train the maps, or read them from `folder`, and apply them."""
    data, judged = SETS[name]
    return prepare_set(load_set(data, cache), name, seed, limits, judged=judged, folder=folder, stream=stream)


def prepare_set(
    built: BenchmarkSet,
    name: str,
    seed: int,
    limits: Limits,
    *,
    judged: bool = False,
    folder: Path | None = None,
    stream: TextIO = sys.stderr,
) -> Material:
    """As `prepare`, on a set that is at hand."""
    pairs = items_of(built, draw(built, seed, limits))
    own = None if built.classifier is None else Classifier.of_class_numbers(*built.classifier)
    maps = in_order(kept_maps(pairs, limits.methods, own, seed=seed, folder=folder, stream=stream))
    classifier = classifier_for(own, pairs.part("train"))
    queries = judged_queries(built) if judged else None
    evidence = Evidence(pairs, queries, built.metric, maps, classifier, seed)
    objectives = (JUDGED, OVERLAP) if judged else (MAP, CMC, OVERLAP)
    policies = policies_allowed(None, objectives[0].relevance, labelled=True, classified=classifier is not None)
    parts = []
    for split in ("calibration", "audit"):
        part = hold_out(evidence, split, policies)
        asking = part.answered("qrels") if judged else part.queries
        parts.append(replace(part, queries=asking.first(limits.queries)))
    return Material(name, built, limits, objectives, tuple(policies), evidence, parts[0], parts[1])


def draw(built: BenchmarkSet, seed: int, limits: Limits) -> dict[Split, I64]:
    """Ascending rows of the set, by part."""
    parts, rng = built.split(seed), np.random.default_rng([seed, 31])
    if limits.equal:
        rest = rng.permutation(np.concatenate([parts["calibration"], parts["audit"]]))
        parts |= {"calibration": rest[: len(rest) // 2], "audit": rest[len(rest) // 2 :]}
    return {split: np.sort(rng.permutation(parts[split])[: getattr(limits, split)]) for split in SPLITS}


def items_of(built: BenchmarkSet, rows: Mapping[Split, I64], *, side: bool = False) -> PairedItems:
    """The items in `rows`, by part; an id is the item's row in the set."""
    chosen = np.concatenate(list(rows.values()))
    return PairedItems(
        ids=chosen.astype(object),
        old=built.old[chosen],
        new=built.new[chosen],
        split=np.repeat(np.array(list(rows), object), [len(part) for part in rows.values()]),
        labels=built.labels[chosen].astype(object),
        groups=None if built.groups is None else built.groups[chosen],
        side=built.side[chosen] if side and built.side is not None else None,
    )


def judged_queries(built: BenchmarkSet) -> Queries:
    """The set's own queries; each seeks one item."""
    if built.query_item is None or built.queries_new is None:
        raise ValueError(f"set {built.name!r} has no queries of its own")
    ids = np.array([f"q{row}" for row in range(len(built.query_item))], object)
    judged = tuple(Judgement(query, item) for query, item in enumerate(built.query_item.tolist()))
    return Queries(ids, built.queries_new, built.queries_old, judged=judged)
