"""Hashes and digests of ids: the same on every machine and release.

Legend: N items.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fastfill_ray.types import I64, U64, Objects


@runtime_checkable
class Column(Protocol):
    """An Arrow column, of which nothing else is known here."""

    def to_pylist(self) -> list[Any]: ...


Ids: TypeAlias = Column | I64 | Objects | Iterable[int | str]
"""Ids (N,) of one type, integers or strings."""

_KEY_BYTES = 16
NO_IDS = "0" * 32  # the digest of no ids


def hash_ids(ids: Ids) -> U64:
    """A 64-bit hash per id (N,), the same on every machine and release: splitmix64 for ints, blake2b for strings.

    An object array holds ids of one type, ints or strings.
    """
    if isinstance(ids, Column):
        values = ids.to_pylist()
        ids = np.array(values, np.int64) if values and isinstance(values[0], int) else values
    if isinstance(ids, np.ndarray) and ids.dtype == object and len(ids) and not isinstance(ids[0], str):
        ids = ids.astype(np.int64)
    if isinstance(ids, np.ndarray) and ids.dtype == np.int64:
        return _splitmix64(ids.view(np.uint64))
    return np.frombuffer(_hashed(ids, 8), dtype="<u8").astype(np.uint64)


def _hashed(ids: Ids, size: int) -> bytes:
    """blake2b of each id's text, `size` bytes each, one after the other."""
    # A copy of an empty hash is made in half the time of a new one. (blake2b in numpy takes longer than hashlib's.)
    copy, digests = blake2b(digest_size=size).copy, []
    for text in map(str.encode, map(str, _values(ids))):
        digest = copy()
        digest.update(text)
        digests.append(digest.digest())
    return b"".join(digests)


def _values(ids: Ids) -> list[int | str]:
    if isinstance(ids, Column):
        return ids.to_pylist()
    values: list[int | str] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    return values


def _splitmix64(x: U64) -> U64:
    # Steele, Lea & Flood, OOPSLA 2014, fig. 18: a bijection, so distinct int64 ids never collide.
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def seeded_hash(id_hash: U64, seed: int) -> U64:
    """Another independent 64-bit hash per id (N,) for each seed."""
    salt = _splitmix64(np.array([seed], dtype=np.uint64))[0]
    return _splitmix64(id_hash ^ salt)


def ids_digest(ids: Ids) -> str:
    """Order-free digest of a multiset of ids: the sum of their 128-bit hashes modulo 2**128, as hex.

    Sums can be combined (``combine_digests``), so that a version's digest follows from its segments'.
    """
    return keys_digest(item_keys(ids))


def item_keys(ids: Ids) -> U64:
    """A 128-bit key per id: blake2b of its text, the very hash that ``ids_digest`` sums.

    Returns:
        (N, 2): the high and the low 64 bits.
    """
    return np.frombuffer(_hashed(ids, _KEY_BYTES), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def keys_digest(keys: U64) -> str:
    """``ids_digest`` of the ids that have these keys (N, 2)."""
    # 32 bits at a time: the sum of up to 2**32 of them fits into 64.
    halves = [(half >> np.uint64(32), half & np.uint64(0xFFFFFFFF)) for half in (keys[:, 0], keys[:, 1])]
    total = 0
    for part in (part for half in halves for part in half):
        total = (total << 32) + int(part.sum(dtype=np.uint64))
    return f"{total % (1 << 128):032x}"


def combine_digests(digests: Iterable[str]) -> str:
    """The digest of the union of disjoint sets of ids."""
    return f"{sum(int(digest, 16) for digest in digests) % (1 << 128):032x}"


def subtract_digests(whole: str, part: str) -> str:
    """The digest of a set of ids without a subset of it."""
    return f"{(int(whole, 16) - int(part, 16)) % (1 << 128):032x}"


def rows_of_keys(there: U64, wanted: U64) -> tuple[I64, I64]:
    """Where some keys lie: rows (n,) of `there`, ascending, and which of the `wanted` each one is (n,).

    Args:
        there: (N, 2), each key once. wanted: (M, 2), each key once.
    """
    number_of = {tuple(key): number for number, key in enumerate(wanted.tolist())}
    rows = np.flatnonzero(np.isin(there[:, 0], wanted[:, 0]))  # nearly always those: the half of a key is 64 bits
    which = np.array([number_of.get(tuple(key), -1) for key in there[rows].tolist()], np.int64)
    return rows[which >= 0], which[which >= 0]
