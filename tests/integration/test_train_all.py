"""Several maps in one training: what is finished is kept, what was interrupted goes on, what fails is told."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.engine.interface import Checkpoints, Engine, TrainSetup
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.errors import AlignmentFailed
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.train import (
    Method,
    TrainedAlignment,
    TrainJob,
    _keep,
    alignment_fingerprint,
    load_alignment,
    train_all,
)
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import Receipt, read_receipt
from fastfill_ray.storage.stat import Stat
from tests.faults import flip_bit

ROWS = 320
TRAINING_WORKER = True
SPACES = {"old": "a", "new": "b"}


@dataclass(frozen=True)
class DyingFiles:
    """A real store in a process that dies once, after writing to a path that contains `part`; `mark` tells that."""

    files: Files
    part: str
    mark: Path

    @property
    def root(self) -> str:
        return self.files.root

    def get(self, path: str) -> bytes:
        return self.files.get(path)

    def stat(self, path: str) -> Stat | None:
        return self.files.stat(path)

    def list(self, prefix: str) -> list[str]:
        return self.files.list(prefix)

    def delete(self, path: str) -> None:
        self.files.delete(path)

    def put_new(self, path: str, data: bytes) -> bool:
        return self.files.put_new(path, data)

    def put_data(self, path: str, data: bytes) -> None:
        self.files.put_data(path, data)
        if self.part in path and not self.mark.exists():
            self.mark.touch()
            os._exit(1)


def make_pairs() -> PairedItems:
    rng = np.random.default_rng(0)
    ids = np.empty(ROWS, object)
    ids[:] = [int(value) for value in rng.permutation(ROWS) * 5]
    labels = np.empty(ROWS, object)
    labels[:] = [None if row % 10 == 0 else row % 4 for row in range(ROWS)]
    old = rng.normal(size=(ROWS, 6)).astype(np.float32)
    side = rng.normal(size=(ROWS, 3)).astype(np.float32)
    new = np.concatenate([old, side], axis=1) @ rng.normal(size=(9, 8)).astype(np.float32)
    split = np.repeat(np.array(["train", "audit"], object), ROWS // 2)
    return PairedItems(ids, old, new, split, labels=labels, side=side, fingerprint="pairs")


def job(files: Files, method: Method, classifier: Classifier | None = None) -> TrainJob:
    name = alignment_fingerprint("pairs", method, "default", classifier, 0)
    return TrainJob(files, method, "default", classifier, 0, False, name, SPACES)


def in_process(method: Method, pairs: PairedItems) -> Fit:
    """The same training without Ray: rows in the order of the ids' hashes, fastfill on the labelled ones alone."""
    part = pairs.part("train")
    part = part.labelled() if method == "fastfill" else part
    order = np.argsort(hash_ids(part.ids), kind="stable")
    labels = part.labels[order].astype(np.int64) if part.labels is not None and method == "fastfill" else None
    assert part.side is not None
    fit = Fit(
        method, "default", TrainingPairs(part.old[order], part.new[order], labels, None, part.side[order]), seed=0
    )
    while fit.epoch < fit.epochs:
        fit.step()
    return fit


def receipt(files: Files, job: TrainJob) -> Receipt:
    found = read_receipt(files, stage_receipt("alignment", job.fingerprint))
    assert found is not None
    return found


def context(files: Files, engine: Engine) -> Context:
    return Context(engine, files, InputStore(), Progress(io.StringIO()))


def together(engine: Engine, jobs: list[TrainJob], pairs: PairedItems) -> dict[Method, TrainedAlignment | str]:
    with engine.session(print):
        return train_all(context(jobs[0].files, engine), jobs, pairs)


@pytest.fixture(params=["in_process", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "in_process":
        return InProcessEngine()
    request.getfixturevalue("ray_session")
    return RayEngine()


def no_run(*_: object) -> None:
    raise AssertionError("Ray Train was started")


@pytest.mark.slow
def test_maps_trained_together_survive_a_dying_worker_and_equal_those_trained_alone(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, pairs = open_files(str(tmp_path / "root")), make_pairs()
    methods: list[Method] = ["fct", "fastfill", "ridge"]
    # Before the second map's receipt: the worker that is started again skips the first map, goes on with the second one
    # from its checkpoint, which is none for the third one.
    dying = DyingFiles(files, f"{job(files, 'fastfill').fingerprint}/model", tmp_path / "died")
    jobs = [job(dying, method) for method in methods]
    handler = signal.getsignal(signal.SIGINT)
    trained = together(RayEngine(), jobs, pairs)
    assert signal.getsignal(signal.SIGINT) is handler, "Ray Train's would swallow Ctrl-C from here on"
    assert (tmp_path / "died").exists()
    assert list(trained) == methods
    resumed = [receipt(files, job).details["resumed_from"] for job in jobs]
    assert resumed in ([0, 8, 0], [0, 16, 0]), "the last checkpoint may have died with the worker"
    for method, found in trained.items():
        assert isinstance(found, TrainedAlignment)
        alignment, expected = load_alignment(files, found, SPACES), in_process(method, pairs).finish()
        for one, other in zip(alignment(pairs.old, pairs.side), expected(pairs.old, pairs.side), strict=True):
            assert np.allclose(one, other, atol=1e-5)
        assert np.allclose(
            alignment.second_opinion(pairs.old, pairs.side), expected.second_opinion(pairs.old, pairs.side), atol=1e-5
        )
    before = files.list("")
    monkeypatch.setattr("fastfill_ray.stages.train._run", no_run)
    assert together(RayEngine(), jobs, pairs) == trained
    assert files.list("") == before


def test_a_finished_map_is_kept_and_one_that_fails_stops_only_itself(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, pairs = open_files(str(tmp_path / "root")), make_pairs()
    ridge, procrustes = job(files, "ridge"), job(files, "procrustes")
    rng = np.random.default_rng(1)
    weight = np.full((4, 8), 3e38, np.float32) * rng.choice(np.float32([-1, 1]), size=(4, 8))
    huge = Classifier.of_class_numbers(weight, np.zeros(4, np.float32))
    fastfill = job(files, "fastfill", huge)
    _keep(ridge, in_process("ridge", pairs).finish(), {"epochs": 1, "resumed_from": 0})
    written = (tmp_path / "root" / stage_receipt("alignment", ridge.fingerprint)).stat()
    trained = together(engine, [ridge, fastfill, procrustes], pairs)
    assert isinstance(trained["ridge"], TrainedAlignment)
    assert (tmp_path / "root" / stage_receipt("alignment", ridge.fingerprint)).stat() == written
    assert isinstance(trained["procrustes"], TrainedAlignment)
    alignment, expected = load_alignment(files, trained["procrustes"], SPACES), in_process("procrustes", pairs).finish()
    assert np.allclose(alignment(pairs.old)[0], expected(pairs.old)[0], atol=1e-5)
    assert "loss became" in str(trained["fastfill"])
    monkeypatch.setattr("fastfill_ray.stages.train._run", no_run)
    assert together(engine, [ridge, fastfill, procrustes], pairs) == trained


def test_what_cannot_be_fitted_is_told_before_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfill_ray.stages.train._run", no_run)
    files, pairs = open_files(str(tmp_path / "root")), make_pairs()
    few = job(files, "fastfill", Classifier.of_class_numbers(np.ones((3, 8), np.float32), np.zeros(3, np.float32)))
    with pytest.raises(AlignmentFailed, match="labels run from 0 to 3"):
        train_all(context(files, InProcessEngine()), [few], pairs)
    flat = replace(pairs, new=np.ones_like(pairs.new))
    reasons = train_all(context(files, InProcessEngine()), [few, job(files, "ridge")], flat)
    assert all("are the same" in str(reason) for reason in reasons.values())


class KeptInMemory(InProcessEngine):
    """Trains in this process, keeps checkpoints in a dict, and ends at the first one if `dies`."""

    def __init__(self, *, dies: bool) -> None:
        self.kept: dict[str, bytes] = {}
        self.dies = dies

    def train(self, loop: Callable[[Any, Checkpoints], None], data: Any, setup: TrainSetup) -> None:
        loop(data, self)

    def latest(self, name: str) -> bytes | None:
        return self.kept.get(name)

    def save(self, name: str, data: bytes, metrics: Mapping[str, Any]) -> None:
        self.kept[name] = data
        if self.dies:
            raise KeyboardInterrupt


@pytest.mark.parametrize("damage", [None, *(int(bit) for bit in np.random.default_rng(0).integers(0, 100_000, 1))])
def test_a_damaged_checkpoint_is_not_trained_on_and_this_is_said(tmp_path: Path, damage: int | None) -> None:
    files, engine = open_files(str(tmp_path / "root")), KeptInMemory(dies=True)
    with pytest.raises(KeyboardInterrupt):
        together(engine, [job(files, "fct")], make_pairs())
    [(name, data)] = engine.kept.items()
    engine.dies = False
    engine.kept = {name: data if damage is None else flip_bit(data, damage)}
    said = io.StringIO()
    train_all(Context(engine, files, InputStore(), Progress(said)), [job(files, "fct")], make_pairs())
    assert receipt(files, job(files, "fct")).details["resumed_from"] == (8 if damage is None else 0)
    assert ("damaged checkpoint, trained from the start" in said.getvalue()) == (damage is not None)


@pytest.mark.slow
def test_a_damaged_list_of_checkpoints_makes_training_begin_anew(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = TrainSetup(str(tmp_path / "root"), InputStore(), use_gpu=False)
    RayEngine().train(partial(keep_one, tmp_path), b"first", setup)
    [listed] = tmp_path.rglob("checkpoint_manager_snapshot.json")
    listed.write_text(listed.read_text()[:40])
    RayEngine().train(partial(keep_one, tmp_path), b"second", setup)
    assert (tmp_path / "latest").read_text() == "None"
    assert "damaged checkpoints, training begins anew" in caplog.text


def keep_one(folder: Path, data: bytes, checkpoints: Checkpoints) -> None:
    (folder / "latest").write_text(repr(checkpoints.latest("x")))
    checkpoints.save("x", data, {})
