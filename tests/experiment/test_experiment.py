"""Chosen on one split, reported on the other; curves at a run's own fractions; the published evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Candidate, View
from fastfill_ray.experiment.curves import backfill_order, published_cutoffs, trace
from fastfill_ray.experiment.experiment import Findings, Split, authors_curve, investigate, predicted
from fastfill_ray.experiment.results import candidate_json, findings_json, words
from fastfill_ray.experiment.search import Allowed, carry
from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.retrieval.metrics import METRICS, measure
from fastfill_ray.retrieval.relevance import Truth
from tests.experiment.test_search import WEIGHTS, Q, scene_of, views_of

ALLOWED = Allowed(["good", "bad"], ["random", "uncertainty"], WEIGHTS, ("identity", "offset", "scale_offset"))


def split_of(seed: int, *, old: bool = True, size: int = 50) -> Split:
    """With labels that few queries have, and groups."""
    scene = scene_of(seed, old=old, size=size)
    relevant = np.random.default_rng(seed).random(scene.new.shape) < 0.05
    relevant[::2] = False
    groups = np.array(["a", None] * (Q // 2), object)
    scene = replace(scene, truths={**scene.truths, "label": Truth.of(relevant)}, groups=groups)
    return Split(scene, views_of(scene, seed))


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    return split_of(0), split_of(1, size=44)


@pytest.fixture(scope="module")
def findings(splits: tuple[Split, Split]) -> Findings:
    return investigate(*splits, ALLOWED, "new_model", "map", seed=0, everything=True)


def test_what_is_reported_is_the_audit_split_under_fits_of_the_calibration_split(
    splits: tuple[Split, Split], findings: Findings
) -> None:
    calibration, audit = splits
    for candidate in (findings.choice.winner, Candidate("bad", 1.0, "random", "offset")):
        method = candidate.method
        plain, _ = carry(
            (calibration.scene, calibration.views[method]),
            (audit.scene, audit.views[method]),
            candidate,
            "new_model",
            "map",
            seed=0,
        )
        found = findings.curve(candidate)
        assert found.fractions.tolist() == [cutoff / 44 for cutoff in published_cutoffs(44)]
        for key, values in plain.values.items():
            np.testing.assert_array_equal(found.values[key], values)


def test_the_arms_are_all_old_and_all_new(splits: tuple[Split, Split], findings: Findings) -> None:
    scene = splits[1].scene
    assert findings.old is not None
    assert scene.old is not None
    for found, scores in ((findings.new, scene.new), (findings.old, scene.old)):
        for relevance, metrics in measure(scores, scene.truths).items():
            for metric, values in metrics.items():
                np.testing.assert_array_equal(found[relevance, metric], values)


def test_the_margin_is_the_paired_difference_of_areas_to_the_runner_up(findings: Findings) -> None:
    winner, runner_up = findings.choice.winner, findings.choice.runner_up
    assert runner_up is not None
    areas = [findings.curve(c).area_per_query("new_model", "map") for c in (winner, runner_up)]
    assert findings.margin == pytest.approx(mean_interval(areas[0] - areas[1], seed=0))


def test_everything_reports_each_map_with_each_order_and_the_winner_with_one_thing_changed(findings: Findings) -> None:
    reported, winner = [r.candidate for r in findings.reported], findings.choice.winner
    assert len(set(reported)) == len(reported)
    assert reported[:2] == [winner, findings.choice.runner_up]
    for method in ALLOWED.methods:
        for policy in ALLOWED.policies:
            assert Candidate(method, 1.0, policy, "offset") in reported
    assert {replace(winner, form=form) for form in ALLOWED.forms} <= set(reported)
    assert {replace(winner, weight=weight) for weight in ALLOWED.weights} <= set(reported)
    assert {replace(winner, policy=policy) for policy in ALLOWED.policies} <= set(reported)


def test_else_winner_and_runner_up_alone_are_reported_at_as_many_points_as_asked_for(
    splits: tuple[Split, Split], findings: Findings
) -> None:
    found = investigate(*splits, ALLOWED, "new_model", "map", seed=0, everything=False, points=5)
    assert found.choice == findings.choice
    assert [r.candidate for r in found.reported] == [found.choice.winner, found.choice.runner_up]
    assert all(len(r.curve.fractions) == 5 for r in found.reported)


def test_without_old_query_vectors_there_is_no_old_arm_and_nothing_is_fused() -> None:
    found = investigate(
        split_of(0, old=False), split_of(1, old=False), ALLOWED, "label", "map", seed=0, everything=True
    )
    assert found.old is None
    assert {r.candidate.weight for r in found.reported} == {1.0}


def test_where_no_calibration_query_has_an_answer_the_new_model_itself_decides(splits: tuple[Split, Split]) -> None:
    calibration, audit = splits
    truths = {"new_model": calibration.scene.truths["new_model"]}
    unanswered = Split(replace(calibration.scene, truths=truths), calibration.views)
    found = investigate(unanswered, audit, ALLOWED, "label", "map", seed=0, everything=False)
    expected = investigate(calibration, audit, ALLOWED, "new_model", "map", seed=0, everything=False)
    assert found.choice == expected.choice
    assert found.margin is not None
    assert found.margin.queries == audit.scene.answerable("label") < Q


def test_where_no_audit_query_has_an_answer_no_margin_is_told(splits: tuple[Split, Split]) -> None:
    calibration, audit = splits
    nothing = Truth.of(np.zeros(audit.scene.new.shape, bool))
    scene = replace(audit.scene, truths={**audit.scene.truths, "label": nothing})
    found = investigate(calibration, Split(scene, audit.views), ALLOWED, "label", "map", seed=0, everything=False)
    assert found.margin is None
    told = findings_json(found, scene, "label", "map", seed=0)
    assert all("label/map" not in curve["values"] for curve in told["curves"])
    json.dumps(told, allow_nan=False)


# Telling


def test_findings_as_json_hold_the_curves_their_areas_and_where_the_gain_is_reached(
    splits: tuple[Split, Split], findings: Findings
) -> None:
    scene = splits[1].scene
    told = json.loads(json.dumps(findings_json(findings, scene, "new_model", "map", seed=0), allow_nan=False))
    assert told["objective"] == "new_model/map"
    assert set(told["arms"]) == {"new/new", "old/old"}
    assert len(told["curves"]) == len(findings.reported)
    for curve, reported in zip(told["curves"], findings.reported, strict=True):
        assert {key: curve[key] for key in candidate_json(reported.candidate)} == candidate_json(reported.candidate)
        assert set(curve["values"]) == {f"{r}/{m}" for r in ("new_model", "label") for m in METRICS}
        for name, values in curve["values"].items():
            relevance, _, metric = name.partition("/")
            mean = reported.curve.mean(relevance, metric)
            assert values["curve"] == pytest.approx(mean.tolist(), abs=1e-6)
            assert values["area"] == pytest.approx(mean.mean(), abs=1e-6)
            assert values["low"] <= values["area"] <= values["high"]
            assert values["at_0"] == values["curve"][0]
            base = told["arms"]["old/old"][name]["value"]
            gain = told["arms"]["new/new"][name]["value"] - base
            if gain > 1e-6:
                assert 0 <= values["to_95"] <= values["to_99"] <= 1
                after = reported.curve.fractions >= values["to_95"]
                assert (mean[after] >= base + 0.95 * gain - 1e-5).all()
            elif gain < -1e-6:
                assert values["to_95"] is values["to_99"] is None
        mine = reported.curve.values["new_model", "map"][:, ::2].mean(axis=1)
        assert curve["groups"]["new_model/map"] == {"a": pytest.approx(mine.tolist(), abs=1e-6)}
    choice = told["choice"]
    assert choice["winner"] == candidate_json(findings.choice.winner)
    assert choice["margin"]["queries"] == Q
    assert len(choice["trials"]) == len(findings.choice.trials)


def test_without_an_old_arm_the_gain_starts_at_nothing_re_embedded() -> None:
    audit = split_of(1, old=False)
    found = investigate(split_of(0, old=False), audit, ALLOWED, "new_model", "map", seed=0, everything=False)
    told = findings_json(found, audit.scene, "new_model", "map", seed=0)
    assert set(told["arms"]) == {"new/new"}
    values = told["curves"][0]["values"]["new_model/map"]
    assert 0 < values["to_95"] <= values["to_99"] <= 1


def test_a_candidate_in_words_and_as_json() -> None:
    fused = Candidate("kernel", 0.8, "expected_gain", "scale_offset")
    assert words(fused) == "kernel, fused 0.8, expected_gain, scale_offset"
    assert words(replace(fused, weight=1.0)) == "kernel, aligned, expected_gain, scale_offset"
    assert candidate_json(fused) == {
        "method": "kernel",
        "stale_mode": "fused",
        "weight": 0.8,
        "policy": "expected_gain",
        "calibration": "scale_offset",
    }


# Predicting


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_prediction_is_the_curve_at_the_runs_own_fractions_pairs_included(
    splits: tuple[Split, Split], share: float
) -> None:
    calibration, audit = splits
    candidate, size = Candidate("bad", 1.0, "uncertainty", "identity"), 44
    sampled = np.random.default_rng(0).random(size) < share
    fractions = [float(sampled.mean()), 0.25, 0.5, 1.0]
    found = predicted(calibration, audit, candidate, ("new_model", "label"), "map", fractions, sampled, 0)
    view, scene = audit.views["bad"], audit.scene
    order = backfill_order(view.priorities["uncertainty"], scene.id_hash)
    for fraction, interval in zip(fractions, found, strict=True):
        is_new = sampled.copy()
        for item in order:
            if is_new.sum() >= round(fraction * size):
                break
            is_new[item] = True
        scores = np.where(is_new[None, :], scene.new, view.stale)
        plain = measure(scores, {"label": scene.truths["label"]})["label"]["map"]
        assert interval == pytest.approx(mean_interval(plain, seed=0))


# The published evaluation


def test_the_authors_curve_is_raw_scores_in_the_order_of_priority_alone() -> None:
    rng = np.random.default_rng(0)
    new: NDArray[np.float32] = rng.normal(size=(12, 50)).astype(np.float32)
    scene = Scene(new, None, {"new_model": Truth.top(new)}, hash_ids(np.arange(50)))
    priority = rng.integers(0, 5, 50).astype(np.float32)
    view = View(rng.normal(size=new.shape).astype(np.float32), {"uncertainty": priority})
    order = np.array(sorted(range(50), key=lambda i: -priority[i]))  # equal ones stay in the order of the rows
    found = authors_curve(scene, view, "uncertainty")
    expected = trace(scene, view.stale, order, [], published_cutoffs(50))
    for key, values in expected.values.items():
        np.testing.assert_array_equal(found.values[key], values)
