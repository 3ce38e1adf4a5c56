"""The alignment, trained by Ray Train on the train pairs that Ray Data hands it; checkpoints live under the root.

One worker: a map is fitted on some ten thousand pairs in seconds to minutes. What it reads, it keeps in memory, in the
order of the ids, so that the result does not depend on how the data was split into blocks.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray.data
import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from fastfill_ray.alignment.maps import Alignment
from fastfill_ray.alignment.pairs import Classifier, TrainingPairs, check_pairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.core.plan import hash_ids
from fastfill_ray.core.records import FileRef, Receipt, canonical, fingerprint
from fastfill_ray.errors import AlignmentFailed, ConfigError, SpaceMismatch
from fastfill_ray.stages.pairs import Pairs
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.runtime import original_errors
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.inputs import open_input
from fastfill_ray.storage.layout import stage_folder, stage_output, stage_receipt
from fastfill_ray.storage.receipts import put_receipt, read_receipt
from fastfill_ray.storage.tables import get_verified, put_file, sha256_hex, vector_column, vectors_of

Method = Literal["fastfill", "fct", "procrustes", "ridge"]

_CHECKPOINT = "fit.safetensors"
_CHECKPOINT_EVERY = 8  # epochs
_WORKER_FAILURES = 2


@dataclass(frozen=True)
class TrainJob:
    """What the training worker needs to know."""

    files: Files
    method: Method
    preset: Literal["default", "paper"]
    classifier: tuple[np.ndarray, np.ndarray] | None
    seed: int
    use_gpu: bool
    fingerprint: str
    spaces: dict[str, str]
    s3_endpoint: str | None


@dataclass(frozen=True)
class TrainedAlignment:
    """Where the finished alignment is, and what it is called."""

    fingerprint: str
    weights: FileRef
    info: FileRef


def alignment_fingerprint(
    pairs: str, method: Method, preset: str, classifier: tuple[np.ndarray, np.ndarray] | None, seed: int
) -> str:
    """Names the alignment by everything that shapes it."""
    digest = None if classifier is None else sha256_hex(b"".join(part.tobytes() for part in classifier))
    return fingerprint([pairs, method, preset, digest, seed])


def train(job: TrainJob, pairs: Pairs, progress: Progress) -> TrainedAlignment:
    """The trained alignment; a finished one is found by its receipt, an interrupted one goes on from its checkpoint.

    Raises:
        AlignmentFailed: the pairs cannot be fitted.
    """
    path = stage_receipt("alignment", job.fingerprint)
    if (finished := read_receipt(job.files, path)) is not None:
        return _from_receipt(job, finished)
    part = pairs.part("train")
    if job.method == "fastfill":
        part = part.labelled()
    columns = {"old": vector_column(part.old), "new": vector_column(part.new), "key": pa.array(hash_ids_of(part.ids))}
    if job.method == "fastfill" and part.labels is not None:
        columns["label"] = pa.array(_class_numbers(part.labels, given=job.classifier is not None))
    # What cannot be fitted is told here, before a cluster starts a worker for it (and retries it).
    check_pairs(
        TrainingPairs(
            part.old,
            part.new,
            columns["label"].to_numpy() if "label" in columns else None,
            Classifier(*job.classifier) if job.classifier is not None else None,
        )
    )
    with progress.stage("train", len(part.ids), "pairs") as bar, original_errors():
        TorchTrainer(
            _train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=1, use_gpu=job.use_gpu),
            run_config=RunConfig(
                name="train",
                failure_config=FailureConfig(max_failures=_WORKER_FAILURES),
                **_storage(job),
            ),
            datasets={"train": ray.data.from_arrow(pa.table(columns))},
        ).fit()
        bar.advance(len(part.ids))
    written = read_receipt(job.files, path)
    if written is None:
        raise AlignmentFailed(f"{path}: the training worker ended without its receipt; run the same command again")
    return _from_receipt(job, written)


def load_alignment(files: Files, trained: TrainedAlignment, spaces: dict[str, str]) -> Alignment:
    """The artefact, verified; refused if it was trained between other spaces."""
    info = json.loads(get_verified(files, trained.info))
    if info.get("spaces") != spaces:
        raise SpaceMismatch(f"{trained.info.path}: maps {info.get('spaces')}, but this run's spaces are {spaces}")
    return Alignment.load(get_verified(files, trained.weights), info)


def hash_ids_of(ids: np.ndarray) -> np.ndarray:
    """``hash_ids`` of an object array of ints or strings."""
    return hash_ids(ids.astype(np.int64) if len(ids) and isinstance(ids[0], int) else ids)


def _class_numbers(labels: np.ndarray, *, given: bool) -> np.ndarray:
    """Labels as integers: as they are where the new model's classifier defines them, else numbered in sorted order."""
    if given:
        try:
            return np.array([int(label) for label in labels], dtype=np.int64)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"gallery.label_column: {error}; with new_model.classifier labels are the classifier's class numbers"
            ) from error
    return np.unique(np.array([str(label) for label in labels]), return_inverse=True)[1].astype(np.int64)


def _storage(job: TrainJob) -> dict[str, Any]:
    """Ray Train's checkpoints under the output root, through the same file system settings as everything else."""
    folder = f"{job.files.root}/{stage_folder('alignment', job.fingerprint)}"
    filesystem, place = open_input(folder, s3_endpoint=job.s3_endpoint)
    if job.files.root.startswith("s3://"):
        return {"storage_path": place, "storage_filesystem": pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))}
    return {"storage_path": place}


def _train_worker(config: dict[str, Any]) -> None:
    """One epoch at a time, so that a killed run loses at most ``_CHECKPOINT_EVERY`` of them."""
    job: TrainJob = config["job"]
    fit = Fit(job.method, job.preset, _read_pairs(job), seed=job.seed, device="cuda" if job.use_gpu else "cpu")
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            fit.restore((Path(folder) / _CHECKPOINT).read_bytes())
    resumed_from = fit.epoch
    while fit.epoch < fit.epochs:
        metrics = fit.step()
        if fit.epoch % _CHECKPOINT_EVERY == 0 and fit.epoch < fit.epochs:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / _CHECKPOINT).write_bytes(fit.state())
                ray.train.report({**metrics, "epoch": fit.epoch}, checkpoint=Checkpoint.from_directory(folder))
    weights, info = fit.finish().save()
    described = canonical({**info, "spaces": job.spaces})
    receipt = Receipt(
        unit="alignment",
        outputs=(
            _put(job, "model.safetensors", weights),
            _put(job, "alignment.json", described),
        ),
        rows=0,
        details={"epochs": fit.epochs, "resumed_from": resumed_from},
    )
    put_receipt(job.files, stage_receipt("alignment", job.fingerprint), receipt)


def _read_pairs(job: TrainJob) -> TrainingPairs:
    shard = ray.train.get_dataset_shard("train")
    table = pa.concat_tables(list(shard.iter_batches(batch_size=None, batch_format="pyarrow"))).sort_by("key")
    if table.num_rows == 0:
        raise AlignmentFailed("no train pairs reached the training worker")

    def matrix(name: str) -> np.ndarray:
        column = table.column(name)
        return vectors_of(column, column.type.list_size, metric="ip")[0]

    return TrainingPairs(
        old=matrix("old"),
        new=matrix("new"),
        labels=table.column("label").to_numpy() if "label" in table.column_names else None,
        classifier=Classifier(*job.classifier) if job.classifier is not None else None,
    )


def _put(job: TrainJob, name: str, data: bytes) -> FileRef:
    return put_file(job.files, stage_output("alignment", job.fingerprint, name, sha256_hex(data)), data)


def _from_receipt(job: TrainJob, receipt: Receipt) -> TrainedAlignment:
    return TrainedAlignment(fingerprint=job.fingerprint, weights=receipt.outputs[0], info=receipt.outputs[1])
