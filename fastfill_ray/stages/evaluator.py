"""What is measured of one plan: its arms, its versions, and whether a version may replace what is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.candidate import Objective, stand_in
from fastfill_ray.experiment.prior import best_strength, with_prior
from fastfill_ray.experiment.versions import ShadowVersions, sought_share
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.gate import judge
from fastfill_ray.log.records import FileRef, FlipValue, MetricValue, Plan, Segment, Verdict, Version
from fastfill_ray.retrieval.calibration import OrderCalibration
from fastfill_ray.retrieval.metrics import measure as measure_scores
from fastfill_ray.retrieval.ranking import complete_depth
from fastfill_ray.retrieval.relevance import label_matches
from fastfill_ray.stages import measure
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.build import Bucket
from fastfill_ray.stages.common import common_items
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.evaluate import GallerySearch, PerRelevance, search_segments
from fastfill_ray.stages.keys import read_pair_keys
from fastfill_ray.stages.measure import PerQuery
from fastfill_ray.stages.old_index import Place, search_old
from fastfill_ray.stages.progress import Work
from fastfill_ray.stages.shadows import ShadowPlan, shadow_versions
from fastfill_ray.storage.paths import stage_output
from fastfill_ray.storage.refs import put_content
from fastfill_ray.types import F32, F64, Split

# The old index as it is, asked with mapped queries: no backfill at all (Drift-Adapter; Vejendla, EMNLP 2025).
QUERY_MAP = "query map"
# Behind the name of an arm: with a prior of what users took.
PRIOR = " + prior"


class Served(NamedTuple):
    """The version that is published, and the plan that it was made by."""

    version: Version
    plan: Plan


class Evaluator:
    """Measures on the shadow gallery of the audit items, and on the index with the given queries.

    Args:
        cuts: the keys at which waves end.
        first_share: of the items that are new from version 0 on; carried_share: by an earlier plan; see ``Plan``.
    """

    def __init__(
        self, context: Context, basis: Basis, cuts: Sequence[int], first_share: float, carried_share: float
    ) -> None:
        self._context, self._basis, self._cuts = context, basis, cuts
        self._first_share, self._carried_share = first_share, carried_share
        num_audit = basis.pairs.part("audit").size
        in_gallery = complete_depth(basis.snapshot.rows, len(basis.queries.ids))
        self._depth = {"audit": num_audit, "gallery": in_gallery}
        self._search = GallerySearch(basis.queries, basis.metric, in_gallery, keep=in_gallery < basis.snapshot.rows)

    @cached_property
    def _audit(self) -> ShadowVersions:
        return self._shadow("audit")

    @cached_property
    def _calibration(self) -> ShadowVersions:
        return self._shadow("calibration")

    @cached_property
    def _plan(self) -> ShadowPlan:
        basis = self._basis
        keys = read_pair_keys(self._context.files, basis.scores.pair_keys)
        first, known = self._first_share, (basis.queries, basis.pairs, basis.answers_per_added)
        sought = sought_share(*known, first, self._carried_share)
        return ShadowPlan(self._cuts, basis.waves, first, sought, keys, basis.fusion)

    def _shadow(self, split: Split) -> ShadowVersions:
        basis = self._basis
        return shadow_versions(basis.pairs, split, basis.queries, basis.scorer, self._plan)

    def arms(
        self, plan: str, buckets: Mapping[int, Bucket]
    ) -> tuple[dict[str, tuple[MetricValue, ...]], FileRef | None]:
        """The arms' means, and old/old per query.

        old/old is measured in both scopes where queries have old vectors; new/new on the audit shadow (in the gallery
        it is the last version). Where queries' old vectors are mapped, that is the arm *query map* and no old/old.
        Where a log says what was taken, both are also measured there with a prior of it.

        Raises:
            ConfigError: no query has a relevant item, so that the objective measures nothing.
        """
        basis, shadow = self._basis, self._audit.shadow
        arms: dict[str, tuple[MetricValue, ...]] = {}
        per_query = None
        if shadow.old is not None:
            old: PerQuery = self._on_audit(shadow.old, calibrated=True)
            if basis.queries.old is not None and self._has_answers:
                places = [[(place.chunk, place.file) for place in bucket] for bucket in buckets.values()]
                merged = self._search_old(places)
                old |= {("gallery", name, True): values for name, values in merged.items()}
            if basis.reverse is None:
                arms["old/old"] = self.means(old)
                per_query = self.keep(old, plan, "old-old.parquet")
            else:  # what users had before is not known any more
                arms[QUERY_MAP] = self.means(old)
        new: PerQuery = self._on_audit(shadow.new, calibrated=True)
        arms["new/new"] = self.means(new)
        arms |= {f"{name}{PRIOR}": self.means(values) for name, values in self._with_prior().items()}
        self._check_answerable(arms)
        return arms, per_query

    def _with_prior(self) -> dict[str, PerQuery]:
        """The arms with a prior of what was taken, on the audit shadow; its strength is chosen on the other one."""
        basis, objective = self._basis, self._basis.objective
        shadows = self._audit.shadow, self._calibration.shadow
        if basis.taken is None or any(objective.relevance not in shadow.relevant for shadow in shadows):
            return {}
        arms: dict[str, PerQuery] = {}
        for name, of_audit, of_calibration in (
            ("old/old" if basis.reverse is None else QUERY_MAP, self._audit.shadow.old, self._calibration.shadow.old),
            ("new/new", self._audit.shadow.new, self._calibration.shadow.new),
        ):
            if of_audit is None or of_calibration is None:
                continue
            calibration, audit = (
                basis.taken.of_items(basis.pairs.part(split).id_hash) for split in ("calibration", "audit")
            )
            relevant = self._calibration.shadow.relevant[objective.relevance]
            strength = best_strength(of_calibration, calibration, relevant, objective.metric)
            values = self._on_audit(with_prior(of_audit, audit, strength), calibrated=True)
            key = "audit", objective.relevance, True
            arms[name] = {key: values[key]}
        return arms

    def _search_old(self, buckets: Sequence[Sequence[Place]]) -> PerRelevance:
        """The old index with every query, per query."""
        context, source = self._context, self._basis.scorer.source
        rows = sum(chunk.rows for bucket in buckets for chunk, _ in bucket)
        with context.progress.shown(Work("search the old vectors", rows, "items")) as bar:
            return search_old(context.engine, context.files, source, buckets, self._search, bar.advance)

    def fit(self, wave: int, plan: Plan) -> OrderCalibration:
        """The calibration of a version's stale scores, for the objective or for what stands in for it."""
        objective = self._basis.objective
        asked = Objective(objective.relevance, objective.metric)
        fitted_by = asked if plan.fitted_by in (None, asked.relevance) else stand_in(asked)
        return self._calibration.fit(wave, fitted_by, plan.form)

    def calibrated(self, segments: Sequence[Segment], calibration: OrderCalibration) -> list[Segment]:
        """The segments as they are served: a stale one's whole wave as the wave's middle is, new ones as they are."""
        middles = self._calibration.middles
        return [
            segment.model_copy(update={"calibration": calibration.at(float(middles[segment.wave]))})
            if segment.state == "stale"
            else segment
            for segment in segments
        ]

    def measure(self, segments: Sequence[Segment], wave: int, calibration: OrderCalibration) -> PerQuery:
        """A version per query, in every scope and relevance there is, as served and with raw scores."""
        values: PerQuery = {}
        state = self._audit.state(wave)
        for calibrated, applied in ((True, calibration), (False, OrderCalibration())):
            values |= self._on_audit(state.under(applied), calibrated=calibrated)
        if self._has_answers:
            both, context = (True, False), self._context
            with context.progress.shown(Work("search the version", len(segments), "segments")) as bar:
                merged = search_segments(context.engine, context.files, segments, self._search, both, bar.advance)
            for calibrated, relevances in zip(both, merged, strict=True):
                values |= {("gallery", name, calibrated): metrics for name, metrics in relevances.items()}
        return values

    def _on_audit(self, scores: F32, *, calibrated: bool) -> PerQuery:
        """One state of the audit shadow by its scores (Q, N)."""
        by_relevance = measure_scores(scores, self._audit.shadow.relevant)
        return {("audit", name, calibrated): metrics for name, metrics in by_relevance.items()}

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

    def judge(
        self,
        plan: Plan,
        serving: Served | None,
        segments: Sequence[Segment],
        values: PerQuery,
        max_regression: float,
        path_of: Callable[[Segment], str],
    ) -> Verdict:
        """The gate, on the index with the given queries; on the audit shadow where those have no such relevance.

        Args:
            serving: what is published now; None for the first version, which is held against old/old.
            segments, values: of the version that is judged.
            path_of: for deletion vectors; see ``stages.common``.
        """
        objective = self._basis.objective
        scope = "gallery" if ("gallery", objective.relevance, True) in values else "audit"
        now = values[scope, objective.relevance, True][objective.metric]
        if np.isnan(now).all():
            raise _unanswerable(objective.relevance)
        decide = partial(judge, max_regression=max_regression, seed=self._basis.seed)
        if serving is None:
            before = self._kept(plan.baseline_queries, scope)
            return decide(now, before, against="old/old")
        against = f"version {serving.version.version}"
        if serving.plan.plan == plan.plan:
            return decide(now, self._kept(serving.version.query_metrics, scope), against=against)
        if scope == "audit":
            return decide(now, self._on_same_audit(serving.version), against=against)
        before_segments = segments_of(self._context.files, serving.version)
        if not self._can_search(serving.plan, plan, before_segments):
            return decide(now, None, against=against)
        both = common_items(self._context, before_segments, segments, path_of)
        if not both.items:
            return Verdict(publish=True, reason=f"{against} has no item that this one has, nothing to compare")
        now, before = (self._objective_of(each) for each in (both.now, both.before))
        return decide(now, before, against=f"{against}, on the {both.items:,} items that both have")

    def _kept(self, reference: FileRef | None, scope: str) -> F64 | None:
        """The objective per query of a version of this plan, or of old/old; None where nothing is kept."""
        if reference is None:
            return None
        queries = self._basis.queries.fingerprint
        return measure.read_objective(self._context.files, reference, queries, scope, self._basis.objective)

    def _on_same_audit(self, version: Version) -> F64 | None:
        """The objective per query of an earlier plan's version on the audit shadow: kept if pairs and queries are the
        same; else only a finished version is known, as all of it was new.
        """
        if (known := self._kept(version.query_metrics, "audit")) is not None:
            return known
        if version.new_rows != version.rows:
            return None
        objective = self._basis.objective
        values = self._on_audit(self._audit.shadow.new, calibrated=True)
        return values["audit", objective.relevance, True][objective.metric]

    def _can_search(self, earlier: Plan, plan: Plan, segments: Sequence[Segment]) -> bool:
        """Whether a version of an earlier plan can be measured again, with this plan's queries: not if it is fused and
        they have no old vectors any more, and not by labels of a column that its segments do not hold.
        """
        if self._basis.queries.old is None and any(segment.needs_old_queries for segment in segments):
            return False
        return self._basis.objective.relevance != "label" or _label_column(earlier) == _label_column(plan)

    def _objective_of(self, segments: Sequence[Segment]) -> F64:
        """The objective per query of segments as they are served."""
        objective = self._basis.objective
        [merged] = search_segments(self._context.engine, self._context.files, segments, self._search, [True])
        return merged[objective.relevance][objective.metric]

    @property
    def _has_answers(self) -> bool:
        """Whether the queries say what is right for them in the gallery."""
        return self._basis.queries.labels is not None or self._basis.queries.judged is not None

    def _check_answerable(self, arms: Mapping[str, Sequence[MetricValue]]) -> None:
        """Refuse an objective that nothing can be measured by: the gate would publish anything."""
        relevance, queries, pairs = self._basis.objective.relevance, self._basis.queries, self._basis.pairs
        answerable = True
        if relevance == "label" and queries.labels is not None and pairs.labels is not None:
            answerable = any(True for _ in label_matches(queries.labels, pairs.labels))
        elif relevance in ("qrels", "log") and "old/old" in arms:
            answerable = any(value.relevance == relevance for value in arms["old/old"])
        if not answerable:
            raise _unanswerable(relevance)


def _label_column(plan: Plan) -> object:
    """The column that the labels in a plan's segments are from."""
    gallery = plan.settings.get("gallery")
    return gallery.get("label_column") if isinstance(gallery, dict) else None


def _unanswerable(relevance: str) -> ConfigError:
    return ConfigError(
        f"objective.relevance is {relevance!r}, but no query has a relevant item in the gallery. Check that queries "
        "and gallery name labels or items alike and that these items have old vectors, or choose another relevance."
    )
