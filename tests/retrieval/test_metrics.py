"""Metrics against a plain reference written as loops, and against scikit-learn where both mean the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from fastfill_ray.retrieval.intervals import (
    JACKKNIFE_GROUPS,
    jackknife_interval,
    mean_interval,
    paired_difference,
    summarise,
)
from fastfill_ray.retrieval.metrics import METRICS, curve_area, per_query, per_query_by_relevance
from fastfill_ray.retrieval.ranking import rank, rank_hits


def reference(hits: Sequence[bool], num_relevant: int) -> dict[str, float]:
    """Every metric of one query, by its definition. `hits`: best rank first."""
    if num_relevant == 0:
        return dict.fromkeys(METRICS, math.nan)
    precisions: list[float] = []
    first, gain = 0, 0.0
    for place, hit in enumerate(hits, 1):
        if hit:
            precisions.append((len(precisions) + 1) / place)
            first = first or place
            gain += 1 / math.log2(place + 1) if place <= 10 else 0
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(num_relevant, 10) + 1))
    return {
        "cmc@1": float(any(hits[:1])),
        "cmc@5": float(any(hits[:5])),
        "map": sum(precisions) / num_relevant,
        "recall@1": sum(hits[:1]) / num_relevant,
        "recall@10": sum(hits[:10]) / num_relevant,
        "mrr": 1 / first if first else 0.0,
        "ndcg@10": gain / ideal,
    }


RANKINGS = st.integers(1, 30).flatmap(
    lambda depth: st.lists(
        st.tuples(st.lists(st.booleans(), min_size=depth, max_size=depth), st.integers(0, 20)), min_size=1, max_size=6
    )
)


@given(RANKINGS)
@settings(max_examples=300, deadline=None)
def test_every_metric_equals_its_definition(rankings: list[tuple[list[bool], int]]) -> None:
    # Relevant items that were not found count too; a query without any has no value.
    num_relevant = [sum(hits) + missed if missed != 20 else 0 for hits, missed in rankings]
    hits = [found if total else [False] * len(found) for (found, _), total in zip(rankings, num_relevant, strict=True)]
    values = per_query(np.array(hits), np.array(num_relevant, np.int64))
    assert tuple(values) == METRICS
    for i, (row, total) in enumerate(zip(hits, num_relevant, strict=True)):
        expected = reference(row, total)
        for name, column in values.items():
            assert column.dtype == np.float64
            assert column[i] == pytest.approx(expected[name], nan_ok=True, abs=1e-12), name


@given(st.integers(0, 2**32 - 1), st.integers(11, 40), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_scikit_learn_agrees_on_complete_rankings(seed: int, items: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(5 * items).reshape(5, items).astype(np.float32)
    relevant = rng.random((5, items)) < density
    relevant[:, 0] = True
    values = per_query(rank_hits(scores, relevant), relevant.sum(axis=1))
    for i in range(5):
        assert values["map"][i] == pytest.approx(average_precision_score(relevant[i], scores[i]))
        assert values["ndcg@10"][i] == pytest.approx(ndcg_score(relevant[i : i + 1], scores[i : i + 1], k=10))
    grades = relevant * rng.integers(1, 4, relevant.shape).astype(np.float64)
    best = np.pad(-np.sort(-grades, axis=1), ((0, 0), (0, 10)))[:, :10]
    graded = per_query(np.take_along_axis(grades, rank(scores), axis=1), relevant.sum(axis=1), best)["ndcg@10"]
    for i in range(5):
        assert graded[i] == pytest.approx(ndcg_score(grades[i : i + 1], scores[i : i + 1], k=10))


def test_a_graded_ndcg_is_what_a_hand_says() -> None:
    # Grades 3, 2, 0, 1 in the order of the ranking; another item of grade 2 was not found.
    values = per_query(np.array([[3.0, 2.0, 0.0, 1.0]]), np.array([4]), np.array([[3.0, 2, 2, 1, 0, 0, 0, 0, 0, 0]]))
    gain = 3 + 2 / np.log2(3) + 1 / np.log2(5)
    ideal = 3 + 2 / np.log2(3) + 2 / np.log2(4) + 1 / np.log2(5)
    assert values["ndcg@10"][0] == pytest.approx(gain / ideal)
    assert values["ndcg@10"][0] == pytest.approx(0.82433, abs=1e-5)
    assert values["recall@10"][0] == 0.75


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_ranking_is_a_stable_sort_in_which_excluded_items_are_never_hits(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.array([-np.inf, -1, 0, 0.5], np.float32), (4, items))
    relevance = {"label": rng.random((4, items)) < 0.5, "qrels": rng.random((4, items)) < 0.1}
    order = [sorted(range(items), key=lambda n, row=row: -row[n]) for row in scores.tolist()]  # type: ignore[misc]
    assert rank(scores).tolist() == order
    num_relevant = {name: np.full(4, items) for name in relevance}
    together = per_query_by_relevance(scores, relevance, num_relevant)
    for name, relevant in relevance.items():
        hits = [[bool(relevant[q, n] and scores[q, n] > -np.inf) for n in order[q]] for q in range(4)]
        assert rank_hits(scores, relevant).tolist() == hits
        for metric, values in per_query(np.array(hits), num_relevant[name]).items():
            np.testing.assert_array_equal(together[name][metric], values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_its_mean_lies_within_the_values_and_is_the_same_for_a_seed(
    values: list[float], seed: int
) -> None:
    array = np.array(values)
    found = mean_interval(array, seed=seed)
    assert found.value == pytest.approx(array.mean())
    assert array.min() - 1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= array.max() + 1e-12
    assert found.queries == len(values)
    assert found == pytest.approx(mean_interval(array, seed=seed))


def test_an_interval_shrinks_with_the_root_of_the_number_of_queries() -> None:
    values = np.random.default_rng(0).random(6400)
    widths = [(found := mean_interval(values[:n])).high - found.low for n in (100, 6400)]
    assert widths[0] / widths[1] == pytest.approx(8, rel=0.2)
    assert widths[1] == pytest.approx(2 * 1.96 * values.std() / 80, rel=0.1)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    samples = np.random.default_rng(1).random((300, 40))
    covered = [(found := mean_interval(sample, seed=i)).low <= 0.5 <= found.high for i, sample in enumerate(samples)]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_jackknife_covers_the_draw_of_the_items_where_a_bootstrap_over_queries_does_not() -> None:
    """A query's value depends on the items it searches: here on their mean, which all queries of a sample share."""
    rng, groups = np.random.default_rng(0), np.arange(200) % JACKKNIFE_GROUPS
    within = {"jackknife": 0, "bootstrap": 0}
    for seed in range(200):
        items, queries = rng.normal(size=200), rng.normal(size=200)
        without = [queries[groups != g].mean() + items[groups != g].mean() for g in range(JACKKNIFE_GROUPS)]
        values = queries + items.mean()
        for name, interval in {
            "jackknife": jackknife_interval(float(values.mean()), without, 200),
            "bootstrap": mean_interval(values, seed=seed),
        }.items():
            within[name] += interval.low <= 0 <= interval.high
    assert 180 <= within["jackknife"] <= 199
    assert within["bootstrap"] < 175


def test_a_jackknife_of_a_plain_mean_is_as_wide_as_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=(4000,))
    groups = np.arange(4000) % JACKKNIFE_GROUPS
    without = [float(values[groups != g].mean()) for g in range(JACKKNIFE_GROUPS)]
    value, low, high, queries = jackknife_interval(0.25, without, 7)
    assert (value, queries, (low + high) / 2) == (0.25, 7, pytest.approx(0.25))
    assert (high - low) / 2 == pytest.approx(2.262 * values.std() / np.sqrt(4000), rel=0.5)


def test_queries_without_a_value_are_left_out_of_means_and_pairs() -> None:
    now, before = np.array([1.0, np.nan, 0.5, 0.25]), np.array([0.5, 1.0, np.nan, 0.5])
    assert mean_interval(now).value == pytest.approx(1.75 / 3)
    assert paired_difference(now, before) == pytest.approx(mean_interval(np.array([0.5, -0.25])))
    nothing = mean_interval(np.full(3, np.nan))
    assert nothing.queries == 0
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert list(summarise({"map": now, "mrr": np.full(4, np.nan)})) == ["map"]


def test_a_paired_difference_is_narrower_than_the_difference_of_unpaired_means() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(200)
    now = before + 0.02 + rng.normal(size=200) / 100
    found = paired_difference(now, before)
    assert 0.017 < found.low < found.value < found.high < 0.023
    alone = mean_interval(now)
    assert alone.high - alone.low > 10 * (found.high - found.low)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True).filter(lambda x: max(x) - min(x) > 1e-3),
    st.floats(-1, 1),
    st.floats(-1, 1),
)
def test_the_area_under_a_straight_line_is_its_middle_wherever_it_is_measured(
    fractions: list[float], start: float, slope: float
) -> None:
    x = sorted(fractions)
    middle = start + slope * (x[0] + x[-1]) / 2
    assert curve_area(x, [start + slope * at for at in x]) == pytest.approx(middle, abs=1e-9)


def test_the_area_over_the_authors_22_points_is_the_sum_of_its_trapezoids() -> None:
    items = 10_001
    fractions = [math.floor(i * items / 21) / items for i in range(22)]
    values = np.random.default_rng(3).random(22).tolist()
    plain = sum((values[i] + values[i + 1]) / 2 * (fractions[i + 1] - fractions[i]) for i in range(21))
    assert curve_area(fractions, values) == pytest.approx(plain)
    # Where the points are evenly spread, only the ends weigh less than in their mean.
    even = [i / 21 for i in range(22)]
    assert curve_area(even, values) == pytest.approx((sum(values) - (values[0] + values[-1]) / 2) / 21)
    assert curve_area([0.3], [0.7]) == 0.7
