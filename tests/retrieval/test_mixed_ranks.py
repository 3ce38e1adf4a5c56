"""Ranks of a mixed gallery from rows that are sorted once are those of the served scores: ties, exclusions, slopes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.retrieval.calibration import MixedScores, OrderCalibration
from fastfill_ray.retrieval.metrics import METRICS, measure
from fastfill_ray.retrieval.mixed_ranks import (
    _FEW_PAIRS,
    OF_THE_BEST,
    MixedRanks,
    MixedState,
    Mixture,
    RelevantScores,
    SortedScores,
    at_most,
)
from fastfill_ray.retrieval.ranking import ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems

CALIBRATIONS = [
    OrderCalibration(),
    OrderCalibration(1.0, 1.0),
    OrderCalibration(0.7, -0.25),
    OrderCalibration(1.0, 0.5, -1.0),
    OrderCalibration(1.4, 0.5, 2.0),
]


def state(seed: int, queries: int, items: int, levels: int) -> tuple[MixedScores, RelevantItems]:
    """Scores of few levels, so that stale and new ones tie; an excluded item is so with either vector."""
    rng = np.random.default_rng(seed)
    stale, new = (rng.integers(0, levels, (queries, items)).astype(np.float32) / 4 for _ in range(2))
    excluded = rng.random(stale.shape) < 0.1
    stale[excluded] = new[excluded] = -np.inf
    relevant = (rng.random(stale.shape) < rng.random((queries, 1))) & ~excluded
    relevant[0, np.flatnonzero(~excluded[0])[:1]] = True
    position = np.argsort(rng.random(items)).astype(np.float32) / np.float32(items)
    return MixedScores(stale, new, position < rng.choice([0, 0.3, 1.1]), position), RelevantItems.of(relevant)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 40), st.sampled_from([1, 3, 8, 10_000]))
@settings(max_examples=150, deadline=None)
def test_ranks_are_those_of_the_served_scores(seed: int, queries: int, items: int, levels: int) -> None:
    scores, relevant = state(seed, queries, items, levels)
    mixed = MixedState(SortedScores.of(scores.stale), SortedScores.of(scores.new), scores.is_new, scores.position)
    ranks = mixed.relevant(relevant)
    for calibration in CALIBRATIONS:
        expected = ranks_of(scores.under(calibration), {"": relevant})[""]
        found = ranks.ranks(mixed.served(calibration.apply, in_order=calibration.slope == 0))
        np.testing.assert_array_equal(found, expected, err_msg=str(calibration))
        np.testing.assert_array_equal(ranks._compared(calibration.apply), expected, err_msg=str(calibration))


@pytest.mark.parametrize("last", [0, 3, 254, 255, 256])
def test_a_mixture_has_the_states_that_are_made_one_by_one(last: int) -> None:
    scores, relevant = state(last, 5, 300, 8)
    turns = np.random.default_rng(last).integers(0, last + 1, 300)
    stale, new = SortedScores.of(scores.stale), SortedScores.of(scores.new)
    mixture = Mixture(stale, new, turns, scores.position)
    for number in (0, 1, last, last + 1, last + 300):
        mixed = mixture.state(number)
        alone = MixedState(stale, new, turns < number, scores.position)
        for calibration in CALIBRATIONS:
            in_order = calibration.slope == 0
            ranks, expected = (
                each.relevant(relevant).ranks(each.served(calibration.apply, in_order=in_order))
                for each in (mixed, alone)
            )
            np.testing.assert_array_equal(ranks, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("items", [30, 300])  # pairs of which all are compared, and too many for that
def test_a_mean_is_that_of_measuring_the_served_scores(metric: str, seed: int, items: int) -> None:
    scores, relevant = state(seed, 20, items, 1 << 30 if metric in OF_THE_BEST else 50)
    assert (len(relevant.items) * items <= _FEW_PAIRS) == (items == 30)
    mixed = MixedState(SortedScores.of(scores.stale), SortedScores.of(scores.new), scores.is_new, scores.position)
    ranks = mixed.relevant(relevant)
    for calibration in CALIBRATIONS:
        expected = float(np.nanmean(measure(scores.under(calibration), {"": relevant})[""][metric]))
        assert ranks.mean(metric, calibration.apply, in_order=calibration.slope == 0) == expected


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_counting_scores_is_a_search_in_each_row(seed: int, queries: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(0, 6, (queries, width)).astype(np.float32), axis=1)
    owner = rng.integers(0, queries, 30)
    values = rng.integers(-1, 7, 30).astype(np.float32)
    expected = [int(rows[q].searchsorted(v, side="right")) for q, v in zip(owner, values, strict=True)]
    assert at_most(rows, owner, values).tolist() == expected


def test_no_query_has_no_rank() -> None:
    none = SortedScores.of(np.empty((0, 5), np.float32))
    mixed = MixedState(none, none, np.arange(5) < 2, np.zeros(5, np.float32))
    ranks = mixed.relevant(RelevantItems.of(np.zeros((0, 5), bool)))
    assert ranks.ranks(mixed.served(OrderCalibration().apply, in_order=True)).tolist() == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 40), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_relevant_item_may_be_new_to_its_own_query_alone(
    seed: int, queries: int, items: int, in_order: bool, best: bool
) -> None:
    rng = np.random.default_rng(seed)
    stale, new = rng.normal(size=(2, queries, items)).astype(np.float32)
    position = rng.random(items).astype(np.float32)
    is_new, sought = rng.random(items) < 0.5, rng.integers(0, items, queries)
    relevant = RelevantItems(sought, np.arange(queries + 1))
    are_new, rows = rng.random(queries) < 0.5, np.arange(queries)
    mixed = MixedState(SortedScores.of(stale), SortedScores.of(new), is_new, position)
    ranks = MixedRanks(mixed, RelevantScores.of(mixed.stale, mixed.new, relevant), are_new)
    calibration = OrderCalibration(0.7, 0.3, 0.0 if in_order else 0.8)
    scores = MixedScores(stale, new, is_new, position).under(calibration)
    scores[rows, sought] = np.where(are_new, new[rows, sought], calibration.apply(stale, position)[rows, sought])
    expected = ranks_of(scores, {"": relevant})[""]
    np.testing.assert_array_equal(ranks.ranks(mixed.served(calibration.apply, in_order=in_order)), expected)
    metric = "mrr" if best else "recall@10"
    values = 1 / expected if best else expected <= 10
    assert ranks.mean(metric, calibration.apply, in_order=in_order) == pytest.approx(values.mean())
