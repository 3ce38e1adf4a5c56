"""Map, stale mode, policy and calibration: trained, chosen, and made into what scores the gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastfill_ray.alignment.maps import METHODS, Method
from fastfill_ray.alignment.pairs import classifier_for
from fastfill_ray.config import AlignmentConfig, ObjectiveConfig, PolicyConfig, ServingConfig
from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.experiment.items import MAX_QUERIES, PairedItems
from fastfill_ray.experiment.metric_advice import advise_metric
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.log.records import Init
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.policies import CLASSIFIED, LOGGED, Policy
from fastfill_ray.stages import choose
from fastfill_ray.stages.beginning import Beginning
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.sample import Sample
from fastfill_ray.stages.score import Scorer
from fastfill_ray.stages.train import (
    TrainedAlignment,
    Training,
    classifier_digest,
    load_alignment,
    train_maps,
    train_reverse,
)
from fastfill_ray.types import fingerprint


@dataclass(frozen=True)
class OrderConfig:
    """The config's parts that say what is compared.

    can_fuse: see ``choose.ChoiceRequest``. classifier: the new model's own, None where none is given.
    """

    alignment: AlignmentConfig
    policy: PolicyConfig
    serving: ServingConfig
    objective: ObjectiveConfig
    waves: tuple[float, ...]
    can_fuse: bool
    classifier: Classifier | None
    use_gpu: bool
    seed: int


def train_order(
    context: Context, config: OrderConfig, pairs: PairedItems, init: Init
) -> dict[Method, TrainedAlignment]:
    """The maps that are asked for, or all that `auto` compares."""
    training = Training(
        preset=config.alignment.preset,
        classifier=config.classifier,
        seed=config.seed,
        use_gpu=config.use_gpu,
        spaces=_directions(init),
    )
    return train_maps(context, choose.methods_to_train(config.alignment), training, pairs)


def metric_note(config: OrderConfig, sampled: Sample, init: Init) -> dict[str, str]:
    """What PLAN says where the new model retrieves better under another metric: {config key: words}, else nothing."""
    audit = sampled.pairs.part("audit")
    queries = audit.as_queries().sample(MAX_QUERIES, config.seed) if sampled.queries.are_items else sampled.queries
    objective = Objective(config.objective.relevance, config.objective.metric)
    better = advise_metric(audit, queries, init.metric, objective, seed=config.seed)
    if better is None:
        return {}
    value, low, high, _ = better.gain
    words = (
        f"the new model finds more by {better.metric} than by {init.metric}: {value:+.4f} [{low:+.4f}, {high:+.4f}] of "
        f"{objective} on the audit items. A root keeps its metric: set another one for another output"
    )
    return {"new_model.metric": words}


def with_mapped_queries(
    context: Context, config: OrderConfig, sampled: Sample, init: Init
) -> tuple[Sample, TrainedAlignment]:
    """The sample whose queries have old vectors that are mapped from their new ones, and the map."""
    spaces = _directions(init)
    training = Training(
        preset=config.alignment.preset, classifier=None, seed=config.seed, use_gpu=config.use_gpu, spaces=spaces
    )
    reverse = train_reverse(context, training, sampled.pairs)
    back = load_alignment(context.files, reverse, {"old": spaces["new"], "new": spaces["old"]})
    queries = sampled.queries
    name = fingerprint([queries.fingerprint, reverse.fingerprint])
    return replace(sampled, queries=replace(queries, old=back(queries.new)[0], fingerprint=name)), reverse


def choose_order(
    context: Context,
    config: OrderConfig,
    source: Source,
    sampled: Sample,
    trained: Mapping[Method, TrainedAlignment],
    init: Init,
    begins: Beginning,
) -> tuple[Scorer, choose.Decision]:
    """What every `auto` becomes, and the winner as a scorer of the gallery.

    Args:
        begins: what is new in version 0 of the plan that the choice is made for.
    """
    files, pairs = context.files, sampled.pairs
    spaces, own = _directions(init), config.classifier
    fractions = begins.fractions(config.waves, pairs.size)
    evidence = Evidence(
        pairs=pairs,
        queries=None if sampled.queries.are_items else sampled.queries,
        metric=init.metric,
        maps={method: load_alignment(files, trained[method], spaces) for method in METHODS if method in trained},
        classifier=None,
        seed=config.seed,
        logged=sampled.logged,
        metric_looked_at=config.objective.metric,
        answers_per_added=sampled.answers_per_added,
        carried_share=fractions[0] - pairs.size / begins.rows,
    )
    request = choose.ChoiceRequest(
        alignment=config.alignment,
        policy=config.policy,
        serving=config.serving,
        objective=config.objective,
        can_fuse=config.can_fuse,
        fractions=fractions,
        classifier=classifier_digest(own),
        carried_by=begins.plan if begins.is_carried else None,
    )
    names = [artefact.fingerprint for artefact in trained.values()]
    decision = choose.decision_before(files, evidence, names, request)
    # Fitted where there is none, so only where an order may read it; the model's own is checked for each choice.
    wanted = config.policy.name if decision is None else decision.policy
    if wanted in {"auto", *CLASSIFIED} or (decision is None and own is not None):
        evidence = replace(evidence, classifier=classifier_for(own, pairs.part("train")))
    if decision is None:
        decision = choose.decide(files, evidence, names, request, context.progress)
    for line in choose.reason_lines(decision.reasons):
        context.progress.say(line)
    scorer = Scorer(
        files=files,
        source=source,
        trained=trained[decision.method],
        spaces=spaces,
        policy=decision.policy,
        norm=None if decision.norms_kept else decision.new_norm,
        seed=config.seed,
        reference=evidence.reference(decision.view, [decision.policy]),
        classifier=classifier_digest(own) if decision.policy in CLASSIFIED else "",
        metric_looked_at=config.objective.metric,
        log=_log_of(sampled, decision.policy),
    )
    return scorer, decision


def _log_of(sampled: Sample, policy: Policy) -> str:
    """What scores depend on of the query log: its queries where the order does, and whose keys are kept."""
    parts = []
    if policy in LOGGED and sampled.logged is not None:
        parts.append(sampled.logged.fingerprint)
    if sampled.added:
        parts.append(sampled.queries.fingerprint)
    return fingerprint(parts) if parts else ""


def _directions(init: Init) -> dict[str, str]:
    """The spaces that an alignment maps between."""
    return {"old": init.old_space, "new": init.new_space}
