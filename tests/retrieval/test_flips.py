"""Flips against a plain loop over the queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.retrieval.flips import flips
from fastfill_ray.retrieval.intervals import mean_interval

VALUE = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, math.nan])
PAIRS = st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=40)


@given(PAIRS)
@settings(max_examples=200, deadline=None)
def test_flips_equal_a_loop_over_the_queries_that_both_have(pairs: list[tuple[float, float]]) -> None:
    gains, losses, queries = [], [], 0
    for now, before in pairs:
        if math.isnan(now) or math.isnan(before):
            continue
        queries += 1
        if now > before:
            gains.append(now - before)
        elif now < before:
            losses.append(before - now)
    found = flips(np.array([now for now, _ in pairs]), np.array([before for _, before in pairs]))
    assert found.nfr.queries == found.pfr.queries == queries
    if queries:
        assert found.nfr.value == pytest.approx(len(losses) / queries)
        assert found.pfr.value == pytest.approx(len(gains) / queries)
        assert found.nfr.low <= found.nfr.value <= found.nfr.high
    else:
        assert math.isnan(found.nfr.value)
    assert found.mean_gain == pytest.approx(sum(gains) / len(gains) if gains else 0.0)
    assert found.mean_loss == pytest.approx(sum(losses) / len(losses) if losses else 0.0)


@given(PAIRS)
@settings(max_examples=100, deadline=None)
def test_the_difference_of_the_means_is_what_the_gains_bring_less_what_the_losses_cost(
    pairs: list[tuple[float, float]],
) -> None:
    both = np.array([pair for pair in pairs if not any(math.isnan(value) for value in pair)]).reshape(-1, 2)
    if len(both) == 0:
        return
    now, before = both.T
    found = flips(now, before)
    change = found.pfr.value * found.mean_gain - found.nfr.value * found.mean_loss
    assert change == pytest.approx(now.mean() - before.mean(), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_of_a_metric_that_is_0_or_1_they_are_what_was_right_and_is_wrong_and_the_reverse(
    pairs: list[tuple[bool, bool]], seed: int
) -> None:
    now, before = (np.array([pair[i] for pair in pairs], dtype=np.float64) for i in (0, 1))
    found = flips(now, before, seed=seed)
    expected = mean_interval(((before == 1) & (now == 0)).astype(np.float64), seed=seed)
    assert found.nfr == pytest.approx(expected)
    expected = mean_interval(((before == 0) & (now == 1)).astype(np.float64), seed=seed)
    assert found.pfr == pytest.approx(expected)


@given(PAIRS)
@settings(max_examples=50, deadline=None)
def test_the_other_way_round_gains_are_losses(pairs: list[tuple[float, float]]) -> None:
    now, before = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    there, back = flips(now, before), flips(before, now)
    assert (there.mean_gain, there.mean_loss) == (back.mean_loss, back.mean_gain)
    assert there.nfr.queries == 0 or (there.nfr, there.pfr) == (back.pfr, back.nfr)


def test_weights_count_a_query_as_often_as_it_is_asked() -> None:
    now, before, weights = np.array([1.0, 0.0, np.nan, 0.5]), np.array([0.0, 1.0, 1.0, 0.5]), np.array([1.0, 3, 9, 4])
    found = flips(now, before, weights=weights)
    assert (found.pfr.value, found.nfr.value) == pytest.approx((1 / 8, 3 / 8))
    assert (found.mean_gain, found.mean_loss) == (1.0, 1.0)
    plain = mean_interval(np.array([0.0, 1.0, 1.0]))
    assert mean_interval(np.array([0.0, 1.0, 1.0]), weights=np.full(3, 7.0)) == pytest.approx(plain)
