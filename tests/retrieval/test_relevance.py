"""Relevance by label and by judgement, against plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.retrieval.relevance import (
    Judgement,
    RelevantItems,
    hits_with_label,
    judged_rows,
    label_matches,
    same_label,
)
from fastfill_ray.types import Objects

VALUES = ["a", "b", "c", 3, True, 2.5]
SINGLE = st.lists(st.sampled_from([*VALUES, None]), min_size=1, max_size=8)
LISTS = st.lists(
    st.none() | st.lists(st.sampled_from(VALUES), min_size=1, max_size=3, unique=True).map(tuple),
    min_size=1,
    max_size=8,
)
LABELS = SINGLE | LISTS
GRADES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0])


def objects(values: list[object]) -> Objects:
    return np.fromiter(values, object, len(values))


def share(one: object, other: object) -> bool:
    """Whether two labels have a member in common."""
    sets = [set() if label is None else set(label) if isinstance(label, tuple) else {label} for label in (one, other)]
    return bool(sets[0] & sets[1])


@given(LABELS, LABELS)
@settings(max_examples=200, deadline=None)
def test_items_that_share_a_label_are_relevant(queries: list[object], items: list[object]) -> None:
    expected = [[share(query, item) for item in items] for query in queries]
    assert same_label(objects(queries), objects(items)).tolist() == expected
    for asking, sharing in label_matches(objects(queries), objects(items)):
        assert len(sharing)
        assert len({repr(queries[query]) for query in asking.tolist()}) <= 2, "equal labels: True is 1"
        assert sharing.tolist() == np.flatnonzero(expected[int(asking[0])]).tolist()


@given(LABELS, LABELS, st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_hits_are_judged_as_all_items_are_and_a_querys_own_item_is_not_counted(
    queries: list[object], items: list[object], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(np.arange(-1, len(items)))[:5] for _ in queries], np.int64)
    own = rng.integers(-1, len(items), len(queries))
    same = same_label(objects(queries), objects(items))
    relevant, counts = hits_with_label(objects(queries), objects(items), rows, own)
    expected = [[row >= 0 and bool(same[query, row]) for row in line] for query, line in enumerate(rows.tolist())]
    assert relevant.tolist() == expected
    assert counts.tolist() == [
        int(line.sum()) - (place >= 0 and bool(line[place])) for line, place in zip(same, own, strict=True)
    ]


JUDGED = st.lists(st.builds(Judgement, st.integers(0, 3), st.sampled_from("abcxy"), GRADES), max_size=12)
ROW_OF = {"a": 0, "b": 1, "c": 2}


@given(JUDGED)
@settings(max_examples=150, deadline=None)
def test_judged_items_that_are_here_are_relevant_once_with_their_highest_grade(judged: list[Judgement]) -> None:
    rows, grades = judged_rows(judged, ROW_OF)
    highest = {
        (query, ROW_OF[item]): max(j.grade for j in judged if (j.query, j.item) == (query, item))
        for query in range(4)
        for item in ROW_OF
        if any((j.query, j.item) == (query, item) for j in judged)
    }
    expected = {place: grade for place, grade in highest.items() if grade > 0}
    assert [tuple(place) for place in rows.tolist()] == sorted(expected)
    assert grades.tolist() == [expected[place] for place in sorted(expected)]
    relevant = RelevantItems.of_judged(rows, grades, 4)
    assert relevant.counts.tolist() == [sum(place[0] == query for place in expected) for query in range(4)]
    assert relevant.items.tolist() == rows[:, 1].tolist()


@given(JUDGED, JUDGED, st.lists(st.integers(0, 3), max_size=5))
@settings(max_examples=150, deadline=None)
def test_parts_join_to_the_whole_and_their_best_grades_are_sorted(
    first: list[Judgement], second: list[Judgement], queries: list[int]
) -> None:
    row_of = [ROW_OF, {"x": 3, "y": 4}]
    parts = [
        RelevantItems.of_judged(*judged_rows(judged, rows), 4)
        for judged, rows in zip((first, second), row_of, strict=True)
    ]
    joined = RelevantItems.joined(parts)
    here = [j for judged, rows in zip((first, second), row_of, strict=True) for j in judged if j.item in rows]
    whole = RelevantItems.of_judged(*judged_rows(here, row_of[0] | row_of[1]), 4)
    assert joined.items.tolist() == whole.items.tolist()
    assert joined.starts.tolist() == whole.starts.tolist()
    assert joined.grades is not None
    assert whole.grades is not None
    assert joined.grades.tolist() == whole.grades.tolist()
    taken = joined.take(np.array(queries, np.int64))
    assert taken.best_grades is not None
    for line, query in enumerate(queries):
        own = sorted(whole.grades[whole.starts[query] : whole.starts[query + 1]].tolist(), reverse=True)
        assert taken.best_grades[line].tolist() == [*own, *[0.0] * 10][:10]


def test_without_grades_there_are_no_best_ones() -> None:
    assert RelevantItems.of(np.eye(3, dtype=bool)).best_grades is None
    many = RelevantItems.of_judged(
        np.array([[0, row] for row in range(12)]), np.arange(1, 13).astype(np.float64), 1
    ).best_grades
    assert many is not None
    assert many.tolist() == [list(range(12, 2, -1))]
