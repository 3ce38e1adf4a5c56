"""What is chosen where the best candidate is known, and that nothing is fitted and compared on the same query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastfill_ray.experiment import search
from fastfill_ray.experiment.candidate import Allowed, Candidate, MapView
from fastfill_ray.experiment.curves import Backfill, Curve, FittedCalibrations, published_cutoffs
from fastfill_ray.experiment.heldout import HeldOut
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.experiment.search import LEAST_FUSED_GAIN, POINTS, Choice, Race, choose
from fastfill_ray.ordering.policies import LOGGED, Policy
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.retrieval.intervals import JACKKNIFE_GROUPS
from fastfill_ray.types import F32, F64
from tests.experiment.splits import BAD, GOOD, NEW_MODEL_MAP, N, View, same_old, split_of, views_of, with_views

WEIGHTS = (1.0, 0.8, 0.35, 0.0)
BOTH: tuple[Policy, ...] = ("random", "uncertainty")
ALLOWED = Allowed([GOOD, BAD], BOTH, WEIGHTS)


def choice_of(split: HeldOut, seed: int = 0, **allowed: Any) -> Choice:
    """The choice among all views of the split, both orders, all weights and forms, unless `allowed` says otherwise."""
    everything: dict[str, Any] = {"views": list(split.aligned), "policies": BOTH, "weights": WEIGHTS, **allowed}
    return choose(split, Allowed(**everything), NEW_MODEL_MAP, seed)


def chosen(split: HeldOut, **allowed: Any) -> Candidate:
    return choice_of(split, **allowed).winner


def with_good(split: HeldOut, aligned: F32) -> HeldOut:
    """The split with one map alone, whose aligned vectors these are."""
    return with_views(split, {GOOD: View(aligned, split.priorities[GOOD])})


# What is chosen


def test_the_better_map_and_the_order_that_knows_its_errors_are_chosen() -> None:
    winner = chosen(split_of())
    assert (winner.view, winner.policy, winner.weight) == (GOOD, "uncertainty", 1.0)


def test_maps_are_chosen_by_quality_and_not_by_the_order_they_come_in() -> None:
    for views in ([GOOD, BAD], [BAD, GOOD]):
        assert chosen(split_of(), views=views, forms=("identity", "offset")).view == GOOD


def test_old_scores_that_are_right_are_kept_and_noise_is_not() -> None:
    split = split_of(old=True)
    assert chosen(same_old(split), views=[BAD]).weight < 0.5
    assert chosen(split, views=[GOOD]).weight > 0.5


def test_without_old_query_vectors_nothing_is_fused() -> None:
    choice = choice_of(split_of(), policies=["random"])
    assert {trial.candidate.weight for trial in choice.trials} == {1.0}


def shifted(split: HeldOut, by: float) -> HeldOut:
    """The split with a perfect map, but that every query scores every stale item higher by so much."""
    items, queries = split.items, split.queries
    ones, zeros = np.ones((len(queries.ids), 1), np.float32), np.zeros((len(items.ids), 1), np.float32)
    aligned = np.hstack([items.new, zeros + np.float32(by)])
    wider = replace(
        split,
        items=replace(items, new=np.hstack([items.new, zeros])),
        queries=replace(queries, new=np.hstack([queries.new, ones])),
    )
    return with_good(wider, aligned)


def test_a_shift_of_stale_scores_is_mended_by_an_offset() -> None:
    assert chosen(shifted(split_of(), -6), policies=["random"]).form == "offset"


@pytest.mark.parametrize(
    "allowed",
    [
        Allowed([GOOD], ["random"], (1.0,), ("identity",)),
        Allowed([BAD], ["uncertainty"], (0.8, 0.2), ("scale_offset",)),
        Allowed([BAD, GOOD], ["uncertainty"], (0.0,), ("identity", "offset_by_wave")),
    ],
)
def test_only_what_is_allowed_is_chosen_and_maps_are_compared_under_random_order(allowed: Allowed) -> None:
    choice = choose(split_of(old=True), allowed, NEW_MODEL_MAP, 0)
    for candidate in (choice.winner, *([choice.runner_up] if choice.runner_up else [])):
        assert candidate.policy in allowed.policies
    for trial in choice.trials:
        assert trial.candidate.view in allowed.views
        assert trial.candidate.weight in allowed.weights
        assert trial.candidate.form in allowed.forms
        assert trial.candidate.policy in allowed.policies or trial.stage in ("map", "stale mode")
    assert {t.candidate.policy for t in choice.trials if t.stage in ("map", "stale mode")} == {"random"}


def test_a_choice_is_the_same_each_time() -> None:
    first, second = (choice_of(split_of(old=True), seed=4) for _ in range(2))
    assert (first.winner, first.runner_up) == (second.winner, second.runner_up)
    assert [trial.candidate for trial in first.trials] == [trial.candidate for trial in second.trials]
    assert [t.area for t in first.trials] == pytest.approx([t.area for t in second.trials], abs=1e-6)


# What is said about it


@pytest.mark.parametrize("queries", [24, 300])
def test_trials_of_the_last_stage_come_first_those_of_most_queries_before_and_best_first_in_them(queries: int) -> None:
    choice = choice_of(split_of(old=True, queries=queries))
    last = [trial for trial in choice.trials if trial.stage == "final"]
    before = [trial for trial in choice.trials if trial.stage != "final"]
    assert list(choice.trials) == [*last, *before]
    for trials in (last, before):
        place = [(-trial.queries, -trial.area) for trial in trials]
        assert place == sorted(place)
        assert len({(trial.candidate, trial.queries) for trial in trials}) == len(trials)
    assert {trial.stage for trial in before} == {"map", "stale mode", "order"}
    assert choice.winner in {trial.candidate for trial in last}
    forms = {trial.candidate.form for trial in before if trial.stage == "order"}
    assert forms == set(FORMS), "orders are compared under every form"


@pytest.mark.parametrize("queries", [24, 300])
def test_what_is_expected_is_the_winners_area_over_all_queries(queries: int) -> None:
    split = split_of(queries=queries)
    choice = choice_of(split)
    at_published_points = search.Race(split, NEW_MODEL_MAP, 0).expected(choice.winner)
    assert choice.expected.queries == len(at_published_points) == queries
    assert choice.expected.value == pytest.approx(float(at_published_points.mean()), abs=1e-6)
    assert choice.expected.low <= choice.expected.value <= choice.expected.high


def test_the_runner_up_differs_in_more_than_the_form_and_is_none_where_nothing_else_is_allowed() -> None:
    choice = choice_of(split_of())
    assert choice.runner_up is not None
    assert not choice.runner_up.same_but_form(choice.winner)
    assert choice_of(split_of(), views=[GOOD], policies=["random"]).runner_up is None


@pytest.mark.parametrize("queries", [24, 700])
def test_there_is_a_runner_up_even_where_the_winner_leaves_all_others_behind_early(queries: int) -> None:
    split = split_of(queries=queries)
    perfect = {GOOD: View(split.items.new, split.priorities[GOOD]), BAD: views_of(split.items, 0)[BAD]}
    choice = choice_of(with_views(split, perfect), policies=["random"])
    assert choice.winner.view == GOOD
    assert choice.runner_up is not None
    assert choice.runner_up.view == BAD


# Cross-fitting


def test_nothing_is_fitted_and_compared_on_the_same_query(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted_on: dict[int, tuple[FittedCalibrations, frozenset[str]]] = {}
    compared: list[tuple[frozenset[str], frozenset[str]]] = []
    fit, trace = Backfill.fit, Backfill.trace

    def queries_of(backfill: Backfill) -> frozenset[str]:
        assert backfill.shadow.groups is not None
        return frozenset(backfill.shadow.groups.tolist())

    def spy_fit(self: Backfill, *args: Any) -> FittedCalibrations:
        fitted = fit(self, *args)
        fitted_on[id(fitted)] = fitted, queries_of(self)
        return fitted

    def spy_trace(self: Backfill, fitted: FittedCalibrations, *args: Any, **options: Any) -> Curve:
        compared.append((fitted_on[id(fitted)][1], queries_of(self)))
        return trace(self, fitted, *args, **options)

    monkeypatch.setattr(Backfill, "fit", spy_fit)
    monkeypatch.setattr(Backfill, "trace", spy_trace)
    monkeypatch.setattr(search, "FIRST_QUERIES", 40)
    monkeypatch.setattr(search, "fit_queries", lambda metric: 30)
    split = split_of(queries=150, old=True)
    choice = choice_of(split)
    used = [*(trial.queries for trial in choice.trials), choice.expected.queries]
    assert set(used) >= {40, 150}
    assert len(compared) == 2 * (len(used) + JACKKNIFE_GROUPS)
    everyone = frozenset(split.queries.ids.tolist())
    for fitting, measuring in compared:
        assert not fitting & measuring
        assert fitting | measuring <= everyone
        assert len(fitting) <= 30
    sizes = []
    whole = compared[: 2 * len(used)]  # the jackknife's, at the end, leave queries out
    for (_, first), (_, second) in zip(whole[::2], whole[1::2], strict=True):
        assert not first & second, "two folds share no query"
        assert abs(len(first) - len(second)) <= 1
        assert first | second == frozenset(split.queries.ids[: len(first) + len(second)].tolist())
        sizes.append(len(first) + len(second))
    assert sorted(sizes) == sorted(used)


def noise_views(items: PairedItems, seed: int) -> dict[MapView, View]:
    """A map with errors of one size everywhere: no calibration betters it, so what a fit gains is noise."""
    rng = np.random.default_rng([seed, 2])
    aligned = items.new + np.float32(0.7) * rng.normal(size=items.new.shape).astype(np.float32)
    return {GOOD: View(aligned, {"random": rng.random(len(items.ids)).astype(np.float32)})}


def test_where_a_fit_gains_but_noise_the_expected_area_is_that_of_fresh_items_and_an_in_sample_one_is_not() -> None:
    objective = replace(NEW_MODEL_MAP, metric="cmc@1")
    allowed = Allowed([GOOD], ["random"], (1.0,), ("identity", "scale_offset_by_wave"))
    plain, rich = (Candidate(GOOD, 1.0, "random", form) for form in allowed.forms)
    cutoffs = published_cutoffs(40, POINTS)

    def area(candidate: Candidate, fitted_on: HeldOut, traced_on: HeldOut) -> float:
        splits = (fitted_on, traced_on)
        fit, trace = (split.backfill(candidate, split.queries, split.shadow(split.queries)) for split in splits)
        fitted = fit.fit(objective, candidate.form)
        return trace.trace(fitted, cutoffs, relevances=["new_model"]).area(objective).value

    cross_fitted, in_sample = [], []
    for seed in range(40):
        here, fresh = (split_of(number, queries=24, items=40, make_views=noise_views) for number in (seed, 1000 + seed))
        # What nothing is fitted for differs between two splits by their own luck alone.
        luck = area(plain, here, here) - area(plain, fresh, fresh)
        choice = choose(here, allowed, objective, 0)
        cross_fitted.append(choice.expected.value - area(choice.winner, here, fresh) - luck)
        in_sample.append(area(rich, here, here) - area(rich, here, fresh) - luck)
    bias, optimism = (np.array(values) for values in (cross_fitted, in_sample))
    error_of_bias, error_of_optimism = (values.std(ddof=1) / np.sqrt(len(values)) for values in (bias, optimism))
    assert abs(bias.mean()) < 3 * error_of_bias, (bias.mean(), error_of_bias)
    assert optimism.mean() > 3 * error_of_optimism, (optimism.mean(), error_of_optimism)
    assert optimism.mean() > 2 * abs(bias.mean()), (optimism.mean(), bias.mean())


# Queries


def queries_of_rivals(choice: Choice) -> int:
    """The most queries that something else than the winner was measured on."""
    return max(trial.queries for trial in choice.trials if trial.candidate != choice.winner)


def test_rivals_that_are_close_get_more_queries_and_far_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FIRST_QUERIES", 40)
    split = split_of(queries=640)
    one_map: dict[str, Any] = {"views": [GOOD], "weights": (1.0,), "forms": ("identity",)}
    far = choice_of(split, **one_map)
    assert far.winner.policy == "uncertainty"
    assert queries_of_rivals(far) <= 80

    known = split.priorities[GOOD]["uncertainty"]
    moved = known + np.float32(0.3) * np.random.default_rng(0).random(N).astype(np.float32)  # ties broken elsewhere
    close = with_views(split, {GOOD: View(split.aligned[GOOD], {"random": moved, "uncertainty": known})})
    near = choice_of(close, **one_map)
    assert queries_of_rivals(near) > 80
    assert {t.queries for t in near.trials if t.stage == "final"} <= {80, 160, 320, 640}


def test_rivals_that_stay_close_get_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FIRST_QUERIES", 10)
    split = split_of(queries=90)
    same = split.priorities[GOOD]["random"]
    tied = with_views(split, {GOOD: View(split.aligned[GOOD], dict.fromkeys(BOTH, same))})
    assert queries_of_rivals(choice_of(tied, forms=("identity",))) == 90


# Who looks how far it is


class Counted:
    """Counts what is compared: {stage: [candidates that were announced, candidates that came]}."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}
        self._now = [0, 0]

    def begin(self, part: str, total: int) -> None:
        self._now = self.stages.setdefault(part, [0, 0])
        self._now[0] += total

    def advance(self, amount: int = 1) -> None:
        self._now[1] += amount


def test_every_candidate_that_is_announced_is_counted() -> None:
    counted = Counted()
    choose(split_of(queries=60), Allowed([GOOD, BAD], BOTH, [1.0], ["identity"]), NEW_MODEL_MAP, 0, counted)
    assert list(counted.stages) == ["map", "stale mode", "order", "final", "interval"]
    assert all(announced == came > 0 for announced, came in counted.stages.values())


# The simplest within the noise


class FixedRace(Race):
    """A race whose areas per query are known."""

    def __init__(self, areas: dict[Candidate, F64]) -> None:
        self._fixed, self._watcher = areas, search.Unwatched()

    def areas(self, candidate: Candidate, level: int, stage: str) -> F64:
        return self._fixed[candidate]


def simplest(areas: dict[Candidate, F64], allowed: Allowed = ALLOWED) -> Candidate:
    race = FixedRace(areas)
    alive = race.ranked(areas, 0, "final")
    return search._simplest(race, alive, 0, "final", allowed)


PLAIN = Candidate(GOOD, 1.0, "random", "identity")
WAVY: F64 = np.tile([-0.1, 0.1], 50)  # its standard error over 100 queries is 0.01


@pytest.mark.parametrize(
    ("simple", "rich"),
    [
        (replace(PLAIN, weight=0.8, policy="uncertainty", view=BAD), replace(PLAIN, form="offset")),
        (replace(PLAIN, form="offset"), replace(PLAIN, form="offset_by_wave")),
        (replace(PLAIN, form="offset_by_wave"), replace(PLAIN, form="scale_offset")),
        (replace(PLAIN, form="scale_offset"), replace(PLAIN, form="scale_offset_by_wave")),
        (replace(PLAIN, policy="uncertainty", view=BAD), replace(PLAIN, weight=0.8)),
        (replace(PLAIN, view=BAD), replace(PLAIN, policy="uncertainty")),
        (PLAIN, replace(PLAIN, view=BAD)),
    ],
)
def test_within_one_standard_error_the_simpler_form_then_stale_mode_then_order_then_map_is_taken(
    simple: Candidate, rich: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LEAST_FUSED_GAIN", 0.0)
    within, beyond = np.full(100, 0.5), np.full(100, 0.5)
    assert simplest({rich: within + 0.009 + WAVY, simple: within}) == simple
    assert simplest({rich: beyond + 0.012 + WAVY, simple: beyond}) == rich
    assert simplest({simple: within + 0.009 + WAVY, rich: within}) == simple


def test_the_order_of_policies_and_views_is_that_of_what_is_allowed() -> None:
    areas = {
        candidate: np.full(10, 0.5)
        for view in (GOOD, BAD)
        for policy in BOTH
        for candidate in [replace(PLAIN, view=view, policy=policy)]
    }
    for views in ((GOOD, BAD), (BAD, GOOD)):
        for policies in (BOTH, BOTH[::-1]):
            first = simplest(areas, Allowed(views, policies))
            assert (first.view, first.policy) == (views[0], policies[0])


def test_of_two_weights_that_are_as_simple_the_better_one_is_taken() -> None:
    areas = {replace(PLAIN, weight=weight): np.full(10, 0.5) + gain for weight, gain in ((0.35, 0.0), (0.8, 0.001))}
    areas[replace(PLAIN, weight=0.8)] += np.tile([-0.1, 0.1], 5)
    assert simplest(areas).weight == 0.8


def test_the_simpler_one_wins_a_whole_choice_where_nothing_is_told_apart() -> None:
    split = same_old(split_of(old=True))
    priorities: dict[Policy, F32] = dict.fromkeys(BOTH, split.priorities[GOOD]["random"])
    alike = View(split.items.new, priorities)
    for views in ((GOOD, BAD), (BAD, GOOD)):
        for policies in (BOTH, BOTH[::-1]):
            winner = chosen(with_views(split, dict.fromkeys(views, alike)), views=views, policies=policies)
            assert winner == Candidate(views[0], 1.0, policies[0], "identity")
    richer = chosen(with_good(split, split.items.new), forms=("scale_offset", "offset_by_wave"))
    assert richer.form == "offset_by_wave"


# Orders and forms together


def test_an_order_that_needs_a_rich_form_is_not_dropped_by_a_comparison_under_simple_ones() -> None:
    rng = np.random.default_rng(7)
    split = split_of(queries=60)
    exact = np.arange(N) < N // 2
    noise = np.float32(0.5) * rng.normal(size=split.items.new.shape).astype(np.float32)
    # Half of the stale vectors point where they should but are five times too long; the others are right in length.
    aligned = np.where(exact[:, None], 5 * split.items.new, split.items.new + noise).astype(np.float32)
    priorities: dict[Policy, F32] = {
        "random": rng.random(N).astype(np.float32),
        "uncertainty": (~exact).astype(np.float32),  # leaves those stale that a scale mends
        "entropy": exact.astype(np.float32),  # leaves those stale that need no scale
    }
    split = with_views(split, {GOOD: View(aligned, priorities)})
    policies: tuple[Policy, ...] = ("random", "entropy", "uncertainty")
    assert chosen(split, policies=policies, weights=(1.0,), forms=("identity",)).policy == "entropy"
    free = chosen(split, policies=policies, weights=(1.0,))
    assert (free.policy, free.form.startswith("scale_offset")) == ("uncertainty", True)


# What has to win by a margin


def test_fused_has_to_be_worth_a_second_encoder() -> None:
    choice = choice_of(split_of(old=True))
    last = [trial for trial in choice.trials if trial.stage == "final"]
    aligned = [trial.area for trial in last if trial.candidate.weight == 1]
    assert aligned, "the best aligned candidate is always among the last"
    if choice.winner.weight < 1:
        assert max(aligned) < max(trial.area for trial in last) - LEAST_FUSED_GAIN


def test_what_is_not_worth_its_margin_leaves_the_choice_as_it_was_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAST_FUSED_GAIN", "LEAST_NORMS_KEPT_GAIN"):
        monkeypatch.setattr(search, name, 10.0)  # more than any area
    split = split_of(old=True)
    views = views_of(split.items, 0)
    kept = {
        MapView(view.method, norms_kept=True): View(made.aligned * np.float32(1.1), made.priorities)
        for view, made in views.items()
    }
    for seed in range(3):
        plain = choice_of(split, seed, weights=(1.0,))
        rich = choice_of(with_views(split, {**views, **kept}), seed)
        assert rich.winner == plain.winner
        assert rich.expected == pytest.approx(plain.expected)


def test_orders_by_a_log_are_not_served_by_wave() -> None:
    allowed = Allowed([GOOD], ("random", "demand", "taken"), (1.0,))
    assert allowed.forms_of("random") == list(FORMS)
    for policy in LOGGED:
        assert allowed.forms_of(policy) == ["identity", "offset", "scale_offset"]
