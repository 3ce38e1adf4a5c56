"""Chosen on one split, reported on the other; curves at a run's own fractions; the published evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.candidate import Candidate, MapView, Objective, policies_allowed
from fastfill_ray.experiment.curves import (
    Backfill,
    FittedCalibrations,
    published_cutoffs,
    stand_for_first,
    stand_for_pairs,
)
from fastfill_ray.experiment.experiment import Findings, Question, run_experiment, share_errors
from fastfill_ray.experiment.heldout import Evidence, hold_out
from fastfill_ray.experiment.items import LEAST_ASKING, MIN_QUERIES, PairedItems, Queries, asking
from fastfill_ray.experiment.published import published_curve
from fastfill_ray.experiment.shadow import make_shadow
from fastfill_ray.experiment.summary import candidate_result, choice_result, findings_json
from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.ordering.policies import POLICIES, Policy
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.retrieval.metrics import METRICS, measure
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.types import Relevance
from tests.experiment.evidence import COUNTS, evidence_of, pairs_of, users_of

NEW_MODEL_MAP, LABEL_MAP = Objective("new_model", "map"), Objective("label", "map")
WEIGHTS = (1.0, 0.5, 0.0)
BOTH: tuple[Policy, ...] = ("random", "uncertainty")
QUESTION = Question(NEW_MODEL_MAP, WEIGHTS, BOTH, ("identity", "offset", "scale_offset"), report_all=True)
BRIEF = replace(QUESTION, report_all=False)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evidence_of(users_of())


@pytest.fixture(scope="module")
def findings(evidence: Evidence) -> Findings:
    return run_experiment(evidence, QUESTION)


# The choice is reported on the other split


def test_what_is_reported_is_the_audit_split_under_fits_of_the_calibration_split(
    evidence: Evidence, findings: Findings
) -> None:
    calibration, audit = (hold_out(evidence, split, BOTH) for split in ("calibration", "audit"))
    for candidate in (findings.choice.winner, Candidate(MapView("procrustes"), 1.0, "random", "offset")):
        fitting, tracing = (
            split.backfill(candidate, split.queries, split.shadow(split.queries)) for split in (calibration, audit)
        )
        fitted = fitting.fit(NEW_MODEL_MAP, candidate.form)
        expected = tracing.trace(fitted, published_cutoffs(COUNTS["audit"]))
        curve = findings.curve(candidate)
        assert curve.fractions.tolist() == expected.fractions.tolist()
        for key, values in expected.values.items():
            np.testing.assert_allclose(curve.values[key], values, atol=1e-6)


def test_the_arms_are_all_old_and_all_new_items_of_the_audit_split(evidence: Evidence, findings: Findings) -> None:
    shadow = make_shadow(evidence.pairs.part("audit"), users_of().shuffled(0), "cosine")
    assert shadow.old is not None
    for arm, scores in (("new/new", shadow.new), ("old/old", shadow.old)):
        for relevance, metrics in measure(scores, shadow.relevant).items():
            for metric, values in metrics.items():
                np.testing.assert_allclose(findings.arms[arm][relevance, metric], values, atol=1e-6)


def test_the_margin_is_the_paired_difference_of_areas_to_the_runner_up(findings: Findings) -> None:
    winner, runner_up = findings.choice.winner, findings.choice.runner_up
    assert runner_up is not None
    areas = [findings.curve(c).area_per_query(NEW_MODEL_MAP) for c in (winner, runner_up)]
    assert findings.margin == mean_interval(areas[0] - areas[1], seed=0)


def test_everything_reports_each_map_with_each_order_and_the_winner_with_one_thing_changed(findings: Findings) -> None:
    reported, winner = [r.candidate for r in findings.reported], findings.choice.winner
    assert len(set(reported)) == len(reported)
    assert reported[:2] == [winner, findings.choice.runner_up]
    for method in ("ridge", "procrustes"):
        for policy in BOTH:
            assert Candidate(MapView(method), 1.0, policy, "offset") in reported
    assert {replace(winner, form=form) for form in QUESTION.forms} <= set(reported)
    assert {replace(winner, weight=weight) for weight in WEIGHTS} <= set(reported)
    assert {replace(winner, policy=policy) for policy in BOTH} <= set(reported)


def test_else_winner_and_runner_up_alone_are_reported_and_the_choice_is_the_same(
    evidence: Evidence, findings: Findings
) -> None:
    brief = run_experiment(evidence, BRIEF)
    assert [r.candidate for r in brief.reported] == [findings.choice.winner, findings.choice.runner_up]
    assert [t.candidate for t in brief.choice.trials] == [t.candidate for t in findings.choice.trials]


def test_without_old_query_vectors_there_is_no_old_arm_and_nothing_is_fused() -> None:
    findings = run_experiment(evidence_of(users_of(old=False)), QUESTION)
    assert set(findings.arms) == {"new/new"}
    assert {r.candidate.weight for r in findings.reported} == {1.0}


@pytest.mark.parametrize(
    ("kind", "with_users"),
    [("pairs", True), *(pytest.param(*each, marks=pytest.mark.slow) for each in [("pairs", False), ("queries", True)])],
)
def test_the_order_of_the_rows_changes_nothing(kind: str, with_users: bool) -> None:
    question = Question(LABEL_MAP, (1.0, 0.5), ("random", "expected_gain", "class_margin"), fractions=(0.1, 0.5, 1.0))
    queries = users_of() if with_users else None
    expected = run_experiment(evidence_of(queries), question)
    moved = evidence_of(queries)
    if kind == "pairs":
        moved = replace(moved, pairs=moved.pairs.take(np.random.default_rng(1).permutation(len(moved.pairs.ids))))
    elif queries is not None:
        moved = replace(moved, queries=queries.take(np.random.default_rng(1).permutation(len(queries.ids))))
    same_findings(run_experiment(moved, question), expected)


def same_findings(one: Findings, other: Findings) -> None:
    """The same choice, trials, areas and prediction."""
    assert (one.choice.winner, one.choice.runner_up) == (other.choice.winner, other.choice.runner_up)
    assert (one.chosen_by, one.predicted_by) == (other.chosen_by, other.predicted_by)
    assert one.old_scale == pytest.approx(other.old_scale, rel=1e-5)
    first, second = ({(t.candidate, t.stage, t.queries): t.area for t in f.choice.trials} for f in (one, other))
    assert set(first) == set(second)
    for trial, area in first.items():
        assert area == pytest.approx(second[trial], abs=1e-6)
    assert one.choice.expected == pytest.approx(other.choice.expected, abs=1e-6)
    assert len(one.predicted) == len(other.predicted)
    for own, theirs in zip(one.predicted, other.predicted, strict=True):
        assert own == pytest.approx(theirs, abs=1e-6)
    if one.margin is not None:
        assert one.margin == pytest.approx(other.margin, abs=1e-6)


# Too few answers


def with_answers(queries: Queries, count: int) -> Queries:
    """The queries, of which so many have a label that items have."""
    assert queries.labels is not None
    labels = queries.labels.copy()
    labels[count:] = "no item has this label"
    return replace(queries, labels=labels)


@pytest.mark.parametrize(
    ("answers", "by"), [(MIN_QUERIES, "label"), (MIN_QUERIES - 1, "new_model"), (1, "new_model"), (0, "new_model")]
)
def test_below_sixty_answered_queries_the_new_model_decides(answers: int, by: Relevance) -> None:
    assert MIN_QUERIES == 60
    question = Question(LABEL_MAP, (1.0,), BOTH, ("identity", "offset"), fractions=(0.1, 1.0))
    findings = run_experiment(evidence_of(with_answers(users_of(), answers)), question)
    assert findings.chosen_by == findings.predicted_by == Objective(by, "map")
    assert choice_result(findings).objective == f"{by}/map"
    queries = answers if by == "label" else len(users_of().ids)
    assert findings.choice.expected.queries == queries
    assert findings.margin is not None
    assert findings.margin.queries == queries
    if by == "new_model":
        expected = run_experiment(evidence_of(users_of()), replace(question, objective=NEW_MODEL_MAP))
        same_findings(findings, expected)


@pytest.mark.parametrize("count", [*range(10), LEAST_ASKING - 1])
@pytest.mark.parametrize("old", [True, False])
def test_of_fewer_queries_than_a_split_has_items_nothing_is_chosen_and_its_items_ask(count: int, old: bool) -> None:
    users = users_of(75, old=old).first(count)
    judged = tuple(Judgement(row, f"item-{row}") for row in range(count))
    users = replace(users, labels=None, judged=judged, judged_as="log")
    fractions = (0.1, 1.0)
    question = Question(Objective("log", "mrr"), WEIGHTS, ("random",), ("identity", "offset"), fractions=fractions)
    findings = run_experiment(evidence_of(users), question)
    by_items = Objective("new_model", "recall@10")
    assert findings.chosen_by == findings.shown_by == findings.predicted_by == by_items
    assert findings.choice.expected.queries == COUNTS["calibration"]
    assert findings.margin is None or findings.margin.queries == COUNTS["audit"]
    assert np.isfinite(findings.choice.expected[:3]).all()
    assert choice_result(findings).expected is not None
    json.dumps(findings_json(findings, seed=0), allow_nan=False)
    # Versions are measured by the users' queries, so that is what is predicted.
    assert {interval.queries for interval in findings.predicted} == {count}
    if not old:  # what needs old query vectors cannot be served
        assert {trial.candidate.weight for trial in findings.choice.trials} == {1.0}


def test_queries_as_many_as_a_split_has_items_at_least_are_the_ones_that_choose() -> None:
    assert min(MIN_SPLIT["calibration"], MIN_SPLIT["audit"]) == LEAST_ASKING
    findings = run_experiment(evidence_of(users_of(LEAST_ASKING)), Question(NEW_MODEL_MAP, (1.0,), ("random",)))
    assert findings.choice.expected.queries == LEAST_ASKING


def test_items_that_ask_for_too_few_queries_are_the_uniform_sample() -> None:
    pairs = pairs_of()
    audit, others = pairs.part("audit"), pairs.part("train").first(5)
    asked = asking(users_of(3), audit.with_added(others))
    assert asked.ids.tolist() == audit.ids.tolist()
    assert asked.are_items


def test_each_split_needs_its_own_answers() -> None:
    evidence = evidence_of()
    pairs = evidence.pairs
    assert pairs.labels is not None
    labels = pairs.labels.copy()
    labels[pairs.split == "audit"] = None
    unlabelled = replace(pairs, labels=labels)
    question = Question(LABEL_MAP, (1.0,), BOTH, ("identity",), fractions=(0.1, 1.0))
    findings = run_experiment(replace(evidence, pairs=unlabelled), question)
    assert (findings.chosen_by, findings.predicted_by) == (LABEL_MAP, NEW_MODEL_MAP)
    report = findings_json(findings, seed=0)
    assert all("label/map" not in curve["values"] for curve in report["curves"])
    json.dumps(report, allow_nan=False)


def test_a_query_without_an_answer_is_never_looked_at() -> None:
    users = with_answers(users_of(), 65)
    findings = run_experiment(evidence_of(users), Question(LABEL_MAP, (1.0,), BOTH, ("offset",)))
    expected = run_experiment(evidence_of(users.first(65)), Question(LABEL_MAP, (1.0,), BOTH, ("offset",)))
    same_findings(findings, expected)
    assert {len(values) for values in findings.arms["new/new"].values()} == {65}


# What may be chosen


def test_what_may_be_chosen_follows_from_the_data_and_the_relevance() -> None:
    def allowed(relevance: Relevance, *, labelled: bool = True, classified: bool = True, **others: bool) -> set[str]:
        return set(policies_allowed(None, relevance, labelled=labelled, classified=classified, **others))

    free = {"random", "uncertainty", "expected_gain"}
    assert allowed("label", logged=True, taken=True, prioritised=True) == set(POLICIES) - {"column"}
    assert allowed("log", logged=True) == free | {"entropy", "demand"}
    assert allowed("label") == set(POLICIES) - {"column", "demand", "taken"}
    there = policies_allowed(None, "log", labelled=False, classified=False, logged=True, taken=True)
    assert there == ["taken", "demand", "random", "uncertainty", "expected_gain"]
    assert policies_allowed(None, "qrels", labelled=False, classified=False, logged=True)[0] == "random"
    assert allowed("new_model") == allowed("qrels") == free | {"entropy"}
    assert allowed("label", classified=False) == free | {"class_margin"}
    assert allowed("label", labelled=False) == free | {"entropy"}
    assert allowed("label", labelled=False, classified=False) == free


def test_the_orders_asked_for_are_those_and_one_that_reads_what_is_not_there_is_refused() -> None:
    assert policies_allowed(["class_loss", "random"], "new_model", labelled=True, classified=True) == [
        "class_loss",
        "random",
    ]
    with pytest.raises(ConfigError, match="policy entropy: it needs the new model's classifier"):
        policies_allowed(["random", "entropy"], "label", labelled=True, classified=False)
    with pytest.raises(ConfigError, match="policy class_margin: it reads the items' labels; name their column"):
        policies_allowed(["class_margin"], "label", labelled=False, classified=True)
    for policy in ("entropy", "class_loss", "class_margin"):
        with pytest.raises(ConfigError, match=f"policy {policy}: it needs one class per item, but the labels .* lists"):
            policies_allowed([policy], "label", labelled=False, classified=False, lists=True)  # type: ignore[list-item]
    for policy, why, there in (
        ("demand", "it needs a query log; set queries.log_path", {}),
        ("taken", "it needs a query log", {}),
        ("taken", "the query log names no items that were taken; add a column item_id", {"logged": True}),
        ("column", "it needs a priority per item; name the column", {"logged": True}),
    ):
        with pytest.raises(ConfigError, match=f"policy {policy}: {why}"):
            policies_allowed([policy], "log", labelled=True, classified=True, **there)  # type: ignore[list-item,arg-type]
    assert policies_allowed(["column"], "log", labelled=False, classified=False, prioritised=True) == ["column"]
    with pytest.raises(ConfigError, match="policy entropy: it needs the new model's classifier"):
        run_experiment(evidence_of(), replace(QUESTION, policies=("entropy",)))


# Reporting


def test_findings_as_json_hold_the_curves_their_areas_and_where_the_gain_is_reached(findings: Findings) -> None:
    report = json.loads(json.dumps(findings_json(findings, seed=0), allow_nan=False))
    assert set(report["arms"]) == {"new/new", "old/old"}
    assert len(report["curves"]) == len(findings.reported)
    relevances: tuple[Relevance, ...] = ("new_model", "label")
    assert findings.groups is not None
    of_group = findings.groups == "a"
    for curve, reported in zip(report["curves"], findings.reported, strict=True):
        fields = candidate_result(reported.candidate).model_dump(mode="json")
        assert {key: curve[key] for key in fields} == fields
        assert set(curve["values"]) == {f"{r}/{m}" for r in relevances for m in METRICS}
        for relevance in relevances:
            for metric in METRICS:
                name, values = f"{relevance}/{metric}", curve["values"][f"{relevance}/{metric}"]
                mean = reported.curve.mean(Objective(relevance, metric))
                assert values["curve"] == pytest.approx(mean.tolist(), abs=1e-6)
                assert values["area"] == pytest.approx(mean.mean(), abs=1e-6)
                assert values["low"] <= values["area"] <= values["high"]
                assert values["at_0"] == values["curve"][0]
                base = report["arms"]["old/old"][name]["value"]
                gain = report["arms"]["new/new"][name]["value"] - base
                if gain > 1e-6:
                    assert 0 <= values["to_95"] <= values["to_99"] <= 1
                    after = reported.curve.fractions >= values["to_95"]
                    assert (mean[after] >= base + 0.95 * gain - 1e-5).all()
                elif gain < -1e-6:
                    assert values["to_95"] is values["to_99"] is None
        by_group = reported.curve.values["new_model", "map"][:, of_group].mean(axis=1)
        assert set(curve["groups"]["new_model/map"]) == {"a", "b"}
        assert curve["groups"]["new_model/map"]["a"] == pytest.approx(by_group.tolist(), abs=1e-6)


def test_the_record_of_a_choice_holds_both_candidates_the_margin_what_is_expected_and_every_trial(
    findings: Findings,
) -> None:
    choice, record = findings.choice, choice_result(findings)
    assert choice.runner_up is not None
    assert findings.margin is not None
    assert record.margin is not None
    assert record.expected is not None
    assert record.objective == "new_model/map"
    assert record.winner == candidate_result(choice.winner)
    assert record.runner_up == candidate_result(choice.runner_up)
    assert record.margin.value == pytest.approx(findings.margin.value, abs=1e-6)
    assert record.margin.queries == 75
    assert record.expected.value == pytest.approx(choice.expected.value, abs=1e-6)
    for trial, tried in zip(record.trials, choice.trials, strict=True):
        assert (trial.stage, trial.queries) == (tried.stage, tried.queries)
        assert trial.area == pytest.approx(tried.area, abs=1e-6)
        assert trial.model_dump(exclude={"stage", "queries", "area"}) == candidate_result(tried.candidate).model_dump()
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert findings_json(findings, seed=0)["choice"] == record.model_dump(mode="json")


def test_the_record_of_a_candidate_says_what_it_is() -> None:
    fused = Candidate(MapView("kernel", norms_kept=True), 0.8, "expected_gain", "scale_offset")
    expected: dict[str, Any] = {
        "method": "kernel",
        "norms_kept": True,
        "stale_mode": "fused",
        "weight": 0.8,
        "policy": "expected_gain",
        "calibration": "scale_offset",
    }
    assert candidate_result(fused).model_dump(mode="json") == expected


def test_without_an_old_arm_the_gain_starts_at_nothing_re_embedded() -> None:
    report = findings_json(run_experiment(evidence_of(users_of(old=False)), BRIEF), seed=0)
    assert set(report["arms"]) == {"new/new"}
    values = report["curves"][0]["values"]["new_model/map"]
    assert 0 < values["to_95"] <= values["to_99"] <= 1


# Predicting


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("with_users", [True, False])
def test_of_the_audit_items_the_curve_at_the_runs_own_fractions_is_predicted(share: float, with_users: bool) -> None:
    evidence = evidence_of(users_of() if with_users else None)
    question = Question(NEW_MODEL_MAP, (1.0,), ("uncertainty",), ("identity",), fractions=(share, 0.25, 0.5, 1.0))
    findings = run_experiment(evidence, question)
    assert (findings.predicted_by, findings.predicted_in) == (NEW_MODEL_MAP, "audit")
    audit = hold_out(evidence, "audit", BOTH)
    queries = audit.answered("new_model")
    shadow, winner = audit.shadow(queries), findings.choice.winner
    stale, size = audit.stale_scores(queries, shadow, winner.view, 1.0), COUNTS["audit"]
    sampled = stand_for_pairs(audit.items.id_hash, share, evidence.seed)
    assert sampled.mean() == pytest.approx(share, abs=0.1)
    assert len(findings.predicted) == 4
    for fraction, interval in zip(question.fractions, findings.predicted, strict=True):
        is_new = sampled.copy()
        for item in audit.order(winner):
            if is_new.sum() >= round(fraction * size):
                break
            is_new[item] = True
        scores = np.where(is_new[None, :], shadow.new, stale)
        plain = measure(scores, {"new_model": shadow.relevant["new_model"]})["new_model"]["map"]
        expected = mean_interval(plain, seed=0)
        assert (interval.value, interval.queries) == (pytest.approx(expected.value, abs=1e-6), expected.queries)
        assert interval.low <= expected.low + 1e-6
        assert interval.high >= expected.high - 1e-6
        assert (interval.high - interval.low > expected.high - expected.low + 1e-6) == (share < fraction < 1)


@pytest.mark.parametrize("by_order", [True, False])
def test_where_half_is_new_before_the_order_half_of_the_audit_items_is_so_and_waves_are_cut_in_the_rest(
    by_order: bool,
) -> None:
    plain, pairs = evidence_of(users_of()), pairs_of()
    carried = np.arange(len(pairs.ids)) % 3 == 0 if by_order else None
    evidence = replace(plain, pairs=replace(pairs, carried=carried), carried_share=0.4)
    fractions = (0.5, 0.5, 0.75, 1.0)
    question = Question(NEW_MODEL_MAP, (1.0,), ("uncertainty",), ("identity",), fractions=fractions)
    findings = run_experiment(evidence, question)
    assert findings.choice == run_experiment(plain, replace(question, fractions=(0.1, 1.0))).choice
    audit = hold_out(evidence, "audit", BOTH)
    queries, winner = audit.answered("new_model"), findings.choice.winner
    shadow = audit.shadow(queries)
    stale = audit.stale_scores(queries, shadow, winner.view, 1.0)
    sampled = stand_for_first(audit.items, 0.5, evidence.pairs.carried_part, evidence.seed)
    assert sampled.mean() == pytest.approx(0.5, abs=0.15)
    waiting = [item for item in audit.order(winner).tolist() if not sampled[item]]
    for share, interval in zip((0, 0, 0.5, 1), findings.predicted, strict=True):
        is_new = sampled.copy()
        is_new[waiting[: int(np.ceil(share * len(waiting)))]] = True
        scores = np.where(is_new[None, :], shadow.new, stale)
        values = measure(scores, {"new_model": shadow.relevant["new_model"]})["new_model"]["map"]
        assert interval.value == pytest.approx(mean_interval(values, seed=0).value, abs=1e-6)


def test_what_stands_for_carried_items_is_new_from_the_start_and_chance_fills_up() -> None:
    pairs = pairs_of()
    carried = np.arange(len(pairs.ids)) % 4 == 0
    items = replace(pairs, carried=carried)
    assert items.carried_part == 0.25
    half, tenth = (stand_for_first(items, share, items.carried_part, 0) for share in (0.5, 0.1))
    assert half[carried].all()
    assert half.mean() == pytest.approx(0.5, abs=0.08)
    assert not tenth[~carried].any(), "less is left than was once embedded"
    assert tenth.mean() == pytest.approx(0.1, abs=0.05)
    assert stand_for_first(items, 1.0, items.carried_part, 0).all()
    np.testing.assert_array_equal(stand_for_first(pairs, 0.5, 0.0, 0), stand_for_pairs(pairs.id_hash, 0.5, 0))
    nothing = replace(pairs, carried=np.zeros(len(pairs.ids), bool))
    np.testing.assert_array_equal(stand_for_first(nothing, 0.5, 0.0, 0), stand_for_pairs(pairs.id_hash, 0.5, 0))


def test_a_samples_share_of_new_items_is_surest_where_the_order_has_given_it_none_or_all() -> None:
    errors = share_errors((0.2, 0.6, 1.0), 200)
    np.testing.assert_allclose(errors, [0, 1.96 * np.sqrt(0.5 * 0.5 * 0.8 / 200), 0], atol=1e-12)


def test_labels_are_predicted_for_the_gallery_and_for_the_audit_items_where_too_few_queries_have_one() -> None:
    question = Question(LABEL_MAP, (1.0,), ("random",), ("identity",), fractions=(0.1, 1.0))
    findings = run_experiment(evidence_of(users_of()), question)
    assert (findings.predicted_by, findings.predicted_in) == (LABEL_MAP, "gallery")
    few = run_experiment(evidence_of(with_answers(users_of(), MIN_QUERIES - 1)), question)
    assert (few.predicted_by, few.predicted_in) == (NEW_MODEL_MAP, "audit")


def test_nothing_is_predicted_where_no_fractions_are_given(findings: Findings) -> None:
    assert findings.predicted == ()


# The published evaluation


@pytest.mark.parametrize("with_users", [True, False])
def test_the_published_curve_is_raw_l2_scores_in_the_order_of_priority_alone(with_users: bool) -> None:
    rng = np.random.default_rng(0)
    items: PairedItems = pairs_of().part("audit")
    queries = users_of() if with_users else None
    shadow = make_shadow(items, queries or items.as_queries(), "l2")
    aligned = rng.normal(size=items.new.shape).astype(np.float32)
    priority = rng.integers(0, 5, len(items.ids)).astype(np.float32)
    order = np.array(sorted(range(len(priority)), key=lambda i: -priority[i]))  # equal ones stay in the rows' order
    curve = published_curve(items, shadow, aligned, priority, policy="uncertainty", seed=0, queries=queries)
    squared = np.square((queries or items.as_queries()).new[:, None, :] - aligned[None, :, :]).sum(axis=2)
    stale = np.where(np.isfinite(shadow.new), -squared, -np.inf).astype(np.float32)
    expected = Backfill(shadow, stale, order).trace(FittedCalibrations(), published_cutoffs(len(order)))
    for key, values in expected.values.items():
        np.testing.assert_allclose(curve.values[key], values, atol=1e-6)


def test_nothing_but_the_forms_of_the_question_is_tried() -> None:
    for forms in (("identity",), ("scale_offset_by_wave", "identity"), FORMS):
        findings = run_experiment(evidence_of(users_of()), Question(NEW_MODEL_MAP, (1.0,), ("random",), forms))
        assert {trial.candidate.form for trial in findings.choice.trials} == set(forms)
