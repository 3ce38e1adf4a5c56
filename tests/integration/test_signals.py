"""Ctrl-C, SIGTERM and SIGKILL at any moment of a command: how it ends, what it leaves, and that it goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
import yaml

from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests.integration.cluster import REPOSITORY
from tests.integration.conftest import Workshop, in_process
from tests.integration.test_kill import _markers, receipts
from tests.test_process import hears_ctrl_c

WITHIN_S = 30  # what Kubernetes gives
ORPHANS_GO_S = 10
MARK = "FASTFILL_TEST_MARK"


def processes_of(mark: str) -> list[str]:
    """What runs with `mark` in its environment, which a command's processes inherit."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes() and state != "Z":
                found.append(f"{process.name} {(process / 'cmdline').read_bytes()[:80]!r}")
        except OSError:  # no process, or it has just ended
            continue
    return found


def listens(pid: int) -> bool:
    """Whether the process has set a handler for SIGTERM: before, Python itself is still starting."""
    [caught] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@dataclass
class Command:
    """`jobs/backfill.py` on one root, started again and again. ray: where, "local" for a Ray of its own."""

    workshop: Workshop
    root: Path
    config: Path
    journal: Path
    ray: str = "local"
    durable: set[Path] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)

    def start(self) -> tuple[subprocess.Popen[str], str]:
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "jobs/backfill.py", "--config", str(self.config)],
            cwd=REPOSITORY,
            env={**os.environ, "RAY_ADDRESS": self.ray, "PYTHONPATH": str(REPOSITORY), MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=(self.root.parent / "stderr.txt").open("w"),
            start_new_session=True,
            text=True,
            preexec_fn=hears_ctrl_c,
        )
        while process.poll() is None and not listens(process.pid):
            time.sleep(0.005)
        return process, mark

    @property
    def said(self) -> list[str]:
        return (self.root.parent / "stderr.txt").read_text().splitlines()

    def interrupt(self, number: signal.Signals, moment: Callable[[], bool]) -> bool:
        """Start it and send a signal at `moment`. False: it was done before."""
        vouched = _markers(receipts(self.root), self.workshop)
        before = Counter(self.workshop.journal(self.journal))
        process, mark = self.start()
        try:
            while not moment() and process.poll() is None:
                time.sleep(0.01)
            done = process.poll() is not None
            if not done:
                # A terminal sends Ctrl-C to the whole group; others mean the process.
                (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            code = process.wait(timeout=WITHIN_S)
        finally:
            process.kill()
        if done or code == 0:  # or the signal came when all was done, and the process about to end
            assert code == 0, self.said
            assert read_state(open_files(str(self.root))).finished
            done = True
        elif number != signal.SIGKILL:
            assert code == 128 + number, (code, self.said)
            assert [line for line in self.said if "Interrupted" in line] == self.said[-1:], self.said
            assert self.said[-1].startswith(f"Interrupted by {number.name}")
            assert "the same command goes on" in self.said[-1]
            assert not any("***" in line or "Traceback" in line for line in self.said), self.said
        deadline = time.monotonic() + ORPHANS_GO_S
        while number != signal.SIGKILL and (left := processes_of(mark)):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        again = {item for item, n in Counter(self.workshop.journal(self.journal)).items() if n > before[item]}
        assert not again & vouched, "what has a receipt was embedded again"
        assert receipts(self.root) >= self.durable
        self.durable = receipts(self.root)
        return not done

    def after(self, seconds: float) -> Callable[[], bool]:
        start = time.monotonic()
        return lambda: time.monotonic() - start >= seconds

    def when_embedded(self, more: int) -> Callable[[], bool]:
        """Once that many more receipts are there."""
        wanted = len(receipts(self.root)) + more
        return lambda: len(receipts(self.root)) >= wanted


@pytest.fixture
def command(workshop: Workshop, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    def make(name: str, planned: Path | None = None, **sections: object) -> Command:
        folder = tmp_path / name
        (folder / "journal").mkdir(parents=True)
        if planned is not None:
            shutil.copytree(planned, folder / "root")
        workshop.control(journal=str(folder / "journal"), sleep_s=0.2)
        (folder / "config.yaml").write_text(yaml.safe_dump(workshop.config(folder / "root", **sections)))
        return Command(workshop, folder / "root", folder / "config.yaml", folder / "journal")

    yield make
    workshop.control()


# Seconds after its start: while it imports, between imports and Ray, while Ray starts. None: once it has embedded.
@pytest.mark.parametrize("run", ["in_process"], indirect=True)  # what is planned, the commands go on with
@pytest.mark.parametrize(
    "moments",
    [
        {signal.SIGINT: [None], signal.SIGTERM: [0]},
        pytest.param({each: [0, 0.5, 2, None] for each in (signal.SIGINT, signal.SIGTERM)}, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_command_with_one_line_its_code_and_no_process_left(
    planned: Path,
    command: Callable[..., Command],
    workshop: Workshop,
    ray_session: None,
    moments: dict[signal.Signals, list[float | None]],
) -> None:
    job = command("cheap", planned)
    in_process(workshop.config(job.root), until="version0")  # the commands begin with what takes longest: to embed
    for number, seconds in moments.items():
        for each in seconds:
            assert job.interrupt(number, job.when_embedded(2) if each is None else job.after(each))
            if each is None:
                assert "of 4 versions; " in job.said[-1]
    job.ray = ray.get_runtime_context().gcs_address  # nobody looks at what is left: it needs no Ray of its own
    assert job.interrupt(signal.SIGKILL, job.when_embedded(2))
    workshop.control()
    assert in_process(workshop.config(job.root)).finished


def _chain(command: Callable[..., Command], number: signal.Signals, seed: int) -> None:
    """Twenty of `number` over whole runs that train: each root is interrupted until a start of it finishes."""
    moments, sent, roots = random.Random(seed), 0, 0
    while sent < 20:
        job, before = command(f"{number.name}-{roots}", alignment={"method": "fct"}), sent
        roots += 1
        while sent - before < 5 and sent < 20 and job.interrupt(number, job.after(moments.uniform(0, 45))):
            sent += 1
        job.interrupt(number, lambda: False)  # the same command, left alone, finishes: it exits with 0
        assert read_state(open_files(str(job.root))).finished


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_twenty_signals_at_random_moments_of_whole_runs(
    command: Callable[..., Command], number: signal.Signals
) -> None:
    seed = random.randrange(1000)
    print(f"seed {seed}")  # pytest shows it if the test fails
    _chain(command, number, seed)
