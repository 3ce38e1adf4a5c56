"""Relevance by label and by judgement, against plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.retrieval.relevance import judged_relevant, judged_rows, label_codes, number_labels, same_label
from fastfill_ray.types import Objects

LABELS = st.lists(st.sampled_from(["a", "b", 3, None]), min_size=1, max_size=8)


def objects(values: list[object]) -> Objects:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@given(LABELS, LABELS)
@settings(max_examples=100, deadline=None)
def test_the_same_known_label_is_relevant(queries: list[object], items: list[object]) -> None:
    numbers = number_labels(objects(queries))
    wanted, codes = label_codes(objects(queries), numbers), label_codes(objects(items), numbers)
    expected = [[query is not None and query == item for item in items] for query in queries]
    assert same_label(wanted, codes).tolist() == expected
    assert same_label(wanted, np.tile(codes, (len(queries), 1))).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcxy")), max_size=12))
@settings(max_examples=100, deadline=None)
def test_judged_items_that_are_here_are_relevant_once(judged: list[tuple[int, str]]) -> None:
    row_of = {"a": 0, "b": 1, "c": 2}
    rows = judged_rows(judged, row_of)
    assert rows.shape == (len({pair for pair in judged if pair[1] in row_of}), 2)
    expected = [[(query, item) in judged for item in row_of] for query in range(4)]
    assert judged_relevant(rows, 4, 3).tolist() == expected
