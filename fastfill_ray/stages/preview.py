"""What the next start would do, found out as it would find it out, without Ray and without writing to the root."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence

from fastfill_ray.config import BackfillConfig
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import InputError, RefusedError, TooManyRemoved
from fastfill_ray.inputs.classifier import read_classifier
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.log.carry import Kept, as_planned, bound, what_is_kept
from fastfill_ray.log.next_step import next_step
from fastfill_ray.log.preview import FileChanges, ItemChanges, Preview, Work
from fastfill_ray.log.records import Plan
from fastfill_ray.log.state import State
from fastfill_ray.stages import preflight
from fastfill_ray.stages.adoption import Inputs
from fastfill_ray.stages.carry import Carried, Wanted, carry_over
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.digests import Digests
from fastfill_ray.stages.known import Known, read_known
from fastfill_ray.stages.ledger import take_snapshot
from fastfill_ray.stages.plan import Request
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.snapshot import Snapshot, read_snapshot, source_of
from fastfill_ray.stages.work import DUE, SERVED, read_work_list
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.heartbeat import describe, find_drivers, is_alive
from fastfill_ray.storage.overlay import Overlay
from fastfill_ray.storage.paths import wave_folder
from fastfill_ray.storage.receipts import find_receipts


def preview(files: Files, config: BackfillConfig, state: State, progress: Progress) -> Preview:
    """What ``run_backfill`` would do next: no model is loaded, and what is written goes to a temporary folder.

    The rows of files that have come or changed are read once, as the start itself would read them.

    Raises:
        StorageError: the root cannot be read, or a file of it is damaged that the start would make again.
    """
    drivers = tuple(describe(beat) for beat in find_drivers(files) if is_alive(files, beat, time.sleep))
    with tempfile.TemporaryDirectory(prefix="fastfill-ray-") as folder:
        store = InputStore(config.storage.s3_endpoint, config.storage.anonymous)
        context = Context(InProcessEngine(), Overlay(files, open_files(folder)), store, progress)
        try:
            found = _preview(context, config, state)
        except (RefusedError, InputError) as error:
            found = Preview(error=f"{type(error).__name__}: {error}", exit_code=error.exit_code)
    return found.model_copy(update={"drivers": drivers})


def _preview(context: Context, config: BackfillConfig, state: State) -> Preview:
    inputs = Inputs(config, context)
    request = inputs.request
    step, publishes = next_step(state, request.fingerprint, rule=config.stop), None
    if step.do == "publish":
        publishes = state.versions[-1].version
        state = state.model_copy(update={"published": (*state.published, publishes)})
        step = next_step(state, request.fingerprint, rule=config.stop)
    if step.do == "stop":
        return Preview(action="nothing", publishes=publishes)
    if step.do == "version" and state.plan is not None:
        _inspect(context, config, inputs, state, None)
        work = _work_left(context.files, state.plan, len(state.plan_versions))
        return Preview(action="go on", publishes=publishes, items=state.plan.rows, work=work)
    made = _preview_plan(context, config, inputs, state)
    return made.model_copy(update={"publishes": publishes})


def _preview_plan(context: Context, config: BackfillConfig, inputs: Inputs, state: State) -> Preview:
    """Of a start that makes a plan."""
    request = inputs.request
    kept = what_is_kept(state, request.settings, request.inputs)
    inspected = _inspect(context, config, inputs, state, kept)
    source = source_of(context.store, config, inspected)
    known = Known() if state.plan is None else read_known(context.files, state.plan.known)
    digests = None if state.plan is None else Digests(source, payloads=known.unversioned > 0)
    limit = config.quarantine.limit(inspected.rows)
    snapshot = take_snapshot(context, inspected, source, limit=limit, beside=digests)
    wanted = preflight.spaces_of(config, snapshot, state.init)
    preflight.check_bound(config.output, state.init, wanted)
    as_it_is = kept if kept is not None and kept.is_indexed_as(request.settings) else None
    if state.plan is None:
        return Preview(action="begin", items=snapshot.rows, work=Work(served=0, known=0, due=snapshot.rows))
    to_make = Wanted(request.settings, state.plan.pairs, wanted.new_space)
    carried = carry_over(context, source, snapshot, state, as_it_is, known, to_make)
    if carried is None:
        return Preview(action="begin", items=snapshot.rows, work=Work(served=0, known=0, due=snapshot.rows))
    before = read_snapshot(context.files, (state.plan if as_it_is is None else as_it_is.plan).snapshot)
    follows, changes = kept is not None and kept.follows, carried.changes
    error = None
    if kept is not None:
        try:
            preflight.check_removed(config.gallery, changes.removed, kept.base.rows)
        except TooManyRemoved as refusal:
            error = refusal
    return Preview(
        action="follow" if follows else "order anew",
        reason="" if follows else _why_anew(kept, request),
        error=None if error is None else f"{type(error).__name__}: {error}",
        exit_code=0 if error is None else error.exit_code,
        files=_file_changes(before, snapshot),
        changes=ItemChanges(
            added=changes.added, changed=None if as_it_is is None else changes.changed, removed=changes.removed
        ),
        items=snapshot.rows,
        work=_work_of(carried),
    )


def _inspect(context: Context, config: BackfillConfig, inputs: Inputs, state: State, kept: Kept | None) -> Snapshot:
    """See ``preflight.inspect``."""
    ordered = preflight.ordered_by(config.gallery, state.plan, inputs.request.fingerprint, kept)
    before = None if state.plan is None else read_snapshot(context.files, state.plan.snapshot)
    inspected = preflight.inspect(context.store, config, inputs.listings, before, ordered)
    if config.new_model.classifier is not None:  # one that cannot be read is refused
        read_classifier(context.store, config.new_model.classifier, dim=config.new_model.dim)
    return inspected


def _why_anew(kept: Kept | None, request: Request) -> str:
    if kept is None:
        return "no version is served yet"
    settings = as_planned(request.settings, kept.plan)
    now, then = bound(settings, kept.plan.settings), bound(kept.plan.settings, settings)
    if now != then:
        return preflight.changed_settings(now, then)
    return "the files of queries, qrels or classifier are not those of the plan before"


def _file_changes(before: Snapshot, now: Snapshot) -> FileChanges:
    old, new = _pins(before.gallery.files), _pins(now.gallery.files)
    same = sum(old[path] == new[path] for path in old.keys() & new.keys())
    both = len(old.keys() & new.keys())
    return FileChanges(added=len(new) - both, changed=both - same, gone=len(old) - both, same=same)


def _pins(files: Sequence[PinnedFile]) -> dict[str, tuple[int, str]]:
    return {file.path: (file.size, file.tag) for file in files}


def _work_of(carried: Carried) -> Work:
    """Of a plan that is to be made."""
    served = known = due = 0
    for group in carried.groups():
        for _, rows, _ in carried.standing.of_group(group):
            served += int((rows.source == SERVED).sum())
            known += int((rows.source >= 0).sum())
            due += int((rows.source == DUE).sum())
    return Work(served=served, known=known, due=due)


def _work_left(files: Files, plan: Plan, made: int) -> Work:
    """Of a plan that is not finished.

    Args:
        made: versions of it that there are.
    """
    newest = plan.newest_wave(made - 1) if made else 0
    left = range(newest + 1, len(plan.waves) + 1)
    embedded = sum(
        receipt.rows + len(receipt.quarantined)
        for wave in left
        for receipt in find_receipts(files, wave_folder(plan.plan, wave)).values()
    )
    chunks = read_work_list(files, plan.units).chunks
    due = sum(chunk.due[wave] for chunk in chunks for wave in left)
    known = sum(chunk.known[wave] for chunk in chunks for wave in left)
    new = sum(chunk.rows[wave] for chunk in chunks for wave in range(newest + 1))
    if not made and plan.base is None:  # the pairs
        return Work(served=0, known=known + embedded + new, due=due - embedded)
    return Work(served=new, known=known + embedded, due=due - embedded)
