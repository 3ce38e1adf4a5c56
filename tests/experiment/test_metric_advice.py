"""Which metric suits the new model: on items whose norms say nothing, or say what is right."""

from __future__ import annotations

import numpy as np
import pytest

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.items import LEAST_ASKING, PairedItems, Queries
from fastfill_ray.experiment.metric_advice import advise_metric
from fastfill_ray.types import F32, Metric

LABEL_MAP = Objective("label", "map")


def items_of(new: F32, labels: np.ndarray) -> PairedItems:
    ids = np.array([f"item-{row}" for row in range(len(new))], object)
    split = np.array(["audit"] * len(new), object)
    return PairedItems(ids, new, new, split, labels=labels.astype(object))


def gallery(lengths: bool) -> PairedItems:
    """Classes are directions; with `lengths`, norms are noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=180)
    vectors = np.eye(8)[labels] + rng.normal(scale=0.25, size=(180, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = rng.lognormal(sigma=1.0, size=(180, 1)) if lengths else 1.0
    return items_of((vectors * scale).astype(np.float32), labels)


@pytest.mark.parametrize("given", ["l2", "ip"])
def test_where_norms_are_noise_cosine_is_advised_with_its_gain(given: Metric) -> None:
    items = gallery(lengths=True)
    better = advise_metric(items, items.as_queries(), given, LABEL_MAP, seed=0)
    assert better is not None
    assert better.metric == "cosine"
    assert 0 < better.gain.low < better.gain.value < better.gain.high
    assert better.gain.queries == 180


def test_nothing_is_advised_against_the_best_metric_or_where_all_are_one() -> None:
    noisy, unit = gallery(lengths=True), gallery(lengths=False)
    assert advise_metric(noisy, noisy.as_queries(), "cosine", LABEL_MAP, seed=0) is None
    assert advise_metric(unit, unit.as_queries(), "l2", LABEL_MAP, seed=0) is None


def test_where_norms_say_what_is_right_inner_product_is_advised() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(120, 8)) / 6 + np.eye(8)[0]
    labels = np.where(np.linalg.norm(vectors, axis=1) > 1.1, "long", "short")
    items = items_of(vectors.astype(np.float32), labels)
    ids, of_long = np.array([f"query-{n}" for n in range(60)], object), np.array(["long"] * 60, object)
    asking = Queries(ids, (rng.normal(size=(60, 8)) / 6 + np.eye(8)[0]).astype(np.float32), labels=of_long)
    better = advise_metric(items, asking, "cosine", LABEL_MAP, seed=0)
    assert better is not None
    assert better.metric == "ip"


def test_the_new_models_own_answers_and_queries_without_one_prefer_no_metric() -> None:
    items = gallery(lengths=True)
    assert advise_metric(items, items.as_queries(), "l2", Objective("new_model", "recall@10"), seed=0) is None
    unknown = Queries(items.ids, items.new)
    assert advise_metric(items, unknown, "l2", LABEL_MAP, seed=0) is None


def test_queries_so_few_that_they_decide_nothing_prefer_no_metric() -> None:
    items = gallery(lengths=True)
    few, enough = (items.as_queries().first(count) for count in (LEAST_ASKING - 1, 4 * LEAST_ASKING))
    assert advise_metric(items, enough, "l2", LABEL_MAP, seed=0) is not None
    assert advise_metric(items, few, "l2", LABEL_MAP, seed=0) is None
