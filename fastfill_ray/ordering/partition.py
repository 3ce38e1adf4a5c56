"""Which rows are one unit of work: chunks, buckets of chunks, and the sample of pairs. Pure numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.errors import ConfigError
from fastfill_ray.types import I64, Split

# Below these numbers the fit, the offset or the gate would be decided by chance.
MIN_SPLIT: dict[Split, int] = {"train": 32, "calibration": 16, "audit": 16}


@dataclass(frozen=True)
class Chunk:
    """Rows [start, start + rows) of gallery file number `file`."""

    index: int
    file: int
    start: int
    rows: int


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
