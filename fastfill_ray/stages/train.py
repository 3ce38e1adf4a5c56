"""Alignments, trained by Ray Train on the train pairs; checkpoints live under the root.

One worker, which trains one map after the other: each is fitted on some ten thousand pairs in seconds to minutes, and
starting a worker costs ten. It gets the pairs, which fit in its memory, as one object, in the order of the ids.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import ray
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from fastfill_ray.alignment.maps import Alignment, Method, PresetName
from fastfill_ray.alignment.pairs import check_pairs, training_pairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import AlignmentFailed, SpaceMismatch
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.runtime import original_errors
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_failure, stage_folder, stage_output, stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_file, sha256_hex
from fastfill_ray.types import canonical, fingerprint

_CHECKPOINT_EVERY = 8  # epochs
_WORKERS = 1  # 0 is Ray Train's local mode: the driver trains
_WORKER_FAILURES = 2


@dataclass(frozen=True)
class TrainJob:
    """One map to train, and what the worker needs to know for it."""

    files: Files
    method: Method
    preset: PresetName
    classifier: Classifier | None
    seed: int
    use_gpu: bool
    fingerprint: str
    spaces: dict[str, str]
    store: InputStore


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
                store=context.store,
            )
        )
    outcomes = train_all(jobs, pairs, context.progress)
    failed = {method: outcome for method, outcome in outcomes.items() if isinstance(outcome, str)}
    for method, why in failed.items():
        context.progress.say(f"alignment.method {method} is left out: {why}")
    if len(failed) == len(outcomes):
        reasons = "; ".join(f"{method}: {why}" for method, why in failed.items())
        raise AlignmentFailed(f"no map can be fitted: {reasons}")
    return {method: outcome for method, outcome in outcomes.items() if not isinstance(outcome, str)}


def alignment_fingerprint(pairs: str, method: Method, preset: str, classifier: Classifier | None, seed: int) -> str:
    """Names the alignment by everything that shapes it."""
    return fingerprint([pairs, method, preset, classifier_digest(classifier), seed])


def classifier_digest(given: Classifier | None) -> str:
    """Names the new model's own classifier, read from the user's file; "" where none is given."""
    return "" if given is None else sha256_hex(given.weight.tobytes() + given.bias.tobytes())


def train(job: TrainJob, pairs: PairedItems, progress: Progress) -> TrainedAlignment:
    """The trained alignment; a finished one is found by its receipt, an interrupted one goes on from its checkpoint.

    Raises:
        AlignmentFailed: the pairs cannot be fitted.
    """
    trained = train_all([job], pairs, progress)[job.method]
    assert isinstance(trained, TrainedAlignment)
    return trained


def train_all(jobs: Sequence[TrainJob], pairs: PairedItems, progress: Progress) -> dict[Method, TrainedAlignment | str]:
    """Several maps in one Ray Train run: finished ones are found, an interrupted one goes on from its checkpoint.

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
    train = pairs.part("train")
    for job in pending:
        # What cannot be fitted is said here, before a cluster starts a worker for it (and retries it).
        try:
            check_pairs(training_pairs(train, job.method, job.classifier))
        except AlignmentFailed as error:
            if len(jobs) == 1:
                raise
            trained[job.method] = str(error)
    pending = [job for job in pending if job.method not in trained]
    if pending:
        _run(jobs, pending, train, progress)
    for job in pending:
        written = _finished(job, alone=len(jobs) == 1)
        if written is None:
            raise AlignmentFailed(
                f"alignment {job.fingerprint} ({job.method}): the training worker ended without its receipt; run the "
                "same command again"
            )
        trained[job.method] = written
    return {job.method: trained[job.method] for job in jobs}


def _finished(job: TrainJob, *, alone: bool) -> TrainedAlignment | str | None:
    """What is known of a map: the alignment, why it failed when others were trained with it, or nothing."""
    if (receipt := read_receipt(job.files, stage_receipt("alignment", job.fingerprint))) is not None:
        return TrainedAlignment(fingerprint=job.fingerprint, weights=receipt.outputs[0], info=receipt.outputs[1])
    if alone:  # then it is tried again
        return None
    failure = read_receipt(job.files, stage_failure("alignment", job.fingerprint))
    return None if failure is None else str(failure.details["reason"])


def _run(jobs: Sequence[TrainJob], pending: Sequence[TrainJob], train: PairedItems, progress: Progress) -> None:
    with progress.stage("train", len(train.ids), "pairs") as bar, original_errors():
        TorchTrainer(
            _train_worker,
            train_loop_config={"jobs": list(pending), "alone": len(jobs) == 1, "pairs": ray.put(train)},
            scaling_config=ScalingConfig(num_workers=_WORKERS, use_gpu=pending[0].use_gpu),
            run_config=RunConfig(
                name="train",
                failure_config=FailureConfig(max_failures=_WORKER_FAILURES),
                **_storage(jobs),
            ),
        ).fit()
        bar.advance(len(train.ids))


def load_alignment(files: Files, trained: TrainedAlignment, spaces: dict[str, str]) -> Alignment:
    """The artefact, verified; refused if it was trained between other spaces."""
    info = json.loads(get_verified(files, trained.info))
    if info.get("spaces") != spaces:
        raise SpaceMismatch(f"{trained.info.path}: maps {info.get('spaces')}, but this run's spaces are {spaces}")
    return Alignment.load(get_verified(files, trained.weights), info)


def _storage(jobs: Sequence[TrainJob]) -> dict[str, Any]:
    """Ray Train's checkpoints under the output root, through the same file system settings as everything else.

    The place follows from all jobs, done or not, so that a resumed run finds it.
    """
    names = [job.fingerprint for job in jobs]
    folder = f"{jobs[0].files.root}/{stage_folder('alignment', names[0] if len(names) == 1 else fingerprint(names))}"
    filesystem, place = jobs[0].store.filesystem(folder)
    if jobs[0].files.root.startswith("s3://"):
        return {"storage_path": place, "storage_filesystem": pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))}
    return {"storage_path": place}


def _train_worker(config: dict[str, Any]) -> None:
    """The jobs in order; what this worker finished before it died and was started again, is skipped."""
    train = ray.get(config["pairs"])
    for job in config["jobs"]:
        if _finished(job, alone=config["alone"]) is None:
            _train_one(job, train, alone=config["alone"])


def _train_one(job: TrainJob, train: PairedItems, *, alone: bool) -> None:
    """One epoch at a time, so that a killed run loses at most ``_CHECKPOINT_EVERY`` of them."""
    fit = Fit(
        job.method,
        job.preset,
        training_pairs(train, job.method, job.classifier),
        seed=job.seed,
        device="cuda" if job.use_gpu else "cpu",
    )
    name = f"{job.fingerprint}.safetensors"  # a checkpoint of another map is none for this one
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            if (Path(folder) / name).exists():
                fit.restore((Path(folder) / name).read_bytes())
    resumed_from = fit.epoch
    try:
        while fit.epoch < fit.epochs:
            metrics = fit.step()
            if fit.epoch % _CHECKPOINT_EVERY == 0 and fit.epoch < fit.epochs:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / name).write_bytes(fit.state())
                    ray.train.report({**metrics, "epoch": fit.epoch}, checkpoint=Checkpoint.from_directory(folder))
        alignment = fit.finish()
    except AlignmentFailed as error:
        if alone:
            raise
        failure = Receipt(unit="alignment", rows=0, details={"reason": str(error)})
        put_receipt(job.files, stage_failure("alignment", job.fingerprint), failure)
        return
    _keep(job, alignment, {"epochs": fit.epochs, "resumed_from": resumed_from})


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
    return put_file(job.files, stage_output("alignment", job.fingerprint, name, sha256_hex(data)), data)
