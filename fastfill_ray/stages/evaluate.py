"""A version searched with every query: its segments, the old index, and the shadow gallery of the audit items.

Legend: Q queries, N gallery items, K hits kept per segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from fastfill_ray.engine.interface import Engine
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.staged import Shadow, make_shadow
from fastfill_ray.index.segment import load_index, prepare_queries, search_segment, segment_queries
from fastfill_ray.inputs.gallery import Source, old_vectors
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.parquet import PinnedFile, read_rows
from fastfill_ray.log.records import Segment
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.partition import Chunk
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.ordering.waves import order_wave
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.retrieval.metrics import per_query_by_relevance
from fastfill_ray.retrieval.ranking import rank
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.stages.queries import MAX_QUERIES
from fastfill_ray.stages.score import Scorer
from fastfill_ray.storage.arrow import objects, read_table
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import F64, Metric

# A ranking is complete up to this many scores per version; beyond, the first _DEPTH ranks of each segment decide.
_COMPLETE_SCORES = 1 << 25
_DEPTH = 1000

Place = tuple[Chunk, PinnedFile]


@dataclass(frozen=True)
class Hits:
    """What one part of the gallery says to all queries.

    scores: (Q, K) float32. relevant: {relevance: (Q, K) bool}. num_relevant: {relevance: (Q,) int64} in the whole part.
    """

    scores: np.ndarray
    relevant: dict[str, np.ndarray]
    num_relevant: dict[str, np.ndarray]


@dataclass(frozen=True)
class Ask:
    """The queries as segment tasks need them, with their new and their old vectors: each space is asked in its own."""

    queries: Queries
    metric: Metric
    depth: int


def complete_depth(rows: int, num_queries: int) -> int:
    """Hits kept per segment: all, while the scores of a version fit into memory; else the first ranks."""
    return rows if rows * num_queries <= _COMPLETE_SCORES else min(rows, _DEPTH)


def search_segments(
    engine: Engine, files: Files, segments: Sequence[Segment], ask: Ask, calibrations: Sequence[bool]
) -> list[dict[str, dict[str, F64]]]:
    """Every segment searched with every query, as tasks, and merged.

    Returns:
        {relevance: {metric: (Q,)}} per entry of `calibrations`: as served (True), or with raw scores (False).
    """
    rankings = [Ranking(ask.depth) for _ in calibrations]
    work = partial(_search_one, files, ask)
    for segment, hits in engine.run_tasks(work, segments, name="search segment", ordered=True):
        for served, ranking in zip(calibrations, rankings, strict=True):
            ranking.add(hits, segment.calibration if served else Calibration())
    return [ranking.per_query() for ranking in rankings]


def _search_one(files: Files, ask: Ask, segment: Segment) -> Hits:
    data = get_verified(files, segment.index)
    index = load_index(data, dim=segment.dim, metric=ask.metric, rows=segment.rows, name=segment.index.path)
    table = read_table(get_verified(files, segment.ids), name=segment.ids.path)
    new, old = ask.queries.new, ask.queries.old
    vectors = segment_queries(segment, prepare_queries(new, new.shape[1], ask.metric), old, ask.metric)
    scores, rows = search_segment(index, vectors, min(ask.depth, segment.rows), ask.metric)
    return _judge(ask.queries, objects(table.column("id")), _labels(table), scores, rows)


def _labels(table: pa.Table) -> np.ndarray | None:
    return objects(table.column("label")) if "label" in table.column_names else None


def search_old(
    engine: Engine, source: Source, buckets: Sequence[Sequence[Place]], ask: Ask
) -> dict[str, dict[str, F64]]:
    """The old index as users have it, by brute force over the gallery's old vectors: {relevance: {metric: (Q,)}}."""
    ranking = Ranking(ask.depth)
    for _, hits in engine.run_tasks(
        partial(_search_old_bucket, source, ask), buckets, name="search old vectors", ordered=True
    ):
        ranking.add(hits, Calibration())
    return ranking.per_query()


def _search_old_bucket(source: Source, ask: Ask, places: Sequence[Place]) -> Hits:
    ranking = Ranking(ask.depth)
    for chunk, file in places:
        ranking.add(_search_old_chunk(source, ask, chunk, file), Calibration())
    return ranking.hits()


def _search_old_chunk(source: Source, ask: Ask, chunk: Chunk, file: PinnedFile) -> Hits:
    config = source.config
    names = [name for name in (config.id_column, config.old_vector_column, config.label_column) if name is not None]
    table = read_rows(source.store, file, names, start=chunk.start, rows=chunk.rows)
    old, unusable = old_vectors(table, source)
    kept = np.array([row for row in range(chunk.rows) if row not in unusable], dtype=np.int64)
    assert ask.queries.old is not None
    scores = similarity(ask.queries.old, old[kept], source.metric)
    ids = read_ids(table, config.id_column, source.id_type).astype(object)[kept]
    labels = objects(table.column(config.label_column))[kept] if config.label_column is not None else None
    return _judge(ask.queries, ids, labels, scores, np.broadcast_to(np.arange(len(kept)), scores.shape))


def _judge(queries: Queries, ids: np.ndarray, labels: np.ndarray | None, scores: np.ndarray, rows: np.ndarray) -> Hits:
    """Mark which hits are relevant; a query's own item scores -inf and counts for nothing."""
    count = len(queries.ids)
    row_of = {value: row for row, value in enumerate(ids.tolist())}
    scores = scores.astype(np.float32, copy=True)
    scores[rows < 0] = -np.inf
    own = np.full(count, -1)
    if queries.are_items:
        own = np.array([row_of.get(value, -1) for value in queries.ids.tolist()])
        scores[(rows == own[:, None]) & (own >= 0)[:, None]] = -np.inf
    relevant: dict[str, np.ndarray] = {}
    num_relevant: dict[str, np.ndarray] = {}
    if labels is not None and queries.labels is not None:
        # Class numbers instead of objects: a ranking compares millions of labels. -1 is a class that nobody asks for.
        number = {label: i for i, label in enumerate(dict.fromkeys(queries.labels.tolist())) if label is not None}
        asked = np.array([number.get(label, -2) for label in queries.labels.tolist()])
        here = np.array([number.get(label, -1) for label in labels.tolist()], dtype=np.int64)
        relevant["label"] = (here[rows] == asked[:, None]) & np.isfinite(scores)
        counts = np.bincount(here[here >= 0], minlength=len(number) + 1)
        num_relevant["label"] = np.where(asked >= 0, counts[np.maximum(asked, 0)] - (own >= 0), 0)
    if queries.judged is not None:
        flags, totals = np.zeros(scores.shape, bool), np.zeros(count, np.int64)
        for query, item in queries.judged:
            if item in row_of:
                flags[query] |= rows[query] == row_of[item]
                totals[query] += 1
        relevant["qrels"], num_relevant["qrels"] = flags & np.isfinite(scores), totals
    return Hits(scores, relevant, num_relevant)


class Ranking:
    """Hits of many parts merged under their calibrations; holds at most `depth` of them per query, best first."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._parts: list[Hits] = []

    def add(self, hits: Hits, calibration: Calibration) -> None:
        """Parts must come in a fixed order: among equal scores the earlier part is first."""
        served = np.float32(calibration.scale) * hits.scores + np.float32(calibration.offset)
        self._parts.append(replace(hits, scores=served))
        if sum(part.scores.shape[1] for part in self._parts) > 2 * self._depth:
            self._parts = [self.hits()]

    def hits(self) -> Hits:
        """The best `depth` so far; relevant items are counted in everything that was added."""
        scores = np.concatenate([part.scores for part in self._parts], axis=1)
        names = list(self._parts[0].relevant)
        relevant = {name: np.concatenate([part.relevant[name] for part in self._parts], axis=1) for name in names}
        totals = {name: np.sum([part.num_relevant[name] for part in self._parts], axis=0) for name in names}
        if scores.shape[1] > self._depth:
            best = rank(scores)[:, : self._depth]
            scores = np.take_along_axis(scores, best, axis=1)
            relevant = {name: np.take_along_axis(flags, best, axis=1) for name, flags in relevant.items()}
        return Hits(scores, relevant, totals)

    def per_query(self) -> dict[str, dict[str, F64]]:
        """{relevance: {metric: (Q,)}}."""
        hits = self.hits()
        return per_query_by_relevance(hits.scores, hits.relevant, hits.num_relevant)


def audit_queries(pairs: PairedItems, seed: int) -> Queries:
    """The audit items as queries, each excluded from its own ranking: what is used where no queries are given."""
    audit = pairs.part("audit")
    drawn = _draw(len(audit.ids), seed)
    return Queries(
        fingerprint=f"audit-{pairs.fingerprint}",
        ids=audit.ids[drawn],
        new=audit.new[drawn],
        old=audit.old[drawn],
        labels=audit.labels[drawn] if audit.labels is not None else None,
        judged=None,
        are_items=True,
        groups=audit.groups[drawn] if audit.groups is not None else None,
    )


def _draw(items: int, seed: int) -> np.ndarray:
    """At most ``MAX_QUERIES`` of the items, uniformly: pairs lie in gallery order, which may be by class or by age."""
    count = min(items, MAX_QUERIES)
    return np.sort(np.random.default_rng(seed).choice(items, size=count, replace=False))


def shadow_of(
    part: PairedItems,
    queries: Queries,
    scorer: Scorer,
    thresholds: Sequence[int],
    middles: np.ndarray,
    pairs_share: float,
    fusion: Fusion | None = None,
) -> Shadow:
    """The shadow gallery of one split of the pairs, asked by the queries (by its own items if queries are items)."""
    aligned, log_variance = scorer.align(part.old, part.side)
    ids = part.ids.astype(np.int64) if scorer.source.id_type == "int64" else part.ids
    _, keys = scorer.keys(ids, part.old, aligned, log_variance, part.labels, part.weights)
    if queries.are_items:
        # Held-out splits stay apart: the calibration items ask the calibration shadow, the audit items the audit one.
        chosen = _draw(len(part.ids), scorer.seed)
        labels = part.labels[chosen] if part.labels is not None else None
        queries = replace(queries, new=part.new[chosen], old=part.old[chosen], labels=labels, ids=part.ids[chosen])
    relevance = {}
    if queries.labels is not None and part.labels is not None:
        known = np.array([label is not None for label in queries.labels.tolist()], dtype=bool)
        relevance["label"] = (queries.labels[:, None] == part.labels[None, :]) & known[:, None]
    if queries.judged is not None:
        row_of = {value: row for row, value in enumerate(part.ids.tolist())}
        relevance["qrels"] = np.zeros((len(queries.new), len(part.ids)), bool)
        for query, item in queries.judged:
            if item in row_of:
                relevance["qrels"][query, row_of[item]] = True
    return make_shadow(
        queries_new=queries.new,
        items_new=part.new,
        items_aligned=aligned,
        metric=scorer.source.metric,
        relevance=relevance,
        waves=order_wave(keys, thresholds),
        middles=middles,
        sampled=random_priority(hash_ids(ids), scorer.seed + 1) < pairs_share,
        excluded=(queries.ids[:, None] == part.ids[None, :]) & queries.are_items,
        queries_old=queries.old,
        items_old=part.old,
        fusion=fusion,
    )
