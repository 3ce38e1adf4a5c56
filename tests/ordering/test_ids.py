"""Keys of items: the hashes that digests of sets of ids sum."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.ordering.ids import NO_IDS, hash_ids, ids_digest, item_keys, keys_digest, rows_of_keys

IDS = st.lists(st.integers(-(2**63), 2**63 - 1)) | st.lists(st.text(st.characters(codec="utf-8"), max_size=9))


@given(IDS)
def test_a_key_is_the_128_bit_hash_of_the_ids_text(ids: list[int] | list[str]) -> None:
    keys = item_keys(ids)
    assert keys.shape == (len(ids), 2)
    assert keys.dtype == np.uint64
    for key, each in zip(keys.tolist(), ids, strict=True):
        expected = hashlib.blake2b(str(each).encode(), digest_size=16).digest()
        assert b"".join(half.to_bytes(8, "big") for half in key) == expected


@given(IDS)
def test_the_digest_of_keys_is_that_of_their_ids(ids: list[int] | list[str]) -> None:
    total = sum(int.from_bytes(hashlib.blake2b(str(each).encode(), digest_size=16).digest(), "big") for each in ids)
    assert keys_digest(item_keys(ids)) == ids_digest(ids) == f"{total % 2**128:032x}"


def test_ids_have_the_same_keys_in_every_container() -> None:
    numbers, texts = [3, -7, 2**62], ["a", "\u00e9", ""]
    assert np.array_equal(item_keys(np.array(numbers, np.int64)), item_keys(numbers))
    assert np.array_equal(item_keys(np.array(texts, object)), item_keys(texts))
    for values in (numbers, texts):
        columns = pa.array(values), pa.chunked_array([values[:1], values[1:]])
        for column in columns:
            assert np.array_equal(item_keys(column), item_keys(values))
            assert np.array_equal(hash_ids(column), hash_ids(np.array(values, object)))
            assert ids_digest(column) == ids_digest(values)
        assert ids_digest(columns[0].slice(0, 0)) == NO_IDS


def test_the_digest_carries_between_the_halves_and_wraps_at_128_bits() -> None:
    top = 2**64 - 1
    assert keys_digest(np.array([[0, top], [0, 1]], np.uint64)) == f"{2**64:032x}"
    assert keys_digest(np.array([[top, top], [0, 2]], np.uint64)) == f"{1:032x}"
    assert keys_digest(np.full((1000, 2), top, np.uint64)) == f"{(2**128 - 1) * 1000 % 2**128:032x}"


@given(st.lists(st.integers(0, 40), unique=True, max_size=30), st.lists(st.integers(0, 40), unique=True, max_size=30))
def test_keys_are_found_by_both_halves(there: list[int], wanted: list[int]) -> None:
    """Halves of few values, so that one half alone says little."""
    keys, asked = (np.array([(n % 5, n // 5) for n in some], np.uint64).reshape(-1, 2) for some in (there, wanted))
    rows, which = rows_of_keys(keys, asked)
    assert rows.tolist() == [row for row, n in enumerate(there) if n in wanted]
    assert [wanted[n] for n in which.tolist()] == [there[row] for row in rows.tolist()]
