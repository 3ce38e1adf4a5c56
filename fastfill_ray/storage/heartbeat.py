"""Who is at work on a root. Advisory: it keeps a second start from taking a running driver's place; the log decides.

Each driver rewrites an object of its own under ``drivers/`` while it lives, and deletes it at the end. What a killed
one leaves is told from a living one without comparing clocks: on the same machine by its process, elsewhere by watching
whether it is written again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from fastfill_ray import process
from fastfill_ray.errors import DriverAtWork, FileMissing, StorageError
from fastfill_ray.sanitize import printable
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import DRIVERS, driver_path
from fastfill_ray.types import Model
from fastfill_ray.wording import duration

logger = logging.getLogger(__name__)

BEAT_S = 15.0
# A driver that has not written for so long is taken for dead.
SILENT_S = 60.0
# Older ones are dead without being watched, whatever two machines' clocks differ by.
_LONG_AGO_S = 600.0
_LOOKS_PER_BEAT = 6
_FAREWELL_S = 5.0  # what an end waits for a store that may not answer

_living: set[str] = set()  # drivers of this process


class Beat(Model):
    """A sign of life.

    process: names one process on one machine for good, "" where the system cannot say. at, since: seconds since 1970
    of this beat and of the start. doing: what it did at this beat, for people.
    """

    driver: str
    host: str
    pid: int
    process: str
    since: float
    at: float
    beats: int
    doing: str = ""


class Heartbeat:
    """A driver's signs of life, from entering to leaving.

    Args:
        take_over: start although another driver is alive; the claim then fences it.
        doing: says what this one does; asked at every beat.
        sleep: waits so many seconds while another driver is watched; raises to give up.

    Raises:
        DriverAtWork: on entering; nothing of the other driver was touched.
    """

    def __init__(
        self,
        files: Files,
        *,
        take_over: bool = False,
        doing: Callable[[], str] = str,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        now = time.time()
        self._files, self.take_over, self._doing, self._sleep = files, take_over, doing, sleep
        self._beat = Beat(
            driver=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=process_name(os.getpid()),
            since=now,
            at=now,
            beats=0,
        )
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        if not self.take_over:
            self._refuse(find_drivers(self._files))
        _living.add(self._beat.driver)
        try:
            self._write()
            if not self.take_over:
                # Two that start at once both see the other here: the later one goes.
                mine = self._beat.since, self._beat.driver
                self._refuse([beat for beat in find_drivers(self._files) if (beat.since, beat.driver) < mine])
        except BaseException:
            self.__exit__()
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, args=(self._ended,), name="heartbeat", daemon=True)
        self._thread.start()
        process.begin(self)
        return self

    def __exit__(self, *_: object) -> None:
        _living.discard(self._beat.driver)
        if self._thread is None:
            self._leave()
        else:
            process.end(self)
            self.drain()
            self._thread = None

    def drain(self) -> None:
        """See ``process.Drainable``: the last that a process does is to say that it goes."""
        self._ended.set()
        if (thread := self._thread) is not None:
            thread.join(_FAREWELL_S)

    def _refuse(self, beats: list[Beat]) -> None:
        for beat in beats:
            if beat.driver != self._beat.driver and is_alive(self._files, beat, self._sleep):
                raise DriverAtWork(
                    f"{self._files.root}: a driver is at work here: {describe(beat)}. Nothing was changed. Let it "
                    "finish, or end it; --take-over takes its place while it runs."
                )
            if beat.driver not in _living:
                self._files.delete(driver_path(beat.driver))

    def _keep_on(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            try:
                self._write()
            except StorageError as error:
                logger.warning("no heartbeat: %s", error)
        self._leave()

    def _leave(self) -> None:
        try:
            self._files.delete(driver_path(self._beat.driver))
        except StorageError as error:  # the run's own outcome counts; the next start finds this driver dead
            logger.warning("the heartbeat stays behind: %s", error)

    def _write(self) -> None:
        changed = {"at": time.time(), "beats": self._beat.beats + 1, "doing": self._doing()}
        self._beat = self._beat.model_copy(update=changed)
        self._files.put_data(driver_path(self._beat.driver), self._beat.model_dump_json().encode())


def find_drivers(files: Files) -> list[Beat]:
    """The last sign of life of every driver, dead or alive, oldest start first."""
    beats = (_read(files, path) for path in files.list(DRIVERS))
    return sorted((beat for beat in beats if beat is not None), key=lambda beat: (beat.since, beat.driver))


def is_alive(files: Files, beat: Beat, sleep: Callable[[float], None]) -> bool:
    """Whether the driver of a beat still works.

    Takes no time if it is of this machine or of long ago; else up to SILENT_S, until it writes again.
    """
    if time.time() - beat.at > _LONG_AGO_S:  # a process may outlive its run, as a notebook does
        return False
    if beat.process and _same_machine(beat.process):
        return _is_here(beat)
    logger.warning("%s: watching for up to %.0f s whether %s is alive", files.root, SILENT_S, describe(beat))
    step = BEAT_S / _LOOKS_PER_BEAT
    for _ in range(round(SILENT_S / step)):
        sleep(step)
        now = _read(files, driver_path(beat.driver))
        if now is None or now.beats != beat.beats:
            return now is not None
    return False


def describe(beat: Beat) -> str:
    """Who and since when, for a message."""
    since, at = (datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds") for seconds in (beat.since, beat.at))
    return f"process {beat.pid} on {printable(beat.host)}, since {since}, last sign of life {at}"


def is_at_work(beat: Beat) -> bool | None:
    """Whether the driver of a beat works, as far as one look tells: None where only watching it would.

    It is of this machine, or silent for longer than a living one ever is; else nobody can know.
    """
    age_s = time.time() - beat.at
    if age_s > _LONG_AGO_S:
        return False
    if beat.process and _same_machine(beat.process):
        return _is_here(beat)
    return True if abs(age_s) < SILENT_S else None


def progress_words(beat: Beat) -> str:
    """One line on a driver: who, how it is, and what it did at its last sign of life."""
    who = f"process {beat.pid} on {printable(beat.host)}"
    age = duration(max(0.0, time.time() - beat.at))
    at_work = is_at_work(beat)
    if at_work is False:
        return f"Not at work any more: {who}, last sign of life {age} ago. The same command goes on."
    doing = f": {printable(beat.doing).rstrip(' .')}" if beat.doing else ""
    sure = "At work" if at_work else "At work, or dead since its last sign of life"
    since = duration(max(0.0, time.time() - beat.since))
    return f"{sure}: {who}, started {since} ago, last sign of life {age} ago{doing}."


def process_name(pid: int) -> str:
    """A living process by machine, boot, container and start, so that a reused pid is another one. "" if it is dead,
    or if the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # What stands after the command's name, which may hold anything: state, ..., start time as the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{boot} {container} {pid} {fields[19]}"


def _is_here(beat: Beat) -> bool:
    """Whether a driver of this machine lives; its process may outlive it, as a notebook does."""
    return beat.driver in _living if beat.pid == os.getpid() else process_name(beat.pid) == beat.process


def _same_machine(process: str) -> bool:
    return process.split()[:2] == process_name(os.getpid()).split()[:2]


def _read(files: Files, path: str) -> Beat | None:
    try:
        return Beat.model_validate_json(files.get(path))
    except (FileMissing, ValidationError):  # gone meanwhile, or of another release: nothing that could be watched
        return None
