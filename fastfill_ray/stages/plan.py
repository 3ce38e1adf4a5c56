"""From scores to PLAN: the order cut into waves, the work list, the templates, the arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.log.records import FileRef, Plan
from fastfill_ray.ordering.waves import wave_targets
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import put_templates
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.evaluator import Evaluator
from fastfill_ray.stages.score import count_units, thresholds
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import units_path, wave_folder
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import fingerprint


@dataclass(frozen=True)
class Request:
    """What a plan is asked for: the config's part that it is bound to, and the fingerprint of that and the input."""

    fingerprint: str
    settings: dict[str, Any]


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
        cuts = thresholds(context, basis.scores, targets)
        units, wave_rows = put_work_list(context, basis, name, cuts)
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
        wave_rows=wave_rows,
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
        form=decision.form,
        fitted_by=decision.chosen_by,
        prediction=decision.prediction,
        choice=decision.choice,
    )


def put_work_list(context: Context, basis: Basis, plan: str, cuts: Sequence[int]) -> tuple[FileRef, tuple[int, ...]]:
    """The rows per (chunk, wave) as a file, and per wave (W + 2,)."""
    counts = count_units(context, basis.scores, cuts, len(basis.waves))
    names = np.array(sorted(basis.scores.chunks))
    places, numbers = np.nonzero(counts)
    data = table_bytes(pa.table({"unit": names[places], "wave": numbers, "rows": counts[places, numbers]}))
    return put_content(context.files, partial(units_path, plan), data), tuple(counts.sum(axis=0).tolist())


def wave_units(files: Files, plan: Plan, basis: Basis) -> dict[int, list[Unit]]:
    """{wave: its units in chunk order} of the plan's work list, the pairs' left out."""
    table = read_table(get_verified(files, plan.units), name=plan.units.path)
    snapshot, scores = basis.snapshot, basis.scores
    rows = {(row["unit"], row["wave"]): row["rows"] for row in table.to_pylist()}
    units: dict[int, list[Unit]] = {wave: [] for wave in range(1, len(plan.waves) + 1)}
    for chunk in snapshot.chunks:
        for wave in units:
            if (chunk.unit, wave) in rows:
                units[wave].append(
                    Unit(
                        unit=chunk.unit,
                        folder=wave_folder(plan.plan, wave),
                        file=snapshot.gallery.files[chunk.file],
                        start=chunk.start,
                        length=chunk.rows,
                        rows=rows[chunk.unit, wave],
                        role="item",
                        model="new",
                        wave=wave,
                        scores=scores.chunks[chunk.unit],
                    )
                )
    return units
