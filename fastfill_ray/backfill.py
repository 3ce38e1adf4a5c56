"""The run, top to bottom: ``next_step(state)`` decides, ``run_backfill()`` acts and appends.

    config -> snapshot -> pairs -> train -> choose -> score -> PLAN -> version 0 -> wave 1 -> ... -> wave W (or stop)
    a version = build segments -> evaluate -> VERSION (metrics, verdict) -> PUBLISH, unless held
    a wave    = embed its chunks (receipts) -> a version

The choice comes before the scores: maps, orders and calibrations are compared on the pairs alone, then the winner
scores the gallery once. A stage that is done has left a receipt and does nothing. Resuming is calling it again: what
is done is known from the log and the receipts, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TextIO

from fastfill_ray import process
from fastfill_ray.config import BackfillConfig, StopConfig, load_config
from fastfill_ray.engine.interface import Engine
from fastfill_ray.errors import (
    CorruptFile,
    InputChanged,
    StorageError,
    TooManyRemoved,
)
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.inputs.classifier import read_classifier
from fastfill_ray.inputs.gallery import Source
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.log.carry import Kept, what_is_kept
from fastfill_ray.log.next_step import Step, next_step
from fastfill_ray.log.records import Init, Plan, Publish
from fastfill_ray.log.state import State
from fastfill_ray.log.stop import decide_stop
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.schedule import Schedule, check_until, parse_until
from fastfill_ray.report.result import BackfillResult
from fastfill_ray.report.write import write_report
from fastfill_ray.stages import preflight
from fastfill_ray.stages.adoption import Inputs
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.beginning import Beginning, count_carried, with_carried
from fastfill_ray.stages.carry import Carried, Wanted, carry_over
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.digests import Digests
from fastfill_ray.stages.embed import Job, Models, make_job
from fastfill_ray.stages.hook import tell
from fastfill_ray.stages.known import Known, read_known
from fastfill_ray.stages.ledger import take_snapshot
from fastfill_ray.stages.mend import can_be_made_again, check_sources, mend_named, set_aside
from fastfill_ray.stages.order import OrderConfig, choose_order, metric_note, train_order, with_mapped_queries
from fastfill_ray.stages.plan import Request, follow_plan, make_plan, wave_units
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.quarantine import UnitGroup
from fastfill_ray.stages.sample import Sample, Sampling, sample, sample_again
from fastfill_ray.stages.score import score, scores_before
from fastfill_ray.stages.segments import missing_files
from fastfill_ray.stages.snapshot import Snapshot, read_snapshot, source_of
from fastfill_ray.stages.trial import try_models
from fastfill_ray.stages.version import VersionMaker
from fastfill_ray.stages.waves import Waves, item_seconds, overrun_rows, standing_of
from fastfill_ray.stages.work import WorkList, read_work_list
from fastfill_ray.storage.commit_log import Log
from fastfill_ray.storage.files import open_files, probe, remove_leftovers
from fastfill_ray.storage.heartbeat import Heartbeat
from fastfill_ray.storage.paths import DERIVED, snapshot_path, stage_folder, wave_folder, work_of
from fastfill_ray.storage.receipts import Receipt

logger = logging.getLogger(__name__)


def run_backfill(
    config: BackfillConfig | Mapping[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    until: str | None = None,
    take_over: bool = False,
    allow_removals: bool = False,
    stream: TextIO | None = None,
) -> BackfillResult:
    """Run a backfill, or resume it: the same call does what is not done yet.

    Uses the process's Ray if it is initialised, else what ``ray.init()`` finds or starts.

    Args:
        config: a YAML file's path, a mapping, or a ready config.
        overrides: ``a.b=c`` strings on top of it.
        until: "plan", "version0" or "wave:K": stop after it, resumable.
        take_over: start although another driver is alive on the output; the claim then fences it.
        allow_removals: take items out that the gallery lacks, however many they are.
        stream: where progress goes; stderr by default.

    Raises:
        FastfillError: see ``fastfill_ray.errors``; nothing that was written before is harmed by any of them.
    """
    # It takes seconds to import; runs on another engine, and calls that find nothing to do, need not wait for it.
    from fastfill_ray.engine.ray_engine import RayEngine

    return _run(
        load_config(config, overrides),
        RayEngine(),
        until=until,
        take_over=take_over,
        allow_removals=allow_removals,
        stream=stream,
    )


def _run(
    config: BackfillConfig,
    engine: Engine,
    *,
    until: str | None = None,
    take_over: bool = False,
    allow_removals: bool = False,
    stream: TextIO | None = None,
) -> BackfillResult:
    """``run_backfill`` on any engine."""
    last_wave = parse_until(until, config.waves)
    preflight.check_endpoint(config)
    endpoint = config.storage.s3_endpoint
    files, store = open_files(config.output, s3_endpoint=endpoint), InputStore(endpoint, config.storage.anonymous)
    progress = Progress(stream)
    alone = Heartbeat(files, take_over=take_over, doing=lambda: progress.doing)
    context = Context(engine, files, store, progress)
    return _Run(config, context, last_wave, allow_removals=allow_removals).act(alone)


class _Run:
    """One call of ``run_backfill``: the stages in the order of the figure, each handed its part of the config."""

    def __init__(
        self, config: BackfillConfig, context: Context, last_wave: int | None, *, allow_removals: bool
    ) -> None:
        self.config, self.context, self.last_wave = config, context, last_wave
        self.allow_removals = allow_removals
        self.models = Models(config.new_model, config.old_model)
        self.log = Log(context.files)
        self._epoch: int | None = None
        self.damaged: set[str] = set()  # paths under the root that this call has found damaged
        self._mended: set[str] = set()  # the work whose outcome they were, whatever it is called the next time
        self.told: int | None = None  # the record that the user's command was run for last, whether or not it failed
        self.unfit: int | None = None  # a version that was committed, but cannot be published any more
        self.inputs = Inputs(config, context)
        self._schedule: Schedule | None = None  # known once the rows are

    @property
    def schedule(self) -> Schedule:
        """Pairs and waves of the plan to be made, or to go on with."""
        assert self._schedule is not None
        return self._schedule

    @property
    def request(self) -> Request:
        """What this call is asked for."""
        return self.inputs.request

    def act(self, alone: Heartbeat) -> BackfillResult:
        """Do what is not done yet. What is found damaged or gone under the root is made again, once.

        Args:
            alone: entered before anything is written, and until nothing will be any more.
        """
        process.describe(self._where)
        with ExitStack() as at_the_end:
            at_the_end.callback(process.describe, str)
            take_place = cache(lambda: at_the_end.enter_context(alone))
            while True:
                try:
                    if (result := self._act(take_place)) is not None:
                        return result
                    self.inputs.adopt("the gallery has changed", self._waves_made())
                except InputChanged as error:
                    if not self.inputs.can_adopt(self._waves_made()):
                        raise
                    self.inputs.adopt(str(error), self._waves_made())
                except TooManyRemoved as error:
                    if not self.inputs.go_on_as_before(str(error), self._waves_made()):
                        raise
                except StorageError as error:
                    fresh = [path for path in error.paths if work_of(path) not in self._mended]
                    if not fresh or not all(
                        can_be_made_again(self.context.files, self.log.state, path) for path in fresh
                    ):
                        raise
                    self.damaged.update(fresh)
                    self._mended.update(map(work_of, fresh))
                    set_aside(self.context, error)

    def _act(self, take_place: Callable[[], Heartbeat]) -> BackfillResult | None:
        """None where the gallery is to be adopted as it is by now, before this goes on."""
        config, context, log = self.config, self.context, self.log
        files = context.files
        state = log.read()
        if state.plan is not None and state.plan.request == self.request.fingerprint:
            check_until(self.last_wave, state.plan.waves)
        step = self._next(state)
        logger.info("%s: %d versions so far, next: %s", config.output, len(state.versions), step)
        if step.do == "publish":
            take_place()
            state = self._publish_late(state)
            step = self._next(state)
        if step.do == "stop":
            if state.plan is not None:
                self._report(state)
            self._tell(state)
            return self._result(state)
        while self.inputs.unsaid:
            context.progress.say(self.inputs.unsaid.pop(0))
        kept = None
        if step.do == "plan":
            kept = what_is_kept(state, self.request.settings, self.request.inputs)
        inspected = self._preflight(kept)
        alone = take_place()
        self._tell(state)
        context.progress.say(f"gallery: {inspected}")
        objective = preflight.say_objective(context.store, config, inspected)
        schedule = self.schedule.describe(config.pairs.count, config.waves)
        context.progress.say(f"{schedule}; objective: {objective}")
        probe(files)  # before a cluster is waited for
        with context.engine.session(context.progress.say):
            if alone.take_over and state.init is not None:
                self._claim()  # fences the other driver before it does more that this one would do again
            remove_leftovers(files)
            done = self._make_what_is_next(state, step, inspected, kept)
        return self._result(log.state) if done else None

    def _make_what_is_next(self, state: State, step: Step, inspected: Snapshot, kept: Kept | None) -> bool:
        """The figure from the snapshot on: everything up to the basis of a plan, a plan if it is time for one, and its
        versions.

        Returns:
            False where the gallery has changed between two of them.
        """
        context, log = self.context, self.log
        unfinished = state.plan if step.do == "version" else None
        root = self._root(state, unfinished, kept)
        source = source_of(context.store, self.config, inspected)
        limit = self.config.quarantine.limit(inspected.rows)
        cut = None if unfinished is None else unfinished.sources.get("snapshot")
        init = preflight.spaces_of(self.config, inspected, log.state.init)
        preflight.check_bound(self.config.output, state.init, init)
        job = make_job(source, context.files, self.config.queries, self.models)
        try_models(context, job, inspected.gallery.files, self.config, state.plan)
        # Once there is something to compare with, what came is read once: for its ids and for its digests.
        before = self._known_before(state)
        digests = Digests(source, payloads=before.unversioned > 0) if state.plan else None
        snapshot = take_snapshot(context, inspected, source, limit=limit, cut=cut, beside=digests)
        if state.plan is not None and step.do == "plan":
            changes = preflight.changed_settings(self.request.settings, state.plan.settings)
            context.progress.say(f"a new plan, {snapshot.rows:,} items: {changes}")
        sampled = self._sample(snapshot, source, job, before, root)
        carried = None
        if step.do == "plan":  # before anything is chosen: the choice predicts versions that begin with it
            as_it_is = kept if kept is not None and kept.is_indexed_as(self.request.settings) else None
            wanted = Wanted(self.request.settings, sampled.pairs.fingerprint, init.new_space)
            carried = carry_over(context, source, snapshot, state, as_it_is, before, wanted)
        sampled, begins = self._begin(snapshot.rows, sampled, carried, root or unfinished)
        basis = self._basis(snapshot, source, sampled, init, unfinished, root, begins)
        # Only now is anything bound: a model that cannot be built, or returns another dim, leaves no trace.
        preflight.check_bound(self.config.output, log.initialise(init).init, init)
        if self._next(log.state).do == "plan":
            log.append(self._plan(basis, kept, carried))
            self._report(log.state)  # people decide by it before the waves are paid for
        if (plan := log.state.plan) is not None:
            mend_named(context, basis, log.state, self.damaged)
            return self._make_versions(plan, basis, job, sampled.receipts)
        return True

    def _root(self, state: State, unfinished: Plan | None, kept: Kept | None) -> Plan | None:
        """The plan that map, order and calibration are from, where that is another than the one to be made."""
        name = None
        if unfinished is not None:
            name = unfinished.follows
        elif kept is not None and kept.follows:
            name = kept.plan.root
        return None if name is None else next(plan for plan in state.plans if plan.plan == name)

    def _begin(
        self, rows: int, sampled: Sample, carried: Carried | None, plan: Plan | None
    ) -> tuple[Sample, Beginning]:
        """What is new in version 0 of the plan whose order it is, and the sample that knows what of it is carried.

        Args:
            rows: of the gallery. carried: over to a plan that is to be made. plan: that the order was made for before.
        """
        context, state = self.context, self.log.state
        if plan is not None:
            begins = Beginning.of_plan(plan, [each.plan for each in state.plans].index(plan.plan))
            pairs = with_carried(context, state, begins, sampled.pairs)
        elif carried is None:
            return sampled, Beginning.of_pairs(rows, self.schedule.num_pairs, len(state.plans))
        else:
            begins, pairs = count_carried(context, state, carried, sampled.pairs, sampled.offsets)
        return replace(sampled, pairs=pairs), begins

    def _plan(self, basis: Basis, kept: Kept | None, carried: Carried | None) -> Plan:
        """The plan for the gallery as it is now: what is new already is carried over."""
        context, number = self.context, len(self.log.state.plans)
        if carried is not None and kept is not None and not self.allow_removals:
            preflight.check_removed(self.config.gallery, carried.changes.removed, kept.base.rows)
        epoch = self._claim()
        if carried is not None and kept is not None and kept.follows:
            return follow_plan(context, basis, self.request, number, carried, kept, epoch)
        return make_plan(context, basis, self.request, number, carried, epoch)

    def _basis(
        self,
        snapshot: Snapshot,
        source: Source,
        sampled: Sample,
        init: Init,
        unfinished: Plan | None,
        root: Plan | None,
        begins: Beginning,
    ) -> Basis:
        """Maps trained, the choice made, every item scored; for an unfinished plan the same as it was made from.

        Args:
            root: the plan that all of this was done for before. begins: with what the plan whose order it is.
        """
        config = self.config
        order = self._order_config(snapshot, sampled)
        reverse = None
        if config.serving.old_queries == "mapped":
            sampled, reverse = with_mapped_queries(self.context, order, sampled, init)
        trained = train_order(self.context, order, sampled.pairs, init)
        scorer, decision = choose_order(self.context, order, source, sampled, trained, init, begins)
        trained_in = stage_folder("alignment", scorer.trained.fingerprint)
        made = {"choice": (decision.digest, "choice"), "alignment": (scorer.trained.weights.sha256, trained_in)}
        check_sources(unfinished or root, made)
        if root is None:
            scores = score(self.context, scorer, snapshot, sampled.offsets, sampled.added)
        else:
            scores = scores_before(self.context, scorer, root.scores)
        check_sources(unfinished or root, {"scores": (scores.digest, stage_folder("scores", scores.fingerprint))})
        return Basis(
            snapshot=snapshot,
            num_sampled=self.schedule.num_pairs,
            pair_offsets=sampled.offsets,
            known_pairs=sampled.known,
            pairs=sampled.pairs,
            queries=sampled.queries,
            decision=decision,
            scores=scores,
            objective=order.objective,
            waves=self.schedule.waves,
            index=config.index,
            begins=begins,
            taken=None if sampled.logged is None else sampled.logged.taken,
            notes={**sampled.notes, **metric_note(order, sampled, init)},
            reverse=reverse,
            answers_per_added=sampled.answers_per_added,
        )

    def _claim(self) -> int:
        """The epoch of this start, claimed when there is first something to append.

        A start that is refused, fails while it embeds, or finds everything done, leaves no record.

        Raises:
            Fenced: another driver has appended since this start read the log.
        """
        if self._epoch is None:
            self._epoch = self.log.claim(as_read=True)
        return self._epoch

    def _waves_made(self) -> int:
        """Versions that embedded something: by these it is told whether a run gets on."""
        return sum(version.cause == "wave" for version in self.log.state.versions)

    def _where(self) -> str:
        """What is done so far, for who ends the process now."""
        state, now = self.log.state, self.context.progress.now
        of = None if self._schedule is None else len(self._schedule.waves) + 1
        if state.plan is not None:
            of = len(state.plan.version_waves)
        made = "no version yet" if of is None else f"{len(state.plan_versions)} of {of} versions"
        return f"{self.config.output}: {made}" + (f"; {now}" if now else "")

    def _publish_late(self, state: State) -> State:
        """Publish what a driver committed before it died, unless files of it are gone since: the next version then
        builds them again.

        Raises:
            CorruptFile: files are gone, and this call makes no further version.
        """
        files, log, version = self.context.files, self.log, state.versions[-1]
        if not (gone := missing_files(files, version)):
            self._claim()
            state = log.append(Publish(version=version.version))
            self._report(state)
            self._tell(state)
            return state
        self.unfit = version.version
        what = f"version {version.version} is not published: {gone[0]} is damaged or gone"
        if self._next(state).do != "version":
            raise CorruptFile(f"{files.root}: {what}. Restore it from a copy, or roll back to another version.")
        self.context.progress.say(what)
        return state

    def _next(self, state: State) -> Step:
        """``next_step`` of this call."""
        if self.unfit is not None:  # as if it were published: what comes next is another version
            state = state.model_copy(update={"published": (*state.published, self.unfit)})
        return next_step(state, self.request.fingerprint, last_wave=self.last_wave, rule=self.config.stop)

    def _preflight(self, kept: Kept | None) -> Snapshot:
        """The gallery by its footers, once everything that can be refused before anything starts was looked at.

        Raises:
            ConfigError, InputError: names the key or column, what was found and what is expected.
        """
        config, plan = self.config, self.log.state.plan
        with self.context.progress.timed("inspect"):
            ordered = preflight.ordered_by(config.gallery, plan, self.request.fingerprint, kept)
            # As they were listed when the request was named: looked for once, and by the same pins.
            listings, before = self.inputs.listings, self._snapshot_before()
            inspected = preflight.inspect(self.context.store, config, listings, before, ordered)
            self._schedule = preflight.schedule_of(config, inspected.rows, ordered)
            check_until(self.last_wave, self._schedule.waves)
            _ = self._classifier  # one that cannot be read is refused here
        return inspected

    def _snapshot_before(self) -> Snapshot | None:
        """The gallery of the last plan: files that are pinned as in it are cut as in it."""
        plan = self.log.state.plan
        if plan is None or snapshot_path(plan.snapshot) in self.damaged:
            return None
        return read_snapshot(self.context.files, plan.snapshot)

    def _sample(self, snapshot: Snapshot, source: Source, job: Job, before: Known, root: Plan | None) -> Sample:
        """Pairs and queries with their vectors."""
        config, context = self.config, self.context
        sampling = Sampling(
            self.schedule.num_pairs,
            config.pairs.split,
            config.queries,
            self.models.fingerprints(),
            config.quarantine,
            config.resources,
            config.objective.relevance,
            config.seed,
        )
        if root is not None:
            return sample_again(context, job, source, sampling, root)
        return sample(context, job, source, snapshot, sampling, before)

    def _known_before(self, state: State) -> Known:
        """What was known when the last plan was made; nothing where that is damaged: receipts are read again then."""
        if state.plan is None or any(path.partition("/")[0] in DERIVED for path in self.damaged):
            return Known()
        return read_known(self.context.files, state.plan.known)

    def _order_config(self, snapshot: Snapshot, sampled: Sample) -> OrderConfig:
        config = self.config
        can_fuse = config.serving.stale_mode != "auto" or preflight.can_fuse(
            config, self.models, snapshot.old_dim, self.schedule.num_pairs
        )
        return OrderConfig(
            alignment=config.alignment,
            policy=config.policy,
            serving=config.serving,
            objective=sampled.answered_by(config.objective),
            waves=self.schedule.waves,
            can_fuse=can_fuse,
            classifier=self._classifier,
            use_gpu=config.resources.gpus_per_actor > 0,
            seed=config.seed,
        )

    def _make_versions(self, plan: Plan, basis: Basis, job: Job, pair_receipts: Mapping[str, Receipt]) -> bool:
        """Version 0, then the waves as one streaming execution: version k is built while the pool embeds wave k + 1.

        Returns:
            False where the gallery has changed since, and is to be adopted before the next version.
        """
        config, log, progress = self.config, self.log, self.context.progress
        waves: Waves | None = None
        maker: VersionMaker | None = None
        work = read_work_list(self.context.files, plan.units)
        try:
            while (step := self._next(log.state)).do != "stop":
                if step.do == "version":
                    newest = plan.newest_wave(len(log.state.plan_versions))
                    if newest > 0 and waves is None:
                        waves = self._begin_waves(plan, basis, work, job, newest)
                    known = {} if newest == 0 or waves is None else waves.receipts_until(newest)
                    receipts = {0: pair_receipts, **known}
                    if maker is None:
                        regression = config.serving.max_regression
                        maker = VersionMaker(self.context, basis, plan, work, self._claim(), regression, self.damaged)
                    version = maker.make(log.state, step.wave, receipts)
                    made = (*log.state.plan_versions, version)
                    decision = decide_stop(plan, made, config.stop, spent_before_s=log.state.spent_before_s)
                    log.append(version.model_copy(update={"stopped": decision.why if decision.stop else None}))
                    verdict = "published" if version.verdict.publish else "held"
                    progress.say(
                        f"version {version.version}: {version.fraction:.1%} new, {verdict}: "
                        f"{plan.objective} {version.verdict.reason}" + (f"; {decision.why}" if decision.why else "")
                    )
                else:
                    self._claim()
                    log.append(Publish(version=log.state.plan_versions[-1].version))
                self._report(log.state)
                self._tell(log.state)
                if step.do == "publish" and self._is_time_to_look(plan) and self.inputs.has_changed(basis.snapshot):
                    if waves is not None:
                        waves.drain(always=True)
                    return False
            if waves is not None:
                waves.drain()
            return True
        finally:
            if waves is not None:
                waves.close()

    def _report(self, state: State) -> None:
        write_report(self.context.files, state, self.config.resources.price_per_actor_hour)

    def _tell(self, state: State) -> None:
        """The user's command is told of what readers see; where it fails, the next change or start tells it again."""
        if state.readers_seq != self.told:
            self.told = state.readers_seq
            tell(self.context.files, state, self.config.serving.on_publish, self.context.progress.say)

    def _is_time_to_look(self, plan: Plan) -> bool:
        """Whether a changed gallery is adopted now: not once the last wave has begun."""
        left = len(plan.version_waves) - len(self.log.state.plan_versions)
        return self.config.gallery.follow and left >= 2 and self._next(self.log.state).do == "version"

    def _begin_waves(self, plan: Plan, basis: Basis, work: WorkList, job: Job, first: int) -> Waves:
        """Start the pool on all waves that this call makes, and on those of damaged segments, where vectors may be
        missing, too.
        """
        config, files = self.config, self.context.files
        units = wave_units(plan.plan, len(plan.waves), basis.snapshot, work)
        versions = self.log.state.plan_versions
        last = len(plan.waves) if self.last_wave is None else max(self.last_wave, first)
        segments = (
            [segment for version in versions[-1:] for segment in segments_of(files, version)] if self.damaged else []
        )
        damaged = {segment.wave for segment in segments if {file.path for file in segment.files} & self.damaged}
        groups = {
            wave: UnitGroup(files, wave_folder(plan.plan, wave), f"wave {wave}", units[wave], config.quarantine)
            for wave in [*sorted(damaged & set(range(1, first))), *range(first, last + 1)]
        }
        standing = standing_of(files, plan, versions, groups)
        return Waves(self.context, job, groups, config.resources, standing, may_stop=config.stop != StopConfig())

    @cached_property
    def _classifier(self) -> Classifier | None:
        """The new model's own, None where none is given."""
        new = self.config.new_model
        return None if new.classifier is None else read_classifier(self.context.store, new.classifier, dim=new.dim)

    def _result(self, state: State) -> BackfillResult:
        plan, versions = state.plan, state.plan_versions
        stopped, overrun, item_s = None, 0, None
        if plan is not None:
            if not state.finished:
                item_s = item_seconds(self.context.files, plan, versions)
            decision = decide_stop(plan, versions, self.config.stop, spent_before_s=state.spent_before_s)
            if decision.stop:
                stopped, overrun = decision.why, overrun_rows(self.context.files, plan, versions[-1].wave)
        seconds = dict(self.context.progress.seconds)
        price = self.config.resources.price_per_actor_hour
        return BackfillResult(self.config.output, state, state.finished, seconds, stopped, overrun, item_s, price)
