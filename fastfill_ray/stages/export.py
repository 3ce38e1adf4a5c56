"""A version as files that any vector store loads: ids, vectors and states; or what changed since an earlier export.

What is made lies under a folder of its own: ``export.json`` says of what, put first; ``data/`` and ``deleted/`` hold
the files, ``parts/`` the receipts; ``manifest.json``, put last, names every file. The same call completes what was
interrupted.

Legend: N rows of a segment, C those that are exported, E new dim, B dims of what is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastfill_ray.engine.interface import Engine
from fastfill_ray.errors import NotPublished
from fastfill_ray.index.reader import choose_version
from fastfill_ray.index.segment import (
    FAISS_METRIC,
    load_index,
    prepare_queries,
    search_segment,
    segment_queries,
    serialise,
)
from fastfill_ray.log.records import Delete, FileRef, Plan, Segment, Undelete, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.proxies import GAIN_DEPTH, merge_top
from fastfill_ray.stages.export_changes import Changes, PortionReader, Upsert, changes_since
from fastfill_ray.stages.export_columns import ColumnReader, GalleryColumns
from fastfill_ray.stages.export_compare import compare
from fastfill_ray.stages.export_folder import (
    DATA,
    DELETED,
    INDEX,
    INDEX_IDS,
    MANIFEST,
    begin_export,
    done_parts,
    finished_export,
    put_part,
)
from fastfill_ray.stages.export_held import can_be_alike, rows_not_held
from fastfill_ray.stages.export_manifest import (
    Exported,
    ExportRequest,
    Manifest,
    holds_stale,
    wanted_export,
)
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.arrow import matrix_of, read_table
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.overlap import overlapped
from fastfill_ray.storage.paths import chunk_unit, stage_receipt
from fastfill_ray.storage.receipts import Receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.storage.sealed import seal_file
from fastfill_ray.types import F32, I64, Metric, Model

# Vectors of a file: a worker holds some files beside the index of one segment. Rows of a row group: what loaders read
# at a time.
_FILE_BYTES, _GROUP_ROWS = 1 << 25, 1 << 14
# Items that say where the middle of a space is, and queries that say how high the scores are that matter.
_CENTRE_ROWS, _LEVEL_QUERIES = 1 << 14, 64
# The score of a hit that a segment is too small to have; JSON knows no infinity.
_MISSING = np.finfo(np.float32).min


class _Part(Model):
    """Some rows of one segment, which one worker exports; place: u of stale ones, None of new ones."""

    unit: str
    upsert: Upsert
    place: float | None

    @property
    def segment(self) -> Segment:
        return self.upsert.portion.segment


def export(engine: Engine, files: Files, target: Files, request: ExportRequest, progress: Progress) -> Manifest:
    """Write one version of the root `files` to the folder `target`, without what is deleted.

    Raises:
        NotPublished: nothing is published, or there is no such version.
        RefusedError: `target` holds another export; the version is fused and is to be exported as it is; it cannot be
            reached from `request.since`; or the gallery is not the version's any more, and columns of it are wanted.
        CorruptFile, FileMissing: a file of the version is not the one that the log names.
    """
    state = read_state(files)
    if state.init is None:
        raise NotPublished(f"{files.root}: there is no log here, so nothing to export. Mend the path.")
    version = choose_version(files, state, request.version)
    reader = PortionReader(files, state.deletions)
    wanted = wanted_export(files, reader, state, state.init, version, request)
    columns = None
    if request.columns is not None:
        plan = state.plan_of(version)
        columns = plan, request.columns, request.columns.schema(files, plan)
    if (whole := finished_export(target, wanted)) is not None:
        return whole
    exported = begin_export(target, wanted, partial(_centred, files, reader.segments(version)))
    if exported.since is None:
        portions = reader.portions(version, len(state.deletions)).values()
        changes = Changes(tuple(Upsert(portion=portion) for portion in portions))
    else:
        alike = partial(can_be_alike, by_wave=exported.baking is not None)
        changed = changes_since(reader, state, version, exported.since)
        changes = compare(engine, reader, changed, alike, partial(_put_deleted, target), progress)
    parts = []
    for upsert in changes.upserted:
        segment = upsert.portion.segment
        place = exported.places[segment.wave] if segment.state == "stale" else None
        parts.append(_Part(unit=chunk_unit(upsert.digest), upsert=upsert, place=place))
    receipts = done_parts(target, {part.unit for part in parts}, progress.say)
    missing = [part for part in parts if part.unit not in receipts]
    measures_level = exported.baking is not None and not holds_stale(reader, state, request.since)
    samples = _samples(files, state, version) if measures_level else None
    work = partial(_export_parts, files, target, exported, state.deletions, samples, columns)
    rows = {part.unit: part.upsert.portion.rows for part in parts}
    done = sum(count for unit, count in rows.items() if unit in receipts)
    with progress.stage("export", sum(rows.values()), "items", done=done) as bar:
        for receipt in engine.run_units(work, [[part] for part in missing]):
            receipts[receipt.unit] = receipt
            bar.advance(rows[receipt.unit])
    ordered = [receipts[part.unit] for part in parts]
    new_rows = sum(r.rows for part, r in zip(parts, ordered, strict=True) if part.place is None)
    manifest = Manifest(
        **{**exported.model_dump(), "level": _level(ordered) if measures_level else exported.level},
        rows=sum(receipt.rows for receipt in ordered),
        new_rows=new_rows,
        stale_rows=sum(receipt.rows for receipt in ordered) - new_rows,
        deleted_rows=changes.deleted_rows,
        is_exact=all(receipt.details["exact"] for receipt in ordered),
        files=tuple(output for receipt in ordered for output in receipt.outputs),
        deleted=changes.deleted,
    )
    target.put_data(MANIFEST, seal_file(MANIFEST, manifest))
    return manifest


def write_index(target: Files, manifest: Manifest) -> None:
    """One FAISS index of a whole export, beside its files: ``index.faiss``, an IDMap over a Flat index.

    Its ids are the items' own where they are integers, else row numbers of ``ids.parquet``. All of it is in memory.
    """
    index = faiss.IndexIDMap2(faiss.IndexFlat(manifest.dim, FAISS_METRIC[manifest.metric]))
    names, count = [], 0
    for file in manifest.files:
        data = get_verified(target, file, repair="Remove the file, and the same command makes it again.")
        table = read_table(data, name=file.path, columns=["id", "vector"])
        column, vectors = table.column("id").combine_chunks(), table.column("vector").combine_chunks()
        ids = np.arange(count, count + len(column))
        if manifest.id_type == "int64":
            ids = column.to_numpy()
        else:
            names.append(column)
        index.add_with_ids(vectors.values.to_numpy().reshape(-1, manifest.dim), ids)
        count += len(column)
    if names:
        target.put_data(INDEX_IDS, _table_bytes(pa.table({"id": pa.concat_arrays(names)})))
    target.put_data(INDEX, serialise(index))


def _centred(files: Files, segments: Sequence[Segment], wanted: Exported) -> Exported:
    """With the centres of both spaces, where the metric is l2: the means of some of the vectors."""
    baking, centres = wanted.baking, {}
    if baking is None or baking.metric != "l2" or wanted.since is not None:
        return wanted
    fused = next((segment for segment in segments if segment.needs_old_queries), None)
    plain = next((segment for segment in segments if segment.fusion is None), None)
    if fused is not None and fused.fusion is not None:
        halves = _first_vectors(files, baking.metric, fused)[:, : baking.old_dim]
        centres["old_centre"] = _mean(halves / np.float32(fused.fusion.old))
    if plain is not None:
        centres["new_centre"] = _mean(_first_vectors(files, baking.metric, plain))
    return wanted.model_copy(update={"baking": baking.model_copy(update=centres)})


def _first_vectors(files: Files, metric: Metric, segment: Segment) -> F32:
    index = _load(files, metric, segment)
    vectors: F32 = index.reconstruct_n(0, min(index.ntotal, _CENTRE_ROWS))
    return vectors


def _mean(vectors: F32) -> tuple[float, ...]:
    return tuple(float(value) for value in vectors.mean(axis=0))


def _load(files: Files, metric: Metric, segment: Segment) -> Any:
    name = segment.index.path
    return load_index(get_verified(files, segment.index), dim=segment.dim, metric=metric, rows=segment.rows, name=name)


def _samples(files: Files, state: State, version: Version) -> tuple[F32, F32] | None:
    """New (Q, E) and old (Q, D) vectors of some pairs, as queries; None where they are gone."""
    receipt = read_receipt(files, stage_receipt("pairs", state.plan_of(version).pairs))
    if receipt is None or not receipt.outputs:
        return None
    output = receipt.outputs[0]
    table = read_table(get_verified(files, output), name=output.path, columns=["new", "old"]).slice(0, _LEVEL_QUERIES)
    return matrix_of(table, "new"), matrix_of(table, "old")


def _level(receipts: Sequence[Receipt]) -> float | None:
    """The mean over the sampled queries of the last of their ten best stale scores; None where there are none."""
    best = [np.array(receipt.details["best"], np.float32) for receipt in receipts if receipt.details.get("best")]
    if not best:
        return None
    last = merge_top(best)[:, -1]
    return float(last[last > _MISSING].mean()) if (last > _MISSING).any() else None


def _export_parts(
    files: Files,
    target: Files,
    exported: Exported,
    deletions: Sequence[Delete | Undelete],
    samples: tuple[F32, F32] | None,
    columns: tuple[Plan, GalleryColumns, pa.Schema] | None,
    parts: Sequence[_Part],
) -> Iterator[Receipt]:
    baking, reader = exported.baking, PortionReader(files, deletions)
    gallery = None if columns is None else ColumnReader(files, *columns)
    load = partial(_load, files, exported.metric if baking is None else baking.metric)
    for part in parts:
        segment, index = part.segment, load(part.segment)
        ids, rows = reader.rows(part.upsert.portion)
        rows = rows_not_held(reader, load, index, ids, rows, part.upsert.held)
        tables = _tables(exported, part, index, ids, rows, gallery)
        written = tuple(overlapped(partial(_put_table, target, table) for table in tables))
        details: dict[str, Any] = {"exact": _keeps_vectors(index)}
        if baking is not None and part.place is not None and samples is not None:
            new, old = samples
            queries = segment_queries(segment, prepare_queries(new, new.shape[1], baking.metric), old, baking.metric)
            scores, _ = search_segment(index, queries, GAIN_DEPTH, baking.metric)
            details["best"] = np.where(np.isfinite(scores), scores, _MISSING).tolist()
        receipt = Receipt(unit=part.unit, outputs=written, rows=len(rows), details=details)
        yield put_part(target, receipt)


def _tables(
    exported: Exported, part: _Part, index: Any, ids: pa.Array, rows: I64, gallery: ColumnReader | None
) -> Iterator[pa.Table]:
    """What the files of a part hold, of its rows (C,) of a segment with N ids."""
    baking, segment = exported.baking, part.segment
    places = None if gallery is None else gallery.places(segment, ids.take(pa.array(rows)))
    step = max(1, _FILE_BYTES // (4 * exported.dim * _GROUP_ROWS)) * _GROUP_ROWS
    for start in range(0, segment.rows, step):
        first, end = np.searchsorted(rows, [start, start + step])
        chosen = rows[first:end]
        if len(chosen) == 0:
            continue
        vectors: F32 = index.reconstruct_n(start, min(step, segment.rows - start))
        if len(chosen) < len(vectors):
            vectors = vectors[chosen - start]
        if baking is not None:
            vectors = baking.items(vectors, part.place, segment.fusion)
        columns = _columns(ids.take(pa.array(chosen)), vectors, segment.state)
        if gallery is not None and places is not None:
            beside = gallery.read(*(each[first:end] for each in places))
            columns |= dict(zip(beside.column_names, beside.columns, strict=True))
        yield pa.table(columns)


def _put_table(target: Files, table: pa.Table) -> FileRef:
    return put_content(target, lambda digest: f"{DATA}/part-{digest[:16]}.parquet", _table_bytes(table))


def _put_deleted(target: Files, ids: pa.Array) -> FileRef:
    data = _table_bytes(pa.table({"id": ids}))
    return put_content(target, lambda digest: f"{DELETED}/ids-{digest[:16]}.parquet", data)


def _columns(ids: pa.Array, vectors: F32, state: str) -> dict[str, pa.Array]:
    """id, vector (list<float>) and state of items, as loaders take them."""
    count, dim = vectors.shape
    offsets = pa.array(np.arange(0, count * dim + 1, dim, dtype=np.int32))
    return {
        "id": ids,
        "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
        "state": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([state])),
    }


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Floats of vectors do not compress: nothing is gained but time lost.
    leaves = [path for path in _leaves(table.schema) if not path.startswith("vector.")]
    pq.write_table(
        table,
        sink,
        row_group_size=_GROUP_ROWS,
        compression=dict.fromkeys(leaves, "zstd") | {"vector.list.element": "none"}
        if "vector" in table.column_names
        else "zstd",
        use_dictionary=[path for path in leaves if path != "id"],
        write_statistics=leaves,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _leaves(schema: pa.Schema) -> list[str]:
    """How Parquet calls the columns that those of a table are stored as."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    stored = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [stored.column(leaf).path for leaf in range(len(stored.names))]


def _keeps_vectors(index: Any) -> bool:
    """Whether what the index gives back is what it was given."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        inner = faiss.downcast_index(inner.storage)
    return isinstance(inner, faiss.IndexFlat | faiss.IndexIVFFlat)
