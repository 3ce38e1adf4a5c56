"""What is damaged or gone under the root: what says that it is done is set aside, and the stages make it again.

What a record names is put back only with the bytes that the record says; a segment is built again under a new name
(``stages.segments``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial

from fastfill_ray.errors import CorruptFile, FileMissing, StorageError
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import FileRef, Plan
from fastfill_ray.log.state import State
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import gallery_buckets, train_templates
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.evaluator import Evaluator
from fastfill_ray.stages.keys import scored_groups
from fastfill_ray.stages.plan import make_work_list
from fastfill_ray.stages.work import put_work_list, read_work_list
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import DERIVED, is_work_of, parse_unit_output, receipts_for, set_aside_path
from fastfill_ray.storage.receipts import find_receipts
from fastfill_ray.storage.refs import sha256_hex

logger = logging.getLogger(__name__)

_SHOWN = 5


def can_be_made_again(files: Files, state: State, path: str) -> bool:
    """Whether a run can make the object anew: it follows from others, or the newest plan's records name it."""
    plan, versions = state.plan, state.plan_versions
    named: list[FileRef | None] = []
    if plan is not None:
        # What a plan took over from others cannot be put together again.
        named += [*([plan.units] if plan.known is None else []), plan.baseline_queries, *plan.templates.values()]
    if versions:
        named += [versions[-1].query_metrics]
        named += [reference for segment in segments_of(files, versions[-1]) for reference in segment.files]
    if path.partition("/")[0] in DERIVED:
        return True
    is_named = any(reference is not None and reference.path == path for reference in named)
    return (
        bool(receipts_for(path))
        or is_named
        or (plan is not None and plan.known is None and is_work_of(plan.plan, path))
    )


def set_aside(context: Context, damage: StorageError) -> None:
    """Take away the receipts of damaged objects, and say so; their bytes are kept beside them under another name.

    With the output of one unit those of its whole folder are looked up: what took one may have taken more.
    """
    files = context.files
    damaged = set(damage.paths)
    for folder in {found[0] for path in damage.paths if (found := parse_unit_output(path)) is not None}:
        damaged |= set(_gone(files, folder))
    what = "gone" if isinstance(damage, FileMissing) else "damaged"
    more = f" and {len(damaged) - _SHOWN:,} more" if len(damaged) > _SHOWN else ""
    context.progress.say(f"{what}, made again: {', '.join(sorted(damaged)[:_SHOWN])}{more}")
    logger.info("%s", damage)
    for receipt in sorted({receipt for path in damaged for receipt in receipts_for(path)}):
        try:
            data = files.get(receipt)
        except FileMissing:
            continue
        files.put_data(set_aside_path(receipt, sha256_hex(data)), data)
        files.delete(receipt)


def _gone(files: Files, folder: str) -> Iterator[str]:
    """Outputs of a folder's units that are absent or of another size than their receipts say, or damaged receipts."""
    try:
        receipts = find_receipts(files, folder)
    except CorruptFile as error:
        yield from error.paths
        return
    outputs = [output for receipt in receipts.values() for output in receipt.outputs]
    for output, found in zip(outputs, read_ahead(files.stat, (output.path for output in outputs)), strict=True):
        if found is None or found.size != output.size:
            yield output.path


def check_sources(plan: Plan | None, found: Mapping[str, tuple[str, str]]) -> None:
    """Refuse to go on with a plan when what it was made from was made again and is not the same.

    Args:
        plan: None if a new one is to be made.
        found: {stage: (digest, folder)} as it is now.

    Raises:
        CorruptFile: names the folder.
    """
    for stage, (digest, folder) in found.items():
        if plan is not None and plan.sources.get(stage, digest) != digest:
            raise CorruptFile(
                f"{folder}: was damaged or gone, and made again it is not what plan {plan.plan} was made from (another "
                "processor or library can do that). Restore the folder from a copy, or choose another output."
            )


def mend_named(context: Context, basis: Basis, state: State, damaged: Set[str]) -> None:
    """Put back what the newest plan's records name beside segments, with the recorded bytes.

    Raises:
        CorruptFile: made again it has other bytes.
    """
    plan = state.plan
    if plan is None or not damaged:
        return
    if any(is_work_of(plan.plan, path) for path in damaged):
        damaged = {*damaged, plan.units.path}  # made again, it makes every work file that it names
    for reference, make in _named(context, basis, plan, state).items():
        if reference.path in damaged and (made := make()) != reference.sha256:
            raise CorruptFile(
                f"{context.files.root}/{reference.path}: was damaged or gone, and made again its sha256 is {made}, "
                f"recorded is {reference.sha256}. Restore it from a copy, or choose another output."
            )


def _named(context: Context, basis: Basis, plan: Plan, state: State) -> Mapping[FileRef, Callable[[], str]]:
    """{file: what makes it again and returns the sha256}."""
    versions = state.plan_versions
    named: dict[FileRef, Callable[[], str]] = {
        plan.units: lambda: _work_list(context, basis, plan),
        **{
            reference: partial(_template, context, basis, name, reference) for name, reference in plan.templates.items()
        },
    }
    evaluator = Evaluator(context, basis, plan.thresholds, plan.first_share, plan.carried_share)
    if plan.baseline_queries is not None:

        def arms_again() -> str:
            buckets = gallery_buckets(basis.snapshot, read_work_list(context.files, plan.units))
            return _sha256(evaluator.arms(plan.plan, buckets)[1])

        named[plan.baseline_queries] = arms_again
    if versions and (reference := versions[-1].query_metrics) is not None:
        newest = versions[-1]

        def measure_again() -> str:
            calibration = evaluator.fit(newest.wave, plan)
            values = evaluator.measure(segments_of(context.files, newest), newest.wave, calibration)
            return evaluator.keep(values, plan.plan, f"version-{len(versions) - 1:02d}.parquet").sha256

        named[reference] = measure_again
    return named


def _work_list(context: Context, basis: Basis, plan: Plan) -> str:
    groups = scored_groups(basis.snapshot, basis.scores.chunks, basis.pair_offsets, basis.known_pairs, {})
    work = make_work_list(context, basis, plan.plan, plan.thresholds, groups)
    return put_work_list(context.files, plan.plan, work).sha256


def _template(context: Context, basis: Basis, name: str, reference: FileRef) -> str:
    data = train_templates(basis)[name]
    if (digest := sha256_hex(data)) == reference.sha256:
        context.files.put_data(reference.path, data)
    return digest


def _sha256(reference: FileRef | None) -> str:
    return "" if reference is None else reference.sha256
