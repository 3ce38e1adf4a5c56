"""Items with both vectors and queries: rows move together, judgements follow, no file's order counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.partition import MIN_SPLIT
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.types import SPLITS

N, OLD, NEW = 40, 3, 5
SEEDS = st.integers(0, 2**32 - 1)


def objects(values: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def items_of(rows: int = N, *, bare: bool = False) -> PairedItems:
    """Row i says i in every column; `bare` has no optional one."""
    column = np.arange(rows, dtype=np.float32)
    items = PairedItems(
        ids=objects([f"item-{i}" for i in range(rows)]),
        old=np.repeat(column[:, None], OLD, axis=1),
        new=np.repeat(column[:, None], NEW, axis=1),
        split=objects([SPLITS[i % 3] for i in range(rows)]),
        fingerprint="abc",
    )
    if bare:
        return items
    labels, groups = objects([f"label-{i}" for i in range(rows)]), objects([None, *range(1, rows)])
    return replace(items, labels=labels, groups=groups, weights=column, side=column[:, None])


def queries_of(rows: int = N) -> Queries:
    """Row i says i in every column; query i is judged by items i and 100 + i."""
    items = items_of(rows)
    judged = tuple(Judgement(row, base + row, 1 + base) for base in (0, 100) for row in range(rows))
    return replace(items.as_queries(), are_items=False, judged=judged)


def rows_of(part: PairedItems | Queries) -> list[int]:
    """Which rows of the whole these are, once every column says the same."""
    rows: list[int] = part.new[:, 0].astype(int).tolist()
    assert part.old is not None
    assert part.old[:, 0].astype(int).tolist() == rows
    assert part.ids.tolist() == [f"item-{row}" for row in rows]
    if part.labels is not None:
        assert part.labels.tolist() == [f"label-{row}" for row in rows]
    if part.groups is not None:
        assert part.groups.tolist() == [row or None for row in rows]
    if isinstance(part, PairedItems):
        assert part.split.tolist() == [SPLITS[row % 3] for row in rows]
        if part.weights is not None:
            assert part.weights.astype(int).tolist() == rows
        if part.side is not None:
            assert part.side[:, 0].astype(int).tolist() == rows
        np.testing.assert_array_equal(part.id_hash, hash_ids(part.ids))
    return rows


ROWS = st.lists(st.integers(0, N - 1), max_size=N)


@given(ROWS, st.booleans())
def test_taking_rows_takes_them_in_every_column_in_the_order_given(rows: list[int], bare: bool) -> None:
    part = items_of(bare=bare).take(np.array(rows, np.int64))
    assert rows_of(part) == rows
    assert part.fingerprint == "abc"
    if bare:
        assert (part.labels, part.groups, part.weights, part.side) == (None, None, None, None)


@given(ROWS, st.lists(st.integers(0, N - 1), max_size=3))
def test_taking_from_what_was_taken_is_taking_once(first: list[int], second: list[int]) -> None:
    second = [row for row in second if row < len(first)]
    part = items_of().take(np.array(first, np.int64)).take(np.array(second, np.int64))
    assert rows_of(part) == [first[row] for row in second]


@pytest.mark.parametrize("column", ["labels", "groups", "weights", "side", "priority"])
def test_a_column_that_the_added_items_or_those_before_lack_is_left_out(column: str) -> None:
    whole = replace(items_of(), priority=np.arange(N, dtype=np.float32))
    lacking = replace(whole, **{column: None})
    for some, others in ((whole, lacking), (lacking, whole)):
        both = some.with_added(others.first(3))
        assert getattr(both, column) is None
        lengths = {len(value) for value in vars(both).values() if isinstance(value, np.ndarray)}
        assert lengths == {N + 3}
        assert len(both.part("train").ids) == len(whole.part("train").ids) + 1
    assert getattr(whole.with_added(whole.first(3)), column) is not None
    assert whole.with_added(lacking.first(3)).with_added(whole.first(2)).size == N


def test_a_part_is_its_split_in_the_order_of_the_whole() -> None:
    for number, split in enumerate(SPLITS):
        assert rows_of(items_of().part(split)) == list(range(number, N, 3))


@given(SEEDS)
@settings(max_examples=30)
def test_the_order_by_hash_is_the_same_whatever_the_order_of_the_rows(seed: int) -> None:
    items = items_of()
    moved = items.take(np.random.default_rng(seed).permutation(N))
    assert rows_of(moved.by_hash()) == rows_of(items.by_hash())
    hashes = moved.by_hash().id_hash
    assert hashes.tolist() == sorted(hashes.tolist())


def test_labelled_items_are_those_with_a_label_and_without_enough_of_them_all_without_labels() -> None:
    least = MIN_SPLIT["train"]
    for known, rows in ((least, list(range(least))), (least - 1, list(range(N)))):
        items = items_of()
        assert items.labels is not None
        items.labels[known:] = None
        part = items.labelled()
        assert rows_of(part) == rows
        assert (part.labels is None) == (known < least)
    bare = items_of(bare=True)
    assert bare.labelled() is bare


def test_a_label_that_is_zero_or_empty_is_known() -> None:
    items = replace(items_of(), labels=objects([0, ""] * (N // 2)))
    assert len(items.labelled().ids) == N


def test_labels_that_are_lists_are_no_classes_and_leave_nothing_to_learn_from() -> None:
    items = items_of()
    assert items.classes is items.labels
    assert not items.has_label_lists
    listed = replace(items, labels=objects([("a", "b"), None] * (N // 2)))
    assert listed.classes is None
    assert listed.has_label_lists
    assert listed.take(np.arange(2)).has_label_lists
    assert listed.labelled().labels is None
    assert len(listed.labelled().ids) == N
    assert not items_of(bare=True).has_label_lists


def test_items_as_queries_are_themselves_and_say_so() -> None:
    items = items_of()
    queries = items.as_queries()
    assert rows_of(queries) == list(range(N))
    assert queries.are_items
    assert queries.judged is None
    assert not queries_of().are_items


@given(st.lists(st.integers(0, N - 1), max_size=N, unique=True))
def test_judgements_follow_their_query(rows: list[int]) -> None:
    part = queries_of().take(np.array(rows, np.int64))
    assert rows_of(part) == rows
    assert part.judged is not None
    assert sorted(part.judged) == sorted(
        (place, base + row, 1 + base) for place, row in enumerate(rows) for base in (0, 100)
    )
    assert replace(queries_of(), judged=None).take(np.array(rows, np.int64)).judged is None


@given(SEEDS, st.integers(0, 5), st.integers(0, N + 3))
@settings(max_examples=50)
def test_the_first_of_shuffled_queries_are_the_same_whatever_the_order_of_the_file(
    permutation: int, seed: int, count: int
) -> None:
    queries = queries_of()
    moved = queries.take(np.random.default_rng(permutation).permutation(N))
    first = rows_of(queries.shuffled(seed).first(count))
    assert rows_of(moved.shuffled(seed).first(count)) == first
    assert rows_of(moved.sample(count, seed)) == first
    assert len(first) == min(count, N)
    assert set(first) <= set(range(N))
    sampled = moved.sample(count, seed)
    assert sampled.judged is not None
    assert sorted(sampled.judged) == sorted(
        (i, base + row, 1 + base) for i, row in enumerate(first) for base in (0, 100)
    )


@pytest.mark.parametrize("count", [1, 10, 25])
def test_a_sample_of_queries_is_uniform_over_seeds(count: int) -> None:
    drawn = np.zeros(N)
    for seed in range(400):
        drawn[rows_of(queries_of().sample(count, seed))] += 1
    share = count / N
    assert np.abs(drawn / 400 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 400)
