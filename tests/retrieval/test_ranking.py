"""Metrics from ranks alone equal those of the full ranking in ``retrieval.metrics``: ties, exclusions, no answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.retrieval.metrics import METRICS, measure, metrics_of, per_query
from fastfill_ray.retrieval.ranking import rank, rank_hits, ranks_of
from fastfill_ray.retrieval.relevance import RelevantItems

SEEDS = st.integers(0, 2**32 - 1)


def some(seed: int, queries: int, items: int, levels: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (Q, N) of few levels, some excluded, and relevant items, none of them excluded; some queries have none."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (queries, items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    relevant = (rng.random(scores.shape) < rng.random((queries, 1))) & np.isfinite(scores)
    relevant[rng.random(queries) < 0.2] = False
    return scores, relevant


def dense(relevant: RelevantItems, items: int) -> NDArray[np.bool_]:
    matrix = np.zeros((len(relevant.counts), items), bool)
    for query, count in enumerate(relevant.counts):
        matrix[query, relevant.items[relevant.starts[query] :][:count]] = True
    return matrix


@given(SEEDS, st.integers(1, 8), st.integers(1, 40), st.sampled_from([1, 2, 5, 1000]))
@settings(max_examples=200, deadline=None)
def test_every_metric_is_that_of_the_full_ranking_also_with_ties_and_exclusions(
    seed: int, queries: int, items: int, levels: int
) -> None:
    scores, relevant = some(seed, queries, items, levels)
    other = np.roll(relevant, 1, axis=0) & np.isfinite(scores)
    result = measure(scores, {"one": RelevantItems.of(relevant), "other": RelevantItems.of(other)})
    assert list(result) == ["one", "other"]
    for name, its in (("one", relevant), ("other", other)):
        expected = per_query(rank_hits(scores, its), its.sum(axis=1))
        assert tuple(result[name]) == METRICS
        for metric, values in result[name].items():
            np.testing.assert_allclose(values, expected[metric], atol=1e-12, err_msg=f"{name} {metric}")


@given(SEEDS, st.integers(1, 6), st.integers(1, 40), st.sampled_from([1, 3, 1000]))
@settings(max_examples=150, deadline=None)
def test_graded_metrics_from_ranks_are_those_of_the_full_ranking(
    seed: int, queries: int, items: int, levels: int
) -> None:
    scores, relevant = some(seed, queries, items, levels)
    grades = np.where(relevant, np.random.default_rng(seed).choice([0.25, 1, 2, 3], relevant.shape), 0.0)
    places = np.argwhere(relevant)
    sparse = RelevantItems.of_judged(places, grades[relevant], queries)
    best = np.pad(-np.sort(-grades, axis=1), ((0, 0), (0, 10)))[:, :10]
    in_order = np.take_along_axis(grades, rank(scores), axis=1)
    expected = per_query(in_order, relevant.sum(axis=1), best)
    binary = per_query(rank_hits(scores, relevant), relevant.sum(axis=1))
    for metric, values in measure(scores, {"": sparse})[""].items():
        np.testing.assert_allclose(values, expected[metric], atol=1e-12, err_msg=metric)
        if metric != "ndcg@10":
            np.testing.assert_array_equal(expected[metric], binary[metric])
    ones = RelevantItems.of_judged(places, np.ones(len(places)), queries)
    for metric, values in measure(scores, {"": ones})[""].items():
        np.testing.assert_array_equal(values, measure(scores, {"": RelevantItems.of(relevant)})[""][metric])


@given(SEEDS, st.integers(1, 6), st.integers(1, 30), st.sampled_from([1, 3, 1000]))
@settings(max_examples=100, deadline=None)
def test_ranks_are_places_in_a_stable_descending_sort(seed: int, queries: int, items: int, levels: int) -> None:
    scores, relevant = some(seed, queries, items, levels)
    place = np.empty(scores.shape, np.int64)
    np.put_along_axis(place, rank(scores), np.arange(1, items + 1)[None, :], axis=1)
    sparse = RelevantItems.of(relevant)
    np.testing.assert_array_equal(ranks_of(scores, {"": sparse})[""], place[np.nonzero(relevant)])


@given(SEEDS, st.integers(0, 6), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_relevant_items_are_those_of_each_query(seed: int, queries: int, items: int) -> None:
    relevant = some(seed, queries, items, 3)[1]
    sparse = RelevantItems.of(relevant)
    np.testing.assert_array_equal(dense(sparse, items), relevant)
    np.testing.assert_array_equal(sparse.counts, relevant.sum(axis=1))
    assert (len(sparse.starts), sparse.items.dtype) == (queries + 1, np.int64)


@given(SEEDS, st.integers(1, 6), st.integers(1, 30), st.integers(1, 12), st.sampled_from([1, 3, 1000]))
@settings(max_examples=150, deadline=None)
def test_the_top_of_scores_are_the_first_of_a_stable_sort_and_never_an_excluded_item(
    seed: int, queries: int, items: int, depth: int, levels: int
) -> None:
    scores = some(seed, queries, items, levels)[0]
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, rank(scores)[:, :depth], True, axis=1)
    np.testing.assert_array_equal(dense(RelevantItems.top(scores, depth), items), expected & np.isfinite(scores))


@given(SEEDS, st.lists(st.integers(0, 5), max_size=9))
@settings(max_examples=100, deadline=None)
def test_taking_queries_is_taking_rows(seed: int, rows: list[int]) -> None:
    relevant = some(seed, 6, 15, 3)[1]
    taken = RelevantItems.of(relevant).take(np.array(rows, np.int64))
    np.testing.assert_array_equal(dense(taken, 15), relevant[rows])


def test_scores_that_differ_in_the_last_bits_of_float64_are_told_apart() -> None:
    scores = np.array([[1.0, 1.0 + 1e-15]])
    relevant = RelevantItems.of(np.array([[True, False]]))
    assert ranks_of(scores, {"": relevant})[""].tolist() == [2]  # type: ignore[arg-type]


def test_queries_without_a_relevant_item_have_no_value() -> None:
    relevant = RelevantItems.of(np.zeros((3, 4), bool))
    for values in metrics_of(relevant, np.empty(0, np.int64)).values():
        assert np.isnan(values).all()
        assert len(values) == 3


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_ranking_is_worth_one(metric: str) -> None:
    scores = np.array([[3.0, 2, 1]], np.float32)
    result = measure(scores, {"": RelevantItems.of(np.array([[True, False, False]]))})[""][metric]
    assert result.tolist() == [1.0]
