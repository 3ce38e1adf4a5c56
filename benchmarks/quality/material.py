"""What every part of the benchmark works on: a set's items drawn and split, the trained maps, and their views.

Legend: N items of a part, Q queries, D old dim, E new dim.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from benchmarks.sets import BenchmarkSet, load_set
from fastfill_ray.alignment.maps import Alignment, Method
from fastfill_ray.alignment.pairs import head_of
from fastfill_ray.experiment.candidate import map_of
from fastfill_ray.experiment.experiment import Split
from fastfill_ray.experiment.items import Asked, items_as_queries
from fastfill_ray.experiment.shadow import make_scene, make_views
from fastfill_ray.inputs.pairs import PairsTable
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.policies import Policy, Reference
from fastfill_ray.simulation import items_of, orders_allowed, references_of, train_maps
from fastfill_ray.types import SPLITS, Metric

Floats = NDArray[np.float32]
Objective = tuple[str, str]
MAP: Objective = ("label", "map")
CMC: Objective = ("label", "cmc@1")
OVERLAP: Objective = ("new_model", "recall@10")
JUDGED: Objective = ("qrels", "recall@1")

# Of each benchmark set: the data, and whether its own queries ask (else the items do).
SETS = {
    "digits": ("digits", False),
    "docstrings": ("docstrings", False),
    "docstrings-qrels": ("docstrings", True),
    "glyphs": ("glyphs", False),
    "glyphs-biased": ("glyphs-biased", False),
}
JUDGED_CALIBRATION = 2000


@dataclass(frozen=True)
class Limits:
    """At most so many items of each part, drawn uniformly, and queries; ``methods``: the maps that compete."""

    train: int = 2400
    calibration: int = 800
    audit: int = 2400
    queries: int = 500
    methods: tuple[Method, ...] = ("kernel", "ridge", "procrustes", "fastfill", "fct")


@dataclass(frozen=True)
class Part:
    """One held-out part: its items and queries, each map's vectors as it gives them, and the product's views."""

    items: PairsTable
    asked: Asked
    aligned: Mapping[str, Floats]
    split: Split


@dataclass(frozen=True)
class Material:
    """A set at one seed, ready to be measured.

    table: every drawn item, without side vectors; beside: the same with them, None where the set has none.
    head: the new model's own classifier, or one fitted on the train pairs.
    norm: mean norm of the train pairs' new vectors.
    """

    name: str
    built: BenchmarkSet
    seed: int
    limits: Limits
    metric: Metric
    objectives: tuple[Objective, ...]
    policies: tuple[Policy, ...]
    table: PairsTable
    beside: PairsTable | None
    head: Classifier | None
    trained: Mapping[str, Alignment]
    references: Mapping[str, Reference]
    norm: float
    calibration: Part
    audit: Part

    @property
    def train(self) -> PairsTable:
        return self.table.part("train")

    @property
    def judged(self) -> bool:
        """Whether the set's own queries ask, and qrels say what is right."""
        return JUDGED in self.objectives

    @property
    def both(self) -> tuple[Objective, Objective]:
        """The objective of the relevance that users mean, and the overlap with the full new model."""
        return self.objectives[0], OVERLAP

    def part(self, items: PairsTable, asked: Asked, methods: tuple[str, ...] | None = None) -> Part:
        """Other items and queries under the trained maps (`methods`: these only)."""
        wanted = None if methods is None else {map_of(method)[0] for method in methods}
        trained = {name: a for name, a in self.trained.items() if wanted is None or name in wanted}
        return make_part(items, asked, trained, self.references, self.policies, self.metric, self.norm, self.seed)


def prepare(name: str, seed: int, cache: Path, limits: Limits, stream: TextIO = sys.stderr) -> Material:
    """Draw the items of `name`, train the maps and score everything."""
    data, judged = SETS[name]
    if judged:  # of the calibration items only some are sought by a query: take all there are
        limits = replace(limits, calibration=JUDGED_CALIBRATION)
    return prepare_set(load_set(data, cache), name, seed, limits, judged=judged, stream=stream)


def prepare_set(
    built: BenchmarkSet, name: str, seed: int, limits: Limits, *, judged: bool = False, stream: TextIO = sys.stderr
) -> Material:
    """As `prepare`, on a set that is at hand."""
    parts, rng = built.split(seed), np.random.default_rng([seed, 31])
    rows = {part: np.sort(rng.permutation(parts[part])[: getattr(limits, part)]) for part in SPLITS}
    table = pairs_table(built, rows)
    train = table.part("train")
    trained = train_maps(table, limits.methods, "default", built.classifier, seed, stream)
    head = head_of(built.classifier, train.new, train.labels)
    policies = orders_allowed(table, None, "qrels" if judged else "label", has_head=head is not None)
    norm = float(np.linalg.norm(train.new, axis=1).mean())
    references = references_of(table, trained, head, built.metric, norm, seed)
    made = []
    for part in ("calibration", "audit"):
        items = table.part(part)
        asked = judged_queries(built, items, limits.queries, seed) if judged else own_queries(items, limits, seed)
        made.append(make_part(items, asked, trained, references, policies, built.metric, norm, seed))
    return Material(
        name=name,
        built=built,
        seed=seed,
        limits=limits,
        metric=built.metric,
        objectives=(JUDGED, OVERLAP) if judged else (MAP, CMC, OVERLAP),
        policies=tuple(policies),
        table=table,
        beside=None if built.side is None else pairs_table(built, rows, side=True),
        head=head,
        trained=trained,
        references=references,
        norm=norm,
        calibration=made[0],
        audit=made[1],
    )


def pairs_table(built: BenchmarkSet, rows: Mapping[str, NDArray[np.int64]], *, side: bool = False) -> PairsTable:
    """The items in `rows`, by part, as `simulate` reads them; an id is the item's row in the set."""
    chosen = np.concatenate(list(rows.values()))
    split = np.repeat(np.array(list(rows), object), [len(part) for part in rows.values()])
    return PairsTable(
        ids=chosen.astype(object),
        id_hash=hash_ids(chosen),
        old=built.old[chosen],
        new=built.new[chosen],
        split=split,
        labels=built.labels[chosen].astype(object),
        groups=None if built.groups is None else built.groups[chosen],
        side=built.side[chosen] if side and built.side is not None else None,
    )


def own_queries(part: PairsTable, limits: Limits, seed: int) -> Asked:
    """A uniform sample of the items."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(part.ids))[: limits.queries])
    return items_as_queries(items_of(part), rows)


def judged_queries(built: BenchmarkSet, part: PairsTable, count: int, seed: int) -> Asked:
    """Of the set's own queries a uniform sample of those that seek an item of the part."""
    assert built.query_item is not None
    assert built.queries_new is not None
    assert built.queries_old is not None
    ids = part.ids.astype(np.int64)
    inside = np.flatnonzero(np.isin(built.query_item, ids))
    chosen = np.sort(np.random.default_rng(seed).permutation(inside)[:count])
    place = np.argsort(ids)[np.searchsorted(np.sort(ids), built.query_item[chosen])]
    judged = np.stack([np.arange(len(chosen)), place], axis=1).astype(np.int64)
    return Asked(built.queries_new[chosen], built.queries_old[chosen], judged=judged)


def make_part(
    items: PairsTable,
    asked: Asked,
    trained: Mapping[str, Alignment],
    references: Mapping[str, Reference],
    policies: tuple[Policy, ...] | list[Policy],
    metric: Metric,
    norm: float,
    seed: int,
) -> Part:
    """Scene and views, as `simulate` makes them, of any items and queries."""
    known = items_of(items)
    if asked.groups is None:
        known = replace(known, groups=None)
    mapped = {method: alignment(items.old) for method, alignment in trained.items()}
    aligned = {method: vectors for method, (vectors, _) in mapped.items()}
    views = make_views(known, asked, mapped, metric, norm=norm, references=references, policies=policies, seed=seed)
    return Part(items, asked, aligned, Split(make_scene(known, asked, metric), views))
