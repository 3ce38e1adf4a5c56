"""`simulate`: which map, order, stale mode and calibration suit a user's own pairs, before anything is re-embedded.

No Ray and no embedder: it reads pairs that have both vectors, trains the maps, and traces whole backfills on held-out
ones. What decides is ``experiment.run_experiment``, which also decides what `auto` becomes in a run: on a run's pairs,
queries and maps the choice is the run's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from fastfill_ray.alignment.maps import METHODS, Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import classifier_for, training_pairs
from fastfill_ray.alignment.reverse import fit_reverse
from fastfill_ray.alignment.training import fit_alignment
from fastfill_ray.errors import AlignmentFailed, ConfigError
from fastfill_ray.experiment.candidate import WEIGHTS, Candidate, MapView, Objective
from fastfill_ray.experiment.experiment import Findings, Question, Reported, run_experiment
from fastfill_ray.experiment.heldout import Evidence, answered
from fastfill_ray.experiment.items import PairedItems, Queries, asking
from fastfill_ray.experiment.metric_advice import advise_metric
from fastfill_ray.experiment.published import published_curve
from fastfill_ray.experiment.rivals import rival_curves
from fastfill_ray.experiment.search import Watcher
from fastfill_ray.experiment.shadow import make_shadow
from fastfill_ray.experiment.summary import arms_json, better_metric_json, curve_json, findings_json, rivals_json
from fastfill_ray.inputs.classifier import read_classifier
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.pairs import read_pairs, read_queries
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.ordering.policies import POLICIES, Policy
from fastfill_ray.report.rivals import few_answers, metric_lines, rival_lines, worth_words
from fastfill_ray.report.text import simulation_table
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.sanitize import printable
from fastfill_ray.stages.progress import Progress
from fastfill_ray.types import SPLITS, Metric, Relevance, Split

Protocol = Literal["authors"]
HELD_OUT: tuple[Split, ...] = ("calibration", "audit")


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found. ``data`` is what simulation.json holds; ``findings`` is None for ``protocol: authors``."""

    data: dict[str, Any]
    findings: Findings | None

    def table(self) -> str:
        """The arms, every reported curve, best area first, the rivals, and what follows from both, as plain text."""
        lines = [*rival_lines(self.data), *metric_lines(self.data)] if self.findings is not None else []
        return "\n".join([simulation_table(self.data), *lines])


def simulate(
    pairs: str | Path | PairedItems,
    *,
    objective: str | None = None,
    queries: str | Queries | None = None,
    qrels: str | None = None,
    classifier: str | Classifier | None = None,
    metric: Metric = "cosine",
    methods: Sequence[Method] = METHODS,
    policies: Sequence[Policy] | None = None,
    preset: PresetName = "default",
    alignments: Mapping[Method, Alignment] | None = None,
    waves: Sequence[float] = (),
    protocol: Protocol | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    s3_endpoint: str | None = None,
    stream: TextIO | None = None,
) -> Simulation:
    """Simulate whole backfills on pairs.

    Args:
        pairs: Parquet with `id`, `old`, `new`, optional `label`, `group`, `weight`, `side`, `split`; a run's folder
            `pairs/<fp>`; or the items.
        objective: "relevance/metric": what is optimised; `label`, `qrels` or `new_model`, and one of the metrics. None
            for label/map where pairs (and queries) have labels, else new_model/recall@10.
        queries: Parquet with `new`, optional `id`, `old`, `label`, `group`; None: the items of a split ask it.
        qrels: Parquet with `query_id`, `item_id`, and a grade as `score` or `relevance` or none; needs queries.
        classifier: the new model's own, an .npz with weight (C, E) and bias (C,); labels are then its class numbers.
        policies: the orders that may be chosen; None for all that the data allows.
        alignments: maps that are trained already, such as a run's; None trains `methods` on the train pairs here.
        waves: shares of the gallery that are new in the versions of a run, the pairs' share first: the choice's curve
            there is predicted.
        protocol: "authors" for the published evaluation (Jaeckle et al., ICLR 2023): gallery = queries, all of them,
            self excluded, L2 on vectors as they are, 22 cutoffs, no calibration, nothing chosen.
        out: a folder for simulation.json.
        stream: where progress goes; stderr by default.

    Raises:
        ConfigError, InputError: input or arguments that cannot be used.
        AlignmentFailed: no map could be fitted.
    """
    start, stream, store = time.monotonic(), stream or sys.stderr, InputStore(s3_endpoint)
    if protocol == "authors":
        metric = "l2"
        _refuse(objective=objective, queries=queries, qrels=qrels, policies=policies)
    dropped: tuple[tuple[int, str], ...] = ()
    if not isinstance(pairs, PairedItems):
        pairs, dropped = read_pairs(store, str(pairs), metric=metric, seed=seed)
    if dropped:
        row, reason = dropped[0]
        print(printable(f"{len(dropped)} pairs are left out; the first: row {row}, {reason}"), file=stream, flush=True)
    users = _queries(store, queries, qrels, pairs, metric)
    wanted = _objective(objective, pairs, users)
    _check_items(pairs, ("train", "audit") if protocol == "authors" else SPLITS)
    _check_known(methods, policies or ())
    own = classifier
    if isinstance(own, str):
        own = read_classifier(store, own, dim=pairs.new.shape[1])
    maps = alignments or train_maps(pairs, methods, preset, own, seed=seed, stream=stream)
    findings = None
    if protocol == "authors":
        data = _authors(pairs, maps, seed)
    else:
        evidence = Evidence(pairs, users, metric, in_order(maps), classifier_for(own, pairs.part("train")), seed)
        print(f"choosing among {len(maps)} maps", file=stream, flush=True)
        with Progress(stream).stage("choose", 0, "candidates") as bar:
            findings = _findings(evidence, wanted, policies, tuple(waves), bar)
        data = {"asked_for": str(wanted), "objective": str(findings.shown_by), **findings_json(findings, seed=seed)}
        data["answers"] = answers = _answers(evidence, wanted)
        data["rivals"] = _rivals(
            evidence, findings, few_answers(str(wanted), answers, None if users is None else len(users.ids))
        )
        shown, audit = findings.shown_by, pairs.part("audit")
        data["better_metric"] = better_metric_json(advise_metric(audit, findings.queries, metric, shown, seed=seed))
    data |= {"seed": seed, "metric": metric, "seconds": round(time.monotonic() - start, 1), "preset": preset}
    data["maps"] = "given" if alignments else f"trained here, preset {preset}, seed {seed}"
    data["dropped"] = len(dropped)
    data["items"] = {split: int((pairs.split == split).sum()) for split in SPLITS}
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "simulation.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return Simulation(data, findings)


def _answers(evidence: Evidence, wanted: Objective) -> dict[str, dict[str, int]]:
    """{split: how many ask it, the queries or its items, and how many of them have an answer there by the objective
    that is asked for}."""
    found: dict[str, dict[str, int]] = {}
    for split in HELD_OUT:
        part = evidence.pairs.part(split)
        asks = asking(evidence.queries, part)
        found[split] = {"queries": len(asks.ids), "answered": len(answered(asks, part, wanted.relevance).ids)}
    return found


def _findings(
    evidence: Evidence,
    wanted: Objective,
    policies: Sequence[Policy] | None,
    waves: tuple[float, ...],
    watcher: Watcher,
) -> Findings:
    """The experiment, with every rival reported."""
    users = evidence.queries
    for split in HELD_OUT:
        part = evidence.pairs.part(split)
        if not len(answered(users or part.as_queries(), part, wanted.relevance).ids):
            raise ConfigError(f"objective {wanted}: no query has a relevant item in split {split!r} of the pairs")
    # Items have old vectors, users' queries only where they are given: `fused` is for those.
    weights = WEIGHTS if users is not None and users.old is not None else (1.0,)
    return run_experiment(evidence, Question(wanted, weights, policies, fractions=waves, report_all=True), watcher)


def _rivals(evidence: Evidence, findings: Findings, few: str) -> dict[str, Any]:
    """What cheaper ways would give, and in words whether a backfill is worth it; few: of ``few_answers``."""
    users, asking = evidence.queries, findings.queries
    further = None
    if users is not None and users.old is not None:  # the reverse map learns from those that measure nothing
        measuring = set(asking.ids.tolist())
        further = users.take(np.flatnonzero([one not in measuring for one in users.ids.tolist()]))
    mapped = None
    try:
        reverse = fit_reverse(evidence.train, "kernel", "default", seed=evidence.seed, queries=further)
        mapped = reverse(asking.new)[0]
    except AlignmentFailed:  # the rivals that need no map are left
        pass
    curves = rival_curves(evidence.pairs.part("audit"), asking, evidence.metric, mapped=mapped, seed=evidence.seed)
    rivals = rivals_json(curves, findings, seed=evidence.seed)
    return rivals | {"words": worth_words(rivals, few)}


def _refuse(**given: object) -> None:
    """What `protocol: authors` has no place for."""
    if refused := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"protocol authors: {', '.join(refused)} has no place in it; leave it out")


def _check_known(methods: Sequence[str], policies: Sequence[str]) -> None:
    for name, wanted, known in (("method", methods, METHODS), ("policy", policies, POLICIES)):
        if unknown := [one for one in wanted if one not in known]:
            raise ConfigError(f"{name} {unknown[0]} is unknown; {', '.join(known)} are expected")


def in_order(maps: Mapping[Method, Alignment]) -> dict[str, Alignment]:
    """The maps in the order of what they cost to apply: within the noise the cheaper one is chosen."""
    return {method: maps[method] for method in METHODS if method in maps}


def train_maps(
    pairs: PairedItems,
    methods: Sequence[Method],
    preset: PresetName,
    classifier: Classifier | None,
    *,
    seed: int,
    stream: TextIO,
) -> dict[Method, Alignment]:
    """Every map that can be fitted; the reason of one that cannot is printed, and raised if none can."""
    train = pairs.part("train")
    trained: dict[Method, Alignment] = {}
    failed = []
    for method in methods:
        start = time.monotonic()
        try:
            trained[method] = fit_alignment(method, preset, training_pairs(train, method, classifier), seed=seed)
        except AlignmentFailed as error:
            failed.append(f"{method}: {error}")
            print(printable(failed[-1]), file=stream, flush=True)
            continue
        took = time.monotonic() - start
        print(f"trained {method} on {len(train.ids)} pairs in {took:.1f} s", file=stream, flush=True)
    if not trained:
        raise AlignmentFailed("; ".join(failed))
    return trained


def _queries(
    store: InputStore, queries: str | Queries | None, qrels: str | None, pairs: PairedItems, metric: Metric
) -> Queries | None:
    if qrels is not None and queries is None:
        raise ConfigError("qrels are given without queries; name the query file that they judge")
    if queries is None or isinstance(queries, Queries):
        return queries
    return read_queries(store, queries, qrels, pairs, metric=metric)


def _objective(text: str | None, pairs: PairedItems, queries: Queries | None) -> Objective:
    """The objective that is asked for, or the one that suits the data.

    Raises:
        ConfigError: unknown, or the data says nothing about it.
    """
    labelled = pairs.labels is not None and (queries is None or queries.labels is not None)
    known: dict[Relevance, bool] = {
        "label": labelled,
        "qrels": queries is not None and queries.judged is not None,
        "new_model": True,
    }
    if text is None:
        return Objective("label", "map") if labelled else Objective("new_model", "recall@10")
    name, _, metric = text.partition("/")
    relevance = next((one for one in known if one == name), None)
    if metric not in METRICS or relevance is None:
        raise ConfigError(
            f"objective {text}: relevance label, qrels or new_model, a slash, and one of {', '.join(METRICS)} are "
            "expected"
        )
    if not known[relevance]:
        missing = "a column 'label' in pairs and queries" if relevance == "label" else "queries with qrels"
        raise ConfigError(f"objective {text}: {missing} are needed")
    return Objective(relevance, metric)


def _check_items(pairs: PairedItems, splits: Sequence[Split]) -> None:
    for split in splits:
        count = int((pairs.split == split).sum())
        if count < MIN_SPLIT[split]:
            raise ConfigError(
                f"pairs: {count} items in split {split!r}, at least {MIN_SPLIT[split]} are needed; give more pairs"
            )


def _authors(pairs: PairedItems, maps: Mapping[Method, Alignment], seed: int) -> dict[str, Any]:
    """The published evaluation: every map in random order and by its uncertainty."""
    part = pairs.part("audit")
    if part.labels is None:
        raise ConfigError("protocol authors: relevance is the class, so the pairs need a column 'label'")
    part = replace(part, old=part.old.astype(np.float64), new=part.new.astype(np.float64))
    queries = part.as_queries()
    shadow = make_shadow(part, queries, "l2")
    arms = arms_json(shadow.arms(), seed=seed)
    curves = []
    for method, alignment in maps.items():
        aligned, log_variance = alignment(part.old, part.side)
        for policy in ("random", "uncertainty"):
            curve = published_curve(part, shadow, aligned, log_variance, policy=policy, seed=seed)
            reported = Reported(Candidate(MapView(method), 1.0, policy, "identity"), curve)
            curves.append(curve_json(reported, None, groups=part.groups, seed=seed))
    return {"protocol": "authors", "objective": None, "arms": arms, "curves": curves, "choice": None}
