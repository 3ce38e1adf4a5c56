"""From a wave's receipts to a VERSION: segments built, measured and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from dataclasses import dataclass

from fastfill_ray.log.records import Plan, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import NO_IDS, combine_digests, subtract_digests
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import gallery_buckets, make_build_job
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.evaluator import Evaluator, Served
from fastfill_ray.stages.segments import Assembler, check_complete
from fastfill_ray.stages.work import WorkList
from fastfill_ray.storage.receipts import Receipt


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
        buckets = gallery_buckets(basis.snapshot, self.work)
        self._assembler = Assembler(self.context, job, buckets, self.suspects)
        self._evaluator = Evaluator(self.context, basis, plan.thresholds)

    def make(self, state: State, wave: int, receipts: Mapping[int, Mapping[str, Receipt]]) -> Version:
        """The VERSION after `wave`; its segments are durable, its verdict is reached, nothing is published yet.

        Args:
            receipts: {wave: {unit: receipt}} of wave 0 (the pairs), of this one, and of others as far as known.
        """
        start = time.monotonic()
        plan, evaluator = self.plan, self._evaluator
        before = state.plan_versions[-1] if state.plan_versions else None
        serving = _served(state)
        if before is None:
            assembly = self._assembler.first(receipts[0])
        else:
            assembly = self._assembler.after(wave, state.plan_versions, receipts)
        absent = plan.unusable_rows if before is None else max(plan.unusable_rows, before.absent)
        check_complete(plan, assembly.segments, absent + assembly.lost_rows)
        with self.context.progress.timed("evaluate"):
            calibration = evaluator.fit(wave, plan)
            segments = evaluator.calibrated(assembly.segments, calibration)
            values = evaluator.measure(segments, wave, calibration)
            per_query = evaluator.keep(values, plan.plan, f"wave-{wave:02d}.parquet")
        new_rows = sum(segment.plan_rows for segment in segments if segment.state == "new")
        rows = sum(segment.plan_rows for segment in segments)
        digest = combine_digests(segment.plan_ids_digest for segment in segments)
        worked = sum(receipt.seconds for receipt in receipts[wave].values())
        return Version(
            version=len(state.versions),
            plan=plan.plan,
            wave=wave,
            segments=tuple(segments),
            rows=rows,
            new_rows=new_rows,
            quarantined=sum(plan.wave_rows[: wave + 1]) - new_rows,
            absent=plan.rows - rows,
            absent_digest=NO_IDS if rows == plan.rows else subtract_digests(plan.ids_digest, digest),
            deleted=sum(segment.deletion.deleted_rows for segment in segments if segment.deletion is not None),
            fraction=new_rows / plan.rows,
            ids_digest=digest,
            metrics=evaluator.means(values),
            query_metrics=per_query,
            verdict=evaluator.judge(plan, serving, values, self.max_regression),
            seconds=worked + time.monotonic() - start,
            final=wave == len(plan.waves),
            embed_seconds=worked,
            flips=evaluator.flips(plan, before, values),
        )


def _served(state: State) -> Served | None:
    """What is published now, None before the first version is."""
    version = None if state.serving is None else state.version(state.serving)
    if version is None:
        return None
    return Served(version, next(plan for plan in state.plans if plan.plan == version.plan))
