"""The experiment behind `auto` and `simulate`: chosen on the calibration split, reported on the audit split.

Legend: Q queries, N items of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, View
from fastfill_ray.experiment.curves import Curve, arm, fit_knots, published_cutoffs, trace
from fastfill_ray.experiment.search import Allowed, Choice, carry, choose, state_of
from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.types import F64, Bools


@dataclass(frozen=True)
class Split:
    """One held-out split: its scene, and every map's view of it."""

    scene: Scene
    views: Mapping[str, View]


@dataclass(frozen=True)
class Reported:
    """A candidate's curve on the audit split."""

    candidate: Candidate
    curve: Curve


@dataclass(frozen=True)
class Findings:
    """What the experiment says.

    old, new: {(relevance, metric): (Q,)} of the audit split before and after the backfill; old is None where queries
    have no old vectors. margin: area of the winner minus that of the runner-up, paired over the audit queries.
    """

    choice: Choice
    reported: tuple[Reported, ...]
    old: Mapping[tuple[str, str], F64] | None
    new: Mapping[tuple[str, str], F64]
    margin: Interval | None

    def curve(self, candidate: Candidate) -> Curve:
        return next(r.curve for r in self.reported if r.candidate == candidate)


def investigate(
    calibration: Split,
    audit: Split,
    allowed: Allowed,
    relevance: str,
    metric: str,
    *,
    seed: int,
    everything: bool,
    points: int | None = None,
) -> Findings:
    """Choose on one split, report on the other.

    Args:
        everything: also report every map with every order, and the winner's variants; else winner and runner-up alone.
        points: of the reported curves; None for the published 22.
    """
    scene = audit.scene
    relevance_of_choice = relevance if calibration.scene.answerable(relevance) else "new_model"
    choice = choose(calibration.scene, calibration.views, allowed, relevance_of_choice, metric, seed)
    wanted = [choice.winner, *([choice.runner_up] if choice.runner_up else [])]
    if everything:
        wanted += list(_variants(choice.winner, calibration.scene, allowed))
    cutoffs = published_cutoffs(len(scene.id_hash)) if points is None else published_cutoffs(len(scene.id_hash), points)
    reported = []
    for candidate in dict.fromkeys(wanted):
        curve, _ = carry(
            (calibration.scene, calibration.views[candidate.method]),
            (scene, audit.views[candidate.method]),
            candidate,
            relevance_of_choice,
            metric,
            seed=seed,
            cutoffs=cutoffs,
        )
        reported.append(Reported(candidate, curve))
    margin = None
    if choice.runner_up is not None and scene.answerable(relevance):
        first, second = (r.curve.area_per_query(relevance, metric) for r in reported[:2])
        margin = mean_interval(first - second, seed=seed)
    old = None if scene.old is None else arm(scene.old, scene)
    return Findings(choice, tuple(reported), old, arm(scene.new, scene), margin)


def _variants(winner: Candidate, scene: Scene, allowed: Allowed) -> Iterator[Candidate]:
    """Every map with every order as in the published method, but calibrated; and the winner with one thing changed."""
    simple: Form = "offset" if "offset" in allowed.forms else allowed.forms[0]
    for method in allowed.methods:
        for policy in allowed.policies:
            yield Candidate(method, 1.0, policy, simple)
    for form in allowed.forms:
        yield replace(winner, form=form)
    for weight in allowed.weights:
        if weight == 1 or scene.old is not None:
            yield replace(winner, weight=weight)
    for policy in allowed.policies:
        yield replace(winner, policy=policy)


def predicted(
    calibration: Split,
    audit: Split,
    candidate: Candidate,
    relevances: tuple[str, str],
    metric: str,
    fractions: Sequence[float],
    sampled: Bools,
    seed: int,
) -> tuple[Interval, ...]:
    """A candidate's curve at the fractions of a run's versions, on the audit split: what PLAN promises.

    Args:
        relevances: by which calibrations are fitted, and by which the curve is told.
        fractions: shares of the gallery that are new, pairs included.
        sampled: (N,) items that stand for the pairs, new from the start.
    """
    fitted_by, told_by = relevances
    scores, order = state_of(calibration.scene, calibration.views[candidate.method], candidate)
    fitted = fit_knots(calibration.scene, scores, order, fitted_by, metric, candidate.form, seed=seed)
    scene = audit.scene
    scores, order = state_of(scene, audit.views[candidate.method], candidate)
    new_at = np.concatenate([[0], np.cumsum(~sampled[order])]) + sampled.sum()  # new items after each cutoff
    cutoffs = [int(np.searchsorted(new_at, round(fraction * len(order)))) for fraction in fractions]
    cutoffs = [min(cutoff, len(order)) for cutoff in cutoffs]
    curve = trace(scene, scores, order, fitted, cutoffs, relevances=[told_by], sampled=sampled)
    return tuple(mean_interval(values, seed=seed) for values in curve.values[told_by, metric])


def authors_curve(scene: Scene, view: View, policy: str) -> Curve:
    """The published evaluation: raw scores, no calibration, items re-embedded by descending priority, 22 cutoffs.

    The scene must be theirs as well: queries = gallery, L2, self-matches excluded, every query.
    """
    order = np.argsort(-view.priorities[policy], kind="stable")
    return trace(scene, view.stale, order, fitted=[], cutoffs=published_cutoffs(len(order)))
