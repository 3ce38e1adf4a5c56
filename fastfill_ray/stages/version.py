"""From scores to PLAN, and from a wave's receipts to a VERSION: the bodies of the two records that matter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fastfill_ray.config import BackfillConfig
from fastfill_ray.errors import ConfigError, CorruptFile
from fastfill_ray.experiment.staged import Shadow
from fastfill_ray.log.gate import judge
from fastfill_ray.log.records import FileRef, FlipValue, MetricValue, Plan, Segment, Verdict, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import combine_digests
from fastfill_ray.ordering.partition import Chunk, cut_buckets
from fastfill_ray.ordering.waves import wave_middles, wave_targets
from fastfill_ray.retrieval.calibration import Calibration, OrderCalibration
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.stages import evaluate, measure
from fastfill_ray.stages.build import BucketWork, BuildJob, build, train_templates
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.evaluate import GallerySearch
from fastfill_ray.stages.measure import PerQuery
from fastfill_ray.stages.prepare import Prepared
from fastfill_ray.stages.progress import Progress
from fastfill_ray.stages.score import count_units, thresholds
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, stage_output, units_path, wave_folder
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import get_verified, put_file, sha256_hex
from fastfill_ray.types import F64, fingerprint


def make_plan(
    config: BackfillConfig,
    files: Files,
    ready: Prepared,
    state: State,
    request: str,
    settings: dict[str, object],
    progress: Progress,
) -> Plan:
    """Cut the order into waves, train the templates, measure the arms.

    The plan's number goes into its name: a request that comes back after another one is a plan of its own.

    Raises:
        ConfigError: the first wave ends below the pairs' share.
    """
    with progress.timed("plan"):
        rows, waves = ready.snapshot.rows, config.waves
        targets = wave_targets(waves, rows, config.pairs.count)
        cuts = thresholds(files, ready.scores, targets)
        counts = count_units(files, ready.scores, cuts, len(waves))
        mode, fusion = ("aligned", None) if ready.fusion is None else ("fused", ready.fusion.model_dump(mode="json"))
        decision = ready.decision
        name = fingerprint([ready.scores.fingerprint, request, len(state.plans), mode, fusion, decision.form])
        stale_factory = config.index.stale_factory or config.index.factory
        chunks, numbers = np.nonzero(counts)
        table = pa.table({"chunk": chunks, "wave": numbers, "rows": counts[chunks, numbers]})
        data = table_bytes(table)
        units = put_file(files, units_path(name, sha256_hex(data)), data)
        templates = train_templates(
            files, ready.pairs, ready.scorer, name, config.index.factory, stale_factory, ready.fusion
        )
    with progress.timed("arms"):
        arms, queries = _measure_arms(config, files, ready, cuts, name)
        _check_answerable(config, ready, arms)
    return Plan(
        plan=name,
        request=request,
        settings=settings,
        snapshot=ready.snapshot.fingerprint,
        pairs=ready.pairs.fingerprint,
        alignment=ready.scorer.trained.fingerprint,
        scores=ready.scores.fingerprint,
        method=decision.method,
        policy=decision.policy,
        stale_mode="aligned" if ready.fusion is None else "fused",
        fusion=ready.fusion,
        waves=waves,
        thresholds=tuple(cuts),
        wave_rows=tuple(counts.sum(axis=0).tolist()),
        rows=rows,
        ids_digest=ready.scores.ids_digest,
        unusable_rows=ready.scores.unusable,
        factory=config.index.factory,
        stale_factory=stale_factory,
        segment_rows=config.index.segment_rows,
        units=units,
        templates=templates,
        objective=f"{config.objective.relevance}/{config.objective.metric}",
        baselines=arms,
        baseline_queries=queries,
        choices=decision.told,
        form=decision.form,
        fitted_by=decision.chosen_by,
        prediction=decision.prediction,
        choice=decision.choice,
    )


def _measure_arms(
    config: BackfillConfig, files: Files, ready: Prepared, cuts: Sequence[int], name: str
) -> tuple[dict[str, tuple[MetricValue, ...]], FileRef | None]:
    """old/old in both scopes where old query vectors exist; new/new on the audit shadow (it is the last version)."""
    shadow = _shadow(ready, "audit", cuts, ready.fusion)
    arms = {}
    reference = None
    depth = _depths(ready)
    if shadow.old is not None:
        values: PerQuery = {("audit", name, True): found for name, found in shadow.per_query(shadow.old).items()}
        if ready.queries.old is not None and _has_truth(ready):
            files_of = ready.snapshot.gallery.files
            buckets = [
                [(chunk, files_of[chunk.file]) for chunk in bucket]
                for bucket in cut_buckets(ready.snapshot.chunks, segment_rows=config.index.segment_rows)
            ]
            search = GallerySearch(ready.queries, config.new_model.metric, depth["gallery"])
            merged = evaluate.search_old(ready.scorer.source, buckets, search)
            values |= {("gallery", name, True): found for name, found in merged.items()}
        arms["old/old"] = _means(config, ready, values)
        data = measure.query_table(values, ready.queries.fingerprint)
        reference = put_file(files, stage_output("evaluation", name, "old-old.parquet", sha256_hex(data)), data)
    values = {("audit", name, True): found for name, found in shadow.per_query(shadow.new).items()}
    arms["new/new"] = _means(config, ready, values)
    return arms, reference


def _means(config: BackfillConfig, ready: Prepared, values: PerQuery) -> tuple[MetricValue, ...]:
    """Over all queries, then per group of the queries."""
    depth, groups = _depths(ready), ready.queries.groups
    per_group = measure.group_values(values, depth, config.seed, groups, config.objective.metric)
    return measure.metric_values(values, depth, config.seed) + per_group


def _shadow(ready: Prepared, split: str, cuts: Sequence[int], fusion: Fusion | None) -> Shadow:
    share = len(ready.pairs.ids) / ready.snapshot.rows
    middles = wave_middles(ready.waves, share)
    return evaluate.shadow_of(ready.pairs.part(split), ready.queries, ready.scorer, cuts, middles, share, fusion)


def _check_answerable(config: BackfillConfig, ready: Prepared, arms: Mapping[str, Sequence[MetricValue]]) -> None:
    """Refuse an objective that nothing can be measured by: the gate would publish anything."""
    relevance, queries = config.objective.relevance, ready.queries
    answerable = True
    if relevance == "label" and queries.labels is not None and ready.pairs.labels is not None:
        answerable = bool((set(queries.labels.tolist()) - {None}) & set(ready.pairs.labels.tolist()))
    elif relevance == "qrels" and "old/old" in arms:
        answerable = any(value.relevance == relevance for value in arms["old/old"])
    if not answerable:
        raise _unanswerable(relevance)


def _unanswerable(relevance: str) -> ConfigError:
    return ConfigError(
        f"objective.relevance is {relevance!r}, but no query has a relevant item in the gallery. Check that queries "
        "and gallery name labels or items alike, or choose another relevance."
    )


def _has_truth(ready: Prepared) -> bool:
    return ready.queries.labels is not None or ready.queries.judged is not None


def _depths(ready: Prepared) -> dict[str, int]:
    audit = int((ready.pairs.split == "audit").sum())
    return {"audit": audit, "gallery": evaluate.complete_depth(ready.snapshot.rows, len(ready.queries.ids))}


@dataclass
class VersionMaker:
    """Builds and measures the versions of one plan, in wave order."""

    config: BackfillConfig
    files: Files
    ready: Prepared
    plan: Plan
    epoch: int
    progress: Progress

    def __post_init__(self) -> None:
        ready, cuts, fusion = self.ready, self.plan.thresholds, self.plan.fusion
        self._audit = _shadow(ready, "audit", cuts, fusion)
        self._calibration = _shadow(ready, "calibration", cuts, fusion)
        self._counts = read_units(self.files, self.plan)
        self._buckets = cut_buckets(ready.snapshot.chunks, segment_rows=self.plan.segment_rows)

    def units(self, wave: int) -> list[Unit]:
        """The units of one wave, in chunk order."""
        snapshot, scores = self.ready.snapshot, self.ready.scores
        return [
            Unit(
                unit=chunk_unit(chunk.index),
                folder=wave_folder(self.plan.plan, wave),
                file=snapshot.gallery.files[chunk.file],
                start=chunk.start,
                length=chunk.rows,
                rows=self._counts[chunk.index, wave],
                role="item",
                model="new",
                wave=wave,
                scores=scores.chunks[chunk.index],
            )
            for chunk in snapshot.chunks
            if (chunk.index, wave) in self._counts
        ]

    def make(self, state: State, wave: int, receipts: Mapping[int, Receipt]) -> Version:
        """The VERSION after `wave`; its segments are durable, its verdict is reached, nothing is published yet.

        Args:
            receipts: {chunk: receipt} of the wave (of the pairs for wave 0).
        """
        start = time.monotonic()
        segments = self._segments(state, wave, dict(receipts))
        self._check_complete(segments)
        with self.progress.timed("evaluate"):
            served = self._fit(wave)
            segments = [
                segment.model_copy(update={"calibration": self._calibration_of(segment, served)})
                if segment.state == "stale"
                else segment
                for segment in segments
            ]
            values = self._measure(segments, wave, served)
            data = measure.query_table(values, self.ready.queries.fingerprint)
            path = stage_output("evaluation", self.plan.plan, f"wave-{wave:02d}.parquet", sha256_hex(data))
            per_query = put_file(self.files, path, data)
        new_rows = sum(segment.rows for segment in segments if segment.state == "new")
        rows = sum(segment.rows for segment in segments)
        worked = sum(receipt.seconds for receipt in receipts.values())
        return Version(
            version=len(state.versions),
            plan=self.plan.plan,
            wave=wave,
            segments=tuple(segments),
            rows=rows,
            new_rows=new_rows,
            quarantined=sum(self.plan.wave_rows[: wave + 1]) - new_rows,
            absent=self.plan.rows - rows,
            fraction=new_rows / self.plan.rows,
            ids_digest=combine_digests(segment.ids_digest for segment in segments),
            metrics=_means(self.config, self.ready, values),
            query_metrics=per_query,
            verdict=self._judge(state, values),
            seconds=worked + time.monotonic() - start,
            final=wave == len(self.plan.waves),
            embed_seconds=worked,
            flips=self._flips(state, values),
        )

    def _segments(self, state: State, wave: int, receipts: dict[int, Receipt]) -> list[Segment]:
        """Version 0 builds everything; a later one replaces the stale segments of its wave by new ones."""
        scores, files = self.ready.scores, self.ready.snapshot.gallery.files
        last = len(self.plan.waves) + 1
        work = []
        for number, bucket in enumerate(self._buckets):
            mine = {chunk.index: receipts[chunk.index] for chunk in bucket if chunk.index in receipts}
            residual = any(receipt.quarantined for receipt in mine.values())
            if wave > 0 and not mine:
                continue
            chunks: list[Chunk] = bucket if wave == 0 else [chunk for chunk in bucket if chunk.index in mine]
            work.append(
                BucketWork(
                    bucket=number,
                    chunks=tuple((chunk, files[chunk.file], scores.chunks[chunk.index]) for chunk in chunks),
                    new_waves=(wave,),
                    stale_waves=tuple(range(last + 1)) if wave == 0 else (wave,) if residual else (),
                    receipts={wave: mine},
                )
            )
        plan = self.plan
        job = BuildJob(self.ready.scorer, plan.plan, plan.thresholds, dict(plan.templates), self.epoch, plan.fusion)
        built = build(job, work, self.progress, f"build {wave}")
        if wave == 0:
            return built
        kept = [
            segment for segment in state.plan_versions[-1].segments if (segment.wave, segment.state) != (wave, "stale")
        ]
        return sorted([*kept, *built], key=lambda segment: (segment.bucket, segment.wave, segment.state))

    def _check_complete(self, segments: Sequence[Segment]) -> None:
        """Every item exactly once: by count, and by digest where no item is absent."""
        rows = sum(segment.rows for segment in segments)
        absent = self.plan.rows - rows
        if not 0 <= absent <= self.plan.unusable_rows:
            raise CorruptFile(
                f"plan {self.plan.plan}: the segments hold {rows} rows, {self.plan.rows} are planned and at most "
                f"{self.plan.unusable_rows} may be absent. Nothing was committed."
            )
        digest = combine_digests(segment.ids_digest for segment in segments)
        if absent == 0 and digest != self.plan.ids_digest:
            raise CorruptFile(
                f"plan {self.plan.plan}: the segments' ids digest is {digest}, planned is {self.plan.ids_digest}. "
                "Nothing was committed."
            )

    def _fit(self, wave: int) -> OrderCalibration:
        """How this version's stale scores are served, for the objective, or for what stands in for it."""
        relevance, metric = self.plan.objective.split("/")
        relevance = self.plan.fitted_by or relevance
        return self._calibration.fit(wave, relevance, metric, self.plan.form, self.config.seed)

    def _calibration_of(self, segment: Segment, served: OrderCalibration) -> Calibration:
        """Of a stale segment: its whole wave is served as the wave's middle is."""
        place = float(self._calibration.middles[segment.wave])
        return Calibration(scale=served.scale, offset=served.offset + served.slope * place)

    def _measure(self, segments: Sequence[Segment], wave: int, served: OrderCalibration) -> PerQuery:
        values: PerQuery = {}
        for calibrated, serving in ((True, served), (False, OrderCalibration())):
            for name, found in self._audit.at(wave, serving).items():
                values["audit", name, calibrated] = found
        if _has_truth(self.ready):
            both = (True, False)
            for calibrated, merged in zip(both, self._search(segments, both), strict=True):
                values |= {("gallery", name, calibrated): found for name, found in merged.items()}
        return values

    def _search(self, segments: Sequence[Segment], calibrated: Sequence[bool]) -> list[dict[str, dict[str, F64]]]:
        search = GallerySearch(self.ready.queries, self.config.new_model.metric, _depths(self.ready)["gallery"])
        return evaluate.search_segments(self.files, segments, search, calibrated)

    def _flips(self, state: State, values: PerQuery) -> tuple[FlipValue, ...]:
        """Against old/old and the version before in this plan, where their values per query are known."""
        earlier = state.plan_versions[-1].query_metrics if state.plan_versions else None
        references = {"old/old": self.plan.baseline_queries, "version before": earlier}
        before = {
            against: measure.read_values(self.files, reference, self.ready.queries.fingerprint)
            for against, reference in references.items()
            if reference is not None
        }
        return measure.flip_values(values, before, self.config.seed)

    def _judge(self, state: State, values: PerQuery) -> Verdict:
        """The gate, on the published index with the given queries; on the audit shadow where that has no such truth."""
        objective = self.config.objective
        scope = "gallery" if ("gallery", objective.relevance, True) in values else "audit"
        now = values[scope, objective.relevance, True][objective.metric]
        if np.isnan(now).all():
            raise _unanswerable(objective.relevance)
        serving = state.version(state.serving) if state.serving is not None else None
        against = "old/old" if serving is None else f"version {serving.version}"
        before = self._before(serving, scope)
        return judge(
            now, before, against=against, max_regression=self.config.serving.max_regression, seed=self.config.seed
        )

    def _before(self, serving: Version | None, scope: str) -> F64 | None:
        """The objective per query on what users have; None where that cannot be known.

        A version of an earlier plan was measured on other queries, so it is measured again: its segments are searched
        with this plan's queries; not if it is fused and they have no old vectors any more. On the audit shadow only a
        finished one can be told: all of it was new.
        """
        objective, ready = self.config.objective, self.ready
        reference = self.plan.baseline_queries if serving is None else serving.query_metrics
        if reference is None:
            return None
        known = measure.read_objective(self.files, reference, ready.queries.fingerprint, scope, objective)
        if known is not None or serving is None:
            return known
        if scope == "gallery":
            if ready.queries.old is None and any(segment.needs_old_queries for segment in serving.segments):
                return None
            [merged] = self._search(serving.segments, [True])
            return merged[objective.relevance][objective.metric]
        if serving.new_rows == serving.rows:
            return self._audit.per_query(self._audit.new)[objective.relevance][objective.metric]
        return None


def read_units(files: Files, plan: Plan) -> dict[tuple[int, int], int]:
    """{(chunk, wave): rows} of the plan's work list."""
    table = read_table(get_verified(files, plan.units), name=plan.units.path)
    keys = zip(table.column("chunk").to_pylist(), table.column("wave").to_pylist(), strict=True)
    return dict(zip(keys, table.column("rows").to_pylist(), strict=True))
