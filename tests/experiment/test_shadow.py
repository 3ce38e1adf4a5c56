"""The shadow gallery against plain loops over the vectors."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.shadow import Shadow, Unseen, make_shadow, scores_of
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.retrieval.relevance import Judgement, RelevantItems
from fastfill_ray.types import Metric

N, OLD, NEW = 30, 4, 6


def objects(values: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def items_of(seed: int = 0) -> PairedItems:
    rng = np.random.default_rng(seed)
    return PairedItems(
        ids=objects(list(range(100, 100 + N))),
        old=rng.normal(size=(N, OLD)).astype(np.float32),
        new=rng.normal(size=(N, NEW)).astype(np.float32),
        split=objects(["audit"] * N),
        labels=objects([["cat", "dog", None][i % 3] for i in range(N)]),
        groups=objects([f"g{i % 2}" for i in range(N)]),
    )


def users_of(items: PairedItems, **columns: Any) -> Queries:
    """Three queries that are no items, without old vectors."""
    return Queries(objects(["q0", "q1", "q2"]), items.new[:3] + 1, **columns)


def relevant_to(relevant: RelevantItems, query: int) -> list[int]:
    items: list[int] = relevant.items[relevant.starts[query] : relevant.starts[query + 1]].tolist()
    return items


def score(a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric == "l2":
        return -float(((x - y) ** 2).sum())
    return float(x @ y) / (float(np.linalg.norm(x) * np.linalg.norm(y)) if metric == "cosine" else 1)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_shadow_holds_the_scores_of_every_query_and_item_but_a_querys_own(metric: Metric) -> None:
    items, rows = items_of(), np.array([3, 0, 29])
    shadow = make_shadow(items, items.as_queries().take(rows), metric)
    assert shadow.old is not None
    for scores, vectors in ((shadow.new, items.new), (shadow.old, items.old)):
        for (query, row), item in itertools.product(enumerate(rows.tolist()), range(N)):
            expected = -np.inf if row == item else score(vectors[row], vectors[item], metric)
            assert scores[query, item] == pytest.approx(expected, abs=1e-4)
    assert shadow.groups is not None
    assert shadow.groups.tolist() == ["g1", "g0", "g1"]


def test_relevance_by_label_is_the_same_known_label_and_never_the_query_itself() -> None:
    items = items_of()
    relevant = make_shadow(items, items.as_queries(), "ip").relevant["label"]
    assert items.labels is not None
    for query in range(N):
        label = items.labels[query]
        expected = [i for i in range(N) if i != query and label is not None and items.labels[i] == label]
        assert relevant_to(relevant, query) == expected


def test_relevance_by_the_new_model_is_its_own_first_ten() -> None:
    items = items_of()
    shadow = make_shadow(items, items.as_queries().first(5), "l2")
    for query in range(5):
        best = sorted((i for i in range(N) if i != query), key=lambda i: -float(shadow.new[query, i]))[:10]
        assert relevant_to(shadow.relevant["new_model"], query) == sorted(best)


def test_where_fewer_than_ten_items_are_left_all_of_them_are_relevant_to_the_new_model() -> None:
    few = items_of().take(np.arange(4))
    queries = items_of().as_queries().first(6)
    relevant = make_shadow(few, queries, "cosine").relevant["new_model"]
    assert relevant.counts.tolist() == [3] * 4 + [4] * 2


JUDGED = (
    Judgement(0, 107),
    Judgement(2, 101),
    Judgement(2, 100),
    Judgement(2, 101, 2),
    Judgement(1, 99),
    Judgement(0, "107"),
    Judgement(1, 102, 0),
)


def test_relevance_by_judgements_is_what_was_judged_of_this_split() -> None:
    items = items_of()
    queries = users_of(items, judged=JUDGED)
    shadow = make_shadow(items, queries, "cosine")
    assert set(shadow.relevant) == {"new_model", "qrels"}
    assert shadow.relevant["qrels"].items.tolist() == [7, 0, 1]
    assert shadow.relevant["qrels"].counts.tolist() == [1, 0, 2]
    assert shadow.relevant["qrels"].grades is not None
    assert shadow.relevant["qrels"].grades.tolist() == [1, 1, 2]
    assert shadow.answered("qrels").tolist() == [True, False, True]
    assert shadow.old is None
    assert shadow.groups is None


def test_a_label_that_no_item_has_and_unknown_ones_have_no_answer() -> None:
    items = items_of()
    queries = users_of(items, labels=objects(["eel", None, "cat"]))
    shadow = make_shadow(items, queries, "ip")
    assert shadow.relevant["label"].counts.tolist() == [0, 0, 10]
    assert shadow.answered("label").tolist() == [False, False, True]
    assert "label" not in make_shadow(replace(items, labels=None), queries, "ip").relevant
    assert "label" not in make_shadow(items, replace(queries, labels=None), "ip").relevant
    assert shadow.answered("new_model").all()
    assert not shadow.answered("qrels").any()


def test_a_query_that_is_no_item_of_the_split_meets_itself_nowhere() -> None:
    items = items_of()
    queries = items.as_queries().take(np.array([0, 4, 7]))
    here = items.take(np.array([3, 4, 0]))
    assert Unseen.of(here, queries).own.tolist() == [2, 1, -1]
    assert Unseen.of(here, replace(queries, are_items=False)).own.tolist() == [-1, -1, -1]
    scores = scores_of(queries.new, here.new, "ip", Unseen.of(here, queries))
    assert np.argwhere(np.isneginf(scores)).tolist() == [[0, 2], [1, 1]]


def test_float64_vectors_give_float64_scores() -> None:
    items = items_of()
    wide = replace(items, old=items.old.astype(np.float64), new=items.new.astype(np.float64))
    assert make_shadow(wide, wide.as_queries().first(3), "l2").new.dtype == np.float64


def test_the_first_queries_of_a_shadow_are_the_shadow_of_the_first_queries() -> None:
    items = items_of()
    shadow = make_shadow(items, items.as_queries(), "ip")
    first = shadow.some(0, 4)
    expected = make_shadow(items, items.as_queries().first(4), "ip")
    assert first.old is not None
    assert first.groups is not None
    assert expected.groups is not None
    np.testing.assert_allclose(first.new, expected.new, atol=1e-5)
    assert first.old.shape == (4, N)
    assert first.groups.tolist() == expected.groups.tolist()
    for relevance, relevant in expected.relevant.items():
        assert [relevant_to(first.relevant[relevance], q) for q in range(4)] == [
            relevant_to(relevant, q) for q in range(4)
        ]
    assert len(shadow.some(4, N + 5).new) == N - 4


def test_arms_are_the_states_with_all_items_old_and_all_new() -> None:
    items = items_of()
    shadow = make_shadow(items, items.as_queries(), "cosine")
    assert shadow.old is not None
    arms = shadow.arms()
    for name, scores in (("old/old", shadow.old), ("new/new", shadow.new)):
        plain = measure(scores, shadow.relevant)
        assert set(arms[name]) == {(relevance, metric) for relevance, metrics in plain.items() for metric in metrics}
        for (relevance, metric), values in arms[name].items():
            np.testing.assert_array_equal(values, plain[relevance][metric])
    assert set(Shadow(shadow.new, None, shadow.relevant).arms()) == {"new/new"}
    assert {relevance for relevance, _ in shadow.only(["label"]).arms()["new/new"]} == {"label"}
