"""The sample of pairs by hashes of keys, and the parts in which a gallery is checked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError
from fastfill_ray.ordering import partition
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.ordering.partition import (
    MIN_SPLIT,
    cut_chunks,
    cut_parts,
    hash_bound,
    items_per_task,
    smallest,
    split_pairs,
    split_sizes,
)
from fastfill_ray.types import SPLITS, U64

SPLIT = (0.7, 0.15, 0.15)
KEYS = item_keys(range(5000))


def sampled(keys: U64, count: int, seed: int) -> set[tuple[int, int]]:
    return set(map(tuple, keys[smallest(keys, count, seed)].tolist()))


# Pairs


def test_pairs_are_distinct_sized_by_the_split_and_the_same_for_a_seed() -> None:
    sizes = split_sizes(5000, 1000, SPLIT)
    assert sizes == {"train": 700, "calibration": 150, "audit": 150}
    chosen = smallest(KEYS, 1000, 3)
    splits = split_pairs(KEYS[chosen], sizes, 3)
    assert len(np.unique(chosen)) == 1000
    assert {name: int((splits == name).sum()) for name in SPLITS} == sizes
    np.testing.assert_array_equal(chosen, smallest(KEYS, 1000, 3))
    np.testing.assert_array_equal(splits, split_pairs(KEYS[chosen], sizes, 3))
    # Of 5,000 another seed draws 1,000 with no regard to the first: 200 of them are the same by chance.
    assert 140 < len(sampled(KEYS, 1000, 3) & sampled(KEYS, 1000, 4)) < 260
    assert (splits != split_pairs(KEYS[chosen], sizes, 4)).any()


@given(st.integers(0, 2**32), st.integers(1, 300), st.lists(st.integers(0, 400), max_size=6))
def test_the_sample_does_not_depend_on_the_order_of_items_nor_on_how_they_are_cut(
    seed: int, count: int, cuts: list[int]
) -> None:
    keys = KEYS[:400]
    order = np.random.default_rng(seed).permutation(len(keys))
    shuffled = keys[order]
    parts = [part for part in np.split(shuffled, sorted(cuts)) if len(part)]
    candidates = np.concatenate([part[smallest(part, count, seed)] for part in parts])
    expected = keys[smallest(keys, count, seed)]
    np.testing.assert_array_equal(candidates[smallest(candidates, count, seed)], expected)
    np.testing.assert_array_equal(shuffled[smallest(shuffled, count, seed)], expected)
    bounded = keys[smallest(keys, count, seed, hash_bound(len(keys), count))]
    np.testing.assert_array_equal(bounded, expected)


@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from(["removed", "added", "exchanged"]))
@settings(max_examples=60)
def test_where_a_share_of_the_items_changes_about_that_share_of_the_pairs_does(
    seed: int, share: float, change: str
) -> None:
    count, number = 1000, int(share * len(KEYS))
    gone = np.random.default_rng(seed).choice(len(KEYS), number, replace=False)
    kept = np.delete(KEYS, gone, axis=0)
    before = KEYS if change != "added" else kept
    after = {"removed": kept, "added": KEYS, "exchanged": np.concatenate([kept, item_keys(range(9000, 9000 + number))])}
    lost = len(sampled(before, count, seed) - sampled(after[change], count, seed))
    # Each pair is lost with a chance of `share` or less: within six standard deviations of a binomial count.
    assert lost <= count * share + 6 * np.sqrt(count * share * (1 - share))
    if change == "removed":
        still = set(map(tuple, kept.tolist()))
        assert sampled(before, count, seed) & still <= sampled(kept, count, seed), "nothing else is given up"
    if change == "added":
        assert sampled(after[change], count, seed) - sampled(before, count, seed) <= set(
            map(tuple, KEYS[gone].tolist())
        )


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_few_pairs_change_their_split_with_the_sample(seed: int, changed: int) -> None:
    sizes = split_sizes(5000, 1000, SPLIT)
    before, after = KEYS[:1000], np.concatenate([KEYS[changed:1000], KEYS[1000 : 1000 + changed]])
    then = dict(zip(map(tuple, before.tolist()), split_pairs(before, sizes, seed), strict=True))
    now = dict(zip(map(tuple, after.tolist()), split_pairs(after, sizes, seed), strict=True))
    assert sum(then[key] != now[key] for key in then.keys() & now.keys()) <= 2 * changed


def test_every_item_is_equally_likely_to_be_a_pair_of_each_split() -> None:
    rows, count, trials = 400, 200, 400
    keys, sizes = KEYS[:rows], split_sizes(rows, count, SPLIT)
    drawn = {name: np.zeros(rows) for name in MIN_SPLIT}
    for seed in range(trials):
        chosen = smallest(keys, count, seed)
        splits = split_pairs(keys[chosen], sizes, seed)
        for name in MIN_SPLIT:
            drawn[name][chosen[splits == name]] += 1
    for name, share in zip(MIN_SPLIT, SPLIT, strict=True):
        chance = share * count / rows
        deviation = (drawn[name] - trials * chance) / np.sqrt(trials * chance * (1 - chance))
        assert abs(deviation).max() < 5
        # Chi-square of `rows` cells; six of its standard deviations, sqrt(2 rows).
        assert abs((deviation**2).sum() - rows) < 6 * np.sqrt(2 * rows)


def test_equal_hashes_are_ordered_by_the_whole_key() -> None:
    keys = np.array([[7, 3], [7, 1], [7, 2]], np.uint64)
    assert smallest(keys, 2, 0).tolist() == [1, 2]
    splits = split_pairs(keys[:, ::-1], {"train": 1, "calibration": 1, "audit": 1}, 0)
    assert splits.tolist() == ["audit", "train", "calibration"]


@given(st.integers(1, 10**9), st.integers(1, 10**5))
def test_a_bound_lets_few_more_through_than_are_wanted(rows: int, count: int) -> None:
    bound = hash_bound(rows, count)
    if bound is not None:
        assert count <= bound / 2**64 * rows <= count + 6 * np.sqrt(count) + 37
    else:
        assert rows <= count + 6 * np.sqrt(count) + 37


def test_all_items_can_be_pairs() -> None:
    assert sorted(smallest(KEYS[:200], 200, 0).tolist()) == list(range(200))
    assert sum(split_sizes(200, 200, SPLIT).values()) == 200


def test_more_pairs_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pairs\.count: found 201, the gallery has 200 rows"):
        split_sizes(200, 201, SPLIT)


def test_pairs_too_few_to_decide_anything_are_refused_naming_the_split() -> None:
    with pytest.raises(ConfigError, match=r"gives 15 calibration pairs; at least 16.*Raise pairs\.count"):
        split_sizes(200, 100, SPLIT)


# Chunks


def test_auto_chunks_have_2048_rows_in_all_but_large_galleries() -> None:
    files = [([65_536, 65_536, 65_536, 53_392], 250_000_000)] * 8
    given = cut_chunks(files, chunk_rows=2048, chunk_bytes=32 << 20)
    assert cut_chunks(files, chunk_rows="auto", chunk_bytes=32 << 20) == given


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=8),
    st.integers(1, 60),
    st.integers(1, 400),
)
def test_auto_chunks_are_doubled_until_they_are_few_or_as_large_as_they_may_be(
    groups: list[list[int]], many: int, chunk_bytes: int
) -> None:
    files = [(sizes, 10 * sum(sizes)) for sizes in groups]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CHUNK_ROWS", 2), ("MOST_CHUNK_ROWS", 32), ("MANY_CHUNKS", many)):
            patch.setattr(partition, name, value)
        chunks = cut_chunks(files, chunk_rows="auto", chunk_bytes=chunk_bytes)
    by_rows = [cut_chunks(files, chunk_rows=rows, chunk_bytes=chunk_bytes) for rows in (2, 4, 8, 16, 32)]
    few = (cut for rows, cut in zip((2, 4, 8, 16), by_rows, strict=False) if len(cut) <= min(rows // 2, many))
    assert chunks == next(few, by_rows[-1])


@given(st.integers(1, 100_000), st.integers(2, 3_000))
def test_an_exchange_has_few_pieces_or_tasks_of_sixteen_items(items: int, partitions: int) -> None:
    each = items_per_task(items, partitions)
    assert 1 <= each <= 16
    assert each == 16 or -(-items // each) * partitions <= (1 << 16) + partitions
    assert each == 1 or -(-items // (each - 1)) * partitions > (1 << 16)


# Parts


@given(
    st.lists(st.lists(st.integers(0, 90), max_size=6), max_size=4),
    st.integers(1, 40),
    st.integers(1, 60),
)
def test_parts_are_runs_of_whole_chunks_and_share_a_row_group_only_where_it_is_larger_than_a_part(
    files: list[list[int]], chunk_rows: int, most: int
) -> None:
    chunks = cut_chunks([(groups, 0) for groups in files], chunk_rows=chunk_rows, chunk_bytes=1 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "PART_ROWS", most)
        parts = cut_parts(chunks, files)
    of_file = {file: [(start, rows) for number, start, rows in parts if number == file] for file in range(len(files))}
    largest = max((rows for _, _, rows in chunks), default=0)
    begins = {(file, start) for file, start, _ in chunks}
    for file, groups in enumerate(files):
        assert [start for start, _ in of_file[file]] == list(
            itertools.accumulate([rows for _, rows in of_file[file]], initial=0)
        )[:-1]
        assert sum(rows for _, rows in of_file[file]) == sum(groups)
        ends = np.cumsum([0, *groups])
        for start, rows in of_file[file]:
            assert (file, start) in begins
            assert rows <= max(most, largest)
            # The row groups that it cuts into.
            cut = [
                i for i in range(len(groups)) if ends[i] < start < ends[i + 1] or ends[i] < start + rows < ends[i + 1]
            ]
            assert all(groups[i] > most for i in cut)
            if cut:
                assert ends[cut[0]] <= start < start + rows <= ends[cut[0] + 1], "then it holds rows of that one alone"
