"""What counts as a hit, and how hits of many parts become one ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.experiment.items import Queries
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.metrics import per_query_by_relevance
from fastfill_ray.stages.evaluate import Hits, Ranking, _judge


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def queries(labels: np.ndarray | None = None, judged: Any = None, ids: np.ndarray | None = None) -> Queries:
    ids = objects("q0", "q1") if ids is None else ids
    vectors = np.zeros((len(ids), 2), np.float32)
    return Queries("f", ids, vectors, None, labels, judged, are_items=judged is None and ids[0] == "a")


ITEMS, SCORES, ROWS = objects("a", "b", "c"), np.array([[3.0, 2.0, 1.0]] * 2, np.float32), np.array([[0, 1, 2]] * 2)


def test_a_label_counts_all_its_items_and_none_counts_nothing() -> None:
    found = _judge(queries(objects("x", None)), ITEMS, objects("x", None, "x"), SCORES, ROWS)
    assert found.relevant["label"].tolist() == [[True, False, True], [False] * 3]
    assert found.num_relevant["label"].tolist() == [2, 0]


def test_queries_without_any_label_are_left_out_and_not_an_error() -> None:
    found = _judge(queries(objects(None, None)), ITEMS, objects("x", "y", None), SCORES, ROWS)
    assert found.num_relevant["label"].tolist() == [0, 0]


def test_an_item_that_asks_does_not_find_itself_and_an_unlabelled_one_has_no_value() -> None:
    asked = queries(objects("x", None), ids=objects("a", "b"))
    found = _judge(asked, ITEMS, objects("x", None, "x"), SCORES, ROWS)
    assert found.num_relevant["label"].tolist() == [1, 0]
    assert np.isneginf(found.scores).tolist() == [[True, False, False], [False, True, False]]
    values = per_query_by_relevance(found.scores, found.relevant, found.num_relevant)["label"]
    assert values["map"][0] == 0.5
    assert all(np.isnan(column[1]) for column in values.values())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_ranking_of_many_parts_is_the_ranking_of_all_their_hits(widths: list[int], depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranking, columns, flags = Ranking(depth), [], []
    for width in widths:
        scores = rng.integers(-3, 4, (2, width)).astype(np.float32)
        relevant = rng.random((2, width)) < 0.5
        offset = float(rng.integers(-1, 2))
        ranking.add(Hits(scores, {"label": relevant}, {"label": relevant.sum(axis=1)}), Calibration(offset=offset))
        columns.append(scores + offset)
        flags.append(relevant)
    scores, relevant = np.concatenate(columns, axis=1), np.concatenate(flags, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    found = ranking.hits()
    best = np.argsort(-found.scores, axis=1, kind="stable")
    assert (
        np.take_along_axis(found.scores, best, axis=1)[:, :depth] == np.take_along_axis(scores, order, axis=1)
    ).all()
    ranked = np.take_along_axis(found.relevant["label"], best, axis=1)[:, :depth]
    assert (ranked == np.take_along_axis(relevant, order, axis=1)).all()
    assert (found.num_relevant["label"] == relevant.sum(axis=1)).all()
