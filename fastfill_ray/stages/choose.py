"""What every `auto` becomes: the laboratory on the user's own pairs, run once, kept with its figures.

Chosen on the calibration split by the objective; reported, and predicted, on the audit split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastfill_ray.alignment.maps import Alignment, Method
from fastfill_ray.alignment.pairs import head_of
from fastfill_ray.config import BackfillConfig
from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.candidate import KEPT, Candidate, kept_views, map_of, views_of
from fastfill_ray.experiment.experiment import Findings, Split, investigate, predicted
from fastfill_ray.experiment.items import Asked, Items, PairedItems, Queries, items_as_queries
from fastfill_ray.experiment.results import CandidateResult, ChoiceResult, MeanValue, TrialResult, candidate_json, words
from fastfill_ray.experiment.search import WEIGHTS, Allowed
from fastfill_ray.experiment.shadow import make_scene, make_views, proxies_of
from fastfill_ray.log.records import FileRef, Prediction
from fastfill_ray.ordering.classifier import Head
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.policies import CLASSIFIED, LABELLED, POLICIES, Policy, Reference
from fastfill_ray.ordering.proxies import Proxies
from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.retrieval.fusion import Fusion, fusion_of
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.queries import MAX_QUERIES
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_output, stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_file, sha256_hex
from fastfill_ray.types import Metric, Model, canonical, fingerprint

# What `alignment.method: auto` trains and compares; the cheap ones first.
AUTO_METHODS: tuple[Method, ...] = ("kernel", "ridge", "procrustes", "fastfill", "fct")
# Below this many queries with an answer, choosing and fitting by that relevance would be choosing by chance.
MIN_QUERIES = 30


class Decision(Model):
    """The outcome; ``told`` is why, for people, per config key that was `auto`."""

    method: Method
    norms_kept: bool
    policy: Policy
    weight: float
    old_scale: float
    form: Form
    chosen_by: str
    prediction: tuple[Prediction, ...]
    choice: ChoiceResult
    told: dict[str, str]

    @property
    def view(self) -> str:
        """The chosen map's view, as the laboratory names it."""
        return self.method + KEPT if self.norms_kept else self.method

    def fusion(self, metric: Metric) -> Fusion | None:
        """The factors of fused stale vectors; None in stale mode `aligned`."""
        return None if self.weight == 1 else fusion_of(self.weight, metric, self.old_scale)


@dataclass(frozen=True)
class Evidence:
    """What the laboratory looks at.

    classifier: the new model's own, or None. may_fuse: whether users have old query vectors, and the index of stale
    vectors can hold fused ones.
    """

    config: BackfillConfig
    pairs: PairedItems
    queries: Queries
    alignments: Mapping[Method, Alignment]
    norm: float
    classifier: tuple[np.ndarray, np.ndarray] | None
    may_fuse: bool

    @cached_property
    def head(self) -> Head | None:
        """The classifier that orders read: the model's own, else one fitted on the labelled pairs."""
        train = self.pairs.part("train")
        return head_of(self.classifier, train.new, train.labels)

    def head_digest(self, policy: Policy) -> str:
        """What the scores of a policy depend on beside alignment and seed."""
        if policy not in CLASSIFIED or self.head is None:
            return ""
        names = "\0".join(self.head.classes.tolist()).encode()
        return sha256_hex(self.head.weight.tobytes() + self.head.bias.tobytes() + names)

    def alignment(self, method: str) -> Alignment:
        return next(alignment for name, alignment in self.alignments.items() if name == method)

    def _proxies(self, view: str) -> Proxies:
        train, held_out = self.pairs.part("train"), self.pairs.part("calibration")
        aligned = self.alignment(map_of(view)[0])(held_out.old, held_out.side)[0]
        metric, seed = self.config.new_model.metric, self.config.seed
        return proxies_of(view, items_of(train), items_of(held_out), aligned, metric, norm=self.norm, seed=seed)

    def reference(self, view: str, *policies: Policy) -> Reference:
        """What these policies know of the train pairs, under one view of a map."""
        train = self.pairs.part("train")
        return Reference(
            new=train.new if "class_margin" in policies else None,
            labels=train.labels if "class_margin" in policies else None,
            head=self.head if CLASSIFIED & set(policies) else None,
            proxies=self._proxies(view) if "expected_gain" in policies else None,
        )


def items_of(part: PairedItems) -> Items:
    """The pairs of one split, as the laboratory takes them."""
    ids = part.ids.astype(np.int64) if len(part.ids) and isinstance(part.ids[0], int) else part.ids
    return Items(hash_ids(ids), part.old, part.new, part.labels, part.groups, part.weights)


def methods_to_train(config: BackfillConfig) -> tuple[Method, ...]:
    """The maps that a run trains: the one that is asked for, or all that `auto` compares."""
    method = config.alignment.method
    return AUTO_METHODS if method == "auto" else (method,)


def policies_allowed(config: BackfillConfig, *, head: bool) -> list[Policy]:
    """The orders that may be chosen. Those that read the gallery's labels suit the relevance `label` alone."""
    if config.policy.name != "auto":
        return [config.policy.name]
    by_label = config.objective.relevance == "label" and config.gallery.label_column is not None
    excluded = (frozenset[Policy]() if by_label else LABELLED) | (frozenset[Policy]() if head else CLASSIFIED)
    return [policy for policy in POLICIES if policy not in excluded]


def decide(
    files: Files, evidence: Evidence, names: Sequence[str], fractions: Sequence[float], progress: Progress
) -> Decision:
    """The decision, found by its receipt or made now.

    Args:
        names: fingerprints of the alignments.
        fractions: of the versions to come, pairs included: what is predicted.
    """
    config, queries = evidence.config, evidence.queries
    asked = [config.alignment.method, config.policy.name, config.serving.stale_mode, config.objective.model_dump()]
    labels = [config.gallery.label_column, config.gallery.weight_column, config.seed, list(fractions)]
    name = fingerprint([evidence.pairs.fingerprint, queries.fingerprint, list(names), asked, labels])
    if (receipt := read_receipt(files, stage_receipt("choice", name))) is not None:
        return Decision.model_validate_json(get_verified(files, receipt.outputs[0]))
    with progress.timed("choose"):
        decision = _decide(evidence, fractions)
        data = canonical(decision.model_dump(mode="json"))
        output: FileRef = put_file(files, stage_output("choice", name, "choice.json", sha256_hex(data)), data)
        put_receipt(files, stage_receipt("choice", name), Receipt(unit="choice", outputs=(output,), rows=0))
    return decision


def _decide(evidence: Evidence, fractions: Sequence[float]) -> Decision:
    config = evidence.config
    if config.policy.name in CLASSIFIED and evidence.head is None:
        raise ConfigError(
            f"policy.name is {config.policy.name!r}, but the train pairs have too few labels of two items each to fit "
            "a classifier: set new_model.classifier, raise pairs.count, or choose another policy"
        )
    policies = policies_allowed(config, head=config.policy.name == "auto" and evidence.head is not None)
    views = [view for method in evidence.alignments for view in views_of(method, config.new_model.metric)]
    references = {view: evidence.reference(view, *policies) for view in views}
    calibration, audit = (_split(evidence, name, policies, references) for name in ("calibration", "audit"))
    relevance, metric = config.objective.relevance, config.objective.metric
    chosen_by = relevance if calibration.scene.answerable(relevance) >= MIN_QUERIES else "new_model"
    modes = {"auto": WEIGHTS, "aligned": (1.0,), "fused": tuple(w for w in WEIGHTS if w < 1)}
    can_fuse = calibration.scene.old is not None and evidence.may_fuse
    weights = [w for w in modes[config.serving.stale_mode] if w == 1 or can_fuse]
    allowed = Allowed(views, policies, weights, cautious=kept_views(views))
    findings = investigate(calibration, audit, allowed, chosen_by, metric, seed=config.seed, everything=False)
    winner = findings.choice.winner
    promised = _predict(evidence, calibration, audit, winner, chosen_by, fractions)
    why = f"best {chosen_by}/{metric} on {int((evidence.pairs.split == 'calibration').sum())} calibration pairs"
    autos = {
        "alignment.method": (config.alignment.method, winner.method),
        "policy.name": (config.policy.name, winner.policy),
        "serving.stale_mode": (config.serving.stale_mode, winner.stale_mode),
    }
    words_of = {key: f"{chosen}: {why}" for key, (asked, chosen) in autos.items() if asked == "auto"}
    if findings.choice.runner_up is not None and findings.margin is not None:
        margin = findings.margin
        words_of["runner-up"] = (
            f"{words(findings.choice.runner_up)}; {words(winner)} minus it is {margin.value:+.4f} "
            f"[{margin.low:+.4f}, {margin.high:+.4f}] on the audit pairs"
        )
    return Decision(
        method=next(m for m in evidence.alignments if m == map_of(winner.method)[0]),
        norms_kept=map_of(winner.method)[1],
        policy=next(p for p in POLICIES if p == winner.policy),
        weight=winner.weight,
        old_scale=calibration.scene.old_scale,
        form=winner.form,
        chosen_by=chosen_by,
        prediction=promised,
        choice=_choice_result(findings, f"{chosen_by}/{metric}"),
        told=words_of,
    )


def _candidate_result(candidate: Candidate) -> CandidateResult:
    method, norms_kept = map_of(candidate.method)
    fields = candidate_json(candidate) | {"method": method, "norms_kept": norms_kept}
    return CandidateResult.model_validate(fields)


def _choice_result(findings: Findings, objective: str) -> ChoiceResult:
    """What PLAN keeps of the experiment."""
    choice, margin = findings.choice, findings.margin
    return ChoiceResult(
        objective=objective,
        winner=_candidate_result(choice.winner),
        runner_up=None if choice.runner_up is None else _candidate_result(choice.runner_up),
        margin=None if margin is None else MeanValue(**margin._asdict()),
        trials=tuple(
            TrialResult(**_candidate_result(trial.candidate).model_dump(), area=trial.area, stage=trial.stage)
            for trial in choice.trials
        ),
    )


def _predict(
    evidence: Evidence,
    calibration: Split,
    audit: Split,
    winner: Candidate,
    chosen_by: str,
    fractions: Sequence[float],
) -> tuple[Prediction, ...]:
    """The winner's curve at the versions' fractions, by the objective, on the audit split."""
    relevance, metric = evidence.config.objective.relevance, evidence.config.objective.metric
    if audit.scene.answerable(relevance) < MIN_QUERIES:
        relevance = "new_model"
    share = fractions[0]
    rows = np.random.default_rng([evidence.config.seed, 9]).random(len(audit.scene.id_hash)) < share
    values = predicted(
        calibration, audit, winner, (chosen_by, relevance), metric, fractions, rows, evidence.config.seed
    )
    return tuple(
        Prediction(fraction=fraction, relevance=relevance, metric=metric, value=v.value, low=v.low, high=v.high)
        for fraction, v in zip(fractions, values, strict=True)
        if v.queries
    )


def _split(evidence: Evidence, name: str, policies: Sequence[Policy], references: Mapping[str, Reference]) -> Split:
    part, config = evidence.pairs.part(name), evidence.config
    items = items_of(part)
    asked = _asked(evidence.queries, part, items, config.seed)
    scene = make_scene(items, asked, config.new_model.metric)
    mapped = {str(method): alignment(part.old, part.side) for method, alignment in evidence.alignments.items()}
    views = make_views(
        items,
        asked,
        mapped,
        config.new_model.metric,
        norm=evidence.norm,
        references=references,
        policies=policies,
        seed=config.seed,
    )
    return Split(scene, views)


def _asked(queries: Queries, part: PairedItems, items: Items, seed: int) -> Asked:
    """The given queries; without them a split's own items ask it, so that held-out splits stay apart."""
    if queries.are_items:
        count = min(len(part.ids), MAX_QUERIES)
        return items_as_queries(items, np.sort(np.random.default_rng(seed).choice(len(part.ids), count, replace=False)))
    judged = None
    if queries.judged is not None:
        row_of = {value: row for row, value in enumerate(part.ids.tolist())}
        judged = np.array([(q, row_of[item]) for q, item in queries.judged if item in row_of], np.int64).reshape(-1, 2)
    return Asked(queries.new, queries.old, queries.labels, queries.groups, judged=judged)
