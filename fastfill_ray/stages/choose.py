"""What every `auto` becomes: the experiment on the user's own pairs, run once, kept with its figures.

Chosen on the calibration split by the objective, reported on the audit split, predicted for the gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fastfill_ray.alignment.maps import METHODS, Method
from fastfill_ray.config import AlignmentConfig, ObjectiveConfig, PolicyConfig, ServingConfig
from fastfill_ray.experiment.candidate import WEIGHTS, MapView, Objective
from fastfill_ray.experiment.experiment import Findings, Question, run_experiment
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.experiment.results import ChoiceResult
from fastfill_ray.experiment.summary import choice_result
from fastfill_ray.log.records import Prediction
from fastfill_ray.ordering.policies import POLICIES, Policy
from fastfill_ray.retrieval.calibration import FORMS, NO_SCALE, Form
from fastfill_ray.retrieval.fusion import Fusion, fusion_of
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_output, stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import Metric, Model, Relevance, canonical, fingerprint


class Decision(Model):
    """The outcome. reasons: why, for people, per config key that was `auto`.

    new_norm: that aligned vectors are brought to. It is stored here, and read from here ever after: computed again on
    another processor it may differ in its last bit.
    """

    method: Method
    norms_kept: bool
    policy: Policy
    weight: float
    old_scale: float
    new_norm: float
    form: Form
    chosen_by: Relevance
    prediction: tuple[Prediction, ...]
    choice: ChoiceResult
    reasons: dict[str, str]

    @property
    def digest(self) -> str:
        """Equal for equal decisions. A prediction's scope and queries are left out: plans of releases that had none go
        on.
        """
        return fingerprint(self.model_dump(mode="json", exclude={"prediction": {"__all__": {"scope", "queries"}}}))

    @property
    def view(self) -> MapView:
        """The chosen map, and whether its norms are kept."""
        return MapView(self.method, self.norms_kept)

    def fusion(self, metric: Metric) -> Fusion | None:
        """The factors of fused stale vectors; None in stale mode `aligned`."""
        return None if self.weight == 1 else fusion_of(self.weight, metric, self.old_scale)


@dataclass(frozen=True)
class ChoiceRequest:
    """What the config leaves open and what it fixes.

    can_fuse: whether users can ask with old vectors, and the index of stale vectors can hold fused ones. fractions: of
    the versions to come, pairs and what is carried included: what is predicted. classifier: digest of the new model's
    own, "" where none is given. (One that is fitted follows from the pairs; its bits differ between processors, so it
    is no part of a name.) carried_by: the plan's number under its root where it carries over more than its pairs: what
    that is follows from the plans before. Else None.
    """

    alignment: AlignmentConfig
    policy: PolicyConfig
    serving: ServingConfig
    objective: ObjectiveConfig
    can_fuse: bool
    fractions: tuple[float, ...]
    classifier: str
    carried_by: int | None = None

    @property
    def question(self) -> Question:
        """The same, as the experiment is asked it."""
        modes = {"auto": WEIGHTS, "aligned": (1.0,), "fused": tuple(weight for weight in WEIGHTS if weight < 1)}
        weights = [weight for weight in modes[self.serving.stale_mode] if weight == 1 or self.can_fuse]
        policies: list[Policy] | None = None if self.policy.name == "auto" else [self.policy.name]
        objective = Objective(self.objective.relevance, self.objective.metric)
        forms = NO_SCALE if self.serving.calibration == "no_scale" else FORMS
        return Question(objective, weights, policies, forms, self.fractions)


def methods_to_train(config: AlignmentConfig) -> tuple[Method, ...]:
    """The maps that a run trains: the one that is asked for, or all that `auto` compares."""
    return METHODS if config.method == "auto" else (config.method,)


def decision_before(
    files: Files, evidence: Evidence, alignments: Sequence[str], request: ChoiceRequest
) -> Decision | None:
    """The decision that was made of the same evidence; its classifier has no say in what is the same.

    Args:
        alignments: fingerprints of the evidence's maps.
    """
    receipt = read_receipt(files, stage_receipt("choice", _name(evidence, alignments, request)))
    return None if receipt is None else Decision.model_validate_json(get_verified(files, receipt.outputs[0]))


def _name(evidence: Evidence, alignments: Sequence[str], request: ChoiceRequest) -> str:
    queries = "" if evidence.queries is None else evidence.queries.fingerprint
    serving = request.serving
    wanted: list[str | bool] = [request.alignment.method, request.policy.name, serving.stale_mode, request.can_fuse]
    if serving.calibration != "auto":  # choices of earlier releases are known without it
        wanted.append(serving.calibration)
    measured_on = [request.objective.model_dump(), list(request.fractions), evidence.seed, evidence.metric]
    if request.carried_by is not None:  # as many may be carried by another plan, and other ones
        measured_on.append(request.carried_by)
    seen = [evidence.pairs.fingerprint, queries, list(alignments), request.classifier, wanted, measured_on]
    return fingerprint(seen if evidence.logged is None else [*seen, evidence.logged.fingerprint])


def decide(
    files: Files, evidence: Evidence, alignments: Sequence[str], request: ChoiceRequest, progress: Progress
) -> Decision:
    """The decision, made now and kept; see ``decision_before``."""
    name = _name(evidence, alignments, request)
    with progress.stage("choose", 0, "candidates") as bar:
        question = request.question
        decision = _decision(run_experiment(evidence, question, bar), question, request, evidence.new_norm)
        data = canonical(decision.model_dump(mode="json"))
        output = put_content(files, partial(stage_output, "choice", name, "choice.json"), data)
        put_receipt(files, stage_receipt("choice", name), Receipt(unit="choice", outputs=(output,), rows=0))
    return decision


def _decision(findings: Findings, question: Question, request: ChoiceRequest, new_norm: float) -> Decision:
    winner, by = findings.choice.winner, findings.predicted_by
    prediction = tuple(
        Prediction(
            scope=findings.predicted_in,
            fraction=at,
            relevance=by.relevance,
            metric=by.metric,
            value=v.value,
            low=v.low,
            high=v.high,
            queries=v.queries,
        )
        for at, v in zip(question.fractions, findings.predicted, strict=True)
        if v.queries
    )
    return Decision(
        method=next(method for method in METHODS if method == winner.view.method),
        norms_kept=winner.view.norms_kept,
        policy=next(policy for policy in POLICIES if policy == winner.policy),
        weight=winner.weight,
        old_scale=findings.old_scale,
        new_norm=new_norm,
        form=winner.form,
        chosen_by=findings.chosen_by.relevance,
        prediction=prediction,
        choice=choice_result(findings),
        reasons=_reasons(findings, request),
    )


def reason_lines(reasons: Mapping[str, str]) -> list[str]:
    """`reasons` of a decision as few lines for people: what has one reason, is one line."""
    of_reason: dict[str, list[str]] = {}
    others = []
    for key, why in reasons.items():
        chosen, colon, reason = why.partition(": ")
        if colon:
            of_reason.setdefault(reason, []).append(f"{key} {chosen}")
        else:
            others.append(f"{key}: {why}")
    return [*(f"{', '.join(chosen)}: {reason}" for reason, chosen in of_reason.items()), *others]


def _reasons(findings: Findings, request: ChoiceRequest) -> dict[str, str]:
    """{config key that was `auto`, or "runner-up": why, for people}."""
    choice = findings.choice
    winner = choice.winner
    keys = {
        "alignment.method": (request.alignment.method, str(winner.view)),
        "policy.name": (request.policy.name, winner.policy),
        "serving.stale_mode": (request.serving.stale_mode, winner.stale_mode),
    }
    why = f"best {findings.chosen_by} on the calibration pairs, or the simplest within one standard error of it"
    reasons = {key: f"{chosen}: {why}" for key, (wanted, chosen) in keys.items() if wanted == "auto"}
    if choice.runner_up is not None and findings.margin is not None and findings.margin.queries:
        margin = findings.margin
        reasons["runner-up"] = (
            f"{choice.runner_up}; {winner} minus it is {margin.value:+.4f} "
            f"[{margin.low:+.4f}, {margin.high:+.4f}] on the audit pairs"
        )
    return reasons
