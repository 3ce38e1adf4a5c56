"""Segments: one bucket x one wave x stale or new, built and read back by tasks; a record names them later."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.engine.interface import TASK_BYTES
from fastfill_ray.index.segment import build_index, train_template
from fastfill_ray.inputs.gallery import Source, item_groups, item_labels, mapped_columns, mapped_vectors
from fastfill_ray.inputs.kinds import read_ids
from fastfill_ray.inputs.labels import stored_label_type
from fastfill_ray.inputs.parquet import PinnedFile, Span, read_spans
from fastfill_ray.inputs.parquet import read_rows as read_rows_of
from fastfill_ray.log.records import FileRef, Plan, Segment
from fastfill_ray.ordering.ids import ids_digest
from fastfill_ray.ordering.partition import Chunk
from fastfill_ray.retrieval.fusion import Fusion, fuse
from fastfill_ray.stages.basis import Basis
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.embed import read_items, read_vectors, read_vectors_file
from fastfill_ray.stages.score import Scorer
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.stages.work import SERVED, ChunkWork, WorkList, read_rows
from fastfill_ray.storage.arrow import id_array, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import segment_paths, template_path
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.storage.refs import get_verified, put_file, tagged

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


class _Beside(NamedTuple):
    """What stands beside the ids of a segment, for evaluation.

    types: {"label" and "group", where they are configured: Arrow type}.
    values: {id: one value per type}.
    """

    types: dict[str, pa.DataType]
    values: dict[int | str, tuple[object, ...]]


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
    embedded: set[int | str] = set()
    gallery = _read_bucket(job, work) if work.stale_waves else None
    beside = _read_beside(job, work)
    for wave in work.new_waves:
        ids, vectors, digests = _read_new(job, work, wave)
        embedded.update(ids)
        if ids:
            columns = {**_columns(ids, beside), **{name: digests.column(name) for name in ("payload", "version")}}
            segments.append(_put_segment(job, work.bucket, wave, "new", ids, vectors, columns))
    if gallery is not None:
        missing = gallery.is_stale & np.array([value not in embedded for value in gallery.ids], bool)
        for wave in work.stale_waves:
            rows = np.flatnonzero((gallery.waves == wave) & missing)
            if len(rows):
                old = gallery.old[rows]
                aligned, _ = job.scorer.align(old, gallery.side[rows] if gallery.side is not None else None)
                stale = aligned
                if job.fusion is not None:
                    stale = fuse(old, aligned, job.fusion, job.scorer.source.metric)
                ids = [gallery.ids[row] for row in rows]
                segments.append(_put_segment(job, work.bucket, wave, "stale", ids, stale, _columns(ids, beside)))
    return segments


def _read_new(job: BuildJob, work: BucketWork, wave: int) -> tuple[list[int | str], np.ndarray, pa.Table]:
    """Ids (N,), vectors (N, E) and digests (N rows) of what becomes new in a wave: embedded for it, or known before."""
    files, dim = job.scorer.files, job.scorer.alignment().new_dim
    ids: list[int | str] = []
    all_vectors, digests = [np.empty((0, dim), np.float32)], [read_items(files, [])]
    for place in work.chunks:
        if place.chunk.unit in work.receipts[wave] and place.work.due[wave]:
            receipt = work.receipts[wave][place.chunk.unit]
            there, found = read_vectors(files, [receipt], dim)
            rows = _due_rows(job, place, wave, receipt, there)
            ids += [there[row] for row in rows]
            all_vectors.append(found[rows])
            digests.append(read_items(files, [receipt]).take(pa.array(rows)))
        if place.work.known[wave]:
            for file, rows in read_rows(files, place.work).known_in(wave):
                there, found = read_vectors_file(files, file.vectors, dim)
                ids += [there[row] for row in rows]
                all_vectors.append(found[rows])
                digests.append(read_table(get_verified(files, file.items), name=file.items.path).take(pa.array(rows)))
    return ids, np.concatenate(all_vectors), pa.concat_tables(digests)


def _due_rows(job: BuildJob, place: Place, wave: int, receipt: Receipt, ids: Sequence[int | str]) -> NDArray[np.int64]:
    """The rows of a receipt that are due in a plan: pairs may have been drawn, and served, by a plan before."""
    if receipt.rows + len(receipt.quarantined) == place.work.due[wave]:
        return np.arange(receipt.rows)
    source = job.scorer.source
    table = read_rows_of(
        source.store, place.file, [source.config.id_column], start=place.chunk.start, rows=place.chunk.rows
    )
    due = read_rows(job.scorer.files, place.work).due(wave)
    wanted = set(read_ids(table, source.config.id_column, source.id_type)[due].tolist())
    return np.flatnonzero(np.array([value in wanted for value in ids], bool))


class _Gallery(NamedTuple):
    """The rows of a bucket: ids (N,), old (N, D) and side vectors (N, S), waves (N,), and (N,) whether they may be
    served stale: they can be, and are not new in the version that the plan begins with.
    """

    ids: list[int | str]
    old: np.ndarray
    side: np.ndarray | None
    waves: np.ndarray
    is_stale: np.ndarray


def _read_bucket(job: BuildJob, work: BucketWork) -> _Gallery:
    source = job.scorer.source
    ids: list[int | str] = []
    old, side, waves, is_stale = [], [], [], []
    columns = [source.config.id_column, *mapped_columns(source.config)]
    for span, listed, table in _read_chunks(source, work, columns):
        vectors, extra, _ = mapped_vectors(table, source)
        here = read_ids(table, source.config.id_column, source.id_type, path=span.file.path, start=span.start)
        ids.extend(here.tolist())
        old.append(vectors)
        side += [extra] if extra is not None else []
        rows = read_rows(job.scorer.files, listed)
        waves.append(rows.wave)
        is_stale.append(rows.stale & (rows.source != SERVED))
    sides = np.concatenate(side) if side else None
    return _Gallery(ids, np.concatenate(old), sides, np.concatenate(waves), np.concatenate(is_stale))


def _read_chunks(
    source: Source, work: BucketWork, columns: Sequence[str]
) -> Iterator[tuple[Span, ChunkWork, pa.Table]]:
    """Per chunk its place, what the plan says of its rows, and their columns."""
    spans = [Span(file, chunk.start, chunk.rows) for chunk, file, _ in work.chunks]
    listed = [place.work for place in work.chunks]
    return zip(spans, listed, read_spans(source.store, spans, columns), strict=True)


def _read_beside(job: BuildJob, work: BucketWork) -> _Beside:
    source, config = job.scorer.source, job.scorer.source.config
    named = {"label": config.label_column, "group": config.group_column}
    columns = {name: column for name, column in named.items() if column is not None}
    types = {"label": stored_label_type(source.label_kind), "group": pa.string()}
    beside = _Beside({name: types[name] for name in columns}, {})
    if not columns:
        return beside
    for span, _, table in _read_chunks(source, work, [config.id_column, *columns.values()]):
        found = (item_labels(table, source, span), item_groups(table, source, span))
        values = [each for each in found if each is not None]  # in the order of the types
        ids = read_ids(table, config.id_column, source.id_type, path=span.file.path, start=span.start).tolist()
        beside.values.update(zip(ids, zip(*values, strict=True), strict=True))
    return beside


def _columns(ids: Sequence[int | str], beside: _Beside) -> dict[str, pa.Array | pa.ChunkedArray]:
    """What stands beside these ids, in their order."""
    return {
        name: pa.array([beside.values[value][position] for value in ids], kind)
        for position, (name, kind) in enumerate(beside.types.items())
    }


def _put_segment(
    job: BuildJob,
    bucket: int,
    wave: int,
    state: Literal["stale", "new"],
    ids: list[int | str],
    vectors: np.ndarray,
    columns: Mapping[str, pa.Array | pa.ChunkedArray],
) -> Segment:
    """columns: what stands beside the ids."""
    files, source = job.scorer.files, job.scorer.source
    template = get_verified(files, job.templates[state])
    index_path, ids_path = segment_paths(job.plan, wave, bucket, state, job.epoch, uuid.uuid4().hex)
    beside = pa.table({"id": id_array(ids, source.id_type), **columns})
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
        rows=len(ids),
        ids_digest=ids_digest(ids),
        index=index,
        ids=table,
    )
