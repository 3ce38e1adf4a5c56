"""What a plan begins with: its pairs, and what earlier plans have made new of its gallery.

It is counted before anything is chosen, since the choice predicts every version of the plan.

Legend: N pairs and items that were added to them, M added items, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from fastfill_ray.errors import CorruptFile, FileMissing
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.log.records import FileRef, Plan
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import item_keys, rows_of_keys
from fastfill_ray.ordering.waves import shares_of_order
from fastfill_ray.stages.carry import Carried
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.keys import in_groups, read_pair_keys
from fastfill_ray.stages.snapshot import read_snapshot
from fastfill_ray.stages.standing import Standing, StandingChunk, standing_chunks
from fastfill_ray.stages.work import DUE, read_work_list, rows_in
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import read_receipt
from fastfill_ray.types import U64, Bools


@dataclass(frozen=True)
class Beginning:
    """Items of the gallery that a plan's order is made for.

    rows: all. pairs: those that were drawn. first: those that are new in version 0. carried: those of them that were
    new before the plan, pairs among them. plan: its number under this root.
    """

    rows: int
    pairs: int
    first: int
    carried: int
    plan: int

    @classmethod
    def of_pairs(cls, rows: int, pairs: int, plan: int) -> Beginning:
        """Where nothing was new before."""
        return cls(rows, pairs, pairs, 0, plan)

    @classmethod
    def of_plan(cls, plan: Plan, number: int) -> Beginning:
        """What a plan has begun with, as its prediction takes it.

        Plans of earlier releases took the pairs alone for new: what they have chosen is known by that.
        """
        first = round(plan.first_share * plan.rows)
        predicted = plan.prediction[0].fraction if plan.prediction else plan.first_share
        if plan.num_sampled is None or round(predicted * plan.rows) != first:
            return cls.of_pairs(plan.rows, plan.num_sampled or first, number)
        return cls(plan.rows, plan.num_sampled, first, round(plan.carried_share * plan.rows), number)

    @property
    def is_carried(self) -> bool:
        """Whether more than the pairs is new in version 0."""
        return self.first > self.pairs

    def fractions(self, waves: Sequence[float], usable_pairs: int) -> tuple[float, ...]:
        """Shares of the gallery that are new in version 0 and after each wave, as they are predicted.

        A wave that ends below what is new already has no version, and adds nothing to what is predicted of version 0.

        Args:
            usable_pairs: of the drawn ones: those that have both vectors.
        """
        if not self.is_carried:
            return usable_pairs / self.rows, *waves
        first = self.first / self.rows
        return first, *(max(first, wave) for wave in waves)


class _Counted(NamedTuple):
    """first, carried: as in ``Beginning``, of some chunks. known: (M,) which of the added items were new before."""

    first: int
    carried: int
    known: Bools


def count_carried(
    context: Context, state: State, carried: Carried, pairs: PairedItems, offsets: Mapping[str, tuple[int, ...]]
) -> tuple[Beginning, PairedItems]:
    """What a plan that is made now begins with, and its pairs (N,) with those that are ``PairedItems.carried``.

    Args:
        offsets: {unit of a chunk: of its pairs}, as they were drawn.
    """
    count = partial(_count, standing=carried.standing, offsets=offsets, sought=_added_keys(pairs))
    parts = [part for _, part in context.engine.run_tasks(count, carried.groups(), name="count what is new")]
    begins = Beginning(
        rows=sum(chunk.rows for chunk in carried.chunks),
        pairs=sum(map(len, offsets.values())),
        first=sum(part.first for part in parts),
        carried=sum(part.carried for part in parts),
        plan=len(state.plans),
    )
    return begins, _with_carried(context.files, state, begins, pairs, [part.known for part in parts])


def _count(
    chunks: Sequence[StandingChunk], *, standing: Standing, offsets: Mapping[str, tuple[int, ...]], sought: U64
) -> _Counted:
    first, before, known = 0, 0, np.zeros(len(sought), bool)
    for chunk, rows, _ in standing.of_group(chunks):
        is_new = rows.source != DUE
        before += int(is_new.sum())
        known |= _found(chunk, standing.files, sought, is_new)
        is_new[list(offsets.get(chunk.unit, ()))] = True
        first += int(is_new.sum())
    return _Counted(first, before, known)


def with_carried(context: Context, state: State, begins: Beginning, pairs: PairedItems) -> PairedItems:
    """The pairs (N,) of a plan whose order goes on, as ``count_carried`` gave them."""
    if not begins.is_carried:
        return pairs
    plan, sought, known = state.plans[begins.plan], _added_keys(pairs), list[Bools]()
    if len(sought):
        try:
            chunks = standing_chunks(read_snapshot(context.files, plan.snapshot), {})
            listed = {chunk.unit: chunk.file for chunk in read_work_list(context.files, plan.units).chunks}
            work = partial(_in_first, files=context.files, listed=listed, sought=sought)
            groups = in_groups(chunks, max(chunk.rows for chunk in chunks))
            known = [part for _, part in context.engine.run_tasks(work, groups, name="find what is carried")]
        except (FileMissing, CorruptFile):  # of a gallery that was: only a promise that was given before needs it
            return pairs
    return _with_carried(context.files, state, begins, pairs, known)


def _in_first(chunks: Sequence[StandingChunk], *, files: Files, listed: Mapping[str, FileRef], sought: U64) -> Bools:
    """Which items of these keys (M, 2) are in wave 0."""
    known = np.zeros(len(sought), bool)
    for chunk in chunks:
        known |= _found(chunk, files, sought, rows_in(files, listed[chunk.unit], chunk.unit).wave == 0)
    return known


def _found(chunk: StandingChunk, files: Files, sought: U64, is_new: Bools) -> Bools:
    """Which items of these keys (M, 2) are in a chunk and new there; is_new: (n,)."""
    known = np.zeros(len(sought), bool)
    if len(sought):
        rows, which = rows_of_keys(chunk.keys(files), sought)
        known[which[is_new[rows]]] = True
    return known


def _added_keys(pairs: PairedItems) -> U64:
    """The keys (M, 2) of the added items."""
    return item_keys(pairs.ids[~pairs.counted].tolist())


def _with_carried(
    files: Files, state: State, begins: Beginning, pairs: PairedItems, known: Sequence[Bools]
) -> PairedItems:
    """The pairs (N,); known: which of the added items (M,) were new before, by parts of the gallery."""
    if not begins.is_carried:
        return pairs
    carried = _passed(files, state, begins.plan, pairs)
    for part in known:
        carried[~pairs.counted] |= part
    return replace(pairs, carried=carried)


def _passed(files: Files, state: State, number: int, pairs: PairedItems) -> Bools:
    """Which of the sampled pairs (N,) the orders of the plans before one have put into waves that are through.

    By their place among their like, since an order that has learnt from an item says less of it. Where a plan had other
    pairs, it has kept no key of these: nothing is known of them.

    Args:
        number: of the plan.
    """
    passed, is_train = np.zeros(len(pairs.ids), bool), pairs.split == "train"
    root_of = {plan.plan: plan.root for plan in state.plans[:number]}
    for plan in state.plans[:number]:
        waves = [version.wave for version in state.versions if root_of.get(version.plan) == plan.plan]
        receipt = read_receipt(files, stage_receipt("scores", plan.scores))
        if not any(waves) or receipt is None:
            continue
        keys = read_pair_keys(files, receipt.outputs[1])
        [share] = shares_of_order([plan.waves[max(waves) - 1]], plan.first_share).tolist()
        has_key = np.array([value in keys for value in pairs.ids.tolist()]) & pairs.counted
        for part in (is_train, ~is_train):
            left = np.flatnonzero(part & has_key & ~passed)
            key = np.array([keys[value] for value in pairs.ids[left].tolist()], np.uint64)
            passed[left[np.argsort(~key, kind="stable")[: round(share * len(left))]]] = True
    return passed
