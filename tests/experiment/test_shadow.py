"""Scenes and views against plain loops over the vectors."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment.items import Asked, Items, items_as_queries
from fastfill_ray.experiment.shadow import make_scene, make_view, old_scale_of, own_items
from fastfill_ray.ordering.classifier import Head
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.policies import (
    Reference,
    class_loss,
    class_margin,
    entropy,
    expected_gain,
    random_priority,
    weighted,
)
from fastfill_ray.ordering.proxies import make_proxies, with_thresholds
from fastfill_ray.types import Metric

N, OLD, NEW = 30, 4, 6


def items(seed: int = 0) -> Items:
    rng = np.random.default_rng(seed)
    labels = np.array([["cat", "dog", None][i % 3] for i in range(N)], object)
    return Items(
        hash_ids(np.arange(N)),
        rng.normal(size=(N, OLD)).astype(np.float32),
        rng.normal(size=(N, NEW)).astype(np.float32),
        labels,
        np.array([f"g{i % 2}" for i in range(N)], object),
    )


def score(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return -float(((x - y) ** 2).sum())
    return float(x @ y) / (float(np.linalg.norm(x) * np.linalg.norm(y)) if metric == "cosine" else 1)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_scene_holds_the_scores_of_every_query_and_item_but_a_querys_own(metric: Metric) -> None:
    gallery, rows = items(), np.array([3, 0, 29])
    scene = make_scene(gallery, items_as_queries(gallery, rows), metric)
    assert scene.old is not None
    for found, vectors in ((scene.new, gallery.new), (scene.old, gallery.old)):
        for (query, row), item in itertools.product(enumerate(rows.tolist()), range(N)):
            expected = -np.inf if row == item else score(vectors[row], vectors[item], metric)
            assert found[query, item] == pytest.approx(expected, abs=1e-4)
    assert scene.old_scale == pytest.approx(old_scale_of(scene.old, scene.new, metric))
    assert scene.groups is not None
    assert scene.groups.tolist() == ["g1", "g0", "g1"]
    assert scene.id_hash is gallery.id_hash


def test_relevance_by_label_is_the_same_known_label_and_never_the_query_itself() -> None:
    gallery, rows = items(), np.arange(N)
    truth = make_scene(gallery, items_as_queries(gallery, rows), "ip").truths["label"]
    assert gallery.labels is not None
    for query in range(N):
        label = gallery.labels[query]
        expected = [i for i in range(N) if i != query and label is not None and gallery.labels[i] == label]
        assert truth.items[truth.starts[query] : truth.starts[query + 1]].tolist() == expected


def test_relevance_by_the_new_model_is_its_own_first_ten() -> None:
    gallery, rows = items(), np.arange(5)
    scene = make_scene(gallery, items_as_queries(gallery, rows), "l2")
    truth = scene.truths["new_model"]
    for query in range(5):
        best = sorted((i for i in range(N) if i != query), key=lambda i: -float(scene.new[query, i]))[:10]
        assert truth.items[truth.starts[query] : truth.starts[query + 1]].tolist() == sorted(best)


def test_relevance_by_judgements_is_what_was_judged() -> None:
    gallery = items()
    asked = Asked(gallery.new[:3] + 1, judged=np.array([[0, 7], [2, 1], [2, 0], [2, 1]]))
    scene = make_scene(gallery, asked, "cosine")
    assert set(scene.truths) == {"new_model", "qrels"}
    assert scene.truths["qrels"].items.tolist() == [7, 0, 1]
    assert scene.truths["qrels"].counts.tolist() == [1, 0, 2]
    assert scene.old is None
    assert scene.groups is None


def test_a_label_that_no_item_has_and_unknown_ones_have_no_answer() -> None:
    gallery = items()
    asked = Asked(gallery.new[:3], labels=np.array(["eel", None, "cat"], object))
    assert make_scene(gallery, asked, "ip").truths["label"].counts.tolist() == [0, 0, 10]
    assert "label" not in make_scene(replace(gallery, labels=None), asked, "ip").truths


def test_a_query_that_is_no_item_meets_itself_nowhere() -> None:
    asked = Asked(np.zeros((3, NEW), np.float32), own=np.array([-1, 4, -1]))
    assert np.argwhere(own_items(asked, N)).tolist() == [[1, 4]]
    assert not own_items(replace(asked, own=None), N).any()


def test_float64_vectors_give_float64_scores() -> None:
    gallery = items()
    wide = replace(gallery, old=gallery.old.astype(np.float64), new=gallery.new.astype(np.float64))  # type: ignore[arg-type]
    scene = make_scene(wide, items_as_queries(wide, np.arange(3)), "l2")
    assert scene.new.dtype == np.float64


# Views


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("norm", [None, 3.0])
def test_a_view_scores_aligned_vectors_brought_to_the_norm(metric: Metric, norm: float | None) -> None:
    gallery, rows = items(), np.array([2, 5])
    aligned = np.random.default_rng(1).normal(size=(N, NEW)).astype(np.float32)
    asked = items_as_queries(gallery, rows)
    log_variance = np.arange(N, dtype=np.float32)
    view = make_view(
        gallery, asked, aligned, log_variance, metric, norm=norm, reference=Reference(), policies=[], seed=0
    )
    for (query, row), item in itertools.product(enumerate(rows.tolist()), range(N)):
        vector = aligned[item] * np.float32(norm / np.linalg.norm(aligned[item]) if norm else 1)
        expected = -np.inf if row == item else score(gallery.new[row], vector, metric)
        assert view.stale[query, item] == pytest.approx(expected, abs=1e-4)
    assert list(view.priorities) == ["random"]


@pytest.mark.parametrize("traffic", [False, True])
def test_a_view_has_the_priorities_of_every_policy_asked_for(traffic: bool) -> None:
    gallery, rng = items(), np.random.default_rng(2)
    weights = rng.random(N).astype(np.float32) if traffic else None
    gallery = replace(gallery, weights=weights)
    aligned, log_variance = rng.normal(size=(N, NEW)).astype("f4"), rng.normal(size=N).astype("f4")
    train_new, train_old = rng.normal(size=(12, NEW)).astype("f4"), rng.normal(size=(12, OLD)).astype("f4")
    labels = np.array(["cat", "dog"] * 6, object)
    head = Head(rng.normal(size=(2, NEW)).astype("f4"), np.zeros(2, np.float32), np.array(["cat", "dog"]))
    proxies = make_proxies(
        train_new, train_old, "ip", items_new=gallery.new, items_old=gallery.old, items_aligned=aligned
    )
    view = make_view(
        gallery,
        items_as_queries(gallery, np.arange(4)),
        aligned,
        log_variance,
        "ip",
        norm=None,
        reference=Reference(train_new, labels, head, proxies),
        policies=["uncertainty", "entropy", "expected_gain", "class_margin", "class_loss"],
        seed=3,
    )
    assert gallery.labels is not None
    expected = {
        "uncertainty": log_variance,
        "entropy": entropy(aligned, head),
        "expected_gain": expected_gain(gallery.old, aligned, with_thresholds(proxies, gallery.old, aligned)),
        "class_margin": class_margin(aligned, gallery.labels, train_new, labels),
        "class_loss": class_loss(aligned, gallery.labels, head),
        "random": random_priority(gallery.id_hash, 3),
    }
    assert list(view.priorities) == list(expected)
    for policy, priority in expected.items():
        plain = priority
        if weights is not None:
            plain = weighted(policy, priority, weights, Reference(new=train_new))  # type: ignore[arg-type]
        np.testing.assert_allclose(view.priorities[policy], plain, rtol=1e-5, atol=1e-5)
