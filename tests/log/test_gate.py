"""Held or published: only a loss that is certain holds a version back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.log.gate import judge
from fastfill_ray.retrieval.intervals import paired_difference

RNG = np.random.default_rng(0)
BEFORE = RNG.random(300)
NOISE = RNG.normal(size=300) / 100


def test_a_certain_loss_is_held_and_says_by_how_much_against_what() -> None:
    verdict = judge(BEFORE - 0.1 + NOISE, BEFORE, against="version 3", max_regression=0.0)
    assert not verdict.publish
    assert verdict.difference == pytest.approx(-0.1, abs=0.01)
    assert verdict.high is not None
    assert verdict.high < 0
    assert re.fullmatch(r"-0\.1\d+ \[-0\.\d+, -0\.\d+\] against version 3, worse than 0\.0000 allowed", verdict.reason)


def test_a_loss_within_what_is_allowed_is_published() -> None:
    verdict = judge(BEFORE - 0.1 + NOISE, BEFORE, against="old/old", max_regression=0.12)
    assert verdict.publish
    assert verdict.difference == pytest.approx(-0.1, abs=0.01)
    assert "undecided" not in verdict.reason


def test_an_interval_on_both_sides_decides_nothing_is_published_and_says_so() -> None:
    verdict = judge(BEFORE + 10 * NOISE, BEFORE, against="old/old", max_regression=0.0)
    assert verdict.publish
    assert "undecided" in verdict.reason
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < 0 < verdict.high


def test_a_gain_and_no_change_at_all_are_published_without_doubt() -> None:
    for gain in (0.1, 0.0):
        verdict = judge(BEFORE + gain, BEFORE, against="old/old", max_regression=0.0)
        assert verdict.publish
        assert "undecided" not in verdict.reason


def test_without_a_baseline_a_version_is_published_and_says_so() -> None:
    verdict = judge(BEFORE, None, against="old/old", max_regression=0.0)
    assert verdict.publish
    assert verdict.reason == "old/old is not known, nothing to compare with"
    assert verdict.difference is None


def test_without_a_query_that_both_have_a_version_is_published_and_says_so() -> None:
    verdict = judge(np.array([np.nan, 1.0]), np.array([1.0, np.nan]), against="version 0", max_regression=0.0)
    assert verdict.publish
    assert "no query has a value both here and on version 0" in verdict.reason


@given(
    st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.3]), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.1, 0.4, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_a_version_is_held_if_and_only_if_the_whole_interval_is_below_the_allowed_loss(
    differences: list[float], max_regression: float
) -> None:
    before = np.zeros(len(differences))
    now = np.array(differences)
    verdict = judge(now, before, against="old/old", max_regression=max_regression)
    interval = paired_difference(now, before)
    assert verdict.publish == (interval.high >= -max_regression)
    assert (verdict.difference, verdict.low, verdict.high) == (interval.value, interval.low, interval.high)
    assert ("undecided" in verdict.reason) == (interval.low < -max_regression <= interval.high)
