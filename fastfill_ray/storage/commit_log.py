"""The append-only log: create-if-absent of the next number is the only way to commit, and the epoch is claimed in it.

Numbers are never deleted or reused. A driver whose epoch was overtaken is fenced: it cannot append and must not
delete. DELETE and UNDELETE need no claim and fence nobody: who finds its number taken by one folds it and tries the
next.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from fastfill_ray.errors import CommitStateUnknown, CorruptFile, Fenced, FileMissing, RefusedError, StorageError
from fastfill_ray.log.envelope import seal, unseal
from fastfill_ray.log.records import Body, Claim, Delete, Expire, Init, Plan, Publish, Undelete, Version
from fastfill_ray.log.state import State, apply
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import LOG, parse_record, record_path

logger = logging.getLogger(__name__)


class Log:
    """The log as one driver, or one command that deletes ids, sees it.

    Args:
        files: the output root.
        now: UTC time as ISO 8601; for people who read the records.
        new_txn: a fresh transaction id per record, so that equal bytes mean the same attempt.
    """

    def __init__(
        self,
        files: Files,
        *,
        now: Callable[[], str] = lambda: datetime.now(UTC).isoformat(timespec="milliseconds"),
        new_txn: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.state = State()
        self._files = files
        self._now = now
        self._new_txn = new_txn
        self._last: bytes | None = None
        self._epoch: int | None = None
        self._was_read = False

    def read(self) -> State:
        """Fold the records up to the first absent number; a second call reads only what is new.

        Raises:
            CorruptFile: a record that is damaged, out of chain, or missing while later ones exist.
            RefusedError: a record of a newer release.
        """
        self._was_read = True
        listed = [seq for path in self._files.list(LOG) if (seq := parse_record(path)) is not None]
        # The listing is a hint only, so that the records of years are not read one after the other. One may have been
        # added since: a number that is not there is read again, up to the first that is absent.
        known = range(self.state.next_seq, max(listed, default=-1) + 1)
        for data in read_ahead(self._record, known):
            if data is None:
                break
            self._adopt(data)
        while (data := self._record(self.state.next_seq)) is not None:
            self._adopt(data)
        # A lost record would make the rest of the log vanish without a word.
        head = self.state.next_seq
        if beyond := [seq for seq in listed if seq > head]:
            raise CorruptFile(
                f"{self._files.root}/{record_path(head)} is missing, but record {min(beyond)} exists. "
                "Restore it from a copy of the log."
            )
        return self.state

    def initialise(self, init: Init) -> State:
        """Put record 0, or adopt the one that is there. The caller compares ``state.init`` with its own.

        What drivers have appended since the log was read is not adopted: see ``claim``.

        Raises:
            Fenced: other drivers have put more than record 0 since the log was read empty.
        """
        if not self._was_read:
            self.read()
        if self.state.init is None and not self._put(init, epoch=0):
            self._read_on()
            if self.state.driver_records > 1:
                raise self._overtaken()
        return self.state

    def claim(self, *, as_read: bool = False) -> int:
        """Append CLAIM with the next epoch, again while other drivers take the number. Earlier epochs are fenced now.

        Args:
            as_read: only if nothing but deletions was appended since the log was last read here. A driver that works on
                what it has read must not fence one that took its place meanwhile.

        Returns:
            The epoch that this log may append under.

        Raises:
            RefusedError: the log has no INIT yet.
            Fenced: another driver has appended, with `as_read`.
        """
        known = self.state.driver_records
        self.read()
        while True:
            if as_read and self.state.driver_records != known:
                raise self._overtaken()
            epoch = self.state.epoch + 1
            if self._put(Claim(claimed=epoch), epoch=epoch):
                break
            self._read_on()
        self._epoch = self.state.epoch
        logger.info("%s: epoch %d is claimed", self._files.root, self._epoch)
        return self._epoch

    def append(self, body: Plan | Version | Publish | Expire) -> State:
        """Commit one record under the claimed epoch. Everything that it names must be durable.

        A number that a deletion has taken is left to it: the record becomes the next one.

        Raises:
            Fenced: another driver has claimed a higher epoch. Nothing was written or deleted.
            RefusedError: nothing is claimed yet, or the record does not fit the state.
            CommitStateUnknown: it was not learnt whether the record landed.
        """
        if self._epoch is None:
            raise RefusedError(f"{self._files.root}: {body.kind} cannot be appended before an epoch is claimed.")
        self._check_epoch()
        known = self.state.driver_records
        while not self._put(body, epoch=self._epoch):
            self._read_on()
            self._check_epoch()
            if self.state.driver_records != known:
                raise CommitStateUnknown(
                    f"{self._files.root}: an earlier record of this driver landed after its outcome was reported "
                    "unknown. Nothing was deleted; run the same command again."
                )
        return self.state

    def append_deletion(self, make: Callable[[State], Delete | Undelete]) -> State:
        """Commit a DELETE or UNDELETE, beside a driver that may be at work: nothing is claimed, nobody is fenced.

        It is sealed under the epoch of the head that it follows, anew for each number that is tried. So one whose
        answer is lost, and which lands late, lands right behind the records that it was made for, or nowhere.

        Args:
            make: the record that fits a state of the log: its salt is the state's, if it has one. What the record names
                is durable when this returns. Called once per attempt.

        Raises:
            RefusedError: the log has no INIT yet, or the record does not fit the state.
            CommitStateUnknown: it was not learnt whether the record landed.
        """
        self.read()
        if self.state.init is None:
            raise RefusedError(f"{self._files.root}: there is no log here, so nothing to delete from.")
        while not self._put(make(self.state), epoch=self.state.epoch):
            self._read_on()
        return self.state

    def _overtaken(self) -> Fenced:
        return Fenced(
            f"{self._files.root}: another driver has appended to the log since this one read it. Nothing was deleted. "
            "Let that one finish, or stop it and run this again."
        )

    def _check_epoch(self) -> None:
        if self.state.epoch != self._epoch:
            raise Fenced(
                f"{self._files.root}: this driver owns epoch {self._epoch}, but another one has claimed "
                f"{self.state.epoch}. Nothing was deleted. Let that one finish, or stop it and run this again."
            )

    def _put(self, body: Body, *, epoch: int) -> bool:
        """Try to take the next number. False: other bytes hold it."""
        seq = self.state.next_seq
        data = seal(body, seq=seq, previous=self._last, txn=self._new_txn(), epoch=epoch, created=self._now())
        try:
            # What the fold would refuse must not get into the log, where it would stay for ever.
            after = apply(self.state, unseal(data, seq=seq, previous=self._last, name=record_path(seq)))
        except CorruptFile as error:
            raise RefusedError(f"{self._files.root}: not appended, the log would refuse it: {error}") from error
        if not self._files.put_new(record_path(seq), data):
            return False
        self.state, self._last = after, data
        return True

    def _read_on(self) -> None:
        before = self.state.next_seq
        logger.info("%s: record %d is taken, reading on", self._files.root, before)
        if self.read().next_seq == before:
            raise StorageError(
                f"{self._files.root}/{record_path(before)}: the store says that it exists, but does not return it. "
                "Run the same command again; if it stays, the store does not do what the commit protocol needs."
            )

    def _record(self, seq: int) -> bytes | None:
        try:
            return self._files.get(record_path(seq))
        except FileMissing:
            return None

    def _adopt(self, data: bytes) -> None:
        seq = self.state.next_seq
        record = unseal(data, seq=seq, previous=self._last, name=f"{self._files.root}/{record_path(seq)}")
        self.state, self._last = apply(self.state, record), data


def read_state(files: Files) -> State:
    """What the log says now; writes nothing."""
    return Log(files).read()
