"""What is measured of one plan: its arms, its versions, and whether a version may replace what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.staged import Shadow
from fastfill_ray.log.gate import judge
from fastfill_ray.log.records import FileRef, FlipValue, MetricValue, Plan, Segment, Verdict, Version
from fastfill_ray.ordering.partition import cut_buckets
from fastfill_ray.ordering.waves import wave_middles
from fastfill_ray.retrieval.calibration import Calibration, Served
from fastfill_ray.stages import measure
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.evaluate import Ask, complete_depth, search_old, search_segments, shadow_of
from fastfill_ray.stages.measure import PerQuery
from fastfill_ray.storage.paths import stage_output
from fastfill_ray.storage.refs import put_content
from fastfill_ray.types import F64


class Evaluator:
    """Measures on the shadow gallery of the audit items, and on the index with the given queries.

    Args:
        cuts: the keys at which waves end.
    """

    def __init__(self, context: Context, basis: Basis, cuts: Sequence[int]) -> None:
        self._context, self._basis, self._cuts = context, basis, cuts
        num_audit = int((basis.pairs.split == "audit").sum())
        in_gallery = complete_depth(basis.snapshot.rows, len(basis.queries.ids))
        self._depth = {"audit": num_audit, "gallery": in_gallery}
        self._ask = Ask(basis.queries, basis.metric, in_gallery)

    @cached_property
    def _audit(self) -> Shadow:
        return self._shadow("audit")

    @cached_property
    def _calibration(self) -> Shadow:
        return self._shadow("calibration")

    def _shadow(self, split: str) -> Shadow:
        basis = self._basis
        share = basis.pairs_share
        middles = wave_middles(basis.waves, share)
        part = basis.pairs.part(split)
        return shadow_of(part, basis.queries, basis.scorer, self._cuts, middles, share, basis.fusion)

    def arms(self, plan: str) -> tuple[dict[str, tuple[MetricValue, ...]], FileRef | None]:
        """The arms' means, and old/old per query.

        old/old is measured in both scopes where queries have old vectors; new/new on the audit shadow (in the gallery
        it is the last version).

        Raises:
            ConfigError: no query has a relevant item, so that the objective measures nothing.
        """
        basis, shadow = self._basis, self._audit
        arms: dict[str, tuple[MetricValue, ...]] = {}
        per_query = None
        if shadow.old is not None:
            old: PerQuery = {("audit", name, True): values for name, values in shadow.per_query(shadow.old).items()}
            if basis.queries.old is not None and self._has_truth:
                pinned = basis.snapshot.gallery.files
                buckets = [
                    [(chunk, pinned[chunk.file]) for chunk in bucket]
                    for bucket in cut_buckets(basis.snapshot.chunks, segment_rows=basis.index.segment_rows)
                ]
                merged = search_old(self._context.engine, basis.scorer.source, buckets, self._ask)
                old |= {("gallery", name, True): values for name, values in merged.items()}
            arms["old/old"] = self.means(old)
            per_query = self.keep(old, plan, "old-old.parquet")
        new: PerQuery = {("audit", name, True): values for name, values in shadow.per_query(shadow.new).items()}
        arms["new/new"] = self.means(new)
        self._check_answerable(arms)
        return arms, per_query

    def fit(self, wave: int, plan: Plan) -> Served:
        """How the stale scores of a version are served, for the objective, or for what stands in for it."""
        relevance, _, metric = plan.objective.partition("/")
        return self._calibration.fit(wave, plan.fitted_by or relevance, metric, plan.form, self._basis.seed)

    def calibrated(self, segments: Sequence[Segment], served: Served) -> list[Segment]:
        """The segments as they are served: a stale one's whole wave as the wave's middle is, new ones as they are."""

        def of(segment: Segment) -> Calibration:
            place = float(self._calibration.middles[segment.wave])
            return Calibration(scale=served.scale, offset=served.offset + served.slope * place)

        return [s.model_copy(update={"calibration": of(s)}) if s.state == "stale" else s for s in segments]

    def measure(self, segments: Sequence[Segment], wave: int, served: Served) -> PerQuery:
        """A version per query, in every scope and relevance there is, as served and with raw scores."""
        values: PerQuery = {}
        for calibrated, serving in ((True, served), (False, Served())):
            for name, metrics in self._audit.at(wave, serving).items():
                values["audit", name, calibrated] = metrics
        if self._has_truth:
            both = (True, False)
            merged = search_segments(self._context.engine, self._context.files, segments, self._ask, both)
            for calibrated, relevances in zip(both, merged, strict=True):
                values |= {("gallery", name, calibrated): metrics for name, metrics in relevances.items()}
        return values

    def means(self, values: PerQuery) -> tuple[MetricValue, ...]:
        """Over all queries, then per group of the queries."""
        basis = self._basis
        per_group = measure.group_values(values, self._depth, basis.seed, basis.queries.groups, basis.objective.metric)
        return measure.metric_values(values, self._depth, basis.seed) + per_group

    def keep(self, values: PerQuery, plan: str, name: str) -> FileRef:
        """Store values per query, for comparisons with later versions."""
        data = measure.query_table(values, self._basis.queries.fingerprint)
        return put_content(self._context.files, partial(stage_output, "evaluation", plan, name), data)

    def flips(self, plan: Plan, before: Version | None, values: PerQuery) -> tuple[FlipValue, ...]:
        """Against old/old and the version before in this plan, where their values per query are known."""
        kept = {"old/old": plan.baseline_queries, "version before": before.query_metrics if before else None}
        files, queries = self._context.files, self._basis.queries.fingerprint
        known = {
            against: measure.read_values(files, reference, queries)
            for against, reference in kept.items()
            if reference is not None
        }
        return measure.flip_values(values, known, self._basis.seed)

    def judge(self, plan: Plan, serving: Version | None, values: PerQuery, max_regression: float) -> Verdict:
        """The gate, on the index with the given queries; on the audit shadow where those have no such relevance.

        Args:
            serving: the version that is published now; None for the first one, which is held against old/old.
        """
        objective = self._basis.objective
        scope = "gallery" if ("gallery", objective.relevance, True) in values else "audit"
        now = values[scope, objective.relevance, True][objective.metric]
        if np.isnan(now).all():
            raise _unanswerable(objective.relevance)
        against = "old/old" if serving is None else f"version {serving.version}"
        before = self._before(plan, serving, scope)
        return judge(now, before, against=against, max_regression=max_regression, seed=self._basis.seed)

    def _before(self, plan: Plan, serving: Version | None, scope: str) -> F64 | None:
        """The objective per query on what users have; None where that cannot be known.

        A version of an earlier plan was measured on other queries, so it is measured again: its segments are searched
        with this plan's queries; not if it is fused and they have no old vectors any more. On the audit shadow only a
        finished one can be told: all of it was new.
        """
        files, queries, objective = self._context.files, self._basis.queries, self._basis.objective
        reference = plan.baseline_queries if serving is None else serving.query_metrics
        if reference is None:
            return None
        known = measure.read_objective(files, reference, queries.fingerprint, scope, objective)
        if known is not None or serving is None:
            return known
        if scope == "gallery":
            if queries.old is None and any(segment.needs_old_queries for segment in serving.segments):
                return None
            [merged] = search_segments(self._context.engine, files, serving.segments, self._ask, [True])
            return merged[objective.relevance][objective.metric]
        if serving.new_rows == serving.rows:
            return self._audit.per_query(self._audit.new)[objective.relevance][objective.metric]
        return None

    @property
    def _has_truth(self) -> bool:
        """Whether the queries say what is right for them in the gallery."""
        return self._basis.queries.labels is not None or self._basis.queries.judged is not None

    def _check_answerable(self, arms: Mapping[str, Sequence[MetricValue]]) -> None:
        """Refuse an objective that nothing can be measured by: the gate would publish anything."""
        relevance, queries, pairs = self._basis.objective.relevance, self._basis.queries, self._basis.pairs
        answerable = True
        if relevance == "label" and queries.labels is not None and pairs.labels is not None:
            answerable = bool((set(queries.labels.tolist()) - {None}) & set(pairs.labels.tolist()))
        elif relevance == "qrels" and "old/old" in arms:
            answerable = any(value.relevance == relevance for value in arms["old/old"])
        if not answerable:
            raise _unanswerable(relevance)


def _unanswerable(relevance: str) -> ConfigError:
    return ConfigError(
        f"objective.relevance is {relevance!r}, but no query has a relevant item in the gallery. Check that queries "
        "and gallery name labels or items alike, or choose another relevance."
    )
