"""The old index as users have it: the gallery's old vectors searched with every query, bucket by bucket.

Legend: Q queries, K hits per query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.engine.interface import Engine
from fastfill_ray.index.segment import many_queries, search_exactly
from fastfill_ray.inputs.gallery import Source, item_labels, old_vectors
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.parquet import PinnedFile, Span, read_spans
from fastfill_ray.ordering.partition import Chunk
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.merging import HitMerger
from fastfill_ray.stages.evaluate import GalleryRanking, GallerySearch, PerRelevance, hits_of, kept
from fastfill_ray.stages.hits import SegmentHits
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import hits_unit
from fastfill_ray.types import F32, Objects, fingerprint

# Old vectors that are searched at a time.
_OLD_BLOCK_ROWS = 1 << 16

Place = tuple[Chunk, PinnedFile]


def search_old(
    engine: Engine,
    files: Files,
    source: Source,
    buckets: Sequence[Sequence[Place]],
    search: GallerySearch,
    on_search: Callable[[int], None],
) -> PerRelevance:
    """The old index as users have it, by brute force over the gallery's old vectors: {relevance: {metric: (Q,)}}.

    Args:
        on_search: called with the rows of each bucket that is through.

    Raises:
        ValueError: the queries have no old vectors.
    """
    if search.queries.old is None:
        raise ValueError("the queries have no old vectors: the old index cannot be searched with them")
    ranking = GalleryRanking(search)
    work = partial(_old_hits, files, source, search, search.queries.old)
    for bucket, hits in engine.run_tasks(work, buckets, name="search old vectors", ordered=True):
        ranking.add(hits, Calibration())
        on_search(sum(chunk.rows for chunk, _ in bucket))
    return ranking.per_query()


def _old_hits(files: Files, source: Source, search: GallerySearch, old: F32, places: Sequence[Place]) -> SegmentHits:
    """The hits of every query in the old vectors of a bucket, searched where that is not done yet."""
    config = source.config
    read = [config.id_column, config.old_vector_column, config.vector_dtype, config.label_column]
    unit = hits_unit(fingerprint([read, [chunk.unit for chunk, _ in places]]))
    return kept(files, search, unit, partial(_search_old_bucket, source, search, old, places))


def _search_old_bucket(source: Source, search: GallerySearch, old: F32, places: Sequence[Place]) -> SegmentHits:
    """The usable rows of a bucket as one segment, searched block by block as they are read."""
    merger = HitMerger(min(search.num_hits, sum(chunk.rows for chunk, _ in places)))
    ids, labels, start = [], [], 0
    read = _read_old(source, places, with_ids=search.queries.name_items)
    for block_ids, block_labels, vectors in _blocks(read, _OLD_BLOCK_ROWS):
        with many_queries():
            scores, rows = search_exactly(vectors, old, min(search.num_hits, len(vectors)), source.metric)
        merger.add(scores, rows, Calibration(), np.where(rows < 0, -1, start + rows))
        start += len(vectors)
        ids.append(block_ids)
        labels.append(block_labels)
    hits, rows_in_bucket = merger.best()
    has_labels = source.config.label_column is not None
    return hits_of(
        search.queries,
        hits.scores,
        rows_in_bucket.astype(np.int64, copy=False),
        pa.array(np.concatenate(ids)),
        np.concatenate(labels) if has_labels else None,
    )


_OldRows = tuple[np.ndarray, Objects, F32]
"""Ids, where they are read, labels and old vectors of some rows."""


def _read_old(source: Source, places: Sequence[Place], *, with_ids: bool) -> Iterator[_OldRows]:
    """The usable rows of each chunk."""
    config = source.config
    wanted = (config.id_column if with_ids else None, config.old_vector_column, config.label_column)
    names = [name for name in wanted if name is not None]
    spans = [Span(file, chunk.start, chunk.rows) for chunk, file in places]
    for span, table in zip(spans, read_spans(source.store, spans, names), strict=True):
        yield _usable_old(source, table, span, with_ids=with_ids)


def _blocks(parts: Iterable[_OldRows], rows: int) -> Iterator[_OldRows]:
    """The same rows in blocks of at least `rows`, but for the last: merging costs by the block, not by the row."""
    waiting: list[_OldRows] = []
    for part in parts:
        waiting.append(part)
        if sum(len(vectors) for _, _, vectors in waiting) >= rows:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[_OldRows]) -> _OldRows:
    ids, labels, vectors = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(labels), np.concatenate(vectors)


def _usable_old(source: Source, table: pa.Table, span: Span, *, with_ids: bool) -> _OldRows:
    """Ids, labels (None without a label column) and old vectors of a chunk's usable rows."""
    config = source.config
    old, unusable = old_vectors(table, source)
    usable = np.ones(table.num_rows, bool)
    usable[list(unusable)] = False
    ids = np.empty(0, np.int64)
    if with_ids:
        ids = read_ids(table, config.id_column, source.id_type, path=span.file.path, start=span.start)[usable]
    labels = item_labels(table, source, span)
    return ids, labels[usable] if labels is not None else np.full(int(usable.sum()), None), old[usable]
