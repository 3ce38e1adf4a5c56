"""What is chosen where the best candidate is known, and that nothing else than what is allowed is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment import search as choice
from fastfill_ray.experiment.candidate import Candidate, View
from fastfill_ray.experiment.curves import KNOTS, backfill_order, fit_knots, published_cutoffs, trace
from fastfill_ray.experiment.search import COARSE_POINTS, LEAST_FUSED_GAIN, Allowed, carry, choose, run
from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.retrieval.calibration import FORMS, Form
from fastfill_ray.retrieval.relevance import RelevantItems

Q, N = 24, 60
WEIGHTS = (1.0, 0.8, 0.35, 0.0)
Floats = NDArray[np.float32]

ALLOWED = Allowed(["good", "bad"], ["random", "uncertainty"], WEIGHTS)


def scene_of(seed: int = 0, *, old: bool = False, size: int = N) -> Scene:
    """Relevance is the new scores' own first ten; old scores are noise."""
    rng = np.random.default_rng(seed)
    new = rng.normal(size=(Q, size)).astype(np.float32)
    scores = rng.normal(size=(Q, size)).astype(np.float32) if old else None
    return Scene(new, scores, {"new_model": RelevantItems.top(new)}, hash_ids(np.arange(size)))


def views_of(scene: Scene, seed: int = 0) -> dict[str, View]:
    """`good` is wrong about a third of the items, and its uncertainty tells which; `bad` is wrong about all of them."""
    rng = np.random.default_rng([seed, 1])
    size = scene.new.shape[1]
    wrong = rng.random(size) < 0.33
    noise = rng.normal(size=scene.new.shape).astype(np.float32)
    priorities = {"random": rng.random(size).astype(np.float32), "uncertainty": wrong.astype(np.float32)}
    good = scene.new + 2 * noise * wrong + 0.05 * noise
    return {"good": View(good, priorities), "bad": View(scene.new * 0.2 + 2 * noise, priorities)}


def chosen(scene: Scene, views: Mapping[str, View], **allowed: Sequence[object]) -> Candidate:
    everything = {"methods": list(views), "policies": ["random", "uncertainty"], "weights": WEIGHTS, **allowed}
    return choose(scene, views, Allowed(**everything), "new_model", "map", 0).winner  # type: ignore[arg-type]


def test_the_better_map_and_the_order_that_knows_its_errors_are_chosen() -> None:
    scene = scene_of()
    winner = chosen(scene, views_of(scene))
    assert (winner.method, winner.policy, winner.weight) == ("good", "uncertainty", 1.0)


def test_methods_are_chosen_by_quality_and_not_by_the_order_they_come_in() -> None:
    scene = scene_of()
    views = views_of(scene)
    for methods in (["good", "bad"], ["bad", "good"]):
        assert chosen(scene, views, methods=methods, forms=("identity", "offset")).method == "good"


def test_old_scores_that_are_right_are_kept_and_noise_is_not() -> None:
    scene = scene_of(old=True)
    noisy = {"bad": views_of(scene)["bad"]}
    assert chosen(replace(scene, old=scene.new.copy()), noisy).weight < 0.5
    assert chosen(scene, {"good": views_of(scene)["good"]}).weight > 0.5


def test_without_old_query_vectors_nothing_is_fused() -> None:
    scene = scene_of()
    choice = choose(scene, views_of(scene), Allowed(["good", "bad"], ["random"]), "new_model", "map", 0)
    assert {trial.candidate.weight for trial in choice.trials} == {1.0}


def test_a_shift_of_stale_scores_is_served_by_an_offset() -> None:
    scene = scene_of()
    views = {"good": replace(views_of(scene)["good"], stale=scene.new - 3)}
    assert chosen(scene, views, policies=["random"]).form == "offset"


def test_the_simpler_form_wins_what_is_not_told_apart() -> None:
    scene = scene_of()
    views = {"good": replace(views_of(scene)["good"], stale=scene.new.copy())}
    assert chosen(scene, views).form == "identity"
    assert chosen(scene, views, forms=("scale_offset", "offset_by_wave")).form == "offset_by_wave"


@pytest.mark.parametrize(
    "allowed",
    [
        Allowed(["good"], ["random"], (1.0,), ("identity",)),
        Allowed(["bad"], ["uncertainty"], (0.8, 0.2), ("scale_offset",)),
        Allowed(["bad", "good"], ["uncertainty"], (0.0,), ("identity", "offset_by_wave")),
    ],
)
def test_only_what_is_allowed_is_chosen_and_maps_are_compared_under_random_order(allowed: Allowed) -> None:
    scene = scene_of(old=True)
    choice = choose(scene, views_of(scene), allowed, "new_model", "map", 0)
    for candidate in (choice.winner, *([choice.runner_up] if choice.runner_up else [])):
        assert candidate.method in allowed.methods
        assert candidate.policy in allowed.policies
        assert candidate.weight in allowed.weights
        assert candidate.form in allowed.forms
    for trial in choice.trials:
        assert trial.candidate.method in allowed.methods
        assert trial.candidate.weight in allowed.weights
        assert trial.candidate.form in allowed.forms
        assert trial.candidate.policy in {*allowed.policies, "random"}
        assert trial.candidate.policy in allowed.policies or trial.stage in ("map", "stale mode")


def test_trials_of_the_last_stage_are_told_first_and_best_first_each_candidate_once() -> None:
    scene = scene_of(old=True)
    choice = choose(scene, views_of(scene), ALLOWED, "new_model", "map", 0)
    last = [trial for trial in choice.trials if trial.stage == "calibration"]
    before = [trial for trial in choice.trials if trial.stage != "calibration"]
    assert list(choice.trials) == [*last, *before]
    for trials in (last, before):
        areas = [trial.area for trial in trials]
        assert areas == sorted(areas, reverse=True)
        assert len({trial.candidate for trial in trials}) == len(trials)
    assert {trial.stage for trial in before} == {"map", "stale mode", "order"}


def test_fused_has_to_be_worth_a_second_encoder() -> None:
    scene = scene_of(old=True)
    views = views_of(scene)
    free = choose(scene, views, ALLOWED, "new_model", "map", 0)
    aligned = [t for t in free.trials if t.stage == "calibration" and t.candidate.weight == 1]
    assert aligned, "the best aligned candidate is always among the last"
    best = max(t.area for t in free.trials if t.stage == "calibration")
    if free.winner.weight < 1:
        assert max(t.area for t in aligned) < best - LEAST_FUSED_GAIN


def test_what_is_not_worth_its_margin_leaves_the_choice_as_it_was_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAST_FUSED_GAIN", "LEAST_CAUTIOUS_GAIN"):
        monkeypatch.setattr(choice, name, 10.0)  # more than any area
    scene = scene_of(old=True)
    views = views_of(scene)
    views |= {
        f"{name}, norms kept": View(view.stale * np.float32(1.1), view.priorities) for name, view in views.items()
    }
    for seed in range(3):
        plain = choose(scene, views, Allowed(["good", "bad"], ALLOWED.policies, [1.0]), "new_model", "map", seed)
        cautious = ["good, norms kept", "bad, norms kept"]
        rich = Allowed(list(views), ALLOWED.policies, cautious=cautious)
        assert choose(scene, views, rich, "new_model", "map", seed).winner == plain.winner


def test_the_runner_up_differs_in_more_than_the_form_and_is_none_where_nothing_else_is_allowed() -> None:
    scene = scene_of()
    views = views_of(scene)
    found = choose(scene, views, ALLOWED, "new_model", "map", 0)
    assert found.runner_up is not None
    assert replace(found.runner_up, form=found.winner.form) != found.winner
    assert choose(scene, views, Allowed(["good"], ["random"]), "new_model", "map", 0).runner_up is None


def test_a_choice_is_the_same_each_time() -> None:
    scene = scene_of(old=True)
    allowed = ALLOWED
    first, second = (choose(scene, views_of(scene), allowed, "new_model", "map", 4) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("form", FORMS)
def test_a_carried_curve_is_traced_on_one_split_under_fits_of_the_other(form: Form) -> None:
    calibration, audit = scene_of(0), scene_of(5, size=50)
    mine, theirs = views_of(calibration)["bad"], views_of(audit, 5)["bad"]
    candidate = Candidate("bad", 1.0, "uncertainty", form)
    curve, fitted = carry((calibration, mine), (audit, theirs), candidate, "new_model", "map", seed=0)
    order = backfill_order(mine.priorities["uncertainty"], calibration.id_hash)
    assert fitted == fit_knots(calibration, mine.stale, order, "new_model", "map", form, seed=0)
    assert len(fitted) == len(KNOTS)
    order = backfill_order(theirs.priorities["uncertainty"], audit.id_hash)
    expected = trace(audit, theirs.stale, order, fitted, published_cutoffs(50))
    np.testing.assert_array_equal(curve.mean("new_model", "map"), expected.mean("new_model", "map"))
    assert len(curve.fractions) == 22


def test_a_run_is_fitted_and_traced_on_the_same_scene() -> None:
    scene = scene_of()
    view = views_of(scene)["bad"]
    candidate = Candidate("bad", 1.0, "random", "offset")
    curve = run(
        scene, view.stale, view.priorities["random"], candidate, "new_model", "map", seed=0, points=COARSE_POINTS
    )
    carried, _ = carry((scene, view), (scene, view), candidate, "new_model", "map", seed=0)
    assert len(curve.fractions) == COARSE_POINTS
    assert curve.mean("new_model", "map")[-1] == carried.mean("new_model", "map")[-1] == 1
