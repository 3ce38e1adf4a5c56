"""Alignments, trained on the train pairs; checkpoints live under the root.

One worker, which trains one map after the other: each is fitted on some ten thousand pairs in seconds to minutes, and
starting a worker costs ten. It gets the pairs, which fit in its memory, as one object, in the order of the ids.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastfill_ray.alignment.maps import Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import TrainingPairs, check_pairs, training_pairs
from fastfill_ray.alignment.reverse import swapped
from fastfill_ray.alignment.training import Fit
from fastfill_ray.engine.interface import Checkpoints, TrainSetup
from fastfill_ray.errors import AlignmentFailed, SpaceMismatch
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_failure, stage_folder, stage_output, stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content, sha256_hex
from fastfill_ray.types import canonical, fingerprint

logger = logging.getLogger(__name__)

_CHECKPOINT_EVERY = 8  # epochs
# Of queries: on docstrings and operations it finds more than ridge does (benchmarks.rivals).
REVERSE: Method = "kernel"


@dataclass(frozen=True)
class TrainJob:
    """One map to train, and what the worker needs to know for it. is_reverse: from new vectors to old ones."""

    files: Files
    method: Method
    preset: PresetName
    classifier: Classifier | None
    seed: int
    use_gpu: bool
    fingerprint: str
    spaces: dict[str, str]
    is_reverse: bool = False

    def pairs(self, train_part: PairedItems) -> TrainingPairs:
        """What the map is fitted to."""
        return training_pairs(swapped(train_part) if self.is_reverse else train_part, self.method, self.classifier)


@dataclass(frozen=True)
class TrainedAlignment:
    """Where the finished alignment is, and what it is called."""

    fingerprint: str
    weights: FileRef
    info: FileRef


@dataclass(frozen=True)
class Training:
    """How a run's maps are trained. classifier: the new model's own; spaces: {"old": fingerprint, "new": ...}."""

    preset: PresetName
    classifier: Classifier | None
    seed: int
    use_gpu: bool
    spaces: dict[str, str]


def train_maps(
    context: Context, methods: Sequence[Method], training: Training, pairs: PairedItems
) -> dict[Method, TrainedAlignment]:
    """The maps that could be fitted; why one could not is said.

    Raises:
        AlignmentFailed: none could be fitted.
    """
    jobs = []
    for method in methods:
        classifier = training.classifier if method == "fastfill" else None
        jobs.append(
            TrainJob(
                files=context.files,
                method=method,
                preset=training.preset,
                classifier=classifier,
                seed=training.seed,
                use_gpu=training.use_gpu,
                fingerprint=alignment_fingerprint(
                    pairs.fingerprint, method, training.preset, classifier, training.seed
                ),
                spaces=training.spaces,
            )
        )
    outcomes = train_all(context, jobs, pairs)
    failed = {method: outcome for method, outcome in outcomes.items() if isinstance(outcome, str)}
    for method, why in failed.items():
        context.progress.say(f"alignment.method {method} is left out: {why}")
    if len(failed) == len(outcomes):
        reasons = "; ".join(f"{method}: {why}" for method, why in failed.items())
        raise AlignmentFailed(f"no map can be fitted: {reasons}")
    return {method: outcome for method, outcome in outcomes.items() if not isinstance(outcome, str)}


def train_reverse(context: Context, training: Training, pairs: PairedItems) -> TrainedAlignment:
    """A map from new vectors (N, E) to old ones (N, D), for queries whose old model is gone.

    Raises:
        AlignmentFailed: the pairs allow none.
    """
    job = TrainJob(
        files=context.files,
        method=REVERSE,
        preset=training.preset,
        classifier=None,
        seed=training.seed,
        use_gpu=training.use_gpu,
        fingerprint=fingerprint([pairs.fingerprint, "reverse", REVERSE, training.preset, training.seed]),
        spaces={"old": training.spaces["new"], "new": training.spaces["old"]},
        is_reverse=True,
    )
    outcome = train_all(context, [job], pairs)[REVERSE]
    if isinstance(outcome, str):
        raise AlignmentFailed(f"no map from new vectors to old ones can be fitted: {outcome}")
    return outcome


def alignment_fingerprint(pairs: str, method: Method, preset: str, classifier: Classifier | None, seed: int) -> str:
    """Names the alignment by everything that shapes it."""
    return fingerprint([pairs, method, preset, classifier_digest(classifier), seed])


def classifier_digest(given: Classifier | None) -> str:
    """Names the new model's own classifier, read from the user's file; "" where none is given."""
    return "" if given is None else sha256_hex(given.weight.tobytes() + given.bias.tobytes())


def train_all(context: Context, jobs: Sequence[TrainJob], pairs: PairedItems) -> dict[Method, TrainedAlignment | str]:
    """Several maps in one training: finished ones are found, an interrupted one goes on from its checkpoint.

    Args:
        jobs: one per method, of one output root; trained in this order.

    Returns:
        {method: the alignment, or why the pairs cannot be fitted by it}. A map that fails does not stop the others.

    Raises:
        AlignmentFailed: the pairs cannot be fitted, and there is only one job.
    """
    trained: dict[Method, TrainedAlignment | str] = {}
    for job in jobs:
        if (found := _finished(job, alone=len(jobs) == 1)) is not None:
            trained[job.method] = found
    pending = [job for job in jobs if job.method not in trained]
    train_part = pairs.part("train")
    logger.debug("alignments: %d of %d are done", len(trained), len(jobs))
    for job in pending:
        # What cannot be fitted is said here, before a cluster starts a worker for it (and retries it).
        try:
            check_pairs(job.pairs(train_part))
        except AlignmentFailed as error:
            if len(jobs) == 1:
                raise
            trained[job.method] = str(error)
    pending = [job for job in pending if job.method not in trained]
    if pending:
        _run(context, jobs, pending, train_part)
    for job in pending:
        written = _finished(job, alone=len(jobs) == 1)
        if written is None:
            raise AlignmentFailed(
                f"alignment {job.fingerprint} ({job.method}): the training worker ended without its receipt; run the "
                "same command again"
            )
        _say_damaged(context, job)
        trained[job.method] = written
    return {job.method: trained[job.method] for job in jobs}


def _say_damaged(context: Context, job: TrainJob) -> None:
    receipt = read_receipt(job.files, stage_receipt("alignment", job.fingerprint))
    if receipt is not None and receipt.details.get("damaged_checkpoint"):
        context.progress.say(f"alignment {job.fingerprint} ({job.method}): damaged checkpoint, trained from the start")


def _finished(job: TrainJob, *, alone: bool) -> TrainedAlignment | str | None:
    """What is known of a map: the alignment, why it failed when others were trained with it, or nothing."""
    if (receipt := read_receipt(job.files, stage_receipt("alignment", job.fingerprint))) is not None:
        return TrainedAlignment(fingerprint=job.fingerprint, weights=receipt.outputs[0], info=receipt.outputs[1])
    if alone:  # then it is tried again
        return None
    failure = read_receipt(job.files, stage_failure("alignment", job.fingerprint))
    return None if failure is None else str(failure.details["reason"])


def _run(context: Context, jobs: Sequence[TrainJob], pending: Sequence[TrainJob], train_part: PairedItems) -> None:
    # The place of checkpoints follows from all jobs, done or not, so that a resumed run finds it.
    names = [job.fingerprint for job in jobs]
    folder = stage_folder("alignment", names[0] if len(names) == 1 else fingerprint(names))
    setup = TrainSetup(f"{context.files.root}/{folder}", context.store, use_gpu=pending[0].use_gpu)
    methods = ", ".join(job.method for job in pending)
    waits_for = f"fitting {methods} to {len(train_part.ids):,} pairs in a worker ..."
    with context.progress.stage("train", len(pending), "maps", waits_for=waits_for) as bar:
        context.engine.train(partial(_train_pending, list(pending), alone=len(jobs) == 1), train_part, setup)
        bar.advance(len(pending))


def load_alignment(files: Files, trained: TrainedAlignment, spaces: dict[str, str]) -> Alignment:
    """The artefact, verified; refused if it was trained between other spaces."""
    info = json.loads(get_verified(files, trained.info))
    if info.get("spaces") != spaces:
        raise SpaceMismatch(f"{trained.info.path}: maps {info.get('spaces')}, but this run's spaces are {spaces}")
    return Alignment.load(get_verified(files, trained.weights), info)


def _train_pending(
    pending: Sequence[TrainJob], train_part: PairedItems, checkpoints: Checkpoints, *, alone: bool
) -> None:
    """The jobs in order; what a worker finished before it died and another one took over, is skipped."""
    for job in pending:
        if _finished(job, alone=alone) is None:
            _train_one(job, train_part, checkpoints, alone=alone)


def _train_one(job: TrainJob, train_part: PairedItems, checkpoints: Checkpoints, *, alone: bool) -> None:
    """One epoch at a time, so that a killed run loses at most ``_CHECKPOINT_EVERY`` of them."""
    device = "cuda" if job.use_gpu else "cpu"
    pairs = job.pairs(train_part)
    fit = Fit(job.method, job.preset, pairs, seed=job.seed, device=device)
    name = f"{job.fingerprint}.safetensors"  # a checkpoint of another map is none for this one
    kept = checkpoints.latest(name)
    damaged = kept is not None and (kept := _unsealed(kept)) is None
    if kept is not None:
        fit.restore(kept)
        logger.info("alignment %s (%s) goes on from epoch %d", job.fingerprint, job.method, fit.epoch)
    resumed_from = fit.epoch
    try:
        while fit.epoch < fit.epochs:
            metrics = fit.step()
            if fit.epoch % _CHECKPOINT_EVERY == 0 and fit.epoch < fit.epochs:
                checkpoints.save(name, _sealed(fit.state()), {**metrics, "epoch": fit.epoch})
        alignment = fit.finish()
    except AlignmentFailed as error:
        if alone:
            raise
        failure = Receipt(unit="alignment", rows=0, details={"reason": str(error)})
        put_receipt(job.files, stage_failure("alignment", job.fingerprint), failure)
        return
    details = {"epochs": fit.epochs, "resumed_from": resumed_from}
    _keep(job, alignment, {**details, "damaged_checkpoint": True} if damaged else details)


def _sealed(state: bytes) -> bytes:
    """A checkpoint's bytes: the sha256 of the state, then the state."""
    return sha256_hex(state).encode() + state


def _unsealed(data: bytes) -> bytes | None:
    """The state in a checkpoint, None if it is damaged."""
    digest, state = data[:64], data[64:]
    return state if sha256_hex(state).encode() == digest else None


def _keep(job: TrainJob, alignment: Alignment, details: dict[str, int]) -> None:
    weights, info = alignment.save()
    receipt = Receipt(
        unit="alignment",
        outputs=(
            _put(job, "model.safetensors", weights),
            _put(job, "alignment.json", canonical({**info, "spaces": job.spaces})),
        ),
        rows=0,
        details=details,
    )
    put_receipt(job.files, stage_receipt("alignment", job.fingerprint), receipt)


def _put(job: TrainJob, name: str, data: bytes) -> FileRef:
    return put_content(job.files, partial(stage_output, "alignment", job.fingerprint, name), data)
