"""What is done in which unit and in which order: ids, pairs, chunks, buckets, waves. Pure numpy.

Legend: N items, W waves. Waves are numbered 0 (the pairs), 1..W, and W + 1 for the rest that no wave reaches (empty
where the last fraction is 1). Items are put into waves by an unsigned 64-bit *order key*; a larger key is embedded
earlier. Thresholds on the key are found by histograms, so that no sort and no shuffle is needed for any N.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastfill_ray.types import F32, F64, I64, U64, Bools

KEY_SPACE = 1 << 64
# Radix levels of the threshold search: their widths sum to 64. A histogram holds at most 2**22 bins at a time.
KEY_LEVELS = (20, 22, 22)
# In place of the levels below the first: all their bits at once, where few keys are left to tell apart. Few: 16 MiB.
REST = -1
_FEW_KEYS = 1 << 20


def order_key(priority: NDArray[np.floating], id_hash: U64) -> U64:
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


def wave_targets(fractions: Sequence[float], rows: int, first: int) -> list[int]:
    """Items that are in waves 1..k after each wave k: fractions count all items, also those that are new first.

    A wave that would end below them, or add next to nothing to them, has no items; the next one has them.

    Args:
        first: items that are new before wave 1, the pairs among them.
    """
    ends = [round(fraction * rows) for fraction in fractions]
    *early, last = [max(0, end - first) for end in ends]
    return [*(target if is_worth_a_wave(end, first) else 0 for target, end in zip(early, ends, strict=False)), last]


def is_worth_a_wave(end: int, first: int) -> bool:
    """Whether a wave that ends at `end` items adds more than a twentieth to the `first` ones that are new before it."""
    return end >= 1.05 * first


Histogram = dict[int, tuple[I64, I64]]


def _bits(level: int) -> tuple[int, int]:
    """(Bits of a key below those of a level, bits of the level)."""
    if level == REST:
        return 0, 64 - KEY_LEVELS[0]
    return 64 - sum(KEY_LEVELS[: level + 1]), KEY_LEVELS[level]


def key_histogram(keys: U64, prefixes: Sequence[int], level: int) -> Histogram:
    """{prefix: (bins, counts)}: sparse histograms of the bits at `level` of the keys that start with each prefix."""
    below, width = _bits(level)
    digits = keys >> np.uint64(below)
    mask = np.uint64((1 << width) - 1)
    result: Histogram = {}
    for prefix in prefixes:
        chosen = digits if level == 0 else digits[(digits >> np.uint64(width)) == np.uint64(prefix)] & mask
        result[prefix] = _count(chosen.astype(np.int64), width)
    return result


def _count(digits: I64, width: int) -> tuple[I64, I64]:
    """(The values that occur, ascending, how often each does) of digits (N,) of `width` bits."""
    if len(digits) << 4 < 1 << width:
        bins, counts = np.unique(digits, return_counts=True)
        return bins, counts.astype(np.int64)
    # Where there are not many more bins than digits, to count costs a tenth of what to sort does.
    counts = np.bincount(digits, minlength=1 << width)
    bins = np.flatnonzero(counts)
    return bins, counts[bins]


def find_thresholds(
    targets: Sequence[int],
    histograms: Callable[[Sequence[int], int], Iterable[Mapping[int, tuple[I64, I64]]]],
) -> list[int]:
    """The keys t_k such that exactly targets[k] keys are >= t_k (equal keys stay together).

    A radix selection over histograms: two passes where the bins that hold the thresholds have at most 2**20 keys, else
    one per level. Memory of 2**22 bins per open prefix, whatever N is.

    Args:
        targets: non-decreasing ranks.
        histograms: called once per pass with (prefixes, level); yields ``key_histogram`` of every part of the gallery.

    Raises:
        ValueError: a target exceeds the number of keys.
    """
    prefix = {rank: 0 for rank in targets if rank > 0}
    remaining = {rank: rank for rank in prefix}
    level = 0
    while prefix:
        below, width = _bits(level)
        prefixes = sorted(set(prefix.values()))
        totals = _totals(histograms(prefixes, level), prefixes, width)
        num_open: dict[int, int] = {}  # keys that start with each of the next prefixes
        for rank, p in prefix.items():
            bins, at_least = totals[p]
            index = int(np.searchsorted(at_least, remaining[rank]))
            if index == len(at_least):
                raise ValueError(f"{rank} keys are asked for, {int(at_least[-1]) if index else 0} exist")
            above = int(at_least[index - 1]) if index else 0
            remaining[rank] -= above
            prefix[rank] = (p << width) | int(bins[index])
            num_open[prefix[rank]] = int(at_least[index]) - above
        if below == 0:
            break
        level = REST if level == 0 and sum(num_open.values()) <= _FEW_KEYS else level + 1
    return [prefix.get(rank, KEY_SPACE) for rank in targets]


def _totals(
    parts: Iterable[Mapping[int, tuple[I64, I64]]], prefixes: Sequence[int], width: int
) -> dict[int, tuple[I64, I64]]:
    """{prefix: (bins that occur, descending, keys in the first 1, 2, 3... of them)} of all parts together."""
    is_dense = width <= max(KEY_LEVELS)  # else there are few keys
    dense = {p: np.zeros(1 << width, np.int64) for p in prefixes if is_dense}
    sparse: dict[int, list[tuple[I64, I64]]] = {p: [] for p in prefixes}
    for part in parts:
        for p, (bins, counts) in part.items():
            if is_dense:
                dense[p][bins] += counts
            elif len(bins):
                sparse[p].append((bins, counts))
    result = {}
    for p in prefixes:
        if is_dense:
            total = dense.pop(p)
            bins = np.flatnonzero(total)
            counts = total[bins]
        else:
            bins, counts = _joined(sparse.pop(p))
        result[p] = bins[::-1], np.cumsum(counts[::-1])
    return result


def _joined(parts: Sequence[tuple[I64, I64]]) -> tuple[I64, I64]:
    """(Bins that occur, ascending, their counts) of sparse histograms together."""
    bins, where = np.unique(np.concatenate([bins for bins, _ in parts]), return_inverse=True)
    counts = np.zeros(len(bins), np.int64)
    np.add.at(counts, where, np.concatenate([counts for _, counts in parts]))
    return bins, counts


def wave_of(keys: U64, is_pair: Bools, thresholds: Sequence[int]) -> NDArray[np.int16]:
    """The wave (N,) of each item: 0 for pairs, else by its key; W + 1 where no wave reaches it."""
    return np.where(is_pair, np.int16(0), order_wave(keys, thresholds))


def order_wave(keys: U64, thresholds: Sequence[int]) -> NDArray[np.int16]:
    """The wave (N,) in 1..W+1 that the order alone gives: what the shadow gallery uses for pairs."""
    wave = np.ones(len(keys), np.int16)
    for threshold in thresholds:
        wave += keys < np.uint64(threshold) if threshold < KEY_SPACE else np.True_
    return wave


def shares_of_order(fractions: Sequence[float], first_share: float) -> F64:
    """Which share of the order is new (F,) where such fractions (F,) of all items are.

    Args:
        first_share: of all items, new whatever the order.
    """
    room = max(1 - first_share, 1e-9)  # nothing is ordered where all is new already
    return np.maximum(0.0, np.array(fractions, np.float64) - first_share) / room


def wave_middles(fractions: Sequence[float], first_share: float) -> F32:
    """The place in the order, 0 to 1, of the middle of each wave (W + 2,): pairs at 0, then 1..W, then the rest.

    Args:
        fractions: at which waves end, of all items; the order is one of all items but the pairs.
    """
    ends = [0.0, *shares_of_order(fractions, first_share).tolist(), 1.0]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(ends)]
    return np.array([0.0, *middles], np.float32)
