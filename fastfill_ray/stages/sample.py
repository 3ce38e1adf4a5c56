"""Wave 0: uniformly sampled items get new vectors first; everything that is learnt or decided, is on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from fastfill_ray.config import ObjectiveConfig, QuarantineConfig, QueriesConfig, ResourcesConfig
from fastfill_ray.errors import CorruptFile, EmbedderError, QuarantineExceeded
from fastfill_ray.experiment.items import MAX_QUERIES, PairedItems, Queries
from fastfill_ray.inputs.gallery import (
    Source,
)
from fastfill_ray.log.records import Plan
from fastfill_ray.ordering.demand import LoggedQueries
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.stages.asked import Asked, answered_by
from fastfill_ray.stages.blocks import BlockLimits, in_blocks
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.draw import count_known, draw_pairs, draw_taken
from fastfill_ray.stages.embed import Job, Unit, loads, pool_work
from fastfill_ray.stages.known import Known, gather_known, vector_file
from fastfill_ray.stages.pairs import PairPlan, check_splits, finish_pairs, load_pairs, plan_pairs, read_old
from fastfill_ray.stages.quarantine import UnitGroup
from fastfill_ray.stages.reuse import KnownPairs, find_pairs
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_folder, stage_receipt
from fastfill_ray.storage.receipts import Receipt, find_receipts, read_receipt
from fastfill_ray.types import Objects, Relevance, fingerprint

# Of the items that were taken in the held-out traffic, how many join the pairs: half as many as these, within limits.
MIN_TAKEN, MAX_TAKEN = 200, 1000
# What the receipt of the added items tells besides: how many distinct answers the gallery has, pairs among them.
IN_GALLERY = "in_gallery"


@dataclass(frozen=True)
class Sampling:
    """What is sampled and how it is embedded.

    num_pairs: items to draw as pairs. split: ``pairs.split``. spaces: fingerprints of the models.
    relevance: that is asked for: its answers join the pairs.
    """

    num_pairs: int
    split: tuple[float, float, float]
    queries: QueriesConfig | None
    spaces: Mapping[str, str]
    quarantine: QuarantineConfig
    resources: ResourcesConfig
    relevance: Relevance
    seed: int


@dataclass(frozen=True)
class Sample:
    """Pairs and queries with their vectors.

    pairs: with the items that were added since users took them (``PairedItems.added``). logged: None without a query
    log. offsets, receipts: {unit of a chunk: its pairs' offsets, their receipt}. added: {unit of a chunk: offsets of
    the added items}. known: pairs that were new before, and added items: what has a vector, and is in no receipt of the
    pairs. All are empty of pairs that another plan has drawn. notes: {config key: what PLAN says of it}.
    answers_per_added: see ``Evidence``.
    """

    pairs: PairedItems
    queries: Queries
    logged: LoggedQueries | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    added: dict[str, tuple[int, ...]] = field(default_factory=dict)
    offsets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    known: KnownPairs = field(default_factory=dict)
    answers_per_added: float | None = None

    def answered_by(self, objective: ObjectiveConfig) -> ObjectiveConfig:
        """See ``asked.answered_by``."""
        return answered_by(objective, has_taken=self.queries.judged is not None)


def sample(context: Context, job: Job, source: Source, snapshot: Snapshot, sampling: Sampling, before: Known) -> Sample:
    """Draw pairs and queries, and embed them in one execution of the pool.

    Args:
        before: what was known when the last plan was made.
    """
    files, new_dim, new_space = context.files, job.spaces["new"].dim, sampling.spaces["new"]
    drawn = draw_pairs(context, snapshot, sampling.num_pairs, sampling.split, sampling.seed)
    plan = plan_pairs(drawn, source.config, snapshot, new_space)
    there = find_receipts(files, plan.folder)
    others = gather_known(context.engine, files, before, new_space, frozenset({plan.folder}))
    known = find_pairs(context, source, plan.units, there, others)
    pair_group = UnitGroup(files, plan.folder, "pairs", list(_without(plan.units, known)), sampling.quarantine)
    asked = _asked(context, sampling, source)
    pairs = load_pairs(files, plan.fingerprint)
    # Before anything is embedded: too few pairs may have an old vector, and no query an answer.
    read = read_old(context, plan, source) if pairs is None else {}
    if pairs is None:
        check_splits(list(read.values()), plan, "an old vector that can be used")
    asked.read()
    taken = _plan_taken(context, asked, snapshot, plan, sampling, source, others)
    asked.ordered_by(count_known(context, snapshot, asked.first_taken))
    groups = [pair_group, *([] if taken is None else [taken.group]), *asked.groups.values()]
    embed_first(context, job, groups, sampling.resources)
    if pairs is None:
        pairs = finish_pairs(files, plan, pair_group.receipts, known, read, new_dim=new_dim)
    if taken is not None:
        name = _name_of_taken(plan.fingerprint, asked)
        if (items := load_pairs(files, name)) is None:
            read, named = read_old(context, taken.plan, source), replace(taken.plan, fingerprint=name)
            receipts = taken.group.receipts
            items = finish_pairs(
                files,
                named,
                receipts,
                taken.known,
                read,
                new_dim=new_dim,
                are_pairs=False,
                details={IN_GALLERY: taken.in_gallery},
            )
        pairs = pairs.with_added(items)
        known = _both_known(known, taken.vectors(new_space))
    queries = asked.queries(snapshot.fingerprint, new_dim) or audit_queries(pairs, sampling.seed)
    return Sample(
        pairs,
        queries,
        asked.logged(new_dim),
        asked.notes(len(pairs.ids) - pairs.size),
        {} if taken is None else taken.plan.offsets,
        plan.offsets,
        pair_group.receipts.copy(),
        known,
        _answers_per_added(files, _name_of_taken(plan.fingerprint, asked), asked.answers, pairs),
    )


def _asked(context: Context, sampling: Sampling, source: Source) -> Asked:
    given = sampling.queries, source, sampling.spaces, sampling.quarantine, sampling.relevance, sampling.seed
    return Asked(context, *given)


@dataclass(frozen=True)
class _Taken:
    """The answers of the queries that join the pairs.

    known: those of them that are embedded already. in_gallery: how many distinct answers the gallery has, pairs too.
    """

    plan: PairPlan
    group: UnitGroup
    known: KnownPairs
    in_gallery: int

    def vectors(self, space: str) -> KnownPairs:
        """Where the vector of each is that has one: it is not embedded again in its wave."""
        made: KnownPairs = {}
        for unit in self.group.units:
            receipt = self.group.receipts.get(unit.unit)
            file = None if receipt is None else vector_file(receipt, space)
            if receipt is None or file is None:
                continue
            bad = {fault.row for fault in receipt.quarantined}
            kept = [offset for offset in unit.offsets or () if unit.start + offset not in bad]
            made[unit.unit] = {offset: (file, row) for row, offset in enumerate(kept)}
        return _both_known(self.known, made)


def _plan_taken(
    context: Context,
    asked: Asked,
    snapshot: Snapshot,
    pairs: PairPlan,
    sampling: Sampling,
    source: Source,
    others: Known,
) -> _Taken | None:
    """The answers of the queries that are no pairs, as units of work; None where there are none.

    They are embedded to be measured by, and become new in their wave: were they served as new at once, the queries
    that measure would find their answers however good the order is.

    Args:
        others: what is known of other plans.
    """
    if not len(asked.answers):
        return None
    most = min(MAX_TAKEN, max(MIN_TAKEN, sampling.num_pairs // 2))
    drawn, *in_gallery = draw_taken(context, snapshot, asked.answers, pairs.offsets, most, sampling.seed)
    asked.found(*in_gallery)
    if not drawn.offsets:
        return None
    # With those of the queries: whatever lies with the pairs' is taken for embedded by the next plan, and served.
    plan = plan_pairs(drawn, source.config, snapshot, sampling.spaces["new"], stage="evaluation")
    known = find_pairs(context, source, plan.units, find_receipts(context.files, plan.folder), others)
    units = list(_without(plan.units, known))
    group = UnitGroup(context.files, plan.folder, "answers", units, sampling.quarantine)
    return _Taken(plan, group, known, in_gallery[0])


def _both_known(some: KnownPairs, others: KnownPairs) -> KnownPairs:
    return {unit: {**some.get(unit, {}), **others.get(unit, {})} for unit in {**some, **others}}


def _name_of_taken(pairs: str, asked: Asked) -> str:
    """What the items that were taken are kept as: known without the gallery, which may have changed since."""
    return fingerprint([pairs, asked.fingerprint, "taken"])


def _answers_per_added(files: Files, name: str, answers: Objects, pairs: PairedItems) -> float | None:
    """See ``Evidence``: at least 1, and 1 where all that is sought is a pair.

    None, too, where it is not known: the receipt is gone or of an earlier release, or none that was to be added could
    be embedded.

    Args:
        name: of the added items. answers: (n,) that were looked for, some of them often.
    """
    wanted = set(answers.tolist())
    if not wanted:
        return None
    are_pairs = sum(value in wanted for value in pairs.sampled().ids.tolist())
    receipt = read_receipt(files, stage_receipt("pairs", name))
    in_gallery = len(wanted) if receipt is None else receipt.details.get(IN_GALLERY)
    if in_gallery is None:
        return None
    others, added = int(in_gallery) - are_pairs, len(pairs.ids) - pairs.size
    if receipt is None or not added:
        return None if others else 1.0
    return max(1.0, others / added)


def sample_again(context: Context, job: Job, source: Source, sampling: Sampling, plan: Plan) -> Sample:
    """The pairs that a plan was made from, and its queries.

    Raises:
        CorruptFile: the pairs are gone, and the gallery that they were drawn from is not there any more.
    """
    pairs = load_pairs(context.files, plan.pairs)
    if pairs is None:
        raise CorruptFile(
            f"{context.files.root}/{stage_folder('pairs', plan.pairs)}: gone, and plan {plan.plan} was made from it. "
            "Restore the folder from a copy, or choose another output."
        )
    asked = _asked(context, sampling, source)
    asked.read()
    embed_first(context, job, list(asked.groups.values()), sampling.resources)
    taken = load_pairs(context.files, _name_of_taken(plan.pairs, asked)) if len(asked.answers) else None
    pairs = pairs if taken is None else pairs.with_added(taken)
    new_dim = job.spaces["new"].dim
    queries = asked.queries(plan.snapshot, new_dim) or audit_queries(pairs, sampling.seed)
    per_added = _answers_per_added(context.files, _name_of_taken(plan.pairs, asked), asked.answers, pairs)
    notes = asked.notes(len(pairs.ids) - pairs.size)
    return Sample(pairs, queries, asked.logged(new_dim), notes, answers_per_added=per_added)


def _without(units: Iterable[Unit], known: KnownPairs) -> Iterator[Unit]:
    """The units without the pairs that are known."""
    for unit in units:
        offsets = tuple(offset for offset in unit.offsets or () if offset not in known.get(unit.unit, {}))
        if offsets:
            yield unit.model_copy(update={"offsets": offsets, "rows": len(offsets)})


def audit_queries(pairs: PairedItems, seed: int) -> Queries:
    """A sample of the audit items as queries: what is used where no queries are given."""
    sampled = pairs.part("audit").as_queries().sample(MAX_QUERIES, seed)
    # Of the pairs that were drawn, those that could be embedded: the same ones, or other queries.
    name = fingerprint([pairs.fingerprint, ids_digest(sampled.ids.tolist())])
    return replace(sampled, fingerprint=f"audit-{name}")


def embed_first(context: Context, job: Job, units: Sequence[UnitGroup], resources: ResourcesConfig) -> None:
    """Embed what is missing of pairs and queries in one execution of the pool: models load once.

    Raises:
        QuarantineExceeded: too many rows of the pairs, or of the queries, could not be embedded.
        EmbedderError: all of them, or the model cannot be built.
    """
    groups = {group.folder: group for group in units}
    missing = [unit for group in groups.values() for unit in group.missing]
    if not missing:
        return
    rows = sum(group.rows for group in groups.values())
    done = rows - sum(unit.rows for unit in missing)
    blocks = in_blocks(missing, BlockLimits.of(resources, None))
    roles = {unit.role for group in groups.values() for unit in group.units}
    waits_for = loads(job, missing, min(context.engine.num_actors(resources), len(missing)))
    try:
        what = "items and queries" if "query" in roles else "items"
        with (
            context.progress.stage("pairs", rows, what, done, waits_for) as bar,
            closing(context.engine.run_pool(pool_work(job), blocks, resources)) as pool,
        ):
            for unit, receipt in pool:
                groups[unit.folder].add(unit, receipt)
                bar.advance(unit.rows)
    except (EmbedderError, QuarantineExceeded):
        for group in groups.values():
            group.withdraw()
        raise
