"""Errors while the pool is at work: their message and exit code reach the user, whatever Ray's threads do then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastfill_ray.storage.commit_log import Log, read_state
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.paths import wave_folder
from tests.integration.cluster import REPOSITORY
from tests.integration.conftest import Workshop
from tests.integration.test_signals import Command, command
from tests.synthetic import marker

__all__ = ["command"]

CODES = {"Fenced": 75, "InputChanged": 1, "QuarantineExceeded": 1, "StorageError": 1}


@contextmanager
def fault(name: str, job: Command) -> Iterator[None]:
    """What makes the running command raise the error `name`."""
    files, workshop = open_files(str(job.root)), job.workshop
    file = sorted((workshop.folder / "gallery").iterdir())[-1]
    changed = file.stat().st_mtime_ns
    if name == "Fenced":
        log = Log(files)
        log.claim()
    elif name == "InputChanged":
        os.utime(file)
    elif name == "QuarantineExceeded":
        workshop.control(bad={marker(value): "raise" for value in workshop.x[:, 0]})
    else:
        plan = read_state(files).plan
        assert plan is not None
        (job.root / wave_folder(plan.plan, 3)).write_text("a file where a folder should be")
    try:
        yield
    finally:
        os.utime(file, ns=(changed, changed))


def _raise_while_busy(name: str, job: Command) -> None:
    embedded = job.when_embedded(2)
    process, _ = job.start()
    try:
        while not embedded():
            assert process.poll() is None, job.said
        with fault(name, job):
            code = process.wait(timeout=120)
    finally:
        process.kill()
    assert (code, job.said[-1].partition(":")[0]) == (CODES[name], name), job.said


@pytest.mark.slow
@pytest.mark.parametrize("run", ["in_process"], indirect=True)
@pytest.mark.parametrize("name", list(CODES))
@pytest.mark.parametrize("attempt", range(13))  # 52 in all
def test_an_error_reaches_the_user_while_the_pool_is_busy(
    planned: Path, command: Callable[..., Command], name: str, attempt: int
) -> None:
    _raise_while_busy(name, command(name, planned))


LIBRARY = """
import signal, sys
import ray
import fastfill_ray as ff
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
for _ in range(3):
    try:
        ff.run_backfill(sys.argv[1])
    except ff.errors.QuarantineExceeded as error:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert not ray.is_initialized()
        print(type(error).__name__)
ray.init(address="local", num_cpus=1)  # a Ray of the caller's own
print(ray.get(ray.put("usable")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("run", ["in_process"], indirect=True)
def test_a_library_call_raises_and_leaves_the_callers_process_as_it_was(
    planned: Path, command: Callable[..., Command], workshop: Workshop
) -> None:
    job = command("library", planned)
    workshop.control(bad={marker(value): "raise" for value in workshop.x[:, 0]})
    ended = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(job.config)],
        env={**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    told = [line for line in ended.stdout.splitlines() if line in ("QuarantineExceeded", "usable")]  # Ray prints, too
    assert told == ["QuarantineExceeded"] * 3 + ["usable"], ended.stdout + ended.stderr
    assert ended.returncode == 0
