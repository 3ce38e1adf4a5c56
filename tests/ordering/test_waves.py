"""Ids, pairs, chunks, buckets and waves, against plain sorts and counts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.ordering import waves as plan
from fastfill_ray.ordering.ids import combine_digests, hash_ids, ids_digest, seeded_hash
from fastfill_ray.ordering.partition import Chunk, cut_buckets, cut_chunks
from fastfill_ray.ordering.waves import (
    KEY_LEVELS,
    KEY_SPACE,
    REST,
    Histogram,
    find_thresholds,
    key_histogram,
    order_key,
    order_wave,
    wave_of,
    wave_targets,
)

SPLIT = (0.7, 0.15, 0.15)
INT64 = st.integers(-(2**63), 2**63 - 1)
Keys = NDArray[np.uint64]


# Ids


def test_hashes_of_ints_are_splitmix64_and_stay_the_same_for_ever() -> None:
    # The first outputs of the published generator for the states 0 and 1234567, and values of this package.
    known = {0: 0xE220A8397B1DCDAF, 1234567: 6457827717110365317, -1: 16490336266968443936}
    assert hash_ids(np.array(list(known), np.int64)).tolist() == list(known.values())


def test_hashes_of_strings_are_blake2b_and_stay_the_same_for_ever() -> None:
    known = {"": 13020603013274838756, "a": 3405396810240292928, "é": 3394012004367669963}
    assert hash_ids(list(known)).tolist() == list(known.values())
    assert hash_ids(np.array(list(known), object)).tolist() == list(known.values())
    assert known[""] == int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")


@given(st.lists(INT64, unique=True))
def test_distinct_ints_have_distinct_hashes_under_every_seed(ids: list[int]) -> None:
    hashed = hash_ids(np.array(ids, np.int64))
    assert hashed.dtype == np.uint64
    assert len(np.unique(hashed)) == len(ids)
    assert len(np.unique(seeded_hash(hashed, 7))) == len(ids)


@given(st.lists(INT64, min_size=1, max_size=20) | st.lists(st.text(max_size=5), min_size=1, max_size=20), st.data())
def test_an_ids_hash_does_not_depend_on_its_neighbours(ids: list[int] | list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(ids))))
    array = np.array(ids, np.int64 if isinstance(ids[0], int) else object)
    np.testing.assert_array_equal(hash_ids(array[order]), hash_ids(array)[order])


def test_seeds_give_unrelated_hashes() -> None:
    hashed = hash_ids(np.arange(4000, dtype=np.int64))
    bits = np.unpackbits((seeded_hash(hashed, 0) ^ seeded_hash(hashed, 1)).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.01


@given(st.lists(INT64 | st.text(max_size=8), max_size=12), st.data())
def test_a_digest_is_free_of_order_and_adds_up_over_parts(ids: list[int | str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ids)))
    assert ids_digest(data.draw(st.permutations(ids))) == ids_digest(ids)
    assert combine_digests([ids_digest(ids[:cut]), ids_digest(ids[cut:])]) == ids_digest(ids)
    assert len(ids_digest(ids)) == 32


@given(st.lists(INT64, min_size=1, max_size=12), st.data())
def test_a_lost_a_doubled_or_a_changed_id_changes_the_digest(ids: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(INT64.filter(lambda value: value != ids[at]))
    for changed in (ids[:at] + ids[at + 1 :], [*ids, ids[at]], [*ids[:at], other, *ids[at + 1 :]]):
        assert ids_digest(changed) != ids_digest(ids)


# Chunks and buckets


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 100_000)), max_size=6),
    st.integers(1, 150),
    st.integers(1, 20_000),
)
def test_chunks_partition_every_file_within_their_limits(
    files: list[tuple[list[int], int]], chunk_rows: int, chunk_bytes: int
) -> None:
    chunks = cut_chunks(files, chunk_rows=chunk_rows, chunk_bytes=chunk_bytes)
    covered = [(file, row) for file, start, rows in chunks for row in range(start, start + rows)]
    assert covered == [(number, row) for number, (groups, _) in enumerate(files) for row in range(sum(groups))]
    for file, _, rows in chunks:
        groups, size = files[file]
        assert 1 <= rows <= chunk_rows
        assert rows == 1 or rows * size / sum(groups) <= chunk_bytes * (1 + 1e-9)


@given(st.lists(st.integers(0, 200), max_size=8), st.integers(1, 150))
def test_a_chunk_is_whole_row_groups_or_an_even_part_of_one(groups: list[int], chunk_rows: int) -> None:
    edges = np.cumsum([0, *groups])
    for start, rows in (
        (start, rows) for _, start, rows in cut_chunks([(groups, 0)], chunk_rows=chunk_rows, chunk_bytes=1 << 30)
    ):
        first = int(np.searchsorted(edges, start, side="right")) - 1
        inside = start + rows <= edges[first + 1]
        assert inside or (start in edges and start + rows in edges)
        if inside and start + rows < edges[first + 1] and rows < groups[first]:
            assert rows >= min(groups[first], chunk_rows) / 2  # no tiny chunk but at the end


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_buckets_are_runs_of_chunks_as_long_as_their_rows_allow(sizes: list[int], segment_rows: int) -> None:
    chunks = [Chunk(0, 0, rows, str(i)) for i, rows in enumerate(sizes)]
    buckets = cut_buckets(chunks, segment_rows=segment_rows)
    assert [chunk for bucket in buckets for chunk in bucket] == chunks
    totals = [sum(chunk.rows for chunk in bucket) for bucket in buckets]
    assert all(total <= segment_rows or len(bucket) == 1 for total, bucket in zip(totals, buckets, strict=True))
    for total, following in zip(totals, buckets[1:], strict=False):
        assert total + following[0].rows > segment_rows


# Order keys


@given(
    st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, np.inf, -np.inf]), min_size=2),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_keys_order_items_by_priority_and_then_by_the_hash_of_their_id(priorities: list[float], seed: int) -> None:
    values = np.array(priorities, np.float32)
    hashes = np.random.default_rng(seed).integers(0, 2**64, len(values), dtype=np.uint64)
    keys = order_key(values, hashes).tolist()
    plain = [(value, int(hashed) >> 32) for value, hashed in zip(values.tolist(), hashes, strict=True)]
    for (key, item), (other_key, other) in itertools.pairwise(sorted(zip(keys, plain, strict=True))):
        assert item <= other  # -0.0 == 0.0
        assert (key == other_key) == (item == other)


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_the_keys_of_items_do_not_depend_on_how_they_are_cut_into_parts(kind: str) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.permutation(1000)
    ids = numbers.astype(np.int64) if kind == "int64" else np.array([f"item {i}" for i in numbers], object)
    priorities = rng.choice([0.0, -0.0, 1.5, -np.inf], 1000)
    whole = order_key(priorities, hash_ids(ids))
    parts = [order_key(priorities[i : i + 77], hash_ids(ids[i : i + 77])) for i in range(0, 1000, 77)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole)) == 1000


def test_a_priority_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        order_key(np.array([1.0, np.nan]), np.zeros(2, np.uint64))


# Waves


def thresholds_of(parts: Sequence[Keys], targets: Sequence[int]) -> list[int]:
    def histograms(prefixes: Sequence[int], level: int) -> Iterator[Histogram]:
        return (key_histogram(part, prefixes, level) for part in parts)

    return find_thresholds(targets, histograms)


def sorted_thresholds(keys: Sequence[int], targets: Sequence[int]) -> list[int]:
    """The plain way: the key at each rank of a full sort."""
    ordered = sorted(keys, reverse=True)
    return [ordered[target - 1] if target else KEY_SPACE for target in targets]


def split(keys: Sequence[int], cuts: Sequence[int]) -> list[Keys]:
    return np.split(np.array(keys, np.uint64), sorted(cuts))


# Keys that agree in their first bits, and some that are equal.
CLOSE = st.builds(lambda high, low: (high << 60) | low, st.integers(0, 15), st.integers(0, 6))


@given(st.lists(st.integers(0, KEY_SPACE - 1) | CLOSE, min_size=1, max_size=60), st.data())
@settings(max_examples=150, deadline=None)
def test_thresholds_are_those_of_a_full_sort_however_the_keys_are_split(keys: list[int], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(keys)), max_size=5))
    targets = sorted(data.draw(st.lists(st.integers(0, len(keys)), min_size=1, max_size=5)))
    # Narrow levels, many of them: the same code over histograms small enough for many examples. All at once or not.
    few = data.draw(st.sampled_from([0, 5, 1 << 20]))
    with mock.patch.object(plan, "KEY_LEVELS", (8,) * 8), mock.patch.object(plan, "_FEW_KEYS", few):
        result = thresholds_of(split(keys, cuts), targets)
    assert result == sorted_thresholds(keys, targets)


@given(st.lists(st.integers(0, KEY_SPACE - 1) | CLOSE, min_size=1, max_size=60, unique=True), st.data())
@settings(max_examples=150, deadline=None)
def test_waves_are_those_of_a_full_sort_and_their_shares_are_exact(keys: list[int], data: st.DataObject) -> None:
    targets = sorted(data.draw(st.lists(st.integers(0, len(keys)), min_size=1, max_size=5)))
    array, thresholds = np.array(keys, np.uint64), sorted_thresholds(keys, targets)
    waves = order_wave(array, thresholds)
    rank = {key: place for place, key in enumerate(sorted(keys, reverse=True))}
    assert waves.tolist() == [1 + sum(rank[key] >= target for target in targets) for key in keys]
    assert [int((waves <= k + 1).sum()) for k in range(len(targets))] == targets

    is_pair = np.array(data.draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys))))
    assert wave_of(array, is_pair, thresholds).tolist() == [
        0 if pair else wave for pair, wave in zip(is_pair, waves.tolist(), strict=True)
    ]


def test_the_real_levels_cut_twenty_thousand_items_into_exact_waves() -> None:
    assert sum(KEY_LEVELS) == 64
    rng = np.random.default_rng(1)
    priority = rng.choice(rng.normal(size=50), 20_000)  # 400 items share each priority: ties go by the id's hash
    keys = order_key(priority, hash_ids(np.arange(20_000, dtype=np.int64)))
    targets = [0, 1, 1_000, 7_777, 20_000]
    thresholds = thresholds_of(np.array_split(keys, 7), targets)
    assert thresholds == sorted_thresholds(keys.tolist(), targets)
    assert [int((order_wave(keys, thresholds) <= k + 1).sum()) for k in range(len(targets))] == targets


@pytest.mark.parametrize(("few", "passes"), [(1 << 20, [0, REST]), (0, [0, 1, 2])])
def test_two_passes_are_enough_where_few_keys_share_a_bin_with_a_threshold(few: int, passes: list[int]) -> None:
    keys = order_key(np.random.default_rng(2).normal(size=5_000), hash_ids(np.arange(5_000, dtype=np.int64)))
    levels: list[int] = []

    def histograms(prefixes: Sequence[int], level: int) -> Iterator[Histogram]:
        levels.append(level)
        return (key_histogram(part, prefixes, level) for part in np.array_split(keys, 3))

    with mock.patch.object(plan, "_FEW_KEYS", few):
        assert find_thresholds([250, 5_000], histograms) == sorted_thresholds(keys.tolist(), [250, 5_000])
    assert levels == passes


def test_more_keys_than_there_are_cannot_be_asked_for() -> None:
    with mock.patch.object(plan, "KEY_LEVELS", (8,) * 8), pytest.raises(ValueError, match="4 keys are asked for, 3"):
        thresholds_of([np.arange(3, dtype=np.uint64)], [4])


def test_targets_count_the_pairs_in_the_fractions() -> None:
    assert wave_targets([0.05, 0.5, 1.0], 1000, 20) == [30, 480, 980]
    assert wave_targets([0.02, 1.0], 1000, 20) == [0, 980]
    assert wave_targets([0.3], 1000, 20) == [280]


def test_a_wave_that_adds_next_to_nothing_to_what_is_new_first_has_no_items() -> None:
    assert wave_targets([0.01, 0.05, 1.0], 1000, 20) == [0, 30, 980]
    assert wave_targets([0.5, 0.52, 0.53, 1.0], 1000, 500) == [0, 0, 30, 500]
    assert wave_targets([0.5, 0.51], 1000, 500) == [0, 10]  # the last one is made all the same
