"""The waves of a plan as one streaming execution: the pool goes on with wave k + 1 while version k is built."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.errors import EmbedderError, QuarantineExceeded
from fastfill_ray.log.records import Plan, Version
from fastfill_ray.log.stop import embed_seconds_per_row
from fastfill_ray.stages.blocks import BlockLimits, in_blocks
from fastfill_ray.stages.busy import Busy
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Job, Unit, loads, pool_work
from fastfill_ray.stages.progress import Bar, WavesWork
from fastfill_ray.stages.quarantine import UnitGroup
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_folder, wave_folder
from fastfill_ray.storage.receipts import Receipts, find_receipts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """Where a plan stands before its next waves. items: of the gallery; new: those that have new vectors. waves: of the
    plan. item_s: seconds of one actor per item, as measured before; None where nothing was.
    """

    items: int
    new: int
    waves: int
    item_s: float | None


class Waves:
    """Embeds what has no receipt yet, in wave order. ``close`` it in any case: that stops the pool.

    Args:
        groups: {wave: its units}, in wave order.
        standing: for the line that says how far it is.
        may_stop: whether a rule can stop the run in the middle of a wave that would go on to the end otherwise.
    """

    def __init__(
        self,
        context: Context,
        job: Job,
        groups: Mapping[int, UnitGroup],
        resources: ResourcesConfig,
        standing: Standing,
        *,
        may_stop: bool,
    ) -> None:
        self._groups, self._progress, self._standing = groups, context.progress, standing
        self._handed_over: dict[int, Receipts] = {}
        missing = [unit for group in groups.values() for unit in group.missing]
        logger.debug("waves %s: %d units have no receipt yet", sorted(groups), len(missing))
        self._may_stop, self._busy = may_stop, Busy(resources.price_per_actor_hour)
        # A pool that has nothing to do would load its models all the same.
        blocks = in_blocks(missing, BlockLimits.of(resources, standing.item_s))
        self._pool = context.engine.run_pool(pool_work(job), blocks, resources) if missing else None
        self._at_the_end = ExitStack()
        self._bar = self._shown(job, missing, context.engine.num_actors(resources)) if missing else None

    def _shown(self, job: Job, missing: Sequence[Unit], actors: int) -> Bar:
        """The line of all waves, from here to ``close``."""
        standing = self._standing
        actors = min(actors, len(missing))
        work = WavesWork(
            name="waves",
            total=sum(unit.rows for unit in missing),
            unit="items",
            waits_for=loads(job, missing, actors),
            before_s=None if standing.item_s is None else standing.item_s / actors,
            items=standing.items,
            new=standing.new,
        )
        return self._at_the_end.enter_context(self._progress.shown(work))

    def receipts(self, wave: int) -> Receipts:
        """The receipts {unit: receipt} of a wave, as soon as its last one is durable; ask in wave order.

        Raises:
            QuarantineExceeded, EmbedderError: of this wave or one that is embedded ahead; its receipts with bad rows
                are withdrawn.
        """
        if wave in self._handed_over:
            return self._handed_over[wave]
        group = self._groups[wave]
        if self._bar is not None:
            self._bar.rename(f"wave {wave} of {self._standing.waves}")
        try:
            with self._progress.counted_seconds(f"wave {wave}"):
                while len(group.receipts) < len(group.units):
                    received = None if self._pool is None else next(self._pool, None)
                    if received is None:
                        raise EmbedderError(f"wave {wave}: the pool ended before all its receipts came; run again")
                    unit, receipt = received
                    self._groups[unit.wave].add(unit, receipt)
                    self._busy.add(receipt)
                    if self._bar is not None:
                        self._bar.advance(unit.rows)
        except (EmbedderError, QuarantineExceeded):
            for other in self._groups.keys() - self._handed_over.keys():
                self._groups[other].withdraw()
            raise
        self._handed_over[wave] = group.receipts.copy()
        return self._handed_over[wave]

    def receipts_until(self, wave: int) -> dict[int, Receipts]:
        """{wave: its receipts} up to and with `wave`, as ``receipts`` gives them."""
        return {each: self.receipts(each) for each in sorted(self._groups) if each <= wave}

    def drain(self, *, always: bool = False) -> None:
        """Begin nothing more, and wait for the units that have begun: they count when the run goes on.

        Those with bad rows leave no receipt and are tried again then.

        Args:
            always: also where no rule can stop the run.
        """
        if (always or self._may_stop) and self._pool is not None:
            logger.debug("the pool begins nothing more")
            self._pool.stop()
            for _ in self._pool:
                pass

    def close(self) -> None:
        """Stop the pool; units in flight then may or may not leave receipts."""
        self._at_the_end.close()
        if text := str(self._busy):
            self._progress.say(text)
        if self._pool is not None:
            self._pool.close()


def overrun_rows(files: Files, plan: Plan, wave: int) -> int:
    """Rows of later waves than `wave` that are embedded already: they count when the run goes on."""
    later = range(wave + 1, len(plan.waves) + 1)
    found = (find_receipts(files, wave_folder(plan.plan, number)) for number in later)
    return sum(receipt.rows for receipts in found for receipt in receipts.values())


def standing_of(files: Files, plan: Plan, versions: Sequence[Version], groups: Mapping[int, UnitGroup]) -> Standing:
    """Where a plan with these versions stands.

    Args:
        groups: {wave: its units}; of those after the newest version, what has a receipt is new.
    """
    # Before its first version, a plan that follows the gallery has what it took over.
    newest, new = (versions[-1].wave, versions[-1].new_rows) if versions else (0, sum(plan.wave_rows[:1]))
    ahead = sum(group.done_rows for wave, group in groups.items() if wave > newest)
    ahead += sum(plan.known_rows[newest + 1 :])
    return Standing(plan.rows, new + ahead, len(plan.waves), item_seconds(files, plan, versions))


def item_seconds(files: Files, plan: Plan, versions: Sequence[Version]) -> float | None:
    """Seconds of one actor per item as measured so far, without the loading of models: in the waves, before the first
    one at the pairs. None where nothing was embedded.
    """
    if item_s := embed_seconds_per_row(plan, versions):
        return item_s
    receipts = find_receipts(files, stage_folder("pairs", plan.pairs)).values()
    rows = sum(receipt.rows for receipt in receipts)
    return sum(receipt.seconds for receipt in receipts) / rows if rows else None
