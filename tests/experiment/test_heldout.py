"""A held-out split: what stale items score, in which order they are re-embedded, and which queries have an answer."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment.candidate import Candidate, MapView
from fastfill_ray.experiment.curves import backfill_order
from fastfill_ray.experiment.heldout import Evidence, HeldOut, TrainedMap, answered, hold_out
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import make_shadow
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.demand import Demand, LoggedQueries, TakenItems, demand, taken
from fastfill_ray.ordering.demand import with_thresholds as thresholds_of_demand
from fastfill_ray.ordering.policies import (
    POLICIES,
    Policy,
    Reference,
    class_loss,
    class_margin,
    entropy,
    expected_gain,
    random_priority,
    weighted,
)
from fastfill_ray.ordering.proxies import make_proxies, with_thresholds
from fastfill_ray.retrieval.fusion import fuse, fusion_of
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32, SPLITS, Metric, Split

OLD, NEW, PER_SPLIT = 4, 6, 30
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
VIEW = MapView("ridge")


def objects(values: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def pairs_of(seed: int = 0) -> PairedItems:
    rng = np.random.default_rng(seed)
    rows = 3 * PER_SPLIT
    return PairedItems(
        ids=objects(list(range(rows))),
        old=3 * rng.normal(size=(rows, OLD)).astype(np.float32),
        new=rng.normal(size=(rows, NEW)).astype(np.float32),
        split=objects([SPLITS[i % 3] for i in range(rows)]),
        labels=objects(rng.choice(["cat", "dog"], rows).tolist()),
        groups=objects([f"g{i % 2}" for i in range(rows)]),
    )


def linear_map(seed: int) -> TrainedMap:
    weight = np.random.default_rng(seed).normal(size=(OLD, NEW)).astype(np.float32)

    def apply(old: F32, side: F32 | None = None) -> tuple[F32, F32]:
        return old @ weight, old[:, 0]

    return apply


def evidence_of(metric: Metric = "cosine", queries: Queries | None = None, **changes: Any) -> Evidence:
    classifier = Classifier(
        np.random.default_rng(3).normal(size=(2, NEW)).astype("f4"), np.zeros(2, "f4"), np.array(["cat", "dog"])
    )
    maps = {"ridge": linear_map(1), "kernel": linear_map(2)}
    return replace(Evidence(pairs_of(), queries, metric, maps, classifier, 5), **changes)


def split_of(metric: Metric = "cosine", policies: tuple[Policy, ...] = ("random",), **changes: Any) -> HeldOut:
    return hold_out(evidence_of(metric, **changes), "calibration", policies)


def score(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return -float(((x - y) ** 2).sum())
    return float(x @ y) / (float(np.linalg.norm(x) * np.linalg.norm(y)) if metric == "cosine" else 1)


# Aligned vectors


@pytest.mark.parametrize("metric", METRICS)
def test_aligned_vectors_are_brought_to_the_norm_of_new_ones_or_kept_as_the_view_says(metric: Metric) -> None:
    evidence = evidence_of(metric)
    split = hold_out(evidence, "audit", ["random"])
    assert list(split.aligned) == evidence.views == list(split.priorities)
    norm = np.linalg.norm(evidence.pairs.part("train").new, axis=1).mean()
    for view, aligned in split.aligned.items():
        as_mapped, _ = evidence.maps[view.method](split.items.old)
        expected = as_mapped
        if metric != "cosine" and not view.norms_kept:
            expected = as_mapped / np.linalg.norm(as_mapped, axis=1, keepdims=True) * norm
        np.testing.assert_allclose(aligned, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_stale_scores_are_those_of_aligned_vectors_and_a_query_meets_itself_nowhere(metric: Metric) -> None:
    split = split_of(metric)
    queries = split.queries.first(3)
    stale = split.stale_scores(queries, split.shadow(queries), VIEW, 1.0)
    for query, item in itertools.product(range(3), range(PER_SPLIT)):
        own = queries.ids[query] == split.items.ids[item]
        expected = -np.inf if own else score(queries.new[query], split.aligned[VIEW][item], metric)
        assert stale[query, item] == pytest.approx(expected, abs=1e-3)


# Fused scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weight", [1.0, 0.8, 0.5, 0.0])
def test_fused_scores_are_the_weighted_sum_and_those_of_fused_vectors(metric: Metric, weight: float) -> None:
    split = split_of(metric)
    queries, aligned = split.queries, split.aligned[VIEW]
    assert queries.old is not None
    stale = split.stale_scores(queries, split.shadow(queries), VIEW, weight)
    old = similarity(queries.old, split.items.old, metric)
    expected = weight * similarity(queries.new, aligned, metric) + (1 - weight) * split.old_scale * old
    fusion = fusion_of(weight, metric, split.old_scale)
    of_queries, of_items = (
        fuse(old, new, fusion, metric) for old, new in ((queries.old, queries.new), (split.items.old, aligned))
    )
    own = queries.ids[:, None] == split.items.ids[None, :]
    assert np.isneginf(stale[own]).all()
    np.testing.assert_allclose(stale[~own], expected[~own], rtol=1e-4, atol=1e-3)
    # What the index would serve: one search of one vector, of the same order of items.
    np.testing.assert_allclose(stale[~own], similarity(of_queries, of_items, metric)[~own], rtol=1e-4, atol=1e-3)


def test_without_old_query_vectors_nothing_but_the_aligned_score_can_be_served() -> None:
    split = split_of(queries=Queries(objects(["a", "b"]), pairs_of().new[:2]))
    shadow = split.shadow(split.queries)
    assert np.isfinite(split.stale_scores(split.queries, shadow, VIEW, 1.0)).all()
    with pytest.raises(ValueError, match="no old vectors"):
        split.stale_scores(split.queries, shadow, VIEW, 0.9)


def test_the_old_scale_brings_old_scores_to_the_spread_of_new_ones_and_is_one_for_every_split() -> None:
    for metric in METRICS:
        evidence = evidence_of(metric)
        items = evidence.pairs.part("calibration")
        old, new = similarity(items.old, items.old, metric), similarity(items.new, items.new, metric)
        expected = 1.0 if metric == "cosine" else float(new.std() / old.std())
        assert evidence.old_scale() == pytest.approx(expected, rel=1e-3)
        assert {hold_out(evidence, split, ["random"]).old_scale for split in ("calibration", "audit")} == {
            evidence.old_scale()
        }
    pairs = pairs_of()
    assert evidence_of("ip", pairs=replace(pairs, old=np.zeros_like(pairs.old))).old_scale() == 1


# Orders


@pytest.mark.parametrize("traffic", [False, True])
@pytest.mark.parametrize("split", ["calibration", "audit"])
def test_a_split_has_the_priorities_of_every_order_asked_for_under_every_view(split: Split, traffic: bool) -> None:
    evidence = evidence_of("ip")
    if traffic:
        weights = np.random.default_rng(2).random(3 * PER_SPLIT).astype(np.float32)
        evidence = replace(evidence, pairs=replace(evidence.pairs, weights=weights))
    priority = np.random.default_rng(3).random(3 * PER_SPLIT).astype(np.float32)
    asked = evidence.pairs.part("train").take(np.arange(4))
    logged = LoggedQueries(asked.new, asked.old, np.arange(1.0, 5), TakenItems.of(asked.ids, np.arange(1.0, 5)), "log")
    evidence = replace(
        evidence, pairs=replace(evidence.pairs, priority=priority), logged=logged, metric_looked_at="cmc@5"
    )
    train, unseen = evidence.pairs.part("train"), evidence.pairs.part("calibration")
    assert train.labels is not None
    assert evidence.classifier is not None
    wanted = [policy for policy in POLICIES if policy != "random"]
    held = hold_out(evidence, split, wanted)
    items = held.items
    assert items.labels is not None
    for view in evidence.views:
        aligned, log_variance = held.aligned[view], items.old[:, 0]
        of_unseen = evidence.as_indexed(view, evidence.maps[view.method](unseen.old)[0])
        proxies = make_proxies(
            train.new, train.old, "ip", items_new=unseen.new, items_old=unseen.old, items_aligned=of_unseen
        )
        proxies_of_log = make_proxies(
            asked.new, asked.old, "ip", items_new=unseen.new, items_old=unseen.old, items_aligned=of_unseen
        )
        five_deep = thresholds_of_demand(Demand(proxies_of_log, logged.traffic), items.old, aligned, "cmc@5")
        demanded = demand(items.old, aligned, five_deep)
        assert items.priority is not None
        assert logged.taken is not None
        np.testing.assert_array_equal(held.priorities[view]["column"], items.priority)
        expected: dict[Policy, F32] = {
            "demand": demanded,
            "taken": taken(items.id_hash, logged.taken, demanded),
            "uncertainty": log_variance,
            "entropy": entropy(aligned, evidence.classifier),
            "expected_gain": expected_gain(items.old, aligned, with_thresholds(proxies, items.old, aligned)),
            "class_margin": class_margin(aligned, items.labels, train.new, train.labels),
            "class_loss": class_loss(aligned, items.labels, evidence.classifier),
            "random": random_priority(items.id_hash, 5),
        }
        assert set(held.priorities[view]) == set(POLICIES)
        for policy, priority in expected.items():
            plain = priority
            if items.weights is not None:
                plain = weighted(policy, priority, items.weights, Reference(new=train.new))
            np.testing.assert_allclose(held.priorities[view][policy], plain, rtol=1e-4, atol=1e-5)


def test_the_random_order_is_always_there_and_an_order_is_cut_as_real_waves_are() -> None:
    split = split_of(policies=("uncertainty",))
    assert set(split.priorities[VIEW]) == {"uncertainty", "random"}
    for policy in ("random", "uncertainty"):
        order = split.order(Candidate(VIEW, 1.0, policy, "identity"))
        expected = backfill_order(split.priorities[VIEW][policy], split.items.id_hash)
        assert order.tolist() == expected.tolist()


def test_proxy_queries_are_train_pairs_alone_so_that_no_query_that_measures_is_one_of_them() -> None:
    evidence = evidence_of()
    proxies = evidence.reference(VIEW, ["expected_gain"]).proxies
    assert proxies is not None
    train = evidence.pairs.part("train")
    rows = np.lexsort(proxies.new.T), np.lexsort(train.new.T)
    np.testing.assert_array_equal(proxies.new[rows[0]], train.new[rows[1]])
    np.testing.assert_array_equal(proxies.old[rows[0]], train.old[rows[1]])
    assert evidence.reference(VIEW, ["uncertainty"]) == Reference()


# Queries


def test_a_split_is_searched_by_its_own_items_or_by_the_users_queries_in_a_shuffled_order() -> None:
    split = split_of()
    assert split.queries.are_items
    assert sorted(split.queries.ids.tolist()) == sorted(split.items.ids.tolist())
    users = Queries(objects([f"q{i}" for i in range(9)]), pairs_of().new[:9])
    assert split_of(queries=users).queries.ids.tolist() == users.shuffled(5).ids.tolist() != users.ids.tolist()


def users_of(items: PairedItems, **columns: Any) -> Queries:
    return Queries(objects([f"q{i}" for i in range(5)]), items.new[:5], **columns)


def test_the_queries_with_an_answer_are_those_that_the_shadow_has_relevant_items_for() -> None:
    items = replace(pairs_of().part("audit"), labels=objects(["cat"] * 10 + ["dog"] + [None] * 19))
    judged = (
        Judgement(0, items.ids[2]),
        Judgement(0, items.ids[1]),
        Judgement(3, items.ids[4]),
        Judgement(4, "no item"),
        Judgement(2, items.ids[4], 0),
    )
    tags = [("cat", "dog")] * 9 + [("dog",), None, ("eel", "cow")] + [None] * 18
    listed = replace(items, labels=objects(tags))
    queries = [
        items.as_queries(),
        users_of(items, labels=objects(["cat", None, "eel", "dog", "cat"])),
        users_of(items, judged=judged),
        listed.as_queries(),
    ]
    for some in queries:
        searched = listed if some is queries[-1] else items
        shadow = make_shadow(searched, some, "ip")
        for relevance in ("label", "qrels", "new_model"):
            kept = answered(some, searched, relevance)
            assert kept.ids.tolist() == some.ids[shadow.answered(relevance)].tolist()
    assert len(answered(queries[0], items, "label").ids) == 10, "the only dog is no answer to itself"
    assert len(answered(queries[1], items, "label").ids) == 3
    assert len(answered(queries[2], items, "qrels").ids) == 2
    assert len(answered(queries[3], listed, "label").ids) == 10, "the eel alone shares no label"


def test_without_labels_or_judgements_no_query_has_an_answer_by_them() -> None:
    items = pairs_of().part("audit")
    for queries, relevance in (
        (users_of(items), "label"),
        (users_of(items), "qrels"),
        (items.as_queries(), "qrels"),
    ):
        assert len(answered(queries, items, relevance).ids) == 0  # type: ignore[arg-type]
    assert len(answered(items.as_queries(), replace(items, labels=None), "label").ids) == 0
