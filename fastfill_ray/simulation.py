"""`simulate`: which map, order, stale mode and calibration suit a user's own pairs, before anything is re-embedded.

No Ray and no embedder: it reads pairs that have both vectors, trains the maps, and traces whole backfills on held-out
ones. The same laboratory decides what `auto` becomes in a run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from fastfill_ray.alignment.maps import Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import Classifier, TrainingPairs, head_of
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import AlignmentFailed, ConfigError
from fastfill_ray.experiment.candidate import Candidate, kept_views, views_of
from fastfill_ray.experiment.experiment import Findings, Reported, Split, authors_curve, investigate
from fastfill_ray.experiment.items import Asked, Items, items_as_queries
from fastfill_ray.experiment.results import arms_json, curve_json, findings_json
from fastfill_ray.experiment.search import WEIGHTS, Allowed
from fastfill_ray.experiment.shadow import make_scene, make_view, make_views, proxies_of
from fastfill_ray.inputs.classifier import read_classifier
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.pairs import PairsTable, QueriesTable, read_pairs, read_queries
from fastfill_ray.ordering.classifier import Head
from fastfill_ray.ordering.policies import CLASSIFIED, LABELLED, POLICIES, Policy, Reference
from fastfill_ray.report.simulation import simulation_table
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.types import SPLITS, Metric

METHODS: tuple[Method, ...] = ("kernel", "fastfill", "fct", "ridge", "procrustes")
MAX_QUERIES = 1000
Protocol = Literal["authors"]


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found. ``data`` is what simulation.json holds; ``findings`` is None for ``protocol: authors``."""

    data: dict[str, Any]
    findings: Findings | None

    def table(self) -> str:
        """The arms and every reported curve, best area first, as plain text."""
        return simulation_table(self.data)


def simulate(
    pairs: str | Path | PairsTable,
    *,
    objective: str | None = None,
    queries: str | QueriesTable | None = None,
    qrels: str | None = None,
    classifier: str | tuple[np.ndarray, np.ndarray] | None = None,
    metric: Metric = "cosine",
    methods: Sequence[Method] = METHODS,
    policies: Sequence[Policy] | None = None,
    preset: PresetName = "default",
    protocol: Protocol | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    s3_endpoint: str | None = None,
    stream: TextIO | None = None,
) -> Simulation:
    """Simulate whole backfills on pairs.

    Args:
        pairs: Parquet with `id`, `old`, `new`, optional `label`, `group`, `weight`, `side`, `split`; or a table.
        objective: "relevance/metric": what is optimised; `label`, `qrels` or `new_model`, and one of the metrics. None
            for label/map where pairs (and queries) have labels, else new_model/recall@10.
        queries: Parquet with `new`, optional `id`, `old`, `label`, `group`; None: the items of a split ask it.
        qrels: Parquet with `query_id`, `item_id`; needs queries.
        classifier: the new model's own, an .npz with weight (C, E) and bias (C,); labels are then its class numbers.
        policies: the orders that may be chosen; None for all that the data allows.
        protocol: "authors" for the published evaluation (Jaeckle et al., ICLR 2023): gallery = queries, all of them,
            self excluded, L2 on vectors as they are, 22 cutoffs, no calibration, nothing chosen.
        out: a folder for simulation.json.
        stream: where progress goes; stderr by default.

    Raises:
        ConfigError, InputError: input or arguments that cannot be used.
        AlignmentFailed: no map could be fitted.
    """
    start, stream = time.monotonic(), stream or sys.stderr
    store = InputStore(s3_endpoint)
    if protocol == "authors":
        metric = "l2"
        given = {"objective": objective, "queries": queries, "qrels": qrels, "policies": policies}
        if refused := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"protocol authors: {', '.join(refused)} has no place in it; leave it out")
    table = pairs if isinstance(pairs, PairsTable) else read_pairs(store, str(pairs), metric=metric, seed=seed)
    asked = _asked(store, queries, qrels, table, metric)
    if objective is None:
        objective = "label/map" if _labelled(table, asked) else "new_model/recall@10"
    relevance, _, measured = objective.partition("/")
    _check(table, asked, relevance, measured, ("train", "audit") if protocol == "authors" else SPLITS)
    for name, asked_for, known in (("method", methods, METHODS), ("policy", policies or (), POLICIES)):
        if unknown := [one for one in asked_for if one not in known]:
            raise ConfigError(f"{name} {unknown[0]} is unknown; {', '.join(known)} are expected")
    head = classifier
    if isinstance(head, str):
        head = read_classifier(store, head, dim=table.new.shape[1])
    decider, orders = None, list[Policy]()
    if protocol is None:
        train = table.part("train")
        decider = head_of(head, train.new, train.labels)
        orders = orders_allowed(table, policies, relevance, has_head=decider is not None)
    if table.dropped:
        row, reason = table.dropped[0]
        print(f"{len(table.dropped)} pairs are left out; the first: row {row}, {reason}", file=stream, flush=True)
    trained = train_maps(table, methods, preset, head, seed, stream)
    if protocol == "authors":
        data = _authors(table, trained, seed)
        findings = None
    else:
        # Items have old vectors, users' queries only where they are given: `fused` is for those.
        fusable = asked is not None and asked.old is not None
        views = [view for method in trained for view in views_of(method, metric)]
        allowed = Allowed(views, orders, WEIGHTS if fusable else (1.0,), cautious=kept_views(views))
        calibration, audit = splits(table, asked, trained, orders, decider, metric, seed)
        for name, split in (("calibration", calibration), ("audit", audit)):
            if not split.scene.answerable(relevance):
                raise ConfigError(f"objective {objective}: no query has a relevant item in split {name!r} of the pairs")
        print(f"choosing among {len(trained)} maps and {len(orders)} orders", file=stream, flush=True)
        findings = investigate(calibration, audit, allowed, relevance, measured, seed=seed, everything=True)
        data = findings_json(findings, audit.scene, relevance, measured, seed=seed)
    data |= {"seed": seed, "metric": metric, "seconds": round(time.monotonic() - start, 1), "preset": preset}
    data["dropped"] = len(table.dropped)
    data["items"] = {split: int((table.split == split).sum()) for split in SPLITS}
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "simulation.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return Simulation(data, findings)


def orders_allowed(
    table: PairsTable, policies: Sequence[Policy] | None, relevance: str, *, has_head: bool
) -> list[Policy]:
    """The orders to compare: those asked for, else all that the data allows and that suit the relevance."""
    lacking: dict[Policy, str] = {}
    if not has_head:
        why = "it needs the new model's classifier, or pairs with labels of several items each"
        lacking |= dict.fromkeys(CLASSIFIED, why)
    if table.labels is None:
        lacking |= dict.fromkeys(LABELLED, "pairs need a column 'label'")
    for policy in policies or ():
        if policy in lacking:
            raise ConfigError(f"policy {policy}: {lacking[policy]}")
    unsuited = LABELLED if relevance != "label" else frozenset[Policy]()
    return list(policies or [policy for policy in POLICIES if policy not in lacking and policy not in unsuited])


def splits(
    table: PairsTable,
    asked: QueriesTable | None,
    trained: Mapping[str, Alignment],
    policies: Sequence[Policy],
    head: Head | None,
    metric: Metric,
    seed: int,
) -> tuple[Split, Split]:
    """The calibration and the audit split, with every map's view of them; some orders read the head."""
    norm = float(np.linalg.norm(table.part("train").new, axis=1).mean())
    references = references_of(table, trained, head, metric, norm, seed)
    made = []
    for part in (table.part("calibration"), table.part("audit")):
        items = items_of(part)
        questions = _questions(part, items, asked, seed)
        scene = make_scene(items, questions, metric)
        mapped = {method: alignment(part.old, part.side) for method, alignment in trained.items()}
        views = make_views(
            items, questions, mapped, metric, norm=norm, references=references, policies=policies, seed=seed
        )
        made.append(Split(scene, views))
    return made[0], made[1]


def references_of(
    table: PairsTable, trained: Mapping[str, Alignment], head: Head | None, metric: Metric, norm: float, seed: int
) -> dict[str, Reference]:
    """What the orders know of the train pairs, by view of every map; norm: the mean norm of new vectors."""
    train, held_out = table.part("train"), table.part("calibration")
    references = {}
    for method, alignment in trained.items():
        aligned = alignment(held_out.old, held_out.side)[0]
        for view in views_of(method, metric):
            proxies = proxies_of(view, items_of(train), items_of(held_out), aligned, metric, norm=norm, seed=seed)
            references[view] = Reference(train.new, train.labels, head, proxies)
    return references


def items_of(part: PairsTable) -> Items:
    """The pairs of one split, as the laboratory takes them."""
    return Items(part.id_hash, part.old, part.new, part.labels, part.groups, part.weights)


def _questions(part: PairsTable, items: Items, asked: QueriesTable | None, seed: int) -> Asked:
    if asked is None:
        rows = np.sort(np.random.default_rng(seed).permutation(len(part.ids))[:MAX_QUERIES])
        return items_as_queries(items, rows)
    chosen, judged = np.arange(len(asked.new)), None
    if asked.judged is not None:
        place = {value: row for row, value in enumerate(part.ids.tolist())}
        judged = np.array([(q, place[item]) for q, item in asked.judged if item in place], np.int64).reshape(-1, 2)
        if asked.labels is None and len(judged):
            chosen = np.unique(judged[:, 0])
    chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:MAX_QUERIES])
    if judged is not None:
        kept = judged[np.isin(judged[:, 0], chosen)]
        judged = np.stack([np.searchsorted(chosen, kept[:, 0]), kept[:, 1]], axis=1)

    def of(column: np.ndarray | None) -> np.ndarray | None:
        return None if column is None else column[chosen]

    return Asked(asked.new[chosen], of(asked.old), of(asked.labels), of(asked.groups), judged=judged)


def _asked(
    store: InputStore, queries: str | QueriesTable | None, qrels: str | None, table: PairsTable, metric: str
) -> QueriesTable | None:
    if qrels is not None and queries is None:
        raise ConfigError("qrels are given without queries; name the query file that they judge")
    if queries is None or isinstance(queries, QueriesTable):
        return queries
    dims = {"new_dim": table.new.shape[1], "old_dim": table.old.shape[1]}
    return read_queries(store, queries, qrels, metric=metric, **dims)


def _labelled(table: PairsTable, asked: QueriesTable | None) -> bool:
    return table.labels is not None and (asked is None or asked.labels is not None)


def _check(table: PairsTable, asked: QueriesTable | None, relevance: str, measured: str, splits: Sequence[str]) -> None:
    judged = asked is not None and asked.judged is not None
    known = {"new_model": True, "label": _labelled(table, asked), "qrels": judged}
    if measured not in METRICS or relevance not in known:
        raise ConfigError(
            f"objective {relevance}/{measured}: relevance label, qrels or new_model, a slash, and one of "
            f"{', '.join(METRICS)} are expected"
        )
    if not known[relevance]:
        missing = "a column 'label' in pairs and queries" if relevance == "label" else "queries with qrels"
        raise ConfigError(f"objective {relevance}/{measured}: {missing} are needed")
    for split in splits:
        count = int((table.split == split).sum())
        if count < 32:
            raise ConfigError(f"pairs: {count} items in split {split!r}, at least 32 are needed; give more pairs")


def train_maps(
    table: PairsTable,
    methods: Sequence[Method],
    preset: PresetName,
    classifier: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
    stream: TextIO,
) -> dict[str, Alignment]:
    """Every map that can be fitted; the reason of one that cannot is told, and raised if none can."""
    part = table.part("train")
    trained, failed = {}, []
    for method in methods:
        start = time.monotonic()
        labels = class_numbers(part.labels, given=classifier is not None) if method == "fastfill" else None
        head = Classifier(*classifier) if classifier is not None and labels is not None else None
        try:
            fit = Fit(method, preset, TrainingPairs(part.old, part.new, labels, head, part.side), seed=seed)
            while fit.epoch < fit.epochs:
                fit.step()
            trained[str(method)] = fit.finish()
        except AlignmentFailed as error:
            failed.append(f"{method}: {error}")
            print(failed[-1], file=stream, flush=True)
            continue
        print(f"trained {method} on {len(part.ids)} pairs in {time.monotonic() - start:.1f} s", file=stream, flush=True)
    if not trained:
        raise AlignmentFailed("; ".join(failed))
    return trained


def class_numbers(labels: np.ndarray | None, *, given: bool) -> np.ndarray | None:
    """Labels as integers: as they are where a classifier defines them, else numbered; None if any is unknown."""
    if labels is None or any(label is None for label in labels.tolist()):
        return None
    if given:
        try:
            return labels.astype(np.int64)
        except ValueError:
            raise ConfigError(
                f"pairs: label {labels[0]!r} is no class number; the classifier's row numbers are expected, or leave "
                "the classifier out"
            ) from None
    return np.unique(labels.astype(str), return_inverse=True)[1].astype(np.int64)


def _authors(table: PairsTable, trained: Mapping[str, Alignment], seed: int) -> dict[str, Any]:
    part = table.part("audit")
    if part.labels is None:
        raise ConfigError("protocol authors: relevance is the class, so the pairs need a column 'label'")
    items = Items(part.id_hash, part.old.astype(np.float64), part.new.astype(np.float64), part.labels, part.groups)
    asked = items_as_queries(items, np.arange(len(part.ids)))
    scene = make_scene(items, asked, "l2")
    curves = []
    for method, alignment in trained.items():
        aligned, log_variance = alignment(part.old, part.side)
        view = make_view(
            items,
            asked,
            aligned.astype(np.float64),
            log_variance,
            "l2",
            norm=None,
            reference=Reference(),
            policies=["random", "uncertainty"],
            seed=seed,
        )
        for policy in ("random", "uncertainty"):
            reported = Reported(Candidate(method, 1.0, policy, "identity"), authors_curve(scene, view, policy))
            curves.append(curve_json(reported, scene, None, seed=seed))
    arms = arms_json(scene, seed=seed)
    return {"protocol": "authors", "objective": None, "arms": arms, "curves": curves, "choice": None}
