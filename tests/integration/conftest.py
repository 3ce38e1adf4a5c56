"""Runs are expensive: one root is planned once, and each test goes on from a copy of it.

What is not about Ray runs in this process (``in_process``); ``run`` does both, one after the other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastfill_ray as ff
from fastfill_ray.backfill import _run
from fastfill_ray.config import load_config
from fastfill_ray.engine import trainer
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.stages import embed
from tests import synthetic

PAIRS = np.concatenate(list(synthetic.drawn_pairs(synthetic.item_ids(600), 120).values()))
OTHERS = np.setdiff1d(np.arange(600), PAIRS)
# Rows whose old vector is missing, too short, or not a number: the first is a pair, the others absent until embedded.
ABSENT = [int(OTHERS[100]), int(OTHERS[300])]
UNUSABLE = {int(PAIRS[0]): None, ABSENT[0]: [1.0, 2.0], ABSENT[1]: [float("nan")] * synthetic.OLD_DIM}


@contextmanager
def trained_in_driver() -> Iterator[None]:
    """Ray Train's local mode: to start its controller and a worker takes longer than all the rest of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_WORKERS", 0)
        yield


@pytest.fixture(scope="module", autouse=True)
def _training(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module that is about training says `TRAINING_WORKER = True`; fixtures of the session care for themselves."""
    if getattr(request.module, "TRAINING_WORKER", False):
        yield
    else:
        with trained_in_driver():
            yield


@pytest.fixture(scope="package", autouse=True)
def _no_waits() -> Iterator[None]:
    """Rows that raise always are tried again without a wait: the workers are told with their job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
        yield


Run = Callable[..., ff.BackfillResult]


def in_process(config: dict[str, Any], **options: Any) -> ff.BackfillResult:
    """``run_backfill`` without Ray; options: of it."""
    return _run(load_config(config), InProcessEngine(), **options)


@pytest.fixture(scope="session", params=["in_process", "ray"])
def run(request: pytest.FixtureRequest) -> Run:
    """``run_backfill`` on either engine: what it leaves must be the same."""
    if request.param == "in_process":
        return in_process
    request.getfixturevalue("ray_session")
    return ff.run_backfill


# For tests of which one engine shows it all: with Ray they are slow tests.
mostly_in_process = pytest.mark.parametrize(
    "run", ["in_process", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)


@dataclass(frozen=True)
class Workshop:
    """A gallery of 600 items with queries, and how to run on it. ``control`` steers the stub embedder."""

    folder: Path
    ids: np.ndarray
    x: np.ndarray
    classes: np.ndarray
    asked: np.ndarray

    def config(self, output: Path, **sections: Any) -> dict[str, Any]:
        return synthetic.config(self.folder, output=str(output), **synthetic.with_queries(self.folder), **sections)

    def control(self, **values: Any) -> None:
        (self.folder / "control.json").write_text(json.dumps(values))

    def journal(self, folder: Path) -> list[str]:
        """Markers of all embedded items, in no order."""
        return [line for file in folder.iterdir() for line in file.read_text().split()]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    ids, x, classes = synthetic.write_gallery(folder / "gallery", unusable=UNUSABLE)
    asked = synthetic.write_queries(folder / "queries", ids, x, classes)
    return Workshop(folder, ids, x, classes, asked)


@pytest.fixture(scope="session")
def planned(workshop: Workshop, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root with a PLAN and no version."""
    root = tmp_path_factory.mktemp("planned") / "root"
    with trained_in_driver():
        result = run(workshop.config(root), until="plan")
    assert result.state.plan is not None
    assert not result.state.versions
    return root


@pytest.fixture
def root(planned: Path, workshop: Workshop, tmp_path: Path) -> Callable[[], Path]:
    """Fresh copies of the planned root; the embedder behaves well at first and after the test."""
    workshop.control()

    def copy() -> Path:
        target = tmp_path / f"root-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(planned, target)
        return target

    yield copy
    workshop.control()
