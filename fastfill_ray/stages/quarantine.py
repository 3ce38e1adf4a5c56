"""Bad rows: a few of them are lived with, too many stop what they are part of before anything of it is committed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from fastfill_ray.config import QuarantineConfig
from fastfill_ray.errors import EmbedderError, QuarantineExceeded
from fastfill_ray.stages.embed import Unit, keep_receipt
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import unit_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, find_receipts

logger = logging.getLogger(__name__)

_SHOWN = 5


class UnitGroup:
    """Units that are committed together: the pairs, the queries of one model, or a wave. All lie in one folder.

    Receipts of earlier runs count, unless they hold more bad rows than are allowed by now: then those are withdrawn
    at once, so that their units are tried again.

    Attributes:
        receipts: {unit: receipt} of what is done.
    """

    def __init__(
        self, files: Files, folder: str, name: str, units: Sequence[Unit], quarantine: QuarantineConfig
    ) -> None:
        self.folder, self.units = folder, tuple(units)
        self.rows = sum(unit.rows for unit in units)
        self._files, self._name, self._limit = files, name, quarantine.limit(self.rows)
        names = {unit.unit for unit in units}
        self.receipts = find_receipts(files, folder, names)
        self._faults = {unit: bad for unit, receipt in self.receipts.items() if (bad := receipt.quarantined)}
        if sum(map(len, self._faults.values())) > self._limit:
            self.withdraw()

    @property
    def missing(self) -> list[Unit]:
        """The units without a receipt, in order."""
        return [unit for unit in self.units if unit.unit not in self.receipts]

    @property
    def done_rows(self) -> int:
        """Rows of the units that have a receipt."""
        return self.rows - sum(unit.rows for unit in self.missing)

    def add(self, unit: Unit, receipt: Receipt) -> None:
        """Take a unit's receipt as it comes from the pool; one with bad rows becomes durable only here.

        Raises:
            QuarantineExceeded: more rows than allowed could not be embedded; names rows and reasons.
            EmbedderError: they are all rows, and all failed alike.
        """
        self.receipts[unit.unit] = receipt
        if not receipt.quarantined:
            return
        self._faults[unit.unit] = receipt.quarantined
        bad = [fault for faults in self._faults.values() for fault in faults]
        if len(bad) > self._limit:
            self._refuse_alike(unit, receipt, bad)
            shown = "; ".join(f"id {fault.id!r} (row {fault.row}): {fault.reason}" for fault in bad[:_SHOWN])
            raise QuarantineExceeded(
                f"{self._name}: {len(bad)} of {self.rows} rows could not be embedded, at most {self._limit} are "
                f"allowed: {shown}. Nothing was committed. Mend the rows or the embedder, or raise "
                "quarantine.max_rows, and run again."
            )
        kept = self.receipts[unit.unit] = keep_receipt(self._files, unit, receipt)
        del self._faults[unit.unit]
        if kept.quarantined:  # those of a twin, which may have had none
            self._faults[unit.unit] = kept.quarantined

    def _refuse_alike(self, unit: Unit, receipt: Receipt, bad: Sequence[Quarantined]) -> None:
        """Raises EmbedderError where no row of all, or of a large unit, could be embedded, all for one reason."""
        faults, of = list(bad), ""
        if any(known.rows for known in self.receipts.values()):
            faults, of = list(receipt.quarantined), f" of {unit.folder}/{unit.unit}"
            if receipt.rows or len(faults) <= self._limit:
                return
        if len({kind_of(fault.reason) for fault in faults}) > 1:
            return
        last = receipt.quarantined[-1]
        raise EmbedderError(
            f"{self._name}: none of the {len(faults)} rows{of} that were tried could be embedded: {faults[0].reason} "
            f"({len(faults)} times, at last id {last.id!r}, row {last.row} of {unit.file.path}). The embedder or the "
            "config is wrong, not single rows. Nothing was committed. Mend the embedder, its kwargs or "
            "payload_columns, and run again."
        )

    def withdraw(self) -> None:
        """Delete the receipts with bad rows: after the mend, the same command tries those units again."""
        for unit, receipt in find_receipts(self._files, self.folder).items():
            if receipt.quarantined:
                logger.info("%s: unit %s is withdrawn, %d bad rows", self._name, unit, len(receipt.quarantined))
                self._files.delete(unit_receipt(self.folder, unit))
        for unit in self._faults:
            del self.receipts[unit]
        self._faults.clear()


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row: numbers, and what is quoted."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+\d.]+", "", reason)
