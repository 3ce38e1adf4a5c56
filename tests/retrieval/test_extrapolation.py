"""A mean followed to sizes that nobody has measured: exact where it moves as assumed, the wider the farther it goes."""

from __future__ import annotations

import numpy as np
import pytest

from fastfill_ray.retrieval.extrapolation import disjoint_parts, extrapolate
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.types import F64

Q = 4000


def log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


def share_at(odds: float) -> float:
    return float(1 / (1 + np.exp(-odds)))


def levels(start: float, slope: float, count: int = 3) -> list[F64]:
    """Queries of which the first ones find it: as many as log-odds say that fall by `slope` per halving."""
    found = []
    for halvings in range(count):
        values = np.zeros((2**halvings, Q))
        values[:, : round(Q * share_at(start - slope * halvings))] = 1
        found.append(values)
    return found


@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("doublings", [0.0, 1.0, 3.5])
def test_a_mean_whose_log_odds_are_linear_in_the_doublings_is_followed_exactly(slope: float, doublings: float) -> None:
    predicted = extrapolate(levels(0.2, slope), doublings)
    assert predicted.value == pytest.approx(share_at(0.2 + slope * doublings), abs=1e-3)
    assert predicted.low < predicted.value < predicted.high
    assert predicted.queries == Q


def test_with_a_damping_each_doubling_adds_a_share_of_the_one_before() -> None:
    predicted = extrapolate(levels(0.0, -0.4), 3.0, 0.5)
    assert log_odds(predicted.value) == pytest.approx(-0.4 * (0.5 + 0.25 + 0.125), abs=5e-3)


def test_the_size_that_was_measured_keeps_its_mean_and_its_interval_over_queries() -> None:
    values = np.random.default_rng(7).random(300)
    predicted, plain = extrapolate([values[None, :]], 0.0), mean_interval(values)
    assert predicted.value == pytest.approx(plain.value)
    assert predicted.high - predicted.low == pytest.approx(plain.high - plain.low, rel=0.1)


def test_the_farther_and_the_steeper_the_wider() -> None:
    widths = [
        made.high - made.low
        for made in (
            extrapolate(levels(0.0, -0.05), 1.0),
            extrapolate(levels(0.0, -0.05), 4.0),
            extrapolate(levels(0.0, -0.3), 4.0),
        )
    ]
    assert widths == sorted(widths)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_always_or_never_holds_stays_and_lies_inside(value: float) -> None:
    predicted = extrapolate([np.full((2**j, 80), value) for j in range(3)], 2.0)
    assert predicted.value == pytest.approx(value)
    assert predicted.low <= value <= predicted.high
    assert 0 <= predicted.low <= predicted.high <= 1


def test_a_query_counts_where_it_has_an_answer() -> None:
    halves = np.full((2, 4), np.nan)
    halves[0, :2] = 1.0
    halves[1, 2] = 0.0
    whole = np.array([[1.0, 1.0, 0.0, np.nan]])
    predicted = extrapolate([whole, halves], 0.0)
    assert (predicted.value, predicted.queries) == (pytest.approx(2 / 3), 3)
    nothing = extrapolate([np.full((1, 3), np.nan)], 1.0)
    assert np.isnan(nothing.value)
    assert nothing.queries == 0


def test_parts_of_one_size_are_disjoint_and_hold_every_row() -> None:
    parts = disjoint_parts(70)
    assert [len(of_size) for of_size in parts] == [1, 2, 4]
    for of_size in parts:
        assert sorted(np.concatenate(of_size).tolist()) == list(range(70))
        assert max(map(len, of_size)) - min(map(len, of_size)) <= 1
    assert [len(of_size) for of_size in disjoint_parts(40)] == [1, 2]
    assert [len(of_size) for of_size in disjoint_parts(20)] == [1]


def test_a_query_of_twice_the_weight_is_two_queries() -> None:
    values = np.random.default_rng(3).random((1, 40))
    halves = np.where(np.arange(40) % 2 == [[0], [1]], values * 0.9, np.nan)
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    twice = np.concatenate([np.arange(40), np.arange(10)])
    weighted = extrapolate([values, halves], 1.0, 1.0, weights)
    repeated = extrapolate([values[:, twice], halves[:, twice]], 1.0, 1.0, None, twice)
    assert weighted.value == pytest.approx(repeated.value, abs=0.01)
    assert (weighted.queries, repeated.queries) == (40, 50)


def test_queries_that_share_their_fate_say_as_little_as_one_of_them() -> None:
    values = (np.random.default_rng(3).random(20) < 0.7).astype(np.float64)
    alone = extrapolate([values[None, :]], 1.0, together=np.arange(20))
    often = extrapolate([np.repeat(values, 30)[None, :]], 1.0, together=np.repeat(np.arange(20), 30))
    as_if_free = extrapolate([np.repeat(values, 30)[None, :]], 1.0)
    assert (often.value, often.low, often.high) == pytest.approx((alone.value, alone.low, alone.high), abs=0.02)
    assert as_if_free.high - as_if_free.low < 0.5 * (often.high - often.low)
    assert often.queries == 600


def test_a_few_groups_that_are_all_found_do_not_make_sure() -> None:
    few, many = (extrapolate([np.ones((1, n))], 1.0, together=np.arange(n)) for n in (8, 800))
    assert few.value == many.value == 1
    assert few.low < 0.95 < many.low
