"""What `auto` does: candidates compared by the objective on the calibration split, simple ones first.

Every comparison is cross-fitted: the queries are cut into two folds, calibrations are fitted on one and measured on the
other, so nothing is ever fitted and compared on the same query. It begins with few queries; rivals that the paired
difference does not tell apart get twice as many, until it does or all are used. Within one standard error of the best
the simplest is taken.

Legend: Q queries, N items of the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastfill_ray.experiment.candidate import Allowed, Candidate, MapView, Objective
from fastfill_ray.experiment.curves import KNOTS, Backfill, published_cutoffs
from fastfill_ray.experiment.curves import POINTS as POINTS_OF_REPORTS
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.items import Queries
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.retrieval.calibration import FORMS, Form, fit_queries
from fastfill_ray.retrieval.intervals import JACKKNIFE_GROUPS, Interval, jackknife_interval
from fastfill_ray.types import F64

# What the first comparisons look at: they only have to keep the best among the kept.
FIRST_QUERIES, COARSE_POINTS, COARSE_KNOTS = 200, 6, (0.1, 0.4, 0.8)
POINTS = 10
KEPT_MAPS, KEPT_MODES, KEPT_ORDERS = 3, 3, 6
# Rivals behind the best by more standard errors than this get no more queries; of the others, so many at the most.
_HOPELESS, MOST_RIVALS = 2.0, 16
# Stale scores that are kept at the most: 160 MiB with their order.
_KEPT_SCORES = 1 << 24
# `fused` asks users for the old model's query vectors until the end: it has to be worth more than this.
LEAST_FUSED_GAIN = 4e-3
# Maps that keep their norms have to win by more: what is fitted to them at the size of the calibration split carries
# over worse to larger galleries (glyphs, three times as large: 1.5 points of overlap@10).
LEAST_NORMS_KEPT_GAIN = 1e-2


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried: its cross-fitted area under the objective's curve, over so many queries.

    Areas compare among trials of one stage and one number of queries.
    """

    candidate: Candidate
    area: float
    stage: str
    queries: int


@dataclass(frozen=True)
class Choice:
    """The winner, the runner-up and everything that was tried, the last comparison first and the best first in it.

    runner_up: the best that differs in more than the form; None where nothing else is allowed.
    expected: the winner's cross-fitted area over all queries, with the 95 % interval of ``jackknife_interval``.
    """

    winner: Candidate
    runner_up: Candidate | None
    expected: Interval
    trials: tuple[Trial, ...]


class Watcher(Protocol):
    """Who looks how far a choice is."""

    def begin(self, part: str, total: int) -> None:
        """The next stage, and how many candidates it compares."""
        ...

    def advance(self, amount: int = 1) -> None:
        """So many more are compared."""
        ...


class Unwatched:
    """Nobody looks."""

    def begin(self, part: str, total: int) -> None: ...

    def advance(self, amount: int = 1) -> None: ...


def handicap(candidate: Candidate) -> float:
    """By how much of the area a candidate has to win, because of what it asks of users or risks."""
    fused = LEAST_FUSED_GAIN if candidate.weight < 1 else 0.0
    return fused + (LEAST_NORMS_KEPT_GAIN if candidate.view.norms_kept else 0.0)


@dataclass(frozen=True, eq=False)
class _Level:
    """Some queries in two folds, each with its shadow; what is traced on them, and how finely."""

    queries: tuple[Queries, Queries]
    shadows: tuple[Shadow, Shadow]
    knots: tuple[float, ...]
    points: int

    @property
    def count(self) -> int:
        return sum(len(queries.ids) for queries in self.queries)


class Race:
    """Compares candidates on one split by cross-fitted areas; everything that was measured is kept."""

    def __init__(self, split: HeldOut, objective: Objective, seed: int, watcher: Watcher | None = None) -> None:
        self._split, self._objective, self._seed = split, objective, seed
        self._watcher = watcher or Unwatched()
        self._queries = split.answered(objective.relevance)
        self._levels: dict[int, _Level] = {}
        self._areas: dict[tuple[int, Candidate], F64] = {}
        self._backfills: dict[tuple[int, int, MapView, float], tuple[Backfill, Backfill]] = {}
        self.trials: list[Trial] = []

    @property
    def last_level(self) -> int:
        """The level at which all queries are used; 1 at least, since level 0 looks at coarse curves."""
        return max(1, int(np.ceil(np.log2(max(len(self._queries.ids), 1) / FIRST_QUERIES))))

    def areas(self, candidate: Candidate, level: int, stage: str) -> F64:
        """The candidate's cross-fitted area per query (Q,) on the first FIRST_QUERIES * 2**level queries.

        One fold stands after the other: areas of one level are paired, their order is not that of the queries.
        """
        key = level, candidate
        if key not in self._areas:
            self._areas[key] = self._measure(candidate, level)
            at = self._level(level)
            self.trials.append(Trial(candidate, float(np.nanmean(self._areas[key])), stage, at.count))
        return self._areas[key]

    def expected(self, candidate: Candidate, points: int = POINTS_OF_REPORTS) -> F64:
        """The candidate's cross-fitted area per query (Q,) over all queries, at the published points."""
        return self._measure(candidate, self.last_level, points)

    def expectation(self, candidate: Candidate) -> Interval:
        """The mean of ``expected``, with a jackknife interval that covers the draw of items and queries."""
        areas = self.expected(candidate)
        self._backfills.clear()  # all candidates are compared: each group below needs the memory
        without = []
        self._watcher.begin("interval", JACKKNIFE_GROUPS)
        for group in range(JACKKNIFE_GROUPS):
            race = Race(self._split.without(group), self._objective, self._seed)
            without.append(float(np.nanmean(race.expected(candidate, COARSE_POINTS))))
            self._watcher.advance()
        return jackknife_interval(float(np.nanmean(areas)), without, int((~np.isnan(areas)).sum()))

    def ranked(self, candidates: Iterable[Candidate], level: int, stage: str) -> list[Candidate]:
        """Best first, handicaps counted; equal ones in the order given."""
        wanted = list(dict.fromkeys(candidates))
        self._watcher.begin(stage, len(wanted))
        known = {}
        for candidate in wanted:
            known[candidate] = float(np.nanmean(self.areas(candidate, level, stage))) - handicap(candidate)
            self._watcher.advance()
        return sorted(known, key=lambda c: -known[c])

    def behind(self, candidate: Candidate, best: Candidate, level: int, stage: str) -> tuple[float, float]:
        """By how much a candidate is behind the best, handicaps counted, and the paired standard error of that."""
        gap = self.areas(best, level, stage) - self.areas(candidate, level, stage)
        gap = gap[~np.isnan(gap)]
        error = float(gap.std(ddof=1)) / np.sqrt(len(gap)) if len(gap) > 1 else 0.0
        return float(gap.mean()) - handicap(best) + handicap(candidate), float(error)

    def hopeful(self, ranked: Sequence[Candidate], level: int, stage: str) -> list[Candidate]:
        """Those of a ranking that the paired difference does not tell from its best."""
        kept = []
        for candidate in ranked:
            gap, error = self.behind(candidate, ranked[0], level, stage)
            if gap <= _HOPELESS * error:
                kept.append(candidate)
        return kept

    def _level(self, level: int) -> _Level:
        if level not in self._levels:
            for old in [key for key in self._backfills if key[0] != level]:
                del self._backfills[old]
            count = min(FIRST_QUERIES << level, len(self._queries.ids))
            # The queries are shuffled by a hash of their ids: every other one is a fold by hash.
            folds = [self._queries.take(np.arange(first, count, 2)) for first in (0, 1)]
            shadows = [self._split.shadow(fold).only([self._objective.relevance]) for fold in folds]
            fine = level > 0
            self._levels[level] = _Level(
                (folds[0], folds[1]), (shadows[0], shadows[1]), KNOTS if fine else COARSE_KNOTS,
                POINTS if fine else COARSE_POINTS,
            )  # fmt: skip
        return self._levels[level]

    def _measure(self, candidate: Candidate, level: int, points: int | None = None) -> F64:
        """One fold after the other; `points` of the curves, None for those of the level."""
        at = self._level(level)
        folds = [self._backfill(candidate, level, fold) for fold in (0, 1)]
        cutoffs = published_cutoffs(folds[0][0].size, points or at.points)
        areas = []
        for fitted_on, measured_on in ((folds[1], folds[0]), (folds[0], folds[1])):
            fitted = fitted_on[1].fit(self._objective, candidate.form, at.knots)
            curve = measured_on[0].trace(fitted, cutoffs, metrics=[self._objective.metric])
            areas.append(curve.area_per_query(self._objective))
        return np.concatenate(areas)

    def _backfill(self, candidate: Candidate, level: int, fold: int) -> tuple[Backfill, Backfill]:
        """The candidate's backfill, and as the queries see it that a fit looks at.

        The last ones are kept while the level lasts, sorted, since many candidates share their scores.
        """
        at, key = self._level(level), (level, fold, candidate.view, candidate.weight)
        if key not in self._backfills:
            queries, shadow = at.queries[fold], at.shadows[fold]
            whole = self._split.backfill(candidate, queries, shadow)
            self._backfills[key] = whole, whole.first(fit_queries(self._objective.metric))
            while len(self._backfills) > 2 and sum(w.stale.size for w, _ in self._backfills.values()) > _KEPT_SCORES:
                del self._backfills[next(iter(self._backfills))]
        whole, few = self._backfills[key]
        order = self._split.order(candidate)
        return whole.ordered(order), few.ordered(order)


def choose(split: HeldOut, allowed: Allowed, objective: Objective, seed: int, watcher: Watcher | None = None) -> Choice:
    """The candidate whose backfill serves the objective best on the way, the simplest one within the noise.

    Stages: maps (random order, so that nothing but the map speaks) -> how much of the old score to keep -> orders
    together with forms of calibration -> the best of those on ever more queries.

    Args:
        split: the calibration split.
    """
    race = Race(split, objective, seed, watcher)
    alive, dropped = _shortlist(race, allowed, has_old=split.queries.old is not None)
    level, stage = 1, "final"
    while True:
        ranked = race.ranked(alive, level, stage)
        alive = race.hopeful(ranked, level, stage)[:MOST_RIVALS]
        dropped = [*(c for c in ranked if c not in alive), *dropped]  # who stayed longer stands before who left early
        if level == race.last_level or len(alive) == 1:
            break
        level += 1
    winner = _simplest(race, alive, level, stage, allowed)
    others = [c for c in [*alive, *dropped] if not c.same_but_form(winner)]
    expected = race.expectation(winner)
    trials = sorted(race.trials, key=lambda trial: (trial.stage != stage, -trial.queries, -trial.area))
    return Choice(winner, others[0] if others else None, expected, tuple(trials))


def _shortlist(race: Race, allowed: Allowed, *, has_old: bool) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates of the final: few maps, modes and orders, with their hopeful forms; and the others, best first."""
    weights = [weight for weight in allowed.weights if weight == 1 or has_old]
    first = 1.0 if 1.0 in weights else max(weights)
    simple: Form = "offset" if "offset" in allowed.forms else allowed.forms[0]
    rich: Form = "scale_offset" if "scale_offset" in allowed.forms else simple

    def form_of(weight: float) -> Form:
        # Scores of fused vectors have another spread than new ones; an offset alone cannot mend that.
        return simple if weight == 1 else rich

    def sure(candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those without a handicap. As many of them stay in the race as if nothing else were allowed, so that what
        has to win by a margin is held against what would be chosen without it."""
        return [c for c in candidates if c.weight == first and not c.view.norms_kept]

    def kept(candidates: list[Candidate], count: int) -> list[Candidate]:
        return list(dict.fromkeys([*candidates[:count], *sure(candidates)[:count]]))

    by_map = race.ranked((Candidate(view, first, "random", form_of(first)) for view in allowed.views), 0, "map")
    maps = kept(by_map, KEPT_MAPS)
    weighed = (Candidate(c.view, weight, "random", form_of(weight)) for c in maps for weight in weights)
    modes = list(dict.fromkeys([*race.ranked(weighed, 0, "stale mode")[:KEPT_MODES], *maps]))
    orders = [(c, policy) for c in modes for policy in allowed.policies]
    formed = (Candidate(c.view, c.weight, policy, form) for c, policy in orders for form in allowed.forms_of(policy))
    ranked = race.ranked(formed, 0, "order")
    hopeful = set(race.hopeful(ranked, 0, "order") + race.hopeful(sure(ranked), 0, "order"))
    best_forms = kept([c for i, c in enumerate(ranked) if not any(map(c.same_but_form, ranked[:i]))], KEPT_ORDERS)
    finalists = [c for c in ranked if c in hopeful and any(map(c.same_but_form, best_forms))]
    return finalists, [c for c in ranked if c not in finalists]


def _simplest(race: Race, alive: Sequence[Candidate], level: int, stage: str, allowed: Allowed) -> Candidate:
    """Of those within one paired standard error of the best the simplest: form, stale mode, order, cost of the map."""
    behind = {candidate: race.behind(candidate, alive[0], level, stage) for candidate in alive}

    def cost(candidate: Candidate) -> tuple[float, ...]:
        place = allowed.policies.index(candidate.policy), allowed.views.index(candidate.view)
        return FORMS.index(candidate.form), candidate.weight < 1, *place, behind[candidate][0]

    return min((candidate for candidate, (gap, error) in behind.items() if gap <= error), key=cost)
