"""From scores to PLAN: the order cut into waves, the work list, the templates, the arms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastfill_ray.log.carry import Kept
from fastfill_ray.log.records import FileRef, Plan
from fastfill_ray.ordering.partition import cut_buckets
from fastfill_ray.ordering.waves import wave_of, wave_targets
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import gallery_buckets, put_templates
from fastfill_ray.stages.carry import Carried, Following
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.evaluator import Evaluator
from fastfill_ray.stages.keys import ScoredChunk, read_keys, scored_groups, thresholds
from fastfill_ray.stages.score import score_more
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.standing import put_standing
from fastfill_ray.stages.work import ChunkWork, RowWork, WorkList, count_rows, put_rows, put_work_list, rows_in
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


def make_plan(
    context: Context, basis: Basis, request: Request, number: int, carried: Carried | None, epoch: int
) -> Plan:
    """Cut the order into waves, train the templates, measure the arms.

    Args:
        number: of the plan under this root, from 0.
        carried: what is new already; None for the first plan.
        epoch: the driver's claim.

    Raises:
        ConfigError: no query has a relevant item.
    """
    index, files, rows = basis.index, context.files, basis.snapshot.rows
    name = plan_name(basis, request, number)
    with context.progress.timed("plan"):
        standing = _standing(context, carried, name)
        groups = scored_groups(basis.snapshot, basis.scores.chunks, basis.pair_offsets, basis.known_pairs, standing)
        targets = wave_targets(basis.waves, rows, basis.begins.first)
        first_share, carried_share = basis.pairs.size / rows, 0.0
        if carried is not None:
            first_share, carried_share = basis.begins.first / rows, basis.begins.carried / rows
        cuts = thresholds(context, groups, targets)
        work = make_work_list(context, basis, name, cuts, groups)
        templates = put_templates(files, basis, name)
        inherited = None if carried is None else carried.inherit(context, name, epoch, catch_up=None)
    with context.progress.timed("arms"):
        evaluator = Evaluator(context, basis, cuts, first_share, carried_share)
        arms, per_query = evaluator.arms(name, gallery_buckets(basis.snapshot, work))
    # A wave that ends below what is new already has no rows.
    versions = [wave for wave, (before, end) in enumerate(itertools.pairwise([0, *targets]), start=1) if end > before]
    return Plan(
        **_of_basis(basis, request, name, work),
        waves=basis.waves,
        thresholds=tuple(cuts),
        version_waves=(0, *versions),
        first_share=first_share,
        carried_share=carried_share,
        ids_digest=basis.scores.ids_digest,
        factory=index.factory,
        stale_factory=index.stale_factory or index.factory,
        segment_rows=index.segment_rows,
        units=put_work_list(files, name, work),
        templates=templates,
        baselines=arms,
        baseline_queries=per_query,
        sources=basis.sources,
        prediction=basis.decision.prediction,
        base=None if carried is None or carried.kept is None else carried.kept.base.version,
        inherited=inherited,
        known=None if carried is None else carried.known,
        changes=None if carried is None or carried.kept is None else carried.changes,
    )


def follow_plan(
    context: Context, basis: Basis, request: Request, number: int, carried: Carried, kept: Kept, epoch: int
) -> Plan:
    """A plan for the gallery as it is now, in the order of the plan before: nothing is trained, chosen or drawn, and
    only what came is scored; nothing at all where nothing is stale.

    Args:
        number: of the plan under this root. kept: of the plan that it follows. epoch: the driver's claim.
    """
    before, files, snapshot = kept.plan, context.files, basis.snapshot
    name = plan_name(basis, request, number)
    with context.progress.timed("plan"):
        came = {chunk.unit for chunk in carried.chunks if chunk.history is None}
        scored = {} if kept.is_steady or not came else score_more(context, basis.scores, snapshot, came)
        # The last key of the gallery that was: an item that came may have a smaller one, and is to be embedded as well.
        cuts = (*before.thresholds[:-1], 0) if before.waves[-1] == 1 else before.thresholds
        rule = Following(carried.standing, name, kept.catch_up, kept.is_steady, cuts, scored)
        parts = context.engine.run_tasks(rule, carried.groups(), name="put rows into waves", ordered=True)
        first_bucket = max(carried.buckets.values(), default=-1) + 1
        chunks = [chunk for _, part in parts for chunk in part]
        work = in_buckets(chunks, snapshot, basis.index.segment_rows, carried.buckets, first_bucket)
        inherited = carried.inherit(context, name, epoch, catch_up=kept.catch_up)
    arms, per_query = before.baselines, before.baseline_queries
    if not kept.is_steady and carried.changes.items:
        with context.progress.timed("arms"):
            buckets = gallery_buckets(snapshot, work)
            evaluator = Evaluator(context, basis, cuts, before.first_share, before.carried_share)
            arms, per_query = evaluator.arms(name, buckets)
    return Plan(
        **_of_basis(basis, request, name, work),
        waves=before.waves,
        thresholds=cuts,
        version_waves=kept.version_waves(work.due_rows),
        first_share=before.first_share,
        carried_share=before.carried_share,
        ids_digest=snapshot.ids_digest,
        factory=before.factory,
        stale_factory=before.stale_factory,
        segment_rows=before.segment_rows,
        units=put_work_list(files, name, work),
        templates=before.templates,
        baselines=arms,
        baseline_queries=per_query,
        sources={**before.sources, "snapshot": snapshot.cut},
        prediction=before.prediction,
        follows=kept.plan.root,
        base=kept.base.version,
        inherited=inherited,
        first_bucket=first_bucket,
        known=carried.known,
        changes=carried.changes,
    )


def _of_basis(basis: Basis, request: Request, name: str, work: WorkList) -> dict[str, Any]:
    """What every plan says of where it comes from."""
    decision = basis.decision
    return {
        "plan": name,
        "request": request.fingerprint,
        "settings": request.settings,
        "inputs": request.inputs,
        "snapshot": basis.snapshot.fingerprint,
        "pairs": basis.pairs.fingerprint,
        "num_sampled": basis.num_sampled,
        "alignment": basis.scorer.trained.fingerprint,
        "scores": basis.scores.fingerprint,
        "method": decision.method,
        "policy": decision.policy,
        "stale_mode": "aligned" if basis.fusion is None else "fused",
        "fusion": basis.fusion,
        "reverse": None if basis.reverse is None else (basis.reverse.weights, basis.reverse.info),
        "wave_rows": work.wave_rows,
        "known_rows": work.known_rows,
        "rows": basis.snapshot.rows,
        "unusable_rows": work.absent(range(len(work.wave_rows)))[0],
        "objective": f"{basis.objective.relevance}/{basis.objective.metric}",
        "choices": {**decision.reasons, **basis.notes},
        "form": decision.form,
        "fitted_by": decision.chosen_by,
        "choice": decision.choice,
    }


def _standing(context: Context, carried: Carried | None, plan: str) -> dict[str, FileRef]:
    """{unit: work file that says what of it is new already}."""
    if carried is None:
        return {}
    work = partial(put_standing, carried.standing, plan)
    parts = context.engine.run_tasks(work, carried.groups(), name="look up what is new", ordered=True)
    return {unit: reference for _, part in parts for unit, reference in part.items()}


def make_work_list(
    context: Context, basis: Basis, plan: str, cuts: Sequence[int], groups: Sequence[Sequence[ScoredChunk]]
) -> WorkList:
    """Every row put into its wave, and the work files of all chunks."""
    place = partial(_place, files=context.files, plan=plan, cuts=tuple(cuts))
    parts = context.engine.run_tasks(place, groups, name="put rows into waves", ordered=True)
    return in_buckets([chunk for _, part in parts for chunk in part], basis.snapshot, basis.index.segment_rows)


def _place(group: Sequence[ScoredChunk], *, files: Files, plan: str, cuts: tuple[int, ...]) -> list[ChunkWork]:
    placed = []
    for chunk, scored in read_keys(files, group):
        rows = RowWork.of_due(wave_of(scored.keys, scored.is_first, cuts), scored.usable)
        if chunk.standing is not None:
            standing = rows_in(files, chunk.standing, chunk.unit)
            rows = replace(standing, wave=rows.wave, stale=rows.stale)
        rows = rows.with_known(chunk.known)
        placed.append((count_rows(chunk.unit, rows, scored.item_keys, len(cuts) + 2), rows))
    return put_rows(files, plan, placed)


def in_buckets(
    chunks: Sequence[ChunkWork],
    snapshot: Snapshot,
    segment_rows: int,
    known: Mapping[str, int] | None = None,
    first: int = 0,
) -> WorkList:
    """Chunks in the buckets that they are `known` to be in, the others in new ones, numbered from `first` on."""
    known = known or {}
    fresh = [place for place in snapshot.chunks if place.unit not in known]
    buckets = cut_buckets(fresh, segment_rows=segment_rows)
    numbers = dict(known) | {place.unit: first + n for n, bucket in enumerate(buckets) for place in bucket}
    return WorkList(tuple(chunk.placed(bucket=numbers[chunk.unit]) for chunk in chunks))


_FIELDS = {"unit", "folder", "file", "start", "length", "rows", "role", "model", "wave", "work"}


def wave_units(plan: str, num_waves: int, snapshot: Snapshot, work: WorkList) -> dict[int, list[Unit]]:
    """{wave: its units in chunk order} of a plan's work list, the pairs' left out."""
    files = snapshot.gallery.files
    # There are some of each chunk: one set says which fields they all have, and what is in the work list is not checked
    # again.
    return {
        wave: [
            Unit.model_construct(
                _FIELDS,
                unit=chunk.unit,
                folder=wave_folder(plan, wave),
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
        for wave in range(1, num_waves + 1)
    }
