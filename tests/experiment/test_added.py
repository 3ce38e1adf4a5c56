"""Items that were added to the pairs since users took them: they answer queries, and count for nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.experiment.candidate import Candidate, MapView, Objective
from fastfill_ray.experiment.curves import FittedCalibrations, cutoffs_at, places_of, published_cutoffs
from fastfill_ray.experiment.experiment import Question, run_experiment
from fastfill_ray.experiment.heldout import Evidence, hold_out
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.ordering.demand import LoggedQueries, TakenItems
from fastfill_ray.retrieval.relevance import Judgement
from tests.experiment.evidence import evidence_of, objects, pairs_of, users_of, vectors
from tests.synthetic import latent

VIEW = MapView("ridge")
ADDED = 40


def added_items() -> PairedItems:
    """Half of them for the calibration split, half for the audit split."""
    x, classes = latent(ADDED, seed=9)
    old, new = vectors(x)
    return PairedItems(
        ids=objects([f"taken-{i}" for i in range(ADDED)]),
        old=old,
        new=new,
        split=objects(["calibration", "audit"] * (ADDED // 2)),
        labels=objects([f"class-{c}" for c in classes]),
        groups=objects([None] * ADDED),
        added=np.ones(ADDED, bool),
    )


def with_added(pairs: PairedItems, added: PairedItems) -> PairedItems:
    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(pairs, name), getattr(added, name)])

    columns = {name: both(name) for name in ("ids", "old", "new", "split", "labels", "groups")}
    return PairedItems(**columns, added=np.arange(len(columns["ids"])) >= len(pairs.ids))


def asking(answers: list[str]) -> Queries:
    """Queries of which each took one item; its vectors are those of a user that means it, more or less."""
    users = users_of(len(answers))
    judged = tuple(Judgement(row, answer) for row, answer in enumerate(answers))
    return replace(users, judged=judged, judged_as="log")


def evidence_with(queries: Queries, *, added: bool = True) -> Evidence:
    evidence = evidence_of(queries)
    pairs = with_added(pairs_of(), added_items()) if added else evidence.pairs
    return replace(evidence, pairs=pairs)


def test_a_query_that_took_none_of_the_added_sees_the_sample_alone() -> None:
    queries = asking([f"item-{i}" for i in range(75)])
    held, plain = (hold_out(evidence_with(queries, added=added), "audit", ["uncertainty"]) for added in (True, False))
    answered = plain.answered("log")
    assert len(answered.ids) == len(held.answered("log").ids) > 5
    candidate = Candidate(VIEW, 0.5, "uncertainty", "identity")
    curves = []
    for split in (held, plain):
        backfill = split.backfill(candidate, answered, split.shadow(answered))
        assert backfill.size == plain.items.size
        curves.append(backfill.trace(FittedCalibrations(), published_cutoffs(backfill.size)))
    assert set(curves[0].values) == set(curves[1].values)
    for key in curves[0].values:
        np.testing.assert_allclose(curves[0].values[key], curves[1].values[key], atol=1e-6)
    np.testing.assert_allclose(curves[0].fractions, curves[1].fractions)


def test_a_query_meets_its_added_answer_and_none_of_the_others() -> None:
    queries = asking([f"taken-{i}" for i in range(ADDED)] + ["item-0"] * 35)
    held = hold_out(evidence_with(queries), "audit", ["random"])
    answered = held.answered("log")
    shadow = held.shadow(answered)
    assert answered.judged is not None
    columns = np.flatnonzero(~held.items.counted)
    taken = {judgement.query: held.items.row_of.get(judgement.item) for judgement in answered.judged}
    for row in range(len(answered.ids)):
        met = [column for column in columns.tolist() if np.isfinite(shadow.new[row, column])]
        assert met == [column for column in columns.tolist() if column == taken[row]]
        assert np.isfinite(shadow.new[row, held.items.counted]).all()
    # What the new model finds is asked of the sample alone.
    assert held.items.counted[shadow.relevant["new_model"].items].all()
    assert shadow.relevant["log"].counts.tolist() == [1] * len(answered.ids)
    again = held.stale_scores(answered, shadow, VIEW, 0.5)
    np.testing.assert_array_equal(np.isfinite(again), np.isfinite(shadow.new))


@given(st.integers(1, 30), st.integers(0, 10), st.integers(0, 2**32 - 1))
def test_places_count_the_sample_alone(sample: int, added: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counted = rng.permutation(np.arange(sample + added) < sample)
    order = rng.permutation(sample + added)
    places = places_of(order, counted)
    place_in_order = np.argsort(order)
    for item in range(len(order)):
        before = sum(counted[other] and place_in_order[other] < place_in_order[item] for other in range(len(order)))
        assert places[item] == min(before, sample - 1)
    assert sorted(places[counted].tolist()) == list(range(sample))
    sampled = rng.random(len(order)) < 0.3
    cutoffs = cutoffs_at(order[counted[order]], sampled, [0.25, 1.0])
    assert cutoffs[1] <= sample
    new = (places < cutoffs[1]) | sampled
    assert new.all() or not new[counted].all() or cutoffs[1] < sample


def test_known_items_can_be_chosen_and_predicted_by_though_the_sample_holds_few_of_them() -> None:
    answers = [f"taken-{i}" for i in range(ADDED)] * 6
    x, _ = latent(ADDED, seed=9)
    meant = np.tile(x, (6, 1)) + 0.3 * np.random.default_rng(5).normal(size=(6 * ADDED, x.shape[1]))
    old, new = vectors(meant.astype(np.float32))
    queries = Queries(
        objects([f"query-{i}" for i in range(len(answers))]),
        new,
        old,
        judged=tuple(Judgement(row, answer) for row, answer in enumerate(answers)),
        judged_as="log",
    )
    logged = LoggedQueries(
        new[:60], old[:60], np.ones(60), TakenItems.of(added_items().ids, np.arange(1.0, ADDED + 1)), "log"
    )
    evidence = replace(evidence_with(queries), logged=logged, metric_looked_at="recall@1")
    objective = Objective("log", "recall@1")
    question = Question(objective, (1.0, 0.5), ("random", "demand", "taken"), ("identity", "offset"), (0.1, 0.4, 1.0))
    findings = run_experiment(evidence, question)
    assert findings.chosen_by == objective
    assert findings.predicted_by == objective
    assert findings.predicted_in == "gallery"
    assert findings.predicted[0].queries == len(answers)
    assert findings.choice.winner.policy == "taken"
    random = replace(findings.choice.winner, policy="random")
    areas = {trial.candidate: trial.area for trial in findings.choice.trials}
    assert areas[findings.choice.winner] > areas.get(random, 0)


def test_policies_that_need_a_log_are_refused_without_one() -> None:
    with pytest.raises(ValueError, match="policy taken needs a query log"):
        hold_out(evidence_of(), "audit", ["taken"])
