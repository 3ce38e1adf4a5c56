"""Everything before PLAN: snapshot, pairs and queries, alignment, scores. Each stage that is done does nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastfill_ray.config import BackfillConfig
from fastfill_ray.core.records import Receipt, fingerprint
from fastfill_ray.errors import QuarantineExceeded
from fastfill_ray.stages.embed import Job, Space, Unit, embed, find_receipts
from fastfill_ray.stages.evaluate import audit_queries
from fastfill_ray.stages.pairs import PairPlan, Pairs, finish_pairs, load_pairs, plan_pairs
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.queries import Queries, QueryPlan, load_queries, pin_queries, plan_queries
from fastfill_ray.stages.score import Policy, Scorer, Scores, score
from fastfill_ray.stages.snapshot import Snapshot, Source, take_snapshot
from fastfill_ray.stages.train import Method, TrainJob, alignment_fingerprint, read_classifier, train
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.gallery import TableInput
from fastfill_ray.storage.layout import unit_receipt

_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """What PLAN and every version build on."""

    snapshot: Snapshot
    job: Job
    pairs: Pairs
    pair_receipts: dict[int, Receipt]
    queries: Queries
    scorer: Scorer
    scores: Scores
    choices: dict[str, str]


def spaces_of(config: BackfillConfig) -> dict[str, str]:
    """Fingerprints of the models that a run can call: new, and old where an embedder is given."""
    spaces = {"new": fingerprint([config.new_model.embedder, config.new_model.kwargs, config.new_model.dim])}
    if config.old_model.embedder is not None:
        spaces["old"] = fingerprint([config.old_model.embedder, config.old_model.kwargs])
    return spaces


def choose(config: BackfillConfig) -> tuple[Method, Policy, dict[str, str]]:
    """What each `auto` becomes, and why. Fixed rules, not yet measured on the user's own pairs."""
    choices: dict[str, str] = {}
    labels = config.gallery.label_column is not None
    method: Method
    if config.alignment.method != "auto":
        method = config.alignment.method
    elif labels:
        method, choices["alignment.method"] = "fastfill", "fastfill: the gallery has labels, its loss can use them"
    else:
        method, choices["alignment.method"] = "ridge", "ridge: without labels a linear map is hard to beat on few pairs"
    policy: Policy
    if config.policy.name != "auto":
        policy = config.policy.name
    else:
        policy, choices["policy.name"] = "uncertainty", "uncertainty: FastFill's order, needs nothing but the alignment"
    if config.serving.stale_mode == "auto":
        choices["serving.stale_mode"] = "aligned: the one stale mode of this release"
    return method, policy, choices


def prepare(config: BackfillConfig, files: Files, snapshot: Snapshot, progress: Progress) -> Prepared:
    """Run or find every stage before PLAN."""
    endpoint = config.storage.s3_endpoint
    spaces = spaces_of(config)
    source = Source(config.gallery, snapshot.id_type, snapshot.old_dim, config.new_model.metric, endpoint)
    method, policy, choices = choose(config)
    classifier = None
    if config.new_model.classifier is not None:
        classifier = read_classifier(config.new_model.classifier, dim=config.new_model.dim, s3_endpoint=endpoint)

    pair_plan = plan_pairs(config, snapshot, spaces["new"])
    query_plan, judgements = _plan_queries(config, spaces)
    job = make_job(config, files, snapshot)
    pairs, pair_receipts, query_receipts = _embed_first(
        job, config, pair_plan, query_plan, load_pairs(files, pair_plan), source, progress
    )
    if query_plan is None:
        queries = audit_queries(pairs, config.seed)
    else:
        queries = load_queries(
            files,
            query_plan,
            query_receipts,
            judgements,
            new_dim=config.new_model.dim,
            old_dim=snapshot.old_dim,
            metric=config.new_model.metric,
            id_type=snapshot.id_type,
            s3_endpoint=endpoint,
        )
    directions = {"old": old_space_of(config, snapshot), "new": spaces["new"]}
    trained = train(
        TrainJob(
            files=files,
            method=method,
            preset=config.alignment.preset,
            classifier=classifier if method == "fastfill" else None,
            seed=config.seed,
            use_gpu=config.resources.gpus_per_actor > 0,
            fingerprint=alignment_fingerprint(
                pairs.fingerprint,
                method,
                config.alignment.preset,
                classifier if method == "fastfill" else None,
                config.seed,
            ),
            spaces=directions,
            s3_endpoint=endpoint,
        ),
        pairs,
        progress,
    )
    reference = pairs.part("train")
    scorer = Scorer(
        files=files,
        source=source,
        trained=trained,
        spaces=directions,
        policy=policy,
        norm=float(np.linalg.norm(pairs.new, axis=1).mean()),
        seed=config.seed,
        reference=reference.new if policy == "class_margin" else None,
        reference_labels=reference.labels if policy == "class_margin" else None,
    )
    limit = config.quarantine.limit(snapshot.rows)
    scores = score(scorer, snapshot, pair_plan.offsets, limit, progress)
    return Prepared(snapshot, job, pairs, pair_receipts, queries, scorer, scores, choices)


def old_space_of(config: BackfillConfig, snapshot: Snapshot) -> str:
    """The old vectors' space, as far as the gallery tells: their column and dimension."""
    return fingerprint([config.gallery.old_vector_column, snapshot.old_dim])


def snapshot_of(config: BackfillConfig, files: Files, progress: Progress) -> Snapshot:
    return take_snapshot(files, config.gallery, config.resources, progress, s3_endpoint=config.storage.s3_endpoint)


def make_job(config: BackfillConfig, files: Files, snapshot: Snapshot, cuts: Iterable[int] = ()) -> Job:
    """What the actor pool needs to know. `cuts` are the plan's thresholds, once there is a plan."""
    new, old = config.new_model, config.old_model
    spaces = {"new": Space(new.embedder, dict(new.kwargs), new.dim, new.metric, new.batch_size)}
    if old.embedder is not None:
        spaces["old"] = Space(old.embedder, dict(old.kwargs), snapshot.old_dim, new.metric, new.batch_size)
    queries = config.queries
    return Job(
        files=files,
        id_column=config.gallery.id_column,
        id_type=snapshot.id_type,
        payload_columns=config.gallery.payload_columns,
        query_payload_columns=queries.payload_columns if queries is not None else (),
        spaces=spaces,
        thresholds=tuple(cuts),
        s3_endpoint=config.storage.s3_endpoint,
    )


def check_quarantine(
    files: Files, what: str, receipts: Mapping[tuple[str, str], Receipt], rows: int, config: BackfillConfig
) -> None:
    """Fail above the limit. Receipts with bad rows are then withdrawn: after the mend, the same command tries again.

    Raises:
        QuarantineExceeded: names the first rows and reasons.
    """
    limit = config.quarantine.limit(rows)
    bad = [fault for receipt in receipts.values() for fault in receipt.quarantined]
    if len(bad) <= limit:
        return
    for (folder, unit), receipt in receipts.items():
        if receipt.quarantined:
            files.delete(unit_receipt(folder, unit))
    shown = "; ".join(f"id {fault.id!r} (row {fault.row}): {fault.reason}" for fault in bad[:_SHOWN])
    raise QuarantineExceeded(
        f"{what}: {len(bad)} of {rows} rows could not be embedded, at most {limit} are allowed: {shown}. Nothing was "
        "committed. Mend the rows or the embedder, or raise quarantine.max_rows or max_fraction, and run again."
    )


def _plan_queries(config: BackfillConfig, spaces: Mapping[str, str]) -> tuple[QueryPlan | None, TableInput | None]:
    if config.queries is None:
        return None, None
    inputs, judgements = pin_queries(config.queries, s3_endpoint=config.storage.s3_endpoint)
    return plan_queries(config, inputs, judgements, spaces), judgements


def _embed_first(
    job: Job,
    config: BackfillConfig,
    pair_plan: PairPlan,
    query_plan: QueryPlan | None,
    finished: Pairs | None,
    source: Source,
    progress: Progress,
) -> tuple[Pairs, dict[int, Receipt], dict[tuple[str, str], Receipt]]:
    """Pairs and queries in one execution of the pool: models load once."""
    files = job.files
    query_units = list(itertools.chain.from_iterable(query_plan.units.values())) if query_plan is not None else []
    units = [*pair_plan.units, *query_units]
    receipts: dict[tuple[str, str], Receipt] = {}
    for folder in {unit.folder for unit in units}:
        receipts |= {(folder, unit): receipt for unit, receipt in find_receipts(files, folder).items()}
    missing = [unit for unit in units if _key(unit) not in receipts]
    pair_keys = {_key(unit) for unit in pair_plan.units}
    if missing:
        rows = sum(unit.rows for unit in units)
        with progress.stage("pairs", rows, "items", done=rows - sum(unit.rows for unit in missing)) as bar:
            for unit, receipt in embed(job, missing, config.resources):
                receipts[_key(unit)] = receipt
                bar.advance(unit.rows)
                if receipt.quarantined:
                    done = {key: found for key, found in receipts.items() if key in pair_keys}
                    check_quarantine(files, "pairs", done, config.pairs.count, config)
    pair_receipts = {unit.unit: receipts[_key(unit)] for unit in pair_plan.units}
    pairs = finished or finish_pairs(files, pair_plan, pair_receipts, source, new_dim=config.new_model.dim)
    by_chunk = {int(unit[1:]): receipt for unit, receipt in pair_receipts.items()}
    return pairs, by_chunk, {_key(unit): receipts[_key(unit)] for unit in query_units}


def _key(unit: Unit) -> tuple[str, str]:
    return unit.folder, unit.unit
