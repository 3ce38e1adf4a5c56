"""The benchmarks of demand: how traffic is drawn, and what counts as found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.zipf.curves import found_first, interval
from benchmarks.zipf.traffic import log_events, zipf


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_a_log_of_so_many_events_covers_what_is_meant(coverage: float) -> None:
    probability = zipf(1_000)
    rng = np.random.default_rng(0)
    events = log_events(probability, coverage)
    covered = [probability[rng.multinomial(events, probability) > 0].sum() for _ in range(50)]
    assert np.mean(covered) == pytest.approx(coverage, abs=0.01)


def test_an_answer_is_found_where_it_is_alone_at_the_top() -> None:
    scores = np.array([[3, 1, 2], [1, 1, 0], [0, 1, 2]], np.float32)
    assert found_first(scores, np.array([0, 0, 1])).tolist() == [True, False, False]


def test_the_interval_weights_queries_by_their_traffic() -> None:
    values, weights = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.25, 0.25])
    at = interval(values, weights, seed=0)
    assert at.value == 0.5
    assert at.low == 0
    assert at.high == 1
    assert interval(np.ones(3), weights, seed=0)[:3] == pytest.approx((1, 1, 1))
