"""What is done in which unit and in which order: ids, pairs, chunks, buckets, waves. Pure numpy.

Legend: N items, W waves. Waves are numbered 0 (the pairs), 1..W, and W + 1 for the rest that no wave reaches (empty
where the last fraction is 1). Items are put into waves by an unsigned 64-bit *order key*; a larger key is embedded
earlier. Thresholds on the key are found by histograms, so that no sort and no shuffle is needed for any N.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.errors import ConfigError

KEY_SPACE = 1 << 64
# Radix levels of the threshold search: their widths sum to 64. A histogram holds at most 2**22 bins at a time.
KEY_LEVELS = (20, 22, 22)
# Below these numbers the fit, the offset or the gate would be decided by chance.
MIN_SPLIT = {"train": 32, "calibration": 16, "audit": 16}


@dataclass(frozen=True)
class Chunk:
    """Rows [start, start + rows) of gallery file number `file`."""

    index: int
    file: int
    start: int
    rows: int


def hash_ids(ids: NDArray[np.int64] | Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash per id (N,), the same on every machine and release: splitmix64 for ints, blake2b for strings."""
    if isinstance(ids, np.ndarray) and ids.dtype == np.int64:
        return _splitmix64(ids.view(np.uint64))
    digests = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Steele, Lea & Flood, OOPSLA 2014, fig. 18: a bijection, so distinct int64 ids never collide.
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def seeded_hash(id_hash: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Another independent 64-bit hash per id (N,) for each seed."""
    salt = _splitmix64(np.array([seed], dtype=np.uint64))[0]
    return _splitmix64(id_hash ^ salt)


def ids_digest(ids: Iterable[int | str]) -> str:
    """Order-free digest of a multiset of ids: the sum of their 128-bit hashes modulo 2**128, as hex.

    Sums can be combined (``combine_digests``), so that a version's digest follows from its segments'.
    """
    total = sum(int.from_bytes(hashlib.blake2b(str(i).encode(), digest_size=16).digest(), "big") for i in ids)
    return f"{total % (1 << 128):032x}"


def combine_digests(digests: Iterable[str]) -> str:
    """The digest of the union of disjoint sets of ids."""
    return f"{sum(int(digest, 16) for digest in digests) % (1 << 128):032x}"


def sample_pairs(rows: int, count: int, split: tuple[float, float, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Uniform sample without replacement of global row numbers, cut into train, calibration and audit (each sorted).

    Raises:
        ConfigError: more pairs than rows, or a split too small to decide anything.
    """
    if count > rows:
        raise ConfigError(f"pairs.count: found {count}, the gallery has {rows} rows; at most that many can be sampled")
    cuts = np.floor(np.cumsum((0.0, *split)) * count + 0.5).astype(int)
    cuts[-1] = count
    drawn = np.random.default_rng(seed).choice(rows, size=count, replace=False)
    parts = {name: np.sort(drawn[cuts[i] : cuts[i + 1]]) for i, name in enumerate(MIN_SPLIT)}
    for name, least in MIN_SPLIT.items():
        if len(parts[name]) < least:
            raise ConfigError(
                f"pairs.count {count} with pairs.split {list(split)} gives {len(parts[name])} {name} pairs; at least "
                f"{least} are needed to decide anything. Raise pairs.count."
            )
    return parts


def cut_chunks(files: Sequence[tuple[int, int]], *, chunk_rows: int, chunk_bytes: int) -> list[Chunk]:
    """Fixed slices of the gallery's files, numbered in file order.

    Args:
        files: (rows, bytes) per file; bytes as they are read, uncompressed.
        chunk_rows: most rows of a chunk.
        chunk_bytes: most bytes of a chunk, at the file's mean row size; one row may exceed it.
    """
    chunks: list[Chunk] = []
    for number, (rows, size) in enumerate(files):
        if rows == 0:
            continue
        per_row = max(1.0, size / rows)
        step = max(1, min(chunk_rows, int(chunk_bytes / per_row)))
        pieces = -(-rows // step)
        edges = np.linspace(0, rows, pieces + 1).round().astype(int)  # even pieces: no tiny last chunk
        for start, end in itertools.pairwise(edges.tolist()):
            chunks.append(Chunk(len(chunks), number, start, end - start))
    return chunks


def cut_buckets(chunks: Sequence[Chunk], *, segment_rows: int) -> list[list[Chunk]]:
    """Runs of consecutive chunks with at most `segment_rows` rows each (a larger single chunk is its own bucket)."""
    buckets: list[list[Chunk]] = []
    filled = segment_rows
    for chunk in chunks:
        if not buckets or filled + chunk.rows > segment_rows:
            buckets.append([])
            filled = 0
        buckets[-1].append(chunk)
        filled += chunk.rows
    return buckets


def order_key(priority: NDArray[np.floating], id_hash: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Unsigned 64-bit key (N,): the priority as float32 in order-preserving bits, then 32 bits of the id's hash.

    Ties in priority are so broken by the hash of the id: deterministic, and independent of files and chunks.

    Raises:
        ValueError: a priority is NaN.
    """
    values = np.ascontiguousarray(priority, dtype=np.float32) + np.float32(0)  # -0.0 and 0.0 are one priority
    if np.isnan(values).any():
        raise ValueError("a priority is NaN")
    bits = values.view(np.uint32)
    ordered = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return (ordered << np.uint64(32)) | (id_hash >> np.uint64(32))


def wave_targets(fractions: Sequence[float], rows: int, pairs: int) -> list[int]:
    """Items that are in waves 1..k after each wave k (pairs not counted; fractions count all items, pairs included).

    Raises:
        ConfigError: the first wave ends below the pairs' share.
    """
    ends = [round(fraction * rows) for fraction in fractions]
    if ends[0] < pairs:
        raise ConfigError(
            f"waves: the first is {fractions[0]} = {ends[0]} items, but the pairs alone are {pairs} of {rows} items; "
            f"raise it to at least {pairs / rows:.4f}, or lower pairs.count"
        )
    return [end - pairs for end in ends]


Histogram = dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]


def key_histogram(keys: NDArray[np.uint64], prefixes: Sequence[int], level: int) -> Histogram:
    """{prefix: (bins, counts)}: sparse histograms of the bits at `level` of the keys that start with each prefix."""
    shift = 64 - sum(KEY_LEVELS[: level + 1])
    width = KEY_LEVELS[level]
    digits = keys >> np.uint64(shift)
    result: Histogram = {}
    for prefix in prefixes:
        chosen = digits if level == 0 else digits[(digits >> np.uint64(width)) == np.uint64(prefix)]
        bins, counts = np.unique((chosen & np.uint64((1 << width) - 1)).astype(np.int64), return_counts=True)
        result[prefix] = (bins, counts.astype(np.int64))
    return result


def find_thresholds(
    targets: Sequence[int],
    histograms: Callable[[Sequence[int], int], Iterable[Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]]]],
) -> list[int]:
    """The keys t_k such that exactly targets[k] keys are >= t_k (equal keys stay together).

    A radix selection over histograms: one pass per level, memory of 2**22 bins per open prefix whatever N is.

    Args:
        targets: non-decreasing ranks.
        histograms: called once per level with (prefixes, level); yields ``key_histogram`` of every part of the gallery.

    Raises:
        ValueError: a target exceeds the number of keys.
    """
    prefix = {rank: 0 for rank in targets if rank > 0}
    remaining = {rank: rank for rank in prefix}
    for level, width in enumerate(KEY_LEVELS):
        totals = {p: np.zeros(1 << width, np.int64) for p in sorted(set(prefix.values()))}
        if not totals:
            break
        for part in histograms(list(totals), level):
            for p, (bins, counts) in part.items():
                totals[p][bins] += counts
        for rank, p in prefix.items():
            at_least = np.cumsum(totals[p][::-1])  # keys in the top 1, 2, 3... bins
            index = int(np.searchsorted(at_least, remaining[rank]))
            if index == len(at_least):
                raise ValueError(f"{rank} keys are asked for, {int(at_least[-1])} exist")
            remaining[rank] -= int(at_least[index - 1]) if index else 0
            prefix[rank] = (p << width) | ((1 << width) - 1 - index)
    return [prefix.get(rank, KEY_SPACE) for rank in targets]


def wave_of(keys: NDArray[np.uint64], is_pair: NDArray[np.bool_], thresholds: Sequence[int]) -> NDArray[np.int16]:
    """The wave (N,) of each item: 0 for pairs, else by its key; W + 1 where no wave reaches it."""
    return np.where(is_pair, np.int16(0), order_wave(keys, thresholds))


def order_wave(keys: NDArray[np.uint64], thresholds: Sequence[int]) -> NDArray[np.int16]:
    """The wave (N,) in 1..W+1 that the order alone gives: what the shadow gallery uses for pairs."""
    wave = np.ones(len(keys), np.int16)
    for threshold in thresholds:
        wave += keys < np.uint64(threshold) if threshold < KEY_SPACE else np.True_
    return wave


def wave_middles(fractions: Sequence[float], pairs_share: float) -> NDArray[np.float32]:
    """The place in the order, 0 to 1, of the middle of each wave (W + 2,): pairs at 0, then 1..W, then the rest.

    Args:
        fractions: at which waves end, of all items; the order is one of all items but the pairs.
    """
    ends = [0.0, *((fraction - pairs_share) / (1 - pairs_share) for fraction in fractions), 1.0]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(ends)]
    return np.array([0.0, *middles], np.float32)
