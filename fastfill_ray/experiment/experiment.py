"""The experiment behind `auto` and `simulate`: chosen on the calibration split, reported on the audit split.

One function serves both, so that they cannot disagree.

Legend: Q queries, N items of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import Allowed, Candidate, MapView, Objective, policies_allowed, stand_in
from fastfill_ray.experiment.curves import (
    Backfill,
    Curve,
    FittedCalibrations,
    cutoffs_at,
    published_cutoffs,
    stand_for_first,
)
from fastfill_ray.experiment.heldout import Evidence, HeldOut, hold_out
from fastfill_ray.experiment.items import MAX_QUERIES, MIN_QUERIES, Queries, asking
from fastfill_ray.experiment.prediction import predict_gallery, shares_before, stand_for
from fastfill_ray.experiment.search import Choice, Watcher, choose
from fastfill_ray.experiment.shadow import Measured, Shadow
from fastfill_ray.experiment.versions import ShadowVersions, sought_share
from fastfill_ray.ordering.policies import LOGGED, Policy
from fastfill_ray.ordering.waves import shares_of_order, wave_middles
from fastfill_ray.retrieval.calibration import FORMS, Form, MixedScores, fit_queries
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.types import F64, Bools, Objects, Relevance, Scope


@dataclass(frozen=True)
class Question:
    """What an experiment is asked.

    policies: the orders that may be chosen; None for all that the data allows and that suit the objective.
    weights: shares of the aligned score that may be chosen; those below 1 count only where queries have old vectors.
    fractions: shares of the gallery that are new in the versions of a run, first that of the pairs and of what is
        carried; empty where no curve of versions is to be predicted.
    report_all: also report every map with every order, and the winner with one thing changed.
    """

    objective: Objective
    weights: Sequence[float]
    policies: Sequence[Policy] | None = None
    forms: Sequence[Form] = FORMS
    fractions: tuple[float, ...] = ()
    report_all: bool = False


@dataclass(frozen=True)
class Reported:
    """A candidate's curve on the audit split, under calibrations that were fitted on the calibration split."""

    candidate: Candidate
    curve: Curve


@dataclass(frozen=True)
class Findings:
    """What the experiment says.

    chosen_by: the objective of the choice; another relevance than the one asked for where too few queries have an
    answer by that. shown_by: that of `margin`, and whether a query is among `queries`, which all curves and arms are
    of. old_scale: brings old scores to the spread of new ones. reported: winner and runner-up first.
    arms: {"old/old" where queries have old vectors, "new/new"} on the audit split. groups: (Q,) of the audit queries.
    margin: area of the winner minus that of the runner-up, paired over the audit queries. predicted: the winner's
    objective at the versions' fractions, by the objective `predicted_by` in the scope `predicted_in`.
    """

    choice: Choice
    chosen_by: Objective
    shown_by: Objective
    queries: Queries
    old_scale: float
    reported: tuple[Reported, ...]
    arms: Mapping[str, Measured]
    groups: Objects | None
    margin: Interval | None
    predicted: tuple[Interval, ...]
    predicted_by: Objective
    predicted_in: Scope

    def curve(self, candidate: Candidate) -> Curve:
        """The reported curve of a candidate."""
        return next(reported.curve for reported in self.reported if reported.candidate == candidate)


def run_experiment(evidence: Evidence, question: Question, watcher: Watcher | None = None) -> Findings:
    """Choose on the calibration split, report and predict on the audit split.

    Args:
        watcher: who looks how far it is.

    Raises:
        ConfigError: an order that is asked for reads what is not there.
    """
    objective, pairs = question.objective, evidence.pairs
    policies = policies_allowed(
        question.policies,
        objective.relevance,
        labelled=pairs.classes is not None,
        classified=evidence.classifier is not None,
        lists=pairs.has_label_lists,
        logged=evidence.logged is not None,
        taken=evidence.logged is not None and evidence.logged.taken is not None,
        prioritised=pairs.priority is not None,
    )
    allowed = Allowed(evidence.views, policies, question.weights, question.forms)
    calibration, audit = (
        _asked_enough(hold_out(evidence, split, policies), evidence.seed) for split in ("calibration", "audit")
    )
    chosen_by = _answerable(calibration, objective)
    choice = choose(calibration, allowed, chosen_by, evidence.seed, watcher)
    candidates = [choice.winner, *([] if choice.runner_up is None else [choice.runner_up])]
    if question.report_all:
        candidates += list(_variants(choice.winner, allowed, has_old=calibration.queries.old is not None))
    report = Report(calibration, audit, chosen_by, _answerable(audit, objective), evidence.seed)
    reported = tuple(Reported(candidate, report.curve(candidate)) for candidate in dict.fromkeys(candidates))
    margin = None
    if choice.runner_up is not None:
        first, second = (r.curve.area_per_query(report.shown_by) for r in reported[:2])
        margin = mean_interval(first - second, seed=evidence.seed)
    predicted, predicted_by, predicted_in = _predict(evidence, report, choice.winner, question)
    return Findings(
        choice=choice,
        chosen_by=chosen_by,
        shown_by=report.shown_by,
        queries=report._queries,
        old_scale=calibration.old_scale,
        reported=reported,
        arms=report.shadow.arms(),
        groups=report.shadow.groups,
        margin=margin,
        predicted=predicted,
        predicted_by=predicted_by,
        predicted_in=predicted_in,
    )


def _predict(
    evidence: Evidence, report: Report, winner: Candidate, question: Question
) -> tuple[tuple[Interval, ...], Objective, Scope]:
    """What is promised of every version, by which objective and of which scope.

    The published index is measured by labels and judgements; what the new model alone would return is known of the
    audit items only. Where the objective has too few answers among the pairs, that is promised.
    """
    objective, fractions = question.objective, question.fractions
    if objective.relevance != "new_model" and fractions and fractions[0] > 0:
        fitted = report.fit_versions(winner, fractions, evidence)
        predicted = predict_gallery(evidence, winner, fitted, objective, fractions)
        if predicted[0].queries >= MIN_QUERIES:
            return predicted, objective, "gallery"
    ordered = report.in_gallery(evidence, winner, objective, fractions)
    return ordered.predict(winner, fractions, evidence), ordered.shown_by, "audit"


class Report:
    """Candidates on the audit split, under calibrations that are fitted on the calibration queries, both folds."""

    def __init__(
        self, calibration: HeldOut, audit: HeldOut, fitted_by: Objective, shown_by: Objective, seed: int = 0
    ) -> None:
        self.fitted_by, self.shown_by = fitted_by, shown_by
        self._calibration, self._audit, self._seed = calibration, audit, seed
        few = calibration.answered(fitted_by.relevance).first(fit_queries(fitted_by.metric))
        self._queries = audit.answered(shown_by.relevance).first(MAX_QUERIES)
        self.shadow = audit.shadow(self._queries)
        self._of_calibration = _Backfills(calibration, few, calibration.shadow(few).only([fitted_by.relevance]))
        self._of_audit = _Backfills(audit, self._queries, self.shadow)
        self._fitted: dict[Candidate, FittedCalibrations] = {}
        self._of_versions: dict[tuple[Candidate, tuple[float, ...]], FittedCalibrations] = {}

    def fit(self, candidate: Candidate) -> FittedCalibrations:
        """The candidate's calibrations, on the calibration split."""
        if candidate not in self._fitted:  # the winner is reported and predicted
            self._fitted[candidate] = self._of_calibration.of(candidate).fit(self.fitted_by, candidate.form)
        return self._fitted[candidate]

    def fit_versions(self, candidate: Candidate, fractions: Sequence[float], evidence: Evidence) -> FittedCalibrations:
        """The candidate's calibrations as versions are served, whose share ``fractions[0]`` is new whatever the order.

        Orders by a log change what users see within the first items, and what users took is found or not as a few items
        are new: a calibration for after these serves version 0 badly. So it is fitted as the versions' are, and so it
        is where much is new in version 0 that no order has chosen. Otherwise a state changes so slowly that ``fit``
        does, by which predictions were tuned.
        """
        is_steady = candidate.policy not in LOGGED and self.fitted_by.relevance != "log"
        if is_steady and not evidence.carried_share:
            return self.fit(candidate)
        key = candidate, tuple(fractions)
        if key not in self._of_versions:  # at three shares each is predicted
            self._of_versions[key] = self._fit_versions(candidate, fractions, evidence)
        return self._of_versions[key]

    def _fit_versions(self, candidate: Candidate, fractions: Sequence[float], evidence: Evidence) -> FittedCalibrations:
        first, backfill = fractions[0], self._of_calibration.of(candidate)
        ends, pairs, counted = shares_of_order(fractions, first), evidence.pairs, self._calibration.items.counted
        # What was added has as much room in the split's order as in the gallery's, though half of it is in the split.
        per_added = (evidence.answers_per_added or 1.0) * (len(pairs.ids) - pairs.size) / max(int((~counted).sum()), 1)
        rows = round((1 - first) * pairs.size / max(evidence.pairs_share(first), 1e-9))
        in_order, items = stand_for(counted, rows, per_added), self._calibration.items
        if items.carried is not None:  # the order of the plan is one of what is left
            in_order = np.where(items.carried, 0.0, in_order)
        place = shares_before(backfill.order, in_order)
        versions = ShadowVersions(
            shadow=backfill.shadow,
            stale=backfill.stale,
            waves=(1 + np.searchsorted(ends[1:], place, side="right")).astype(np.int16),
            middles=wave_middles(fractions[1:], first),
            sampled=stand_for_first(items, first, pairs.carried_part, self._seed),
            sought_share=sought_share(
                self._calibration.queries, pairs, evidence.answers_per_added, first, evidence.carried_share
            ),
        )
        fitted = [versions.fit(wave, self.fitted_by, candidate.form) for wave in range(len(fractions))]
        return FittedCalibrations(tuple(ends), tuple(fitted))

    def curve(self, candidate: Candidate, cutoffs: Sequence[int] | None = None) -> Curve:
        """The candidate's curve on the audit split, at the 22 published points unless told otherwise."""
        backfill = self._of_audit.of(candidate)
        cutoffs = published_cutoffs(backfill.size) if cutoffs is None else cutoffs
        return backfill.trace(self.fit(candidate), cutoffs)

    def in_gallery(
        self, evidence: Evidence, candidate: Candidate, asked: Objective, fractions: Sequence[float]
    ) -> Report:
        """The same for one candidate, the audit items in the order that they have in the gallery.

        Args:
            asked: the objective that the experiment is asked.
        """
        if not fractions:
            return self
        maps = {candidate.view.method: evidence.maps[candidate.view.method]}
        share = evidence.pairs_share(fractions[0]) * self._audit.items.size / evidence.pairs.size
        audit = hold_out(replace(evidence, maps=maps), "audit", [candidate.policy], share)
        # By the users' queries however few they are: versions are measured by them.
        report = Report(self._calibration, audit, self.fitted_by, _answerable(audit, asked), self._seed)
        report._fitted, report._of_versions = self._fitted, self._of_versions  # by the same calibration queries
        return report

    def predict(self, candidate: Candidate, fractions: Sequence[float], evidence: Evidence) -> tuple[Interval, ...]:
        """The candidate at the fractions of a run's versions, as they will be measured on the audit items.

        Thresholds are those of the gallery, so that it is chance how many audit items a wave has. The intervals hold
        that, too: the curve is looked at where the share of new items is as small and as large as it may be.

        Args:
            fractions: shares of the gallery that are new; the first is that of the pairs and of what is carried.
        """
        if not fractions:
            return ()
        errors = share_errors(fractions, self._audit.items.size)
        fewer, more = (np.clip(np.array(fractions) + side * errors, fractions[0], 1).tolist() for side in (-1, 1))
        intervals = []
        for values, few, many in zip(
            *(self.at(candidate, shares, fractions, evidence) for shares in (fractions, fewer, more)), strict=True
        ):
            value, low, high, count = mean_interval(values, seed=evidence.seed)
            fewest, most = (mean_interval(other, seed=evidence.seed).value for other in (few, many))
            low = max(0.0, value - float(np.hypot(value - low, value - fewest)))
            high = min(1.0, value + float(np.hypot(high - value, most - value)))
            intervals.append(Interval(value, low, high, count))
        return tuple(intervals)

    def at(self, candidate: Candidate, shares: Sequence[float], fractions: Sequence[float], evidence: Evidence) -> F64:
        """The values (F, Q) of a candidate where shares (F,) of the items are new; fractions: of its versions."""
        backfill = self._of_audit.of(candidate)
        sampled = stand_for_first(self._audit.items, fractions[0], evidence.pairs.carried_part, evidence.seed)
        relevances: list[Relevance] = [self.shown_by.relevance]
        fitted = self.fit_versions(candidate, fractions, evidence)
        if evidence.carried_share:
            return self._of_rest(backfill, fitted, sampled, shares, fractions)
        cutoffs = cutoffs_at(backfill.sample, sampled, shares)
        curve = backfill.trace(fitted, cutoffs, relevances=relevances, sampled=sampled)
        return curve.values[self.shown_by.relevance, self.shown_by.metric]

    def _of_rest(
        self,
        backfill: Backfill,
        fitted: FittedCalibrations,
        sampled: Bools,
        shares: Sequence[float],
        fractions: Sequence[float],
    ) -> F64:
        """``at`` where much is carried: waves are shares of what is left, and an item's place, which forms by wave look
        at, is one in that.

        Args:
            sampled: (N,) items that are new in version 0.
        """
        counted = np.ones(len(sampled), bool) if backfill.counted is None else backfill.counted
        place = shares_before(backfill.order, (counted & ~sampled).astype(np.float64))
        waves = 1 + np.searchsorted(shares_of_order(fractions[1:], fractions[0]), place, side="right")
        position = wave_middles(fractions[1:], fractions[0])[waves]
        by, shadow = self.shown_by, backfill.shadow.only([self.shown_by.relevance])
        values = []
        for share in shares_of_order(shares, fractions[0]).tolist():
            state = MixedScores(backfill.stale, shadow.new, sampled | (place < share) | (share >= 1), position)
            values.append(shadow.measure(state.under(fitted.at(share)))[by.relevance, by.metric])
        return np.stack(values)


class _Backfills:
    """Backfills of one split as some queries see it. The last scores are kept, sorted: a map's orders share them."""

    def __init__(self, split: HeldOut, queries: Queries, shadow: Shadow) -> None:
        self._split, self._queries, self._shadow = split, queries, shadow
        self._last: tuple[MapView, float, Backfill] | None = None

    def of(self, candidate: Candidate) -> Backfill:
        """The candidate's backfill."""
        view, weight = candidate.view, candidate.weight
        if self._last is None or self._last[:2] != (view, weight):
            self._last = None  # not two at a time
            self._last = view, weight, self._split.backfill(candidate, self._queries, self._shadow)
        return self._last[2].ordered(self._split.order(candidate))


def share_errors(fractions: Sequence[float], size: int) -> F64:
    """How far the share of new items in a random sample of a gallery may be from the gallery's: half of 95 %, (F,).

    Args:
        fractions: of the gallery; the first is new whatever the order, and as large in the sample.
        size: items of the sample.
    """
    of_order = shares_of_order(fractions, fractions[0])
    errors: F64 = 1.96 * np.sqrt(np.clip(of_order * (1 - of_order), 0, None) * (1 - fractions[0]) / size)
    return errors


def _asked_enough(split: HeldOut, seed: int) -> HeldOut:
    """The split, asked by its own items where the queries are too few to decide anything."""
    return replace(split, queries=asking(split.queries, split.items).shuffled(seed))


def _answerable(split: HeldOut, objective: Objective) -> Objective:
    """The objective, or its stand-in where too few queries of the split have an answer."""
    enough = len(split.answered(objective.relevance).ids) >= MIN_QUERIES
    return objective if enough else stand_in(objective)


def _variants(winner: Candidate, allowed: Allowed, *, has_old: bool) -> Iterator[Candidate]:
    """Every map with every order as in the published method, but calibrated; and the winner with one thing changed, and
    the form with it where an order does not have it."""
    simple: Form = "offset" if "offset" in allowed.forms else allowed.forms[0]
    for view in allowed.views:
        for policy in allowed.policies:
            yield Candidate(view, 1.0, policy, simple)
    for form in allowed.forms_of(winner.policy):
        yield replace(winner, form=form)
    for weight in allowed.weights:
        if weight == 1 or has_old:
            yield replace(winner, weight=weight)
    for policy in allowed.policies:
        forms = allowed.forms_of(policy)
        yield replace(winner, policy=policy, form=winner.form if winner.form in forms else forms[-1])
