"""Order keys as the score files hold them: where waves end, and in which the pairs would be.

Legend: n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from fastfill_ray.log.records import FileRef
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.ordering.waves import Histogram, find_thresholds, key_histogram
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import DUE, KnownRows, VectorFile, rows_in
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import stage_output
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import U64, Bools

T = TypeVar("T")

# Chunks of one task: keys are 8 bytes a row, so their score files are some megabytes. They share a work file, which
# the reader of each of them decodes: large chunks share it with few.
_CHUNKS_PER_TASK = 64
_ROWS_PER_TASK = 1 << 18


@dataclass(frozen=True)
class ScoredChunk:
    """A chunk in the order of the snapshot, its score file, and the offsets of the pairs in it.

    standing: the work file that says what of it is new already; None where nothing is. known: {offset of a pair: the
    file that holds its vector already, and the row in it}.
    """

    unit: str
    file: FileRef
    pairs: tuple[int, ...] = ()
    standing: FileRef | None = None
    known: Mapping[int, tuple[VectorFile, int]] = field(default_factory=dict)


class ChunkKeys(NamedTuple):
    """The rows of one chunk as their order sees them (n,): order keys, which are in wave 0, which have a stale vector,
    and their ids.
    """

    keys: U64
    is_first: Bools
    usable: Bools
    ids: pa.ChunkedArray

    def item_keys(self) -> U64:
        """The keys (n, 2) of the items."""
        return item_keys(self.ids)


def in_groups(chunks: Sequence[T], chunk_rows: int = 1) -> list[list[T]]:
    """Chunks of at most `chunk_rows` rows in their order, in groups that one task reads."""
    step = max(1, min(_CHUNKS_PER_TASK, _ROWS_PER_TASK // chunk_rows))
    return [list(chunks[i : i + step]) for i in range(0, len(chunks), step)]


def scored_groups(
    snapshot: Snapshot,
    scores: Mapping[str, FileRef],
    pair_offsets: Mapping[str, tuple[int, ...]],
    known: KnownRows,
    standing: Mapping[str, FileRef],
) -> list[list[ScoredChunk]]:
    """The snapshot's chunks in their order, in groups that one task counts."""
    chunks = [
        ScoredChunk(unit, scores[unit], pair_offsets.get(unit, ()), standing.get(unit), known.get(unit, {}))
        for unit in (chunk.unit for chunk in snapshot.chunks)
    ]
    return in_groups(chunks, max(chunk.rows for chunk in snapshot.chunks))


def read_keys(files: Files, chunks: Sequence[ScoredChunk]) -> Iterator[tuple[ScoredChunk, ChunkKeys]]:
    """Each chunk, and what its score file says of the order."""
    for chunk, table in zip(chunks, _score_tables(files, chunks, ["id", "key", "usable"]), strict=True):
        is_first = np.zeros(table.num_rows, bool)
        if chunk.standing is not None:
            is_first = rows_in(files, chunk.standing, chunk.unit).source != DUE
        is_first[list(chunk.pairs)] = True
        usable = table.column("usable").to_numpy(zero_copy_only=False)
        yield chunk, ChunkKeys(table.column("key").to_numpy(), is_first, usable, table.column("id"))


def _score_tables(files: Files, chunks: Sequence[ScoredChunk], columns: list[str]) -> Iterator[pa.Table]:
    """Columns of each chunk's score file."""

    def read(chunk: ScoredChunk) -> pa.Table:
        return read_table(get_verified(files, chunk.file), name=chunk.file.path, columns=columns)

    return read_ahead(read, chunks)


def thresholds(context: Context, groups: Sequence[Sequence[ScoredChunk]], targets: Sequence[int]) -> list[int]:
    """The keys at which waves end: ``ordering.waves.find_thresholds`` over all score files."""

    def histograms(prefixes: Sequence[int], level: int) -> Iterator[Histogram]:
        work = partial(_histogram, files=context.files, prefixes=tuple(prefixes), level=level)
        for _, part in context.engine.run_tasks(work, groups, name="count keys"):
            yield part

    return find_thresholds(targets, histograms)


def _histogram(group: Sequence[ScoredChunk], *, files: Files, prefixes: tuple[int, ...], level: int) -> Histogram:
    parts = [rows.keys[~rows.is_first] for _, rows in read_keys(files, group)]
    return key_histogram(np.concatenate(parts), prefixes, level)


def put_pair_keys(
    context: Context, name: str, scored: Mapping[str, FileRef], pair_offsets: Mapping[str, tuple[int, ...]]
) -> FileRef:
    """The pairs' order keys, as the score files hold them: computed again, a key may fall into another wave."""
    chunks = [ScoredChunk(unit, scored[unit], offsets) for unit, offsets in sorted(pair_offsets.items())]
    read = partial(_pair_keys, files=context.files)
    parts = [
        part for _, part in context.engine.run_tasks(read, in_groups(chunks), name="read pairs' keys", ordered=True)
    ]
    path_of = partial(stage_output, "scores", name, "pair-keys.parquet")
    return put_content(context.files, path_of, table_bytes(pa.concat_tables(parts)))


def _pair_keys(group: Sequence[ScoredChunk], *, files: Files) -> pa.Table:
    tables = _score_tables(files, group, ["id", "key"])
    return pa.concat_tables(
        table.take(pa.array(chunk.pairs, pa.int64())) for chunk, table in zip(group, tables, strict=True)
    )


def read_pair_keys(files: Files, reference: FileRef) -> dict[int | str, int]:
    """{id: order key} of the pairs."""
    table = read_table(get_verified(files, reference), name=reference.path)
    return dict(zip(table.column("id").to_pylist(), table.column("key").to_pylist(), strict=True))
