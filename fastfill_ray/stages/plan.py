"""From scores to PLAN: the order cut into waves, the work list, the templates, the arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastfill_ray.log.records import Plan
from fastfill_ray.ordering.partition import cut_buckets
from fastfill_ray.ordering.waves import wave_of, wave_targets
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import put_templates
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.evaluator import Evaluator
from fastfill_ray.stages.score import ScoredChunk, read_chunk_keys, scored_groups, thresholds
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import ChunkWork, RowWork, WorkList, count_rows, put_rows, put_work_list
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import wave_folder
from fastfill_ray.types import fingerprint


@dataclass(frozen=True)
class Request:
    """What a plan is asked for.

    fingerprint: of everything. settings: the config's part that a plan is bound to. inputs: fingerprint of the pins of
    queries, qrels and classifier.
    """

    fingerprint: str
    settings: dict[str, Any]
    inputs: str


def plan_name(basis: Basis, request: Request, number: int) -> str:
    """The plan's number goes into its name: a request that comes back after another one is a plan of its own."""
    fusion, mode = None, "aligned"
    if basis.fusion is not None:
        fusion, mode = basis.fusion.model_dump(mode="json"), "fused"
    return fingerprint([basis.scores.fingerprint, request.fingerprint, number, mode, fusion, basis.decision.form])


def make_plan(context: Context, basis: Basis, request: Request, number: int) -> Plan:
    """Cut the order into waves, train the templates, measure the arms.

    Args:
        number: of the plan under this root, from 0.

    Raises:
        ConfigError: the first wave ends below the pairs' share, or no query has a relevant item.
    """
    decision, index = basis.decision, basis.index
    name = plan_name(basis, request, number)
    with context.progress.timed("plan"):
        targets = wave_targets(basis.waves, basis.snapshot.rows, basis.num_sampled)
        groups = scored_groups(basis.snapshot, basis.scores, basis.pair_offsets)
        cuts = thresholds(context, groups, targets)
        work = make_work_list(context, basis, name, cuts)
        units = put_work_list(context.files, name, work)
        templates = put_templates(context.files, basis, name)
    with context.progress.timed("arms"):
        arms, per_query = Evaluator(context, basis, cuts).arms(name)
    return Plan(
        plan=name,
        request=request.fingerprint,
        settings=request.settings,
        snapshot=basis.snapshot.fingerprint,
        pairs=basis.pairs.fingerprint,
        alignment=basis.scorer.trained.fingerprint,
        scores=basis.scores.fingerprint,
        method=decision.method,
        policy=decision.policy,
        stale_mode="aligned" if basis.fusion is None else "fused",
        fusion=basis.fusion,
        waves=basis.waves,
        thresholds=tuple(cuts),
        wave_rows=work.wave_rows,
        rows=basis.snapshot.rows,
        ids_digest=basis.scores.ids_digest,
        unusable_rows=basis.scores.unusable,
        factory=index.factory,
        stale_factory=index.stale_factory or index.factory,
        segment_rows=index.segment_rows,
        units=units,
        templates=templates,
        objective=f"{basis.objective.relevance}/{basis.objective.metric}",
        baselines=arms,
        baseline_queries=per_query,
        sources=basis.sources,
        choices=decision.reasons,
        version_waves=tuple(range(len(basis.waves) + 1)),
        inputs=request.inputs,
        form=decision.form,
        fitted_by=decision.chosen_by,
        prediction=decision.prediction,
        choice=decision.choice,
    )


def make_work_list(context: Context, basis: Basis, plan: str, cuts: Sequence[int]) -> WorkList:
    """Every row put into its wave, and the work files of all chunks."""
    groups = scored_groups(basis.snapshot, basis.scores, basis.pair_offsets)
    place = partial(_place, files=context.files, plan=plan, cuts=tuple(cuts))
    parts = context.engine.run_tasks(place, groups, name="put rows into waves", ordered=True)
    chunks = [chunk for _, part in parts for chunk in part]
    buckets = cut_buckets(basis.snapshot.chunks, segment_rows=basis.index.segment_rows)
    numbers = [number for number, bucket in enumerate(buckets) for _ in bucket]
    return WorkList(
        tuple(chunk.model_copy(update={"bucket": number}) for chunk, number in zip(chunks, numbers, strict=True))
    )


def _place(group: Sequence[ScoredChunk], *, files: Files, plan: str, cuts: tuple[int, ...]) -> list[ChunkWork]:
    placed = []
    for chunk in group:
        scored = read_chunk_keys(files, chunk)
        rows = RowWork.of_due(wave_of(scored.keys, scored.is_first, cuts), scored.usable)
        placed.append((count_rows(chunk.unit, 0, rows, scored.item_keys, len(cuts) + 2), rows))
    return put_rows(files, plan, placed)


def wave_units(plan: Plan, snapshot: Snapshot, work: WorkList) -> dict[int, list[Unit]]:
    """{wave: its units in chunk order} of the plan's work list, the pairs' left out."""
    files = snapshot.gallery.files
    return {
        wave: [
            Unit(
                unit=chunk.unit,
                folder=wave_folder(plan.plan, wave),
                file=files[chunk.file],
                start=chunk.start,
                length=chunk.rows,
                rows=listed.due[wave],
                role="item",
                model="new",
                wave=wave,
                work=listed.file,
            )
            for chunk, listed in zip(snapshot.chunks, work.chunks, strict=True)
            if listed.due[wave]
        ]
        for wave in range(1, len(plan.waves) + 1)
    }
