"""Training by Ray Train: one worker, started again when it dies, with checkpoints under the output root."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs
import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from fastfill_ray.engine.interface import Checkpoints, TrainSetup
from fastfill_ray.engine.session import signals_kept
from fastfill_ray.engine.units import original_errors

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WORKERS = 1  # 0 is Ray Train's local mode: the driver trains
_WORKER_FAILURES = 2
_RUN = "train"  # the folder that Ray Train keeps its checkpoints in


def train(loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
    """See ``Engine.train``. Where Ray Train cannot read its own list of checkpoints, it begins anew without any."""
    try:
        _fit(loop, data, setup)
    except RayActorError as error:
        if "CheckpointManagerInitializationError" not in str(error):
            raise
        filesystem, place = setup.store.filesystem(setup.place)
        logger.warning("%s/%s: damaged checkpoints, training begins anew", setup.place, _RUN)
        filesystem.rm(f"{place}/{_RUN}", recursive=True)
        _fit(loop, data, setup)


def _fit(loop: Callable[[T, Checkpoints], None], data: T, setup: TrainSetup) -> None:
    with original_errors(), signals_kept():
        _Trainer(
            _worker,
            train_loop_config={"loop": loop, "data": ray.put(data)},
            scaling_config=ScalingConfig(num_workers=_WORKERS, use_gpu=setup.use_gpu),
            run_config=RunConfig(
                name=_RUN, failure_config=FailureConfig(max_failures=_WORKER_FAILURES), **_storage(setup)
            ),
        ).fit()


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to the caller: KeyboardInterrupt comes out of ``fit``, and the training ends with its handle."""

    def _register_sigint_handler(self, controller: Any) -> None:
        """Of Ray Train: the first one ends the training, the second does nothing, the third exits with code 0."""


def _worker(config: dict[str, Any]) -> None:
    config["loop"](ray.get(config["data"]), _RayCheckpoints())


class _RayCheckpoints:
    """A checkpoint is a folder with one file, whose name says what it is of."""

    def latest(self, name: str) -> bytes | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            path = Path(folder) / name
            return path.read_bytes() if path.exists() else None

    def save(self, name: str, data: bytes, metrics: Mapping[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_bytes(data)
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))


def _storage(setup: TrainSetup) -> dict[str, Any]:
    """The checkpoints' folder, through the same file system settings as everything else."""
    filesystem, place = setup.store.filesystem(setup.place)
    if setup.place.startswith("s3://"):
        return {
            "storage_path": place,
            "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)),
        }
    return {"storage_path": place}
