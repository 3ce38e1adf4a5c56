"""A plan over a gallery of which some is new already: what is served stays, what is known is taken, the rest is due.

Legend: n rows of a chunk, W waves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastfill_ray.index.deletion_vector import fresh_path, read_deletion, superseding
from fastfill_ray.index.segment_list import put_segments, segments_of
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.log.carry import Kept, is_same_item
from fastfill_ray.log.records import Changes, FileRef, Plan, Segment
from fastfill_ray.log.state import State
from fastfill_ray.ordering.waves import order_wave
from fastfill_ray.stages.compare import compare, rows_of_segment
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.keys import ScoredChunk, in_groups, read_keys
from fastfill_ray.stages.known import Known, gather_known, put_known
from fastfill_ray.stages.ledger import ledger_parts
from fastfill_ray.stages.snapshot import Snapshot, read_snapshot
from fastfill_ray.stages.standing import ChunkHistory, Differences, Standing, StandingChunk, standing_chunks
from fastfill_ray.stages.work import (
    SERVED,
    ChunkWork,
    RowWork,
    WorkList,
    count_rows,
    put_rows,
    read_work_list,
)
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import parse_unit_receipt, stage_folder, wave_folder
from fastfill_ray.storage.receipts import Receipt, find_receipts

# What there is when a plan is made


@dataclass(frozen=True)
class Carried:
    """What a new plan takes over.

    kept: what of the log; None where nothing is served, or its index is made in another way. segments: of the version
    that the plan begins with, unmasked. buckets: {unit: bucket} of the chunks whose files are pinned as before.
    """

    kept: Kept | None
    segments: tuple[Segment, ...]
    chunks: tuple[StandingChunk, ...]
    buckets: Mapping[str, int]
    standing: Standing
    known: FileRef

    @property
    def changes(self) -> Changes:
        return self.standing.compared.changes

    def groups(self) -> list[list[StandingChunk]]:
        """The chunks in their order, in groups that one task puts into waves."""
        return in_groups(self.chunks, max(chunk.rows for chunk in self.chunks))

    def inherit(self, context: Context, plan: str, epoch: int, *, catch_up: int | None) -> FileRef | None:
        """The segments that the plan begins with, less what is dead, as a file; None where it begins with none.

        Args:
            catch_up: see ``Kept``; None where the order is made anew: then no stale segment is kept.
        """
        if self.kept is None:
            return None
        dead = self.standing.compared.dead
        inheritance = Inheritance(context.files, plan, epoch, dead, catch_up or 0)
        numbered = [(n, each) for n, each in enumerate(self.segments) if each.state == "new" or catch_up is not None]
        found = context.engine.run_tasks(inheritance, numbered, name="begin with segments", ordered=True)
        return put_segments(context.files, plan, [segment for _, segment in found if segment is not None])


@dataclass(frozen=True)
class Wanted:
    """Of the plan that is to be made: its settings, the fingerprint of its pairs, and the new model's space."""

    settings: Mapping[str, Any]
    pairs: str
    space: str


def carry_over(
    context: Context,
    source: Source,
    snapshot: Snapshot,
    state: State,
    kept: Kept | None,
    before: Known,
    wanted: Wanted,
) -> Carried | None:
    """What a plan over `snapshot` takes over; None where nothing has been embedded yet but its own pairs.

    Args:
        before: what was known when the last plan was made; less is looked up again.
        kept: None where nothing of what is served can be kept as it is: then everything is looked up by its digest.
    """
    files, space, own = context.files, wanted.space, stage_folder("pairs", wanted.pairs)
    if state.plan is None:
        return _look_up_all(context, source, snapshot, gather_known(context.engine, files, before, space, {own}), space)
    reference = state.plan if kept is None else kept.plan
    pinned = read_snapshot(files, reference.snapshot)
    plans = state.plans[[plan.plan for plan in state.plans].index(reference.plan) :]
    known = gather_known(context.engine, files, before, space, set())
    segments = () if kept is None else segments_of(files, kept.base)
    # Rows that are served have no source in work files; and another payload is found by its digest alone.
    looked_up = (kept is None and state.serving is not None) or not is_same_item(reference, wanted.settings)
    works = [(plan, read_work_list(files, plan.units)) for plan in plans]
    newest = -1 if kept is None else kept.plan.newest_wave([v.version for v in kept.versions].index(kept.base.version))
    histories = {} if looked_up else _histories(files, works, newest)
    unplanned = _unplanned(files, {*before.folders, *(stage_folder("pairs", plan.pairs) for plan in plans), own})
    chunks = standing_chunks(snapshot, {unit: each for unit, each in histories.items() if unit not in unplanned})
    stayed = {chunk.part.unit for chunk in chunks if chunk.history is not None}
    came = [part for part in ledger_parts(snapshot) if part.unit not in stayed]
    went = [part for part in ledger_parts(pinned) if part.unit not in stayed]
    compared = compare(context, source, (came, went), segments, known)
    now = {chunk.unit for chunk in chunks if chunk.history is not None}
    buckets = {chunk.unit: chunk.bucket for chunk in works[0][1].chunks if chunk.unit in now}
    standing = Standing(files, space, compared, known)
    return Carried(kept, segments, tuple(chunks), buckets, standing, put_known(files, known))


def _look_up_all(context: Context, source: Source, snapshot: Snapshot, known: Known, space: str) -> Carried | None:
    """What a first plan takes over from starts that were killed before they made one; None where that is nothing."""
    if not known.rows:
        return None
    compared = compare(context, source, (ledger_parts(snapshot), []), (), known)
    standing = Standing(context.files, space, compared, known)
    return Carried(None, (), tuple(standing_chunks(snapshot, {})), {}, standing, put_known(context.files, known))


def _unplanned(files: Files, folders: Set[str]) -> set[str]:
    """The units of pairs that were embedded by starts which made no plan.

    Args:
        folders: of pairs that belong to a plan, or that a plan has looked at.
    """
    listed = {(path.rpartition("/")[0], unit) for path in files.list("pairs") if (unit := parse_unit_receipt(path))}
    return {unit for folder, unit in listed if folder not in folders}


def _histories(files: Files, works: Sequence[tuple[Plan, WorkList]], newest: int) -> dict[str, ChunkHistory]:
    """{unit: history} of the chunks of the first plan."""
    entries: dict[str, list[tuple[FileRef, Mapping[int, Receipt]]]] = {chunk.unit: [] for chunk in works[0][1].chunks}
    for plan, work in works:
        receipts: dict[str, dict[int, Receipt]] = {}
        folders = {wave: wave_folder(plan.plan, wave) for wave in range(1, len(plan.waves) + 1)}
        if plan.follows is None:
            folders[0] = stage_folder("pairs", plan.pairs)
        for wave, folder in folders.items():
            for unit, receipt in find_receipts(files, folder).items():
                receipts.setdefault(unit, {})[wave] = receipt
        for chunk in work.chunks:
            if chunk.unit in entries:
                entries[chunk.unit].append((chunk.file, receipts.get(chunk.unit, {})))
    # Where a receipt is gone, nobody knows which rows of its unit are new: such chunks are compared with the segments.
    known = {
        chunk.unit
        for chunk in works[0][1].chunks
        if all(chunk.due[wave] == 0 or wave in entries[chunk.unit][0][1] for wave in range(newest + 1))
    }
    return {unit: ChunkHistory(tuple(each), newest) for unit, each in entries.items() if unit in known}


# A plan that follows: thresholds stay, and so do the waves of items that stay.


@dataclass(frozen=True)
class Following:
    """How rows get their waves in a plan that follows.

    catch_up: see ``Kept``. steady: nothing is stale, so that there is one wave for all. cuts: of the plan before.
    scored: {unit of a chunk that came: its score file}; empty where steady.
    """

    standing: Standing
    plan: str
    catch_up: int
    steady: bool
    cuts: tuple[int, ...]
    scored: Mapping[str, FileRef]

    def __call__(self, chunks: Sequence[StandingChunk]) -> list[ChunkWork]:
        files, placed = self.standing.files, []
        for chunk, rows, differences in self.standing.of_group(chunks):
            placed_rows = self._placed(chunk, rows, differences)
            keys = partial(chunk.keys, files)
            placed.append((count_rows(chunk.unit, placed_rows, keys, len(self.cuts) + 2), placed_rows))
        return put_rows(files, self.plan, placed)

    def _placed(self, chunk: StandingChunk, rows: RowWork, differences: Differences) -> RowWork:
        rest, wave, stale = len(self.cuts) + 1, rows.wave, rows.stale
        if self.steady:
            wave = np.full(chunk.rows, self.catch_up, np.int16)
        elif chunk.history is None:
            [(_, scored)] = read_keys(self.standing.files, [ScoredChunk(chunk.unit, self.scored[chunk.unit])])
            wave, stale = order_wave(scored.keys, self.cuts), scored.usable
            wave = np.where(differences.changed | ~stale, np.int16(self.catch_up), wave)
        wave = np.where(wave < rest, np.maximum(wave, self.catch_up), wave)
        if not self.steady:  # what is new stays new: its segment is built again for the first version
            wave = np.where(differences.relabelled & (rows.source >= 0), 0, wave)
        wave = np.where(rows.source == SERVED, 0, wave).astype(np.int16)
        return replace(rows, wave=wave, stale=stale)


# The segments that a plan begins with


@dataclass(frozen=True)
class Inheritance:
    """How a plan keeps the segments of its base: those of new vectors in wave 0, stale ones of waves that are through
    in wave `catch_up`, in which their items are embedded.

    epoch: goes into the names of deletion vectors. dead: see ``Compared``.
    """

    files: Files
    plan: str
    epoch: int
    dead: tuple[FileRef, ...]
    catch_up: int

    def __call__(self, numbered: tuple[int, Segment]) -> Segment | None:
        """The segment without the rows that are dead; None where none is left."""
        number, segment = numbered
        wave = 0 if segment.state == "new" else max(segment.wave, self.catch_up)
        segment = segment.model_copy(update={"wave": wave})
        before = read_deletion(self.files, segment)
        superseded = before.rows[~before.deleted]
        rows = np.union1d(superseded, rows_of_segment(self.files, self.dead, number))
        if len(rows) == segment.rows:
            return None
        if len(rows) == len(superseded):  # rows that a DELETE hides are looked at when the version is made
            return segment
        return superseding(self.files, segment, rows, fresh_path(self.plan, self.epoch, segment))
