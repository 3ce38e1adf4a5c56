"""A prior of what users took, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from fastfill_ray.experiment.prior import STRENGTHS, best_strength, with_prior
from fastfill_ray.retrieval.relevance import RelevantItems


def test_the_logarithm_of_the_traffic_is_added_in_spreads_of_the_scores() -> None:
    scores = np.array([[0.0, 1.0, -np.inf], [2.0, 3.0, 4.0]], np.float32)
    traffic = np.array([0.0, 1.0, 7.0])
    spread = np.std([0, 1, 2, 3, 4])
    expected = scores + 0.4 * spread * np.log([1, 2, 8])
    np.testing.assert_allclose(with_prior(scores, traffic, 0.4), expected, rtol=1e-5)
    np.testing.assert_array_equal(with_prior(scores, traffic, 0), scores)


@pytest.mark.parametrize("popular_is_right", [True, False])
def test_the_strength_is_what_retrieves_best_and_none_where_it_does_harm(popular_is_right: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 30)).astype(np.float32)
    traffic = np.where(np.arange(30) < 3, 50.0, 0.0)
    answers = rng.integers(0, 3, 40) if popular_is_right else scores.argmax(axis=1)
    relevant = np.zeros((40, 30), bool)
    relevant[np.arange(40), answers] = True
    strength = best_strength(scores, traffic, RelevantItems.of(relevant), "mrr")
    assert strength in STRENGTHS
    assert (strength > 0) == popular_is_right


def test_without_an_answer_there_is_no_prior() -> None:
    nothing = RelevantItems.of(np.zeros((3, 4), bool))
    assert best_strength(np.ones((3, 4), np.float32), np.ones(4), nothing, "mrr") == 0
