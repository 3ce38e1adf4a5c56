"""From a wave's receipts to a VERSION: segments built, measured and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

from fastfill_ray.index.deletion_vector import fresh_path
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.index.segment_list import listed, read_segments
from fastfill_ray.log.records import Changes, Plan, Segment, Verdict, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import combine_digests, ids_digest, subtract_digests
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import gallery_buckets, make_build_job
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.evaluator import Evaluator, Served
from fastfill_ray.stages.hide import hide_deleted
from fastfill_ray.stages.measure import PerQuery
from fastfill_ray.stages.segments import Assembler, check_complete
from fastfill_ray.stages.work import WorkList, read_rows
from fastfill_ray.storage.receipts import Quarantined, Receipt


@dataclass
class VersionMaker:
    """Makes the versions of one plan, in wave order.

    Args:
        work: the plan's work list.
        epoch: the driver's claim; it goes into the names of segments.
        max_regression: of the objective, that the gate lets pass.
        suspects: paths of segments that were found damaged.
    """

    context: Context
    basis: Basis
    plan: Plan
    work: WorkList
    epoch: int
    max_regression: float
    suspects: Set[str] = frozenset()

    def __post_init__(self) -> None:
        basis, plan = self.basis, self.plan
        job = make_build_job(basis.scorer, plan, self.epoch)
        self._buckets = gallery_buckets(basis.snapshot, self.work)
        self._assembler = Assembler(self.context, job, self._buckets, self.suspects)
        self._path_of = partial(fresh_path, plan.plan, self.epoch)
        self._evaluator = Evaluator(self.context, basis, plan.thresholds, plan.first_share, plan.carried_share)

    def make(self, state: State, wave: int, receipts: Mapping[int, Mapping[str, Receipt]]) -> Version:
        """The VERSION after `wave`; its segments are durable, its verdict is reached, nothing is published yet.

        Args:
            receipts: {wave: {unit: receipt}} of wave 0 (the pairs), of this one, and of others as far as known.
        """
        start = time.monotonic()
        plan, evaluator, made = self.plan, self._evaluator, len(state.plan_versions)
        before = state.plan_versions[-1] if made else None
        embedded = receipts.get(wave, {}) if plan.newest_wave(made) == wave else {}
        if before is None:
            built = self._assembler.first(plan, self._inherited(), receipts)
        else:
            built = self._assembler.after(wave, state.plan_versions, receipts)
        absent_rows, absent_digest = self._absent(before, plan.newest_wave(made), embedded)
        check_complete(plan, built, absent_rows, absent_digest)
        deleted = Deleted.read(self.context.files, state.deletions)
        newest = state.versions[-1] if state.versions else None
        with self.context.progress.timed("evaluate"):
            calibration = evaluator.fit(wave, plan)
            segments = evaluator.calibrated(
                hide_deleted(self.context, deleted, built, self._path_of, newest), calibration
            )
            values = evaluator.measure(segments, wave, calibration)
            per_query = evaluator.keep(values, plan.plan, f"version-{made:02d}.parquet")
        is_change = before is None and plan.follows is not None
        new_rows = sum(segment.plan_rows for segment in segments if segment.state == "new")
        worked = sum(receipt.seconds for receipt in embedded.values())
        return Version(
            version=len(state.versions),
            plan=plan.plan,
            wave=wave,
            **listed(self.context.files, plan.plan, segments),
            rows=plan.rows - absent_rows,
            new_rows=new_rows,
            quarantined=(0 if before is None else before.quarantined) + _count_quarantined(embedded),
            absent=absent_rows,
            absent_digest=absent_digest,
            deletions=deleted.fingerprint,
            deleted=sum(segment.deletion.deleted_rows for segment in segments if segment.deletion is not None),
            fraction=new_rows / plan.rows,
            ids_digest=combine_digests(segment.plan_ids_digest for segment in segments),
            metrics=evaluator.means(values),
            query_metrics=per_query,
            verdict=follows_gallery(plan) if is_change else self._judge(state, segments, values),
            seconds=worked + time.monotonic() - start,
            final=made + 1 == len(plan.version_waves),
            embed_seconds=worked,
            flips=evaluator.flips(plan, before, values),
            cause="change" if is_change else "wave",
            base=plan.base if before is None else before.version,
        )

    def _inherited(self) -> tuple[Segment, ...]:
        reference = self.plan.inherited
        return () if reference is None else read_segments(self.context.files, reference)

    def _judge(self, state: State, segments: Sequence[Segment], values: PerQuery) -> Verdict:
        """The gate. Within a plan the gallery is the same; the first version may be held against another one."""
        verdict = self._evaluator.judge(self.plan, _served(state), segments, values, self.max_regression, self._path_of)
        changes = self.plan.changes
        if state.plan_versions or changes is None or not changes.items:
            return verdict
        return verdict.model_copy(update={"reason": f"{verdict.reason}; {in_words(changes)}"})

    def _absent(self, before: Version | None, newest: int, embedded: Mapping[str, Receipt]) -> tuple[int, str]:
        """Rows that are in no segment, and the digest of their ids.

        They have no stale vector; and their wave is to come, or they could not be embedded in it.

        Args:
            newest: the last wave that is new in this version. embedded: {unit: receipt} of that wave.
        """
        if before is None:
            rows, digest = self.work.absent(range(newest + 1, len(self.plan.waves) + 2))
        else:
            now_rows, now_digest = self.work.absent([newest])
            rows, digest = before.absent - now_rows, subtract_digests(before.absent_digest, now_digest)
        faults = [fault for unit, receipt in embedded.items() for fault in self._without_stale(unit, receipt)]
        return rows + len(faults), combine_digests(
            [digest, ids_digest(fault.id for fault in faults if fault.id is not None)]
        )

    def _without_stale(self, unit: str, receipt: Receipt) -> list[Quarantined]:
        """The quarantined rows of a unit that have no stale vector either."""
        if not receipt.quarantined:
            return []
        place = next(place for bucket in self._buckets.values() for place in bucket if place.chunk.unit == unit)
        is_stale = read_rows(self.context.files, place.work).stale
        return [fault for fault in receipt.quarantined if not is_stale[fault.row - place.chunk.start]]


def _count_quarantined(receipts: Mapping[str, Receipt]) -> int:
    return sum(len(receipt.quarantined) for receipt in receipts.values())


def follows_gallery(plan: Plan) -> Verdict:
    """A change is published whatever it measures: the gallery is not what it was."""
    changes = plan.changes or Changes(added=0, changed=0, removed=0)
    return Verdict(publish=True, reason=f"follows the gallery: {in_words(changes)}")


def in_words(changes: Changes) -> str:
    """How many items differ, and how."""
    how = f"{changes.added:,} added, {changes.changed:,} changed, {changes.removed:,} removed"
    return f"{changes.items:,} items differ ({how})"


def _served(state: State) -> Served | None:
    """What is published now, None before the first version is."""
    version = None if state.serving is None else state.version(state.serving)
    if version is None:
        return None
    return Served(version, state.plan_of(version))
