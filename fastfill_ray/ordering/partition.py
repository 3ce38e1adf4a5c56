"""Which rows are one unit of work: chunks, buckets of chunks, and the sample of pairs. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.types import I64, Split

# Below these numbers the fit, the offset or the gate would be decided by chance.
MIN_SPLIT: dict[Split, int] = {"train": 32, "calibration": 16, "audit": 16}


@dataclass(frozen=True)
class Chunk:
    """Rows [start, start + rows) of gallery file number `file`; `unit` names them for ever, whatever the number is."""

    file: int
    start: int
    rows: int
    unit: str


def sample_pairs(rows: int, count: int, split: tuple[float, float, float], seed: int) -> dict[Split, I64]:
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


def cut_chunks(
    files: Sequence[tuple[Sequence[int], int]], *, chunk_rows: int, chunk_bytes: int
) -> list[tuple[int, int, int]]:
    """Fixed slices (file, start, rows) of the gallery's files, in file order; together they are all rows, once.

    No slice holds parts of two row groups: either whole ones, or an even part of one. So each row group can be decoded
    for its own slices alone.

    Args:
        files: (rows of each row group, bytes) per file; bytes as they are read, uncompressed.
        chunk_rows: most rows of a chunk.
        chunk_bytes: most bytes of a chunk, at the file's mean row size; one row may exceed it.
    """
    chunks: list[tuple[int, int, int]] = []
    for number, (groups, size) in enumerate(files):
        per_row = max(1.0, size / max(1, sum(groups)))
        most = max(1, min(chunk_rows, int(chunk_bytes / per_row)))
        start = 0
        for rows in _slices(groups, most):
            chunks.append((number, start, rows))
            start += rows
    return chunks


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
