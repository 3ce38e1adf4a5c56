"""What `auto` does: candidates compared by the objective on the calibration split, in stages, best ones jointly.

Stages: maps (random order, so that nothing but the map speaks) -> how much of the old score to keep -> orders -> forms
of calibration. Each stage keeps a few; an area under the objective's curve decides, and simpler wins what is not told
apart.

Legend: Q queries, N items of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, View
from fastfill_ray.experiment.curves import KNOTS, Curve, backfill_order, fit_knots, published_cutoffs, trace
from fastfill_ray.experiment.shadow import Scene, fuse_scores
from fastfill_ray.retrieval.calibration import FORMS, Form, Served
from fastfill_ray.types import F32, I64

# Shares of the aligned score that are tried where old query vectors exist; 0 is the old score alone.
WEIGHTS = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0)
# All but the last stage look at fewer states, queries and fits: they only have to keep the best among the kept.
COARSE_POINTS, COARSE_QUERIES, COARSE_KNOTS = 6, 300, (0.1, 0.4, 0.8)
POINTS, QUERIES = 10, 600
KEPT_MAPS, KEPT_MODES, KEPT_ORDERS = 3, 3, 5
KEPT_FORMS = 3  # orders that are tried with every form of calibration
# A gain of area below this is noise: the simpler candidate stays.
LEAST_GAIN = 5e-4
# `fused` asks users for the old model's query vectors until the end: it has to be worth more than this.
LEAST_FUSED_GAIN = 4e-3
# Views that have to win by more, such as maps that keep their norms: what is fitted to them at the size of the
# calibration split carries over worse to larger galleries (glyphs, three times as large: 1.5 points of overlap@10).
LEAST_CAUTIOUS_GAIN = 1e-2


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried: its area under the objective's curve on the calibration split.

    Areas compare within a stage only: the last one, `calibration`, looks at more queries and states than the others.
    """

    candidate: Candidate
    area: float
    stage: str


@dataclass(frozen=True)
class Choice:
    """The winner, the runner-up and everything that was tried, best first."""

    winner: Candidate
    runner_up: Candidate | None
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Allowed:
    """What may be chosen: what the config or the caller leaves open.

    cautious: those of `methods` that have to win by ``LEAST_CAUTIOUS_GAIN``.
    """

    methods: Sequence[str]
    policies: Sequence[str]
    weights: Sequence[float] = WEIGHTS
    forms: Sequence[Form] = FORMS
    cautious: Sequence[str] = ()


def choose(scene: Scene, views: Mapping[str, View], allowed: Allowed, relevance: str, metric: str, seed: int) -> Choice:
    """The candidate whose backfill serves the objective best on the way.

    Args:
        scene: the calibration split.
        views: by map; those of `allowed.methods` are looked at.
        relevance, metric: the objective.
    """
    answered = np.flatnonzero(scene.truths[relevance].counts)
    drawn = np.random.default_rng([seed, 13]).permutation(answered)
    trials: dict[tuple[bool, Candidate], Trial] = {}

    def area(candidate: Candidate, stage: str) -> float:
        fine = stage == "calibration"
        if (fine, candidate) not in trials:
            queries = np.sort(drawn[: QUERIES if fine else COARSE_QUERIES])
            knots, points = (KNOTS, POINTS) if fine else (COARSE_KNOTS, COARSE_POINTS)
            view, asked = views[candidate.method], scene.take(queries)
            stale, priority = view.stale[queries], view.priorities[candidate.policy]
            curve = run(asked, stale, priority, candidate, relevance, metric, seed=seed, points=points, knots=knots)
            trials[fine, candidate] = Trial(candidate, float(curve.mean(relevance, metric).mean()), stage)
        return trials[fine, candidate].area

    weights = [w for w in allowed.weights if w == 1 or scene.old is not None]
    first = 1.0 if 1.0 in weights else max(weights)
    simple: Form = "offset" if "offset" in allowed.forms else allowed.forms[0]
    rich: Form = "scale_offset" if "scale_offset" in allowed.forms else simple

    def form_of(weight: float) -> Form:
        # Scores of fused vectors have another spread than new ones; an offset alone cannot mend that.
        return simple if weight == 1 else rich

    def sure(candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those that need not win by a margin. As many of them stay in the race as if nothing else were allowed, so
        that what has to win by a margin is held against what would be chosen without it."""
        return [c for c in candidates if c.weight == first and c.method not in allowed.cautious]

    by_map = _best(
        (Candidate(method, first, "random", form_of(first)) for method in allowed.methods),
        lambda c: area(c, "map"),
        len(allowed.methods),
    )
    maps = list(dict.fromkeys([*by_map[:KEPT_MAPS], *sure(by_map)[:KEPT_MAPS]]))
    modes = _best(
        (Candidate(c.method, weight, "random", form_of(weight)) for c in maps for weight in weights),
        lambda c: area(c, "stale mode"),
        KEPT_MODES,
    )
    modes = list(dict.fromkeys([*modes, *maps]))
    tried = _best(
        (Candidate(c.method, c.weight, policy, c.form) for c in modes for policy in allowed.policies),
        lambda c: area(c, "order"),
        len(modes) * len(allowed.policies),
    )
    formed = dict.fromkeys([*tried[:KEPT_FORMS], *sure(tried)[:KEPT_FORMS]])
    final = [replace(c, form=form) for c in formed for form in allowed.forms]
    final += [*tried[:KEPT_ORDERS], *sure(tried)[:KEPT_ORDERS]]
    ranked = _best(final, lambda c: area(c, "calibration"), len(final))
    winner = ranked[0]
    if winner.method in allowed.cautious:
        worth = area(winner, "calibration") - LEAST_CAUTIOUS_GAIN
        bold = (c for c in ranked if c.method not in allowed.cautious and area(c, "calibration") >= worth)
        winner = next(bold, winner)
    if winner.weight < 1:
        worth = area(winner, "calibration") - LEAST_FUSED_GAIN
        plainer = (
            c for c in ranked if c.weight == 1 and area(c, "calibration") >= worth and c.method not in allowed.cautious
        )
        winner = next(plainer, winner)
    level = area(winner, "calibration") - LEAST_GAIN
    near = [c for c in ranked if replace(c, form=winner.form) == winner and area(c, "calibration") >= level]
    winner = min(near, key=lambda c: FORMS.index(c.form))
    others = [c for c in ranked if replace(c, form=winner.form) != winner]
    told = sorted(trials.values(), key=lambda trial: (trial.stage != "calibration", -trial.area))
    return Choice(winner, others[0] if others else None, tuple(told))


def run(
    scene: Scene,
    stale: F32,
    priority: F32,
    candidate: Candidate,
    relevance: str,
    metric: str,
    *,
    seed: int,
    points: int,
    knots: Sequence[float] = KNOTS,
) -> Curve:
    """A candidate's curve with calibrations fitted on the same scene: for comparing, not for reporting."""
    scores = fuse_scores(scene, stale, candidate.weight)
    order = backfill_order(priority, scene.id_hash)
    fitted = fit_knots(scene, scores, order, relevance, metric, candidate.form, seed=seed, knots=knots)
    cutoffs = published_cutoffs(len(order), points)
    return trace(scene, scores, order, fitted, cutoffs, knots=knots, relevances=[relevance])


def carry(
    fit_on: tuple[Scene, View],
    show_on: tuple[Scene, View],
    candidate: Candidate,
    relevance: str,
    metric: str,
    *,
    seed: int,
    cutoffs: Sequence[int] | None = None,
) -> tuple[Curve, list[Served]]:
    """A candidate's curve on one split (audit) under calibrations fitted on another one (calibration)."""
    scores, order = state_of(*fit_on, candidate)
    fitted = fit_knots(fit_on[0], scores, order, relevance, metric, candidate.form, seed=seed)
    scores, order = state_of(*show_on, candidate)
    cutoffs = published_cutoffs(len(order)) if cutoffs is None else cutoffs
    return trace(show_on[0], scores, order, fitted, cutoffs), fitted


def state_of(scene: Scene, view: View, candidate: Candidate) -> tuple[F32, I64]:
    """A candidate on one split: scores (Q, N) of its stale vectors before calibration, and its order (N,)."""
    scores = fuse_scores(scene, view.stale, candidate.weight)
    return scores, backfill_order(view.priorities[candidate.policy], scene.id_hash)


def _best(candidates: Iterable[Candidate], area: Callable[[Candidate], float], count: int) -> list[Candidate]:
    """The best `count`, best first; equal ones in the order given."""
    return sorted(dict.fromkeys(candidates), key=lambda c: -area(c))[:count]
