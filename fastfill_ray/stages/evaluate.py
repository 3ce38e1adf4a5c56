"""A version searched with every query, segment after segment, merged and judged.

Legend: Q queries, n items of a segment, K hits per query of a segment or of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.engine.interface import Engine
from fastfill_ray.experiment.items import Queries
from fastfill_ray.index.deletion_vector import hidden_rows
from fastfill_ray.index.segment import (
    HiddenRows,
    load_index,
    many_queries,
    prepare_queries,
    search_segment,
    segment_queries,
)
from fastfill_ray.inputs.labels import labels_of
from fastfill_ray.log.records import Segment
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.merging import HitMerger, Hits, calibrated_scores
from fastfill_ray.retrieval.metrics import METRICS, per_query
from fastfill_ray.retrieval.relevance import RelevantItems, hits_with_label, judged_rows
from fastfill_ray.stages.hits import SegmentHits, kept_hits
from fastfill_ray.storage.arrow import read_table
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import hits_unit, stage_folder
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import F32, F64, I64, Bools, Metric, Objects, fingerprint

# Scores that are merged and judged at a time: the queries' rankings do not depend on one another.
_BLOCK_SCORES = 1 << 22

PerRelevance = dict[str, dict[str, F64]]
"""{relevance: {metric: (Q,)}}"""


@dataclass(frozen=True)
class GallerySearch:
    """What a part of the gallery is searched with, and to which depth it is judged.

    keep: whether hits are kept. Complete rankings are larger than the vectors, and quickly made again.
    """

    queries: Queries
    metric: Metric
    depth: int
    keep: bool = False

    @property
    def folder(self) -> str:
        """Where hits of these queries are kept."""
        return stage_folder("evaluation", fingerprint([self.queries.fingerprint, self.metric, self.depth]))

    @property
    def num_hits(self) -> int:
        """Hits kept per query: one more than is judged where a query's own item may be among them."""
        return self.depth + self.queries.are_items


def _unwatched(_: int) -> None:
    """Nobody looks how far it is."""


def search_segments(
    engine: Engine,
    files: Files,
    segments: Sequence[Segment],
    search: GallerySearch,
    calibrated: Sequence[bool],
    on_search: Callable[[int], None] = _unwatched,
) -> list[PerRelevance]:
    """Every segment searched with every query, as tasks, and merged in the order of `segments`.

    Args:
        on_search: called with 1 for each segment that is through.

    Returns:
        {relevance: {metric: (Q,)}} per entry of `calibrated`: as the version serves (True), or with raw scores (False).
    """
    # Where no score is calibrated, both are one ranking.
    has_calibration = any(segment.calibration != Calibration() for segment in segments)
    applied = {each and has_calibration for each in calibrated}
    rankings = _rank(engine, files, search, [(segment, _NO_QUERIES) for segment in segments], applied, on_search)
    lacking = [
        np.unique(np.concatenate(found)) for found in zip(*(r.lacking() for r in rankings.values()), strict=True)
    ]
    if any(map(len, lacking)):
        rankings = _rank(engine, files, search, [*zip(segments, lacking, strict=True)], applied)
    found = {apply: ranking.per_query() for apply, ranking in rankings.items()}
    return [found[each and has_calibration] for each in calibrated]


_NO_QUERIES: I64 = np.empty(0, np.int64)


def _rank(
    engine: Engine,
    files: Files,
    search: GallerySearch,
    work: Sequence[tuple[Segment, I64]],
    applied: Iterable[bool],
    on_search: Callable[[int], None] = _unwatched,
) -> dict[bool, GalleryRanking]:
    """The rankings with and without calibration, of segments and the queries that they are searched with again."""
    rankings = {apply: GalleryRanking(search) for apply in applied}
    task = partial(_search_for, files, search)
    for (segment, _), hits in engine.run_tasks(task, work, name="search segment", ordered=True):
        for apply, ranking in rankings.items():
            ranking.add(hits, segment.calibration if apply else Calibration())
        on_search(1)
    return rankings


def _search_for(files: Files, search: GallerySearch, work: tuple[Segment, I64]) -> SegmentHits:
    return search_one_segment(files, search, *work)


def search_one_segment(files: Files, search: GallerySearch, segment: Segment, again: I64 | None = None) -> SegmentHits:
    """The hits of every query in the live rows of one segment, searched where that is not done yet.

    The raw hits are kept without regard to what is hidden, which changes with versions; a query that loses hits of a
    cut list to hidden rows is searched again. Exact for Flat; for others it measures at most what is served.

    Args:
        again: only these of the queries that lose hits; the others say what they lack (``SegmentHits.beyond``).
    """
    parts = [segment.index.sha256, segment.ids.sha256]
    hits = kept(files, search, hits_unit(fingerprint(parts)), partial(_search_segment, files, search, segment))
    if segment.deletion is None:
        return hits
    hidden = HiddenRows(hidden_rows(files, segment), segment.rows)
    width = min(search.num_hits, segment.live_rows)
    short = hits.cut_short(hidden.mask, width)
    labels = None if hits.num_same_label is None else _read_labels(files, segment)
    masked = without_hidden(search.queries, hits, hidden.mask, width, labels)
    if again is not None:
        beyond = np.full(len(hits.scores), -np.inf, np.float32)
        beyond[np.setdiff1d(short, again)] = hits.scores[np.setdiff1d(short, again), -1]
        masked, short = replace(masked, beyond=beyond), np.intersect1d(short, again)
    if not len(short):
        return masked
    fewer = replace(search, queries=search.queries.take(short))
    unit = hits_unit(fingerprint([*parts, segment.deletion.file.sha256, short.tolist()]))
    return masked.updated(short, kept(files, search, unit, partial(_search_segment, files, fewer, segment, hidden)))


def kept(files: Files, search: GallerySearch, unit: str, hits: Callable[[], SegmentHits]) -> SegmentHits:
    """The hits of that name, made where that is not done yet; kept where the search says so."""
    return kept_hits(files, search.folder, unit, hits) if search.keep else hits()


def _search_segment(
    files: Files, search: GallerySearch, segment: Segment, hidden: HiddenRows | None = None
) -> SegmentHits:
    """Raw hits; with hidden rows only the hits leave these out, not what they are judged by."""
    data = get_verified(files, segment.index)
    index = load_index(data, dim=segment.dim, metric=search.metric, rows=segment.rows, name=segment.index.path)
    table = read_table(get_verified(files, segment.ids), name=segment.ids.path)
    new, old = search.queries.new, search.queries.old
    vectors = segment_queries(segment, prepare_queries(new, new.shape[1], search.metric), old, search.metric)
    num_hits = min(search.num_hits, segment.rows if hidden is None else segment.live_rows)
    with many_queries():
        scores, rows = search_segment(index, vectors, num_hits, search.metric, hidden=hidden)
    return hits_of(search.queries, scores, rows, table.column("id"), _labels(table))


def _read_labels(files: Files, segment: Segment) -> Objects | None:
    """The labels (n,) that stand beside the ids of a segment; None without a label column."""
    return _labels(read_table(get_verified(files, segment.ids), name=segment.ids.path))


def _labels(table: pa.Table) -> Objects | None:
    return labels_of(table.column("label")) if "label" in table.column_names else None


def hits_of(
    queries: Queries, scores: F32, rows: I64, ids: pa.Array | pa.ChunkedArray, labels: Objects | None
) -> SegmentHits:
    """Raw hits with what they are judged by.

    Args:
        scores, rows: (Q, K) of a search. ids, labels: (n,) of the segment; ids are read where queries name items.
    """
    row_of = _named_rows(queries, ids) if queries.name_items else {}
    own_rows = queries.own_rows(row_of)
    same_label, num_same_label, judged = np.zeros(rows.shape, np.int8), None, None
    if labels is not None and queries.labels is not None:
        relevant, num_same_label = hits_with_label(queries.labels, labels, rows, own_rows)
        same_label = relevant.view(np.int8)
    if queries.judged is not None:
        places, grades = judged_rows(queries.judged, row_of)
        others = places[:, 1] != own_rows[places[:, 0]]
        judged = RelevantItems.of_judged(places[others], grades[others], len(queries.ids))
    return SegmentHits(scores, rows, own_rows, same_label, num_same_label, judged)


def _named_rows(queries: Queries, ids: pa.Array | pa.ChunkedArray) -> dict[object, int]:
    """{id: row} of the items (n,) that queries are, or that are judged for one."""
    kind = int if pa.types.is_integer(ids.type) else str
    named = {*(queries.ids.tolist() if queries.are_items else ()), *(one.item for one in queries.judged or ())}
    wanted = pa.array([value for value in named if isinstance(value, kind)], ids.type)
    rows = np.flatnonzero(np.asarray(pc.is_in(ids, value_set=wanted)))
    return dict(zip(ids.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))


def without_hidden(
    queries: Queries, hits: SegmentHits, hidden: Bools, width: int, labels: Objects | None
) -> SegmentHits:
    """The hits of a segment as if it had no hidden rows: the next ones move up, and nothing hidden is relevant.

    Args:
        hidden: (n,) whether each row is. labels: (n,) of the segment.
        width: hits per query that are left, K'; -inf and -1 where fewer are.
    """
    kept = hits.shown(hidden, width)
    own = np.where(hits.own_rows >= 0, hidden[hits.own_rows], False)
    num_same_label, judged = hits.num_same_label, hits.judged
    if num_same_label is not None and labels is not None and queries.labels is not None:
        place = np.cumsum(hidden) - 1  # of a hidden row among those
        hidden_own = np.where(own, place[hits.own_rows], -1)
        nothing = np.empty((len(queries.ids), 0), np.int64)
        _, num_hidden = hits_with_label(queries.labels, labels[hidden], nothing, hidden_own)
        num_same_label = num_same_label - num_hidden
    if judged is not None:
        judged = judged.where(~hidden[judged.items])
    return replace(kept, own_rows=np.where(own, -1, hits.own_rows), num_same_label=num_same_label, judged=judged)


class GalleryRanking:
    """The gallery ranked by every query, segment after segment, and judged: what its metrics are made of."""

    def __init__(self, search: GallerySearch) -> None:
        self._search = search
        self._merger = HitMerger(search.num_hits)
        self._num_segments = 0
        self._own = np.full((len(search.queries.ids), 2), -1, np.int64)  # segment and row of the item that a query is
        self._judged: list[RelevantItems] = []  # per segment, items as ``_place`` numbers them
        self._num_same_label: I64 | None = None
        self._beyond: list[F32 | None] = []  # per segment, calibrated

    def add(self, hits: SegmentHits, calibration: Calibration) -> None:
        """The next segment of the version."""
        number, count = self._num_segments, len(self._own)
        self._num_segments += 1
        self._merger.add(hits.scores, hits.rows, calibration, hits.same_label)
        scale, offset = calibration.scale, calibration.offset
        self._beyond.append(None if hits.beyond is None else calibrated_scores(hits.beyond, scale, offset))
        there = hits.own_rows >= 0
        self._own[there] = np.stack([np.full(count, number), hits.own_rows], axis=1)[there]
        if hits.num_same_label is not None:
            before = 0 if self._num_same_label is None else self._num_same_label
            self._num_same_label = before + hits.num_same_label
        if hits.judged is not None:
            self._judged.append(replace(hits.judged, items=_place(np.int64(number), hits.judged.items)))

    def lacking(self) -> list[I64]:
        """Per segment the queries whose ranking may lack hits of it: what is not held can be as good as its last."""
        if all(beyond is None or np.isneginf(beyond).all() for beyond in self._beyond):
            return [_NO_QUERIES] * self._num_segments
        last = self._merger.best()[0].scores[:, -1]
        return [
            _NO_QUERIES if beyond is None else np.flatnonzero((beyond >= last) & ~np.isneginf(beyond))
            for beyond in self._beyond
        ]

    def per_query(self) -> PerRelevance:
        """{relevance: {metric: (Q,)}}."""
        judged = RelevantItems.joined(self._judged) if self._judged else None
        count = len(self._own)
        step = max(1, _BLOCK_SCORES // self._search.num_hits)
        blocks = [self._block(slice(start, min(start + step, count)), judged) for start in range(0, count, step)]
        return {
            name: {metric: np.concatenate([block[name][metric] for block in blocks]) for metric in METRICS}
            for name in blocks[0]
        }

    def _block(self, queries: slice, judged: RelevantItems | None) -> PerRelevance:
        hits, same_label = self._merger.best(queries)
        own = (hits.segments == self._own[queries, :1]) & (hits.rows == self._own[queries, 1:]) & (hits.rows >= 0)
        # Without its own item, which is a hit like any other until here, a query's next hits move up.
        others = np.argsort(own, axis=1, kind="stable")[:, : self._search.depth]
        values: PerRelevance = {}
        if self._num_same_label is not None:
            same = (same_label == 1) & ~own
            values["label"] = per_query(np.take_along_axis(same, others, axis=1), self._num_same_label[queries])
        if judged is not None:
            mine = judged.take(np.arange(queries.start, queries.stop))
            grades = np.take_along_axis(_grades(hits, mine), others, axis=1)
            values[self._search.queries.judged_as] = per_query(grades, mine.counts, mine.best_grades)
        return values


def _place(segment: np.int64 | I64, row: I64) -> I64:
    """Segment and row as one number, in the order of both."""
    return segment << 32 | row


def _grades(hits: Hits, judged: RelevantItems) -> F64:
    """The grade of each hit (Q, K), 0 where it is not relevant. judged: items as ``_place`` numbers them."""
    grades = np.zeros(hits.rows.shape)
    places = _place(hits.segments, hits.rows)
    for query, (start, end) in enumerate(zip(judged.starts[:-1], judged.starts[1:], strict=True)):
        wanted = judged.items[start:end]
        relevant = np.isin(places[query], wanted)
        known = np.ones(len(wanted)) if judged.grades is None else judged.grades[start:end]
        grades[query, relevant] = known[np.searchsorted(wanted, places[query, relevant])]
    return grades
