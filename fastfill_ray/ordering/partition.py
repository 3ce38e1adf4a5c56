"""Which rows are one unit of work: chunks, parts and buckets of chunks, and the sample of pairs. Pure numpy.

Legend: N items.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.config import Auto
from fastfill_ray.errors import ConfigError
from fastfill_ray.ordering.ids import seeded_hash
from fastfill_ray.ordering.streams import HashSeed
from fastfill_ray.types import I64, U64, Objects, Split

# Below these numbers the fit, the offset or the gate would be decided by chance.
MIN_SPLIT: dict[Split, int] = {"train": 32, "calibration": 16, "audit": 16}
# Most rows of a part of the gallery that is checked at a time: their keys are 16 MiB.
PART_ROWS = 1 << 20
# Rows of a chunk of `auto`: the least, doubled up to the most of them while there would be more chunks than this, or
# more than half as many as rows in one. The driver holds some kilobytes of each chunk, the store some objects of each
# chunk and wave, and every one of these takes its time; but few chunks leave actors idle at the end of a wave.
CHUNK_ROWS, MOST_CHUNK_ROWS = 1 << 11, 1 << 16
MANY_CHUNKS = 1 << 14
# Most pieces of an exchange: what a task has for a partition is an object, of which the driver holds 5 kB.
MOST_PIECES = 1 << 16
# Most items that one task cuts, whatever that comes to: it holds the pieces of all of them.
_MOST_PER_TASK = 16


@dataclass(frozen=True)
class Chunk:
    """Rows [start, start + rows) of gallery file number `file`; `unit` names them for ever, whatever the number is."""

    file: int
    start: int
    rows: int
    unit: str


def split_sizes(rows: int, count: int, split: tuple[float, float, float]) -> dict[Split, int]:
    """How many of `count` pairs are for training, calibration and audit.

    Raises:
        ConfigError: more pairs than rows, or a split too small to decide anything.
    """
    if count > rows:
        raise ConfigError(f"pairs.count: found {count}, the gallery has {rows} rows; at most that many can be sampled")
    cuts = np.floor(np.cumsum((0.0, *split)) * count + 0.5).astype(int)
    cuts[-1] = count
    sizes = {name: int(size) for name, size in zip(MIN_SPLIT, np.diff(cuts), strict=True)}
    for name, least in MIN_SPLIT.items():
        if sizes[name] < least:
            raise ConfigError(
                f"pairs.count {count} with pairs.split {list(split)} gives {sizes[name]} {name} pairs; at least "
                f"{least} are needed to decide anything. Raise pairs.count."
            )
    return sizes


def smallest(keys: U64, count: int, seed: int, bound: int | None = None) -> I64:
    """Which of the keys (N, 2) have the `count` smallest seeded hashes, ascending by hash; fewer where there are fewer.

    They are a uniform sample, the same in whatever order the keys come. Where a hundredth of the keys changes, about a
    hundredth of the sample does. The smallest of a whole are the smallest among those of its parts.

    Args:
        keys: see ``ids.item_keys``; equal hashes are ordered by them.
        bound: only hashes below it.
    """
    hashed = seeded_hash(keys[:, 0], seed + HashSeed.PAIRS)
    among = np.arange(len(keys)) if bound is None else np.flatnonzero(hashed < np.uint64(bound))
    if len(among) > count:
        last = np.partition(hashed[among], count - 1)[count - 1]
        among = among[hashed[among] <= last]
    order = np.lexsort((keys[among, 1], keys[among, 0], hashed[among]))
    return among[order[:count]]


def hash_bound(rows: int, count: int) -> int | None:
    """A bound below which at least `count` of `rows` hashes lie, but for a chance below 1e-8, and few more.

    None where that would be all of them.
    """
    expected = count + 6 * np.sqrt(count) + 36  # six standard deviations of a Poisson count, and what is skew in it
    return int(expected / rows * 2.0**64) if expected < rows else None


def split_pairs(keys: U64, sizes: Mapping[Split, int], seed: int) -> Objects:
    """Each pair's split (N,): by the ranks of another seeded hash of the keys (N, 2), `sizes` of each."""
    # Of the other half: of the same one, a neighbouring seed would split by what this one samples by.
    hashed = seeded_hash(keys[:, 1], seed + HashSeed.SPLIT)
    splits = np.empty(len(keys), object)
    splits[np.lexsort((keys[:, 1], keys[:, 0], hashed))] = np.repeat(
        np.array(list(sizes), object), list(sizes.values())
    )
    return splits


def cut_parts(
    chunks: Sequence[tuple[int, int, int]], row_groups: Sequence[Sequence[int]]
) -> list[tuple[int, int, int]]:
    """Runs (file, start, rows) of consecutive chunks of one file, of at most 2**20 rows or one chunk each.

    As chunks do, they hold whole row groups, or rows of one: each row group is decoded for its own parts alone.

    Args:
        chunks: of ``cut_chunks``.
        row_groups: rows of each row group, per file.
    """
    parts: list[tuple[int, int, int]] = []
    for number, run in itertools.groupby(chunks, key=lambda chunk: chunk[0]):
        ends = np.cumsum(row_groups[number])
        last_groups: list[int] = []  # of the chunks: two that end in one share it
        sizes: list[int] = []
        for _, start, rows in run:
            sizes.append(rows)
            last_groups.append(int(np.searchsorted(ends, start + rows)))
        start = 0
        for rows in _join_chunks(sizes, last_groups):
            parts.append((number, start, rows))
            start += rows
    return parts


def _join_chunks(sizes: Sequence[int], last_groups: Sequence[int]) -> Iterator[int]:
    """The rows of each part of one file."""
    joined = 0
    for _, run in itertools.groupby(zip(last_groups, sizes, strict=True), key=lambda chunk: chunk[0]):
        rows = [size for _, size in run]
        if joined and joined + sum(rows) > PART_ROWS:
            yield joined
            joined = 0
        if sum(rows) <= PART_ROWS:
            joined += sum(rows)
            continue
        part = 0
        for size in rows:
            if part and part + size > PART_ROWS:
                yield part
                part = 0
            part += size
        yield part
    if joined:
        yield joined


def items_per_task(items: int, partitions: int) -> int:
    """How many of the items of an exchange one task cuts: one, or so many that there are at most 2**16 pieces."""
    return min(max(1, -(-items * partitions // MOST_PIECES)), _MOST_PER_TASK)


def cut_chunks(
    files: Sequence[tuple[Sequence[int], int]], *, chunk_rows: int | Auto, chunk_bytes: int
) -> list[tuple[int, int, int]]:
    """Fixed slices (file, start, rows) of the gallery's files, in file order; together they are all rows, once.

    No slice holds parts of two row groups: either whole ones, or an even part of one. So each row group can be decoded
    for its own slices alone.

    Args:
        files: (rows of each row group, bytes) per file; bytes as they are read, uncompressed.
        chunk_rows: most rows of a chunk; `auto`: 2,048, doubled up to 65,536 while there are more chunks than half of
            that, or more than 16,384.
        chunk_bytes: most bytes of a chunk, at the file's mean row size; one row may exceed it.
    """
    if chunk_rows == "auto":
        chunk_rows = CHUNK_ROWS
        while chunk_rows < MOST_CHUNK_ROWS and _num_chunks(files, chunk_rows, chunk_bytes) > min(
            chunk_rows // 2, MANY_CHUNKS
        ):
            chunk_rows *= 2
    chunks: list[tuple[int, int, int]] = []
    for number, (groups, size) in enumerate(files):
        start = 0
        for rows in _slices(groups, _most_rows(groups, size, chunk_rows, chunk_bytes)):
            chunks.append((number, start, rows))
            start += rows
    return chunks


def _num_chunks(files: Sequence[tuple[Sequence[int], int]], chunk_rows: int, chunk_bytes: int) -> int:
    """How many chunks the files are cut into."""
    return sum(1 for groups, size in files for _ in _slices(groups, _most_rows(groups, size, chunk_rows, chunk_bytes)))


def _most_rows(groups: Sequence[int], size: int, chunk_rows: int, chunk_bytes: int) -> int:
    """Most rows of a chunk of one file."""
    per_row = max(1.0, size / max(1, sum(groups)))
    return max(1, min(chunk_rows, int(chunk_bytes / per_row)))


def _slices(groups: Sequence[int], most: int) -> Iterator[int]:
    """The rows of each slice: row groups joined, or one cut evenly, so that none has more than `most` rows."""
    joined = 0
    for rows in groups:
        if joined and joined + rows > most:
            yield joined
            joined = 0
        if rows <= most:
            joined += rows
            continue
        size = -(-rows // -(-rows // most))
        yield from [size] * (rows // size) + [rows % size] * (rows % size > 0)
    if joined:
        yield joined


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
