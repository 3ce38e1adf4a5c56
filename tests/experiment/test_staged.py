"""The shadow gallery against brute force, query by query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment.staged import Shadow, make_shadow
from fastfill_ray.ordering.waves import wave_middles
from fastfill_ray.retrieval.calibration import Served, fit_served
from fastfill_ray.retrieval.fusion import fusion_of
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.retrieval.relevance import Truth
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import Metric
from tests.retrieval.test_metrics import reference

N, DIM, WAVES = 40, 5, 3
RNG = np.random.default_rng(0)
OLD, NEW = RNG.normal(size=(2, N, DIM)).astype(np.float32)
ALIGNED = (NEW + 0.5 * RNG.normal(size=(N, DIM))).astype(np.float32)
LABELS = RNG.integers(0, 4, N)
ORDER = RNG.integers(1, WAVES + 2, N).astype(np.int16)
SAMPLED = RNG.random(N) < 0.2
MIDDLES = wave_middles((0.3, 0.6, 0.9), 0.1)


def shadow(metric: Metric = "cosine", **changes: Any) -> Shadow:
    """Items that query each other: an item is not a hit of its own."""
    given: dict[str, Any] = {
        "queries_new": NEW,
        "items_new": NEW,
        "items_aligned": ALIGNED,
        "metric": metric,
        "relevance": {"label": LABELS[:, None] == LABELS[None, :]},
        "waves": ORDER,
        "excluded": np.eye(N, dtype=bool),
        "sampled": SAMPLED,
        "middles": MIDDLES,
    }
    return make_shadow(**{**given, **changes})


def brute_force(scores: NDArray[np.float64], relevant: list[set[int]]) -> list[dict[str, float]]:
    """`scores` (Q, N) ranked by loops; query q is item q."""
    found = []
    for q, row in enumerate(scores.tolist()):
        others = sorted((n for n in range(N) if n != q), key=lambda n: (-row[n], n))
        found.append(reference([n in relevant[q] for n in others], len(relevant[q])))
    return found


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("wave", range(WAVES + 2))
def test_a_version_of_the_shadow_equals_brute_force(metric: Metric, wave: int) -> None:
    calibration = Served(scale=0.9, offset=0.05, slope=0.1)
    new = similarity(NEW, NEW, metric)
    middle = np.array([0.0, 1 / 9, 7 / 18, 13 / 18, 17 / 18], np.float32)[ORDER]
    stale = np.float32(0.9) * similarity(NEW, ALIGNED, metric) + np.float32(0.05) + np.float32(0.1) * middle
    served = np.where(wave >= ORDER, new, stale)
    same_label = [{n for n in range(N) if n != q and LABELS[n] == LABELS[q]} for q in range(N)]
    top = [set(sorted((n for n in range(N) if n != q), key=lambda n: -new[q, n])[:10]) for q in range(N)]
    values = shadow(metric).at(wave, calibration)
    for relevance, relevant in {"label": same_label, "new_model": top}.items():
        for q, expected in enumerate(brute_force(served, relevant)):
            for name in METRICS:
                assert values[relevance][name][q] == pytest.approx(expected[name], nan_ok=True, abs=1e-9)


def test_the_last_wave_is_the_new_model_itself_whatever_the_calibration() -> None:
    values = shadow().at(WAVES + 1, Served(scale=3, offset=-7))
    assert (values["new_model"]["recall@10"] == 1).all()
    assert (values["new_model"]["map"] == 1).all()


def test_truth_of_the_new_model_is_its_top_ten_without_the_querys_own_item() -> None:
    truth = shadow().relevance["new_model"]
    assert (truth.sum(axis=1) == 10).all()
    assert not truth.diagonal().any()


def test_where_fewer_than_ten_items_are_left_the_truth_is_all_of_them() -> None:
    few = shadow(
        items_new=NEW[:4],
        items_aligned=ALIGNED[:4],
        relevance={},
        waves=ORDER[:4],
        sampled=SAMPLED[:4],
        excluded=np.eye(N, 4, dtype=bool),
    )
    assert few.relevance["new_model"].sum(axis=1).tolist() == [3] * 4 + [4] * (N - 4)


def test_a_querys_own_item_is_excluded_from_every_state_and_every_relevance() -> None:
    made = shadow(queries_old=OLD, items_old=OLD)
    assert made.old is not None
    for scores in (made.old, made.stale, made.new):
        assert (np.diag(scores) == -np.inf).all()
        assert np.isfinite(scores).sum() == N * (N - 1)
    assert not made.relevance["label"].diagonal().any()


def test_the_old_arm_is_there_only_where_the_old_model_embeds_queries() -> None:
    assert shadow(items_old=OLD).old is None
    made = shadow("l2", queries_old=OLD, items_old=OLD)
    assert made.old is not None
    expected = similarity(OLD, OLD, "l2")
    off_diagonal = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(made.old[off_diagonal], expected[off_diagonal], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_fused_stale_scores_are_the_weighted_sum_of_old_and_aligned_ones(metric: Metric, weight: float) -> None:
    made = shadow(metric, queries_old=OLD, items_old=OLD, fusion=fusion_of(weight, metric))
    expected = (1 - weight) * similarity(OLD, OLD, metric) + weight * similarity(NEW, ALIGNED, metric)
    off_diagonal = ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(made.stale[off_diagonal], expected[off_diagonal], rtol=1e-4, atol=1e-4)
    assert (np.diag(made.stale) == -np.inf).all()
    np.testing.assert_allclose(made.new, shadow(metric).new, rtol=1e-5, atol=1e-5)


def test_a_fusion_with_old_vectors_needs_them() -> None:
    with pytest.raises(ValueError, match="the old vectors are missing"):
        shadow(items_old=OLD, fusion=fusion_of(0.5, "cosine"))
    assert np.isfinite(shadow(fusion=fusion_of(1, "cosine")).stale).any()


def test_the_calibration_is_fitted_with_the_sampled_items_counted_as_new() -> None:
    made = shadow()
    truth = Truth.of(made.relevance["label"])
    for wave in range(WAVES + 1):
        is_new = (wave >= ORDER) | SAMPLED
        expected = fit_served(made.stale, made.new, is_new, MIDDLES[ORDER], truth, "map", "scale_offset_by_wave")
        assert made.fit(wave, "label", "map", "scale_offset_by_wave", seed=0) == expected
    assert replace(made, sampled=np.zeros(N, bool)).fit(0, "label", "map", "offset", seed=0) == Served()


def test_the_middles_of_waves_are_places_in_the_order_of_all_items_but_the_pairs() -> None:
    np.testing.assert_allclose(wave_middles((0.3, 0.6, 0.9), 0.1), [0, 1 / 9, 7 / 18, 13 / 18, 17 / 18], rtol=1e-6)
    np.testing.assert_allclose(wave_middles((1.0,), 0.5), [0, 0.5, 1.0])


def test_queries_with_an_answer_are_counted_per_relevance() -> None:
    lonely = np.zeros((N, N), bool)
    lonely[:7, 20] = True
    made = shadow(relevance={"qrels": lonely})
    assert (made.answerable("qrels"), made.answerable("new_model"), made.answerable("label")) == (7, N, 0)
