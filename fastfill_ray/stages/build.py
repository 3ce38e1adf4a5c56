"""Segments: one bucket x one wave x stale or new, built and read back by tasks; a record names them later."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fastfill_ray.engine.interface import TASK_BYTES
from fastfill_ray.index.segment import build_index, train_template
from fastfill_ray.inputs.gallery import Source, mapped_columns, mapped_vectors, stored_beside
from fastfill_ray.inputs.kinds import read_id_column
from fastfill_ray.inputs.parquet import PinnedFile, Span, read_spans
from fastfill_ray.inputs.parquet import read_rows as read_rows_of
from fastfill_ray.log.records import FileRef, Plan, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.ordering.partition import Chunk
from fastfill_ray.retrieval.fusion import Fusion, fuse
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import items_file, read_items, vectors_file
from fastfill_ray.stages.score import Scorer
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import SERVED, ChunkWork, VectorFile, WorkList, read_rows
from fastfill_ray.storage.arrow import id_arrow_type, read_table, stored_vectors, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.paths import segment_paths, template_path
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import get_verified, put_file, tagged
from fastfill_ray.types import F32, I64, Bools, IdType

# Templates see at most this many vectors of each kind: 39 to 256 per centroid is what FAISS' k-means uses.
_TEMPLATE_ROWS = 200_000


@dataclass(frozen=True)
class BuildJob:
    """What every build task needs to know. ``templates``: {"new": ..., "stale": ...}; fusion: None in mode aligned."""

    scorer: Scorer
    plan: str
    num_waves: int
    templates: dict[str, FileRef]
    epoch: int
    fusion: Fusion | None


class Place(NamedTuple):
    """A chunk, the file that it is in, and what the plan says of its rows."""

    chunk: Chunk
    file: PinnedFile
    work: ChunkWork


# A run of chunks that shares segments.
Bucket = tuple[Place, ...]


@dataclass(frozen=True)
class BucketWork:
    """One bucket's share of a version: which waves become new segments, and which get stale ones.

    receipts: {wave: {unit: receipt}} of the new waves.
    """

    bucket: int
    chunks: Bucket
    new_waves: tuple[int, ...]
    stale_waves: tuple[int, ...]
    receipts: dict[int, dict[str, Receipt]]


class _Gallery(NamedTuple):
    """The rows of a bucket's chunks.

    ids: (N,). beside: N rows, ``label`` and ``group`` where they are configured. old: (N, D) and side: (N, S) vectors.
    waves: (N,). is_stale: (N,) whether they may be served stale: they can be, and are not new in the version that the
    plan begins with. What nothing asks for is empty, or None.
    """

    ids: pa.ChunkedArray
    beside: pa.Table
    old: F32
    side: F32 | None
    waves: NDArray[np.int16]
    is_stale: Bools

    def beside_of(self, ids: pa.ChunkedArray) -> pa.Table:
        """What stands beside these ids, in their order."""
        if not self.beside.num_columns:
            return self.beside
        return self.beside.take(pc.index_in(ids, value_set=self.ids))


class _New(NamedTuple):
    """What becomes new in a wave: ids (N,), vectors (N, E) float32, digests (N rows of ``embed.read_items``)."""

    ids: pa.ChunkedArray
    vectors: F32
    digests: pa.Table


def make_build_job(scorer: Scorer, plan: Plan, epoch: int) -> BuildJob:
    """What the build tasks of a plan need; epoch: the driver's claim."""
    return BuildJob(scorer, plan.plan, len(plan.waves), dict(plan.templates), epoch, plan.fusion)


def gallery_buckets(snapshot: Snapshot, work: WorkList) -> dict[int, Bucket]:
    """{number: bucket} of the whole gallery."""
    files = snapshot.gallery.files
    buckets: dict[int, list[Place]] = {}
    for chunk, listed in zip(snapshot.chunks, work.chunks, strict=True):
        buckets.setdefault(listed.bucket, []).append(Place(chunk, files[chunk.file], listed))
    return {number: tuple(places) for number, places in sorted(buckets.items())}


def train_templates(basis: Basis) -> dict[str, bytes]:
    """Trained empty indexes {"new": ..., "stale": ...}: on the pairs' new vectors and on their aligned ones as a
    sample of the stale.

    Fused segments live in a space of their own: their template is trained on the pairs' fused vectors.
    """
    pairs, scorer, fusion = basis.pairs, basis.scorer, basis.fusion
    factory, stale_factory = basis.index.factory, basis.index.stale_factory or basis.index.factory
    side = pairs.side[:_TEMPLATE_ROWS] if pairs.side is not None else None
    aligned, _ = scorer.align(pairs.old[:_TEMPLATE_ROWS], side)
    training = np.concatenate([pairs.new[:_TEMPLATE_ROWS], aligned])
    new = train_template(factory, training.shape[1], basis.metric, training)
    if fusion is not None:
        training = fuse(pairs.old[:_TEMPLATE_ROWS], aligned, fusion, basis.metric)
    elif stale_factory == factory:
        # One template for both: then one coarse assignment of a query serves all segments.
        return {"new": new, "stale": new}
    return {"new": new, "stale": train_template(stale_factory, training.shape[1], basis.metric, training)}


def put_templates(files: Files, basis: Basis, plan: str) -> dict[str, FileRef]:
    """A plan's templates, trained and stored; one file where both are the same."""
    trained = train_templates(basis)
    references = {"new": put_file(files, template_path(plan, "new", uuid.uuid4().hex), trained["new"])}
    references["stale"] = references["new"]
    if trained["stale"] is not trained["new"]:
        references["stale"] = put_file(files, template_path(plan, "stale", uuid.uuid4().hex), trained["stale"])
    return references


def build(context: Context, job: BuildJob, work: Sequence[BucketWork], name: str) -> list[Segment]:
    """Build a version's segments: durable, read back, ordered by bucket, wave and state."""
    segments: list[Segment] = []
    rows = sum(place.chunk.rows for item in work for place in item.chunks)
    with context.progress.stage(name, rows, "rows") as bar:
        built_buckets = context.engine.run_tasks(
            partial(build_bucket, job), work, name="build segments", memory_bytes=_bucket_bytes(job, work)
        )
        for item, built in built_buckets:
            segments.extend(built)
            bar.advance(sum(place.chunk.rows for place in item.chunks))
    return sorted(segments, key=lambda segment: (segment.bucket, segment.wave, segment.state))


def _bucket_bytes(job: BuildJob, work: Sequence[BucketWork]) -> int:
    """Memory of the largest bucket's task: its old and new vectors as read, and once more as segments."""
    rows = max((sum(place.chunk.rows for place in item.chunks) for item in work), default=0)
    alignment = job.scorer.alignment()
    return TASK_BYTES + rows * (alignment.old_dim + alignment.new_dim) * 4 * 2


def build_bucket(job: BuildJob, work: BucketWork) -> list[Segment]:
    """One bucket's segments. A wave that is both new and stale gets a residual stale one of what is not embedded."""
    segments: list[Segment] = []
    embedded = list[pa.ChunkedArray]()
    gallery = _read_gallery(job, work)
    for wave in work.new_waves:
        new = _read_new(job, work, wave)
        embedded.append(new.ids)
        if len(new.ids):
            columns = {name: new.digests.column(name) for name in ("payload", "version")}
            beside = _beside(new.ids, gallery.beside_of(new.ids), columns)
            segments.append(_put_segment(job, work.bucket, wave, "new", beside, new.vectors))
    if work.stale_waves:
        is_new = pc.is_in(gallery.ids, value_set=_all_ids(embedded, job.scorer.source.id_type))
        missing = gallery.is_stale & ~is_new.to_numpy()
        for wave in work.stale_waves:
            rows = np.flatnonzero((gallery.waves == wave) & missing)
            if len(rows):
                taken = pa.array(rows)
                beside = _beside(gallery.ids.take(taken), gallery.beside.take(taken), {})
                segments.append(_put_segment(job, work.bucket, wave, "stale", beside, _stale(job, gallery, rows)))
    return segments


def _beside(ids: pa.ChunkedArray, columns: pa.Table, more: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The table that a segment's ids are stored as."""
    return pa.table({"id": ids, **dict(zip(columns.column_names, columns.columns, strict=True)), **more})


def _stale(job: BuildJob, gallery: _Gallery, rows: I64) -> F32:
    """The vectors of some rows (R,) as they are served stale."""
    old = gallery.old[rows]
    aligned, _ = job.scorer.align(old, gallery.side[rows] if gallery.side is not None else None)
    return aligned if job.fusion is None else fuse(old, aligned, job.fusion, job.scorer.source.metric)


def _read_new(job: BuildJob, work: BucketWork, wave: int) -> _New:
    """What becomes new in a wave: embedded for it, or known before."""
    files, dim = job.scorer.files, job.scorer.alignment().new_dim
    ids = list[pa.ChunkedArray]()
    vectors, digests = [np.empty((0, dim), np.float32)], [read_items(files, [])]
    wanted = list(_vector_files(job, work, wave))
    read = read_ahead(partial(_read_vectors, files), (file for file, _ in wanted))
    for (_, rows_of), (table, items) in zip(wanted, read, strict=True):
        rows = rows_of(table.column("id"))
        table, items = (table, items) if rows is None else (table.take(rows), items.take(rows))
        ids.append(table.column("id"))
        vectors.append(stored_vectors(table, dim))
        digests.append(items)
    id_type = job.scorer.source.id_type
    return _New(_all_ids(ids, id_type), np.concatenate(vectors), pa.concat_tables(digests))


def _vector_files(
    job: BuildJob, work: BucketWork, wave: int
) -> Iterator[tuple[VectorFile, Callable[[pa.ChunkedArray], I64 | None]]]:
    """The files that hold what becomes new in a wave, and what says by the ids of each which rows of it do; None for
    all.
    """
    for place in work.chunks:
        receipt = work.receipts[wave].get(place.chunk.unit)
        if receipt is not None and place.work.due[wave] and (file := _unit_file(receipt)) is not None:
            yield file, partial(_due_rows, job, place, wave, receipt)
        if place.work.known[wave]:
            for file, rows in read_rows(job.scorer.files, place.work).known_in(wave):
                yield file, partial(_these, rows)


def _these(rows: I64, ids: pa.ChunkedArray) -> I64:
    return rows


def _all_ids(parts: Iterable[pa.ChunkedArray], id_type: IdType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], id_arrow_type(id_type))


def _unit_file(receipt: Receipt) -> VectorFile | None:
    """What a receipt of items vouches for; None where no row could be embedded."""
    vectors, items = vectors_file(receipt), items_file(receipt)
    return None if vectors is None or items is None else VectorFile(vectors=vectors, items=items)


def _read_vectors(files: Files, file: VectorFile) -> tuple[pa.Table, pa.Table]:
    """The vectors of a unit, and the digests of its items."""
    vectors = read_table(get_verified(files, file.vectors), name=file.vectors.path, columns=["id", "vector"])
    return vectors, read_table(get_verified(files, file.items), name=file.items.path)


def _due_rows(job: BuildJob, place: Place, wave: int, receipt: Receipt, ids: pa.ChunkedArray) -> I64 | None:
    """The rows of a receipt that are due in a plan, None for all: pairs may have been drawn, and served, before."""
    if receipt.rows + len(receipt.quarantined) == place.work.due[wave]:
        return None
    source = job.scorer.source
    table = read_rows_of(
        source.store, place.file, [source.config.id_column], start=place.chunk.start, rows=place.chunk.rows
    )
    due = pa.array(read_rows(job.scorer.files, place.work).due(wave))
    wanted = read_id_column(table, source.config.id_column, source.id_type).filter(due)
    return np.flatnonzero(pc.is_in(ids, value_set=wanted).to_numpy())


def _read_gallery(job: BuildJob, work: BucketWork) -> _Gallery:
    """One pass over a bucket's chunks; over none of them where nothing that they hold is needed."""
    source, config = job.scorer.source, job.scorer.source.config
    named = [name for name in (config.label_column, config.group_column) if name is not None]
    columns = [config.id_column, *named, *(mapped_columns(config) if work.stale_waves else ())]
    ids, beside = list[pa.Array](), list[pa.Table]()
    old, side, waves, is_stale = [], [], [np.empty(0, np.int16)], [np.empty(0, bool)]
    chunks = _read_chunks(source, work, columns) if named or work.stale_waves else ()
    for span, listed, table in chunks:
        ids.append(read_id_column(table, config.id_column, source.id_type, path=span.file.path, start=span.start))
        beside.append(pa.table(stored_beside(table, source, span)))
        if work.stale_waves:
            vectors, extra, _ = mapped_vectors(table, source)
            old.append(vectors)
            side += [extra] if extra is not None else []
            rows = read_rows(job.scorer.files, listed)
            waves.append(rows.wave)
            is_stale.append(rows.stale & (rows.source != SERVED))
    return _Gallery(
        pa.chunked_array(ids, id_arrow_type(source.id_type)),
        pa.concat_tables(beside) if named else pa.table({}),
        np.concatenate(old) if old else np.empty((0, source.old_dim), np.float32),
        np.concatenate(side) if side else None,
        np.concatenate(waves),
        np.concatenate(is_stale),
    )


def _read_chunks(
    source: Source, work: BucketWork, columns: Sequence[str]
) -> Iterator[tuple[Span, ChunkWork, pa.Table]]:
    """Per chunk its place, what the plan says of its rows, and their columns."""
    spans = [Span(file, chunk.start, chunk.rows) for chunk, file, _ in work.chunks]
    listed = [place.work for place in work.chunks]
    return zip(spans, listed, read_spans(source.store, spans, columns), strict=True)


def _put_segment(
    job: BuildJob, bucket: int, wave: int, state: Literal["stale", "new"], beside: pa.Table, vectors: F32
) -> Segment:
    """beside: the ids (N,), and what stands beside them. vectors: (N, d)."""
    files, source = job.scorer.files, job.scorer.source
    template = get_verified(files, job.templates[state])
    index_path, ids_path = segment_paths(job.plan, wave, bucket, state, job.epoch, uuid.uuid4().hex)
    # A record names only what was read back.
    index = tagged(files, put_file(files, index_path, build_index(template, vectors, source.metric)))
    table = tagged(files, put_file(files, ids_path, table_bytes(beside)))
    fusion = job.fusion if state == "stale" else None
    return Segment(
        bucket=bucket,
        wave=wave,
        state=state,
        space="new" if state == "new" else "aligned" if fusion is None else "fused",
        fusion=fusion,
        dim=vectors.shape[1],
        rows=beside.num_rows,
        ids_digest=ids_digest(beside.column("id")),
        index=index,
        ids=table,
    )
