"""Everything before PLAN: snapshot, pairs and queries, alignment, scores. Each stage that is done does nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from fastfill_ray.alignment.maps import Method
from fastfill_ray.config import BackfillConfig
from fastfill_ray.errors import AlignmentFailed, ConfigError, QuarantineExceeded
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.index.segment import check_factory
from fastfill_ray.inputs.classifier import read_classifier
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import TableInput, vector_dim_of
from fastfill_ray.ordering.partition import sample_pairs
from fastfill_ray.ordering.waves import wave_targets
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.stages.choose import Decision, Evidence, decide, methods_to_train
from fastfill_ray.stages.embed import Job, Space, Unit, embed, keep_receipt
from fastfill_ray.stages.evaluate import audit_queries
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.queries import QueryPlan, load_queries, pin_queries, plan_queries
from fastfill_ray.stages.sample import PairPlan, finish_pairs, load_pairs, plan_pairs
from fastfill_ray.stages.score import Scorer, Scores, score
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.train import TrainedAlignment, TrainJob, alignment_fingerprint, load_alignment, train_all
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import unit_receipt
from fastfill_ray.storage.receipts import Receipt, find_receipts
from fastfill_ray.types import fingerprint

_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """What PLAN and every version build on. fusion: of fused stale vectors, None in mode aligned."""

    snapshot: Snapshot
    job: Job
    pairs: PairedItems
    pair_receipts: dict[int, Receipt]
    queries: Queries
    scorer: Scorer
    scores: Scores
    decision: Decision
    fusion: Fusion | None
    waves: tuple[float, ...]


def spaces_of(config: BackfillConfig) -> dict[str, str]:
    """Fingerprints of the models that a run can call: new, and old where an embedder is given."""
    spaces = {"new": fingerprint([config.new_model.embedder, config.new_model.kwargs, config.new_model.dim])}
    if config.old_model.embedder is not None:
        spaces["old"] = fingerprint([config.old_model.embedder, config.old_model.kwargs])
    return spaces


def prepare(config: BackfillConfig, files: Files, snapshot: Snapshot, progress: Progress) -> Prepared:
    """Run or find every stage before PLAN."""
    store = InputStore(config.storage.s3_endpoint)
    spaces = spaces_of(config)
    metric, side_dim = config.new_model.metric, snapshot.side_dim
    source = Source(store, config.gallery, snapshot.id_type, snapshot.old_dim, metric, side_dim)
    methods = methods_to_train(config)
    classifier = None
    if config.new_model.classifier is not None:
        classifier = read_classifier(store, config.new_model.classifier, dim=config.new_model.dim)

    pair_plan = plan_pairs(config, snapshot, spaces["new"])
    query_plan, judgements = _plan_queries(store, config, spaces)
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
            snapshot.fingerprint,
            query_receipts,
            judgements,
            new_dim=config.new_model.dim,
            old_dim=snapshot.old_dim,
            metric=config.new_model.metric,
            id_type=snapshot.id_type,
            store=store,
        )
    directions = {"old": old_space_of(config, snapshot), "new": spaces["new"]}
    jobs = [
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
            store=store,
        )
        for method in methods
    ]
    trained = _fitted(train_all(jobs, pairs, progress), progress)
    norm = float(np.linalg.norm(pairs.new, axis=1).mean())
    alignments = {method: load_alignment(files, found, directions) for method, found in trained.items()}
    may_fuse = config.serving.stale_mode != "auto" or _can_fuse(config, snapshot)
    evidence = Evidence(config, pairs, queries, alignments, norm, classifier, may_fuse)
    fractions = (len(pairs.ids) / snapshot.rows, *config.waves)
    decision = decide(files, evidence, [found.fingerprint for found in trained.values()], fractions, progress)
    for key, why in decision.told.items():
        progress.say(f"{key}: {why}")
    scorer = Scorer(
        files=files,
        source=source,
        trained=trained[decision.method],
        spaces=directions,
        policy=decision.policy,
        norm=None if decision.norms_kept else norm,
        seed=config.seed,
        reference=evidence.reference(decision.view, decision.policy),
        decided=pairs.fingerprint if decision.policy == "expected_gain" else evidence.head_digest(decision.policy),
    )
    limit = config.quarantine.limit(snapshot.rows)
    scores = score(scorer, snapshot, pair_plan.offsets, limit, progress)
    fusion = decision.fusion(metric)
    return Prepared(
        snapshot, job, pairs, pair_receipts, queries, scores.scorer, scores, decision, fusion, tuple(config.waves)
    )


def _fitted(trained: Mapping[Method, TrainedAlignment | str], progress: Progress) -> dict[Method, TrainedAlignment]:
    """The maps that could be fitted; why one could not is told, and raised if none could."""
    failed = {method: found for method, found in trained.items() if isinstance(found, str)}
    for method, why in failed.items():
        progress.say(f"alignment.method {method} is left out: {why}")
    if len(failed) == len(trained):
        reasons = "; ".join(f"{method}: {why}" for method, why in failed.items())
        raise AlignmentFailed(f"no map can be fitted: {reasons}")
    return {method: found for method, found in trained.items() if not isinstance(found, str)}


def _can_fuse(config: BackfillConfig, snapshot: Snapshot) -> bool:
    """Whether `auto` may choose fused: users can ask with old vectors, and the index of stale vectors can hold them."""
    given = config.queries is not None and config.queries.old_vector_column is not None
    if not given and config.old_model.embedder is None:
        return False
    stale = config.index.stale_factory or config.index.factory
    try:
        for dim in (snapshot.old_dim + config.new_model.dim, snapshot.old_dim):
            check_factory(stale, dim, config.new_model.metric, config.pairs.count)
    except ConfigError:
        return False
    return True


def _check_label_types(config: BackfillConfig, inspected: Snapshot, queries: TableInput) -> None:
    """Labels are compared as they are: an int never equals a string."""
    ours, theirs = config.gallery.label_column, config.queries.label_column if config.queries else None
    if ours is None or theirs is None:
        return
    found, expected = queries.types[theirs], inspected.gallery.types[ours]
    if ("int" in found) != ("int" in expected) or ("string" in found) != ("string" in expected):
        raise ConfigError(
            f"queries.label_column: column {theirs!r} is {found}, but gallery.label_column {ours!r} is {expected}; "
            "they must be of one type to be compared"
        )


def old_space_of(config: BackfillConfig, snapshot: Snapshot) -> str:
    """The old vectors' space, as far as the gallery tells: their column and dimension."""
    return fingerprint([config.gallery.old_vector_column, snapshot.old_dim])


def check_request(config: BackfillConfig, inspected: Snapshot) -> None:
    """Everything about config and input that can be refused before anything starts.

    Raises:
        ConfigError, InputError: names the key or column, what was found and what is expected.
    """
    store, new = InputStore(config.storage.s3_endpoint), config.new_model
    for key, path in (("gallery.path", config.gallery.path), ("queries.path", config.queries and config.queries.path)):
        if path and f"{config.output}/".startswith(f"{path.rstrip('/')}/"):
            raise ConfigError(
                f"output: {config.output} lies in {key} {path}; files written there would be taken for input. "
                "Choose a folder outside of it."
            )
    sample_pairs(inspected.rows, config.pairs.count, config.pairs.split, config.seed)
    wave_targets(config.waves, inspected.rows, config.pairs.count)
    check_factory(config.index.factory, new.dim, new.metric, 2 * config.pairs.count)
    stale, key = config.index.stale_factory or config.index.factory, "index.stale_factory"
    if config.serving.stale_mode == "fused":
        for dim in (inspected.old_dim + new.dim, inspected.old_dim):  # the second where old vectors alone serve best
            check_factory(stale, dim, new.metric, config.pairs.count, f"{key} (of fused vectors)")
    elif config.index.stale_factory is not None:
        check_factory(stale, new.dim, new.metric, 2 * config.pairs.count, key)
    if new.classifier is not None:
        read_classifier(store, new.classifier, dim=new.dim)
    if config.queries is None:
        return
    inputs, _ = pin_queries(store, config.queries)
    _check_label_types(config, inspected, inputs)
    for key, column, dim, source in (
        ("queries.new_vector_column", config.queries.new_vector_column, new.dim, "new_model.dim"),
        ("queries.old_vector_column", config.queries.old_vector_column, inspected.old_dim, "the gallery's old vectors"),
    ):
        if column is not None:
            found = vector_dim_of(store, inputs, column)
            if found != dim:
                raise ConfigError(f"{key}: column {column!r} holds vectors of {found} dims, expected {dim} as {source}")


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
        store=InputStore(config.storage.s3_endpoint),
    )


class Quarantine:
    """Counts the bad rows of one wave (or of the pairs, or the queries) and stops it above the limit."""

    def __init__(self, what: str, rows: int, limit: int, known: Iterable[Receipt]) -> None:
        self._what, self._rows, self._limit = what, rows, limit
        self._bad = [fault for receipt in known for fault in receipt.quarantined]

    def add(self, receipt: Receipt) -> None:
        """Raise QuarantineExceeded, naming rows and reasons, if more rows than allowed could not be embedded."""
        self._bad.extend(receipt.quarantined)
        if len(self._bad) > self._limit:
            shown = "; ".join(f"id {fault.id!r} (row {fault.row}): {fault.reason}" for fault in self._bad[:_SHOWN])
            raise QuarantineExceeded(
                f"{self._what}: {len(self._bad)} of {self._rows} rows could not be embedded, at most {self._limit} are "
                f"allowed: {shown}. Nothing was committed. Mend the rows or the embedder, or raise "
                "quarantine.max_rows, and run again."
            )


def known_receipts(files: Files, folder: str, units: Iterable[Unit], limit: int) -> dict[str, Receipt]:
    """The receipts that earlier runs left for these units; none with bad rows where they are too many to go on with."""
    wanted = {unit.unit for unit in units}
    found = {name: receipt for name, receipt in find_receipts(files, folder).items() if name in wanted}
    if sum(len(receipt.quarantined) for receipt in found.values()) > limit:
        withdraw(files, folder)
        found = {name: receipt for name, receipt in found.items() if not receipt.quarantined}
    return found


def withdraw(files: Files, folder: str) -> None:
    """Delete the receipts with bad rows of a wave that failed: after the mend, the same command tries those again."""
    for unit, receipt in find_receipts(files, folder).items():
        if receipt.quarantined:
            files.delete(unit_receipt(folder, unit))


def _plan_queries(
    store: InputStore, config: BackfillConfig, spaces: Mapping[str, str]
) -> tuple[QueryPlan | None, TableInput | None]:
    if config.queries is None:
        return None, None
    inputs, judgements = pin_queries(store, config.queries)
    return plan_queries(config, inputs, judgements, spaces), judgements


def _embed_first(
    job: Job,
    config: BackfillConfig,
    pair_plan: PairPlan,
    query_plan: QueryPlan | None,
    finished: PairedItems | None,
    source: Source,
    progress: Progress,
) -> tuple[PairedItems, dict[int, Receipt], dict[tuple[str, str], Receipt]]:
    """PairedItems and queries in one execution of the pool: models load once."""
    files = job.files
    query_units = list(itertools.chain.from_iterable(query_plan.units.values())) if query_plan is not None else []
    units = [*pair_plan.units, *query_units]
    rows_of = Counter[str]()
    for unit in units:
        rows_of[unit.folder] += unit.rows
    receipts: dict[tuple[str, str], Receipt] = {}
    quarantines: dict[str, Quarantine] = {}
    for folder, count in rows_of.items():
        here, limit = [unit for unit in units if unit.folder == folder], config.quarantine.limit(count)
        found = known_receipts(files, folder, here, limit)
        receipts |= {(folder, name): receipt for name, receipt in found.items()}
        what = "pairs" if here[0].role == "item" else f"queries, {here[0].model} model"
        quarantines[folder] = Quarantine(what, count, limit, found.values())
    missing = [unit for unit in units if _key(unit) not in receipts]
    if missing:
        rows = sum(unit.rows for unit in units)
        done = rows - sum(unit.rows for unit in missing)
        try:
            with (
                progress.stage("pairs", rows, "items", done=done) as bar,
                closing(embed(job, missing, config.resources)) as stream,
            ):
                for unit, receipt in stream:
                    receipts[_key(unit)] = receipt
                    if receipt.quarantined:
                        quarantines[unit.folder].add(receipt)
                        receipts[_key(unit)] = keep_receipt(files, unit, receipt)
                    bar.advance(unit.rows)
        except QuarantineExceeded:
            for folder in rows_of:
                withdraw(files, folder)
            raise
    pair_receipts = {unit.unit: receipts[_key(unit)] for unit in pair_plan.units}
    pairs = finished or finish_pairs(files, pair_plan, pair_receipts, source, new_dim=config.new_model.dim)
    by_chunk = {int(unit[1:]): receipt for unit, receipt in pair_receipts.items()}
    return pairs, by_chunk, {_key(unit): receipts[_key(unit)] for unit in query_units}


def _key(unit: Unit) -> tuple[str, str]:
    return unit.folder, unit.unit
