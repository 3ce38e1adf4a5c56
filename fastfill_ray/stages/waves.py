"""The waves of a plan as one streaming execution: the pool goes on with wave k + 1 while version k is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastfill_ray.config import BackfillConfig, StopConfig
from fastfill_ray.errors import EmbedderError, QuarantineExceeded
from fastfill_ray.log.records import Plan
from fastfill_ray.stages.embed import Unit, embed, keep_receipt
from fastfill_ray.stages.intake import Intake
from fastfill_ray.stages.prepare import Prepared, Quarantine, known_receipts, make_job, withdraw
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import wave_folder
from fastfill_ray.storage.receipts import Receipt, find_receipts


class Waves:
    """Embeds what has no receipt yet, in wave order. ``close`` it in any case: that stops the pool.

    Args:
        units: {wave: its units}, consecutive waves.
    """

    def __init__(
        self,
        config: BackfillConfig,
        files: Files,
        ready: Prepared,
        plan: Plan,
        units: Mapping[int, Sequence[Unit]],
        progress: Progress,
    ) -> None:
        self._files, self._plan, self._units, self._progress = files, plan.plan, units, progress
        self._rows = {wave: sum(unit.rows for unit in mine) for wave, mine in units.items()}
        limits = {wave: config.quarantine.limit(rows) for wave, rows in self._rows.items()}
        self._receipts = {
            wave: known_receipts(files, wave_folder(plan.plan, wave), mine, limits[wave])
            for wave, mine in units.items()
        }
        self._quarantines = {
            wave: Quarantine(f"wave {wave}", self._rows[wave], limits[wave], self._receipts[wave].values())
            for wave in units
        }
        self._handed_over: set[int] = set()
        missing = [unit for wave, mine in units.items() for unit in mine if unit.unit not in self._receipts[wave]]
        job = make_job(config, files, ready.snapshot, plan.thresholds)
        # Only a rule can stop a run in the middle of a wave that goes on to the end otherwise.
        self._intake = Intake() if config.stop != StopConfig() else None
        self._stream = embed(job, missing, config.resources, self._intake)

    def receipts(self, wave: int) -> dict[int, Receipt]:
        """The receipts {chunk: receipt} of a wave, as soon as its last one is durable; ask in wave order.

        Raises:
            QuarantineExceeded: of this wave or one that is embedded ahead; the receipts with bad rows are withdrawn.
        """
        units, receipts = self._units[wave], self._receipts[wave]
        done = sum(unit.rows for unit in units if unit.unit in receipts)
        try:
            with self._progress.stage(f"wave {wave}", self._rows[wave], "items", done=done) as bar:
                while len(receipts) < len(units):
                    received = next(self._stream, None)
                    if received is None:
                        raise EmbedderError(f"wave {wave}: the pool ended before all its receipts came; run again")
                    unit, receipt = received
                    self._receipts[unit.wave][unit.unit] = receipt
                    if unit.wave == wave:
                        bar.advance(unit.rows)
                    if receipt.quarantined:
                        self._quarantines[unit.wave].add(receipt)
                        keep_receipt(self._files, unit, receipt)
        except QuarantineExceeded:
            for other in self._units.keys() - self._handed_over:
                withdraw(self._files, wave_folder(self._plan, other))
            raise
        self._handed_over.add(wave)
        return {int(name[1:]): receipt for name, receipt in receipts.items()}

    def drain(self) -> None:
        """Begin nothing more, and wait for the units that have begun: they count when the run goes on.

        Those with bad rows leave no receipt and are tried again then.
        """
        if self._intake is not None:
            self._intake.close()
            for _ in self._stream:
                pass

    def close(self) -> None:
        """Stop the pool; units in flight then may or may not leave receipts."""
        self._stream.close()


def overrun_rows(files: Files, plan: Plan, wave: int) -> int:
    """Rows of later waves than `wave` that are embedded already: they count when the run goes on."""
    later = range(wave + 1, len(plan.waves) + 1)
    found = (find_receipts(files, wave_folder(plan.plan, number)) for number in later)
    return sum(receipt.rows for receipts in found for receipt in receipts.values())
