"""A version as files that any vector store loads: ids, vectors and states, one Parquet file per part of a segment.

What is made lies under a folder of its own: ``export.json`` says of what, put first; ``data/`` holds the parts, and
``parts/`` their receipts; ``manifest.json``, put last, names every part. The same call completes what was interrupted.

Legend: N items of a segment, E new dim, B dims of what is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from fastfill_ray.engine.interface import Engine
from fastfill_ray.errors import FileMissing, NotPublished, RefusedError
from fastfill_ray.index.deletion_vector import read_deletion, read_ids
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.index.reader import choose_version
from fastfill_ray.index.segment import load_index
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import FileRef, Init, Segment, Version
from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.stages.progress import Progress
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit
from fastfill_ray.storage.receipts import Receipt, find_receipts, put_receipt
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.storage.sealed import seal_file, unseal_file
from fastfill_ray.types import F32, I64, IdType, Metric, Model, fingerprint

FORMAT = 1
REQUEST, MANIFEST, RECEIPTS = "export.json", "manifest.json", "parts"
# Rows of a part: what a worker holds beside the index of one segment. Rows of a row group: what loaders read at a time.
_PART_ROWS, _GROUP_ROWS = 1 << 17, 1 << 14
# Items that say where the middle of a space is.
_CENTRE_ROWS = 1 << 14


class Exported(Model):
    """What an export is of. baking: null where vectors are as the index has them."""

    format: int = FORMAT
    root: str
    version: int = Field(ge=0)
    plan: str
    deletions: str = Field(description='fingerprint of the deletions in force, "" for none')
    old_space: str
    new_space: str
    id_type: IdType
    metric: Metric = Field(description="that a store is to use on the column `vector`")
    dim: int = Field(gt=0)
    baking: Baking | None = None


class Manifest(Exported):
    """An export that is whole. `rows` are the items in `files`, `new_rows` and `stale_rows` sum to it."""

    rows: int = Field(ge=0)
    new_rows: int = Field(ge=0)
    stale_rows: int = Field(ge=0)
    is_exact: bool = Field(description="false: the index keeps vectors compressed, and these are what it keeps")
    files: tuple[FileRef, ...]


class _Part(Model):
    """One segment's work."""

    unit: str
    segment: Segment


@dataclass(frozen=True)
class ExportRequest:
    """version: None for the published one. baked: calibration in the vectors, see ``retrieval.baking``."""

    version: int | None = None
    baked: bool = False


def export(engine: Engine, files: Files, target: Files, request: ExportRequest, progress: Progress) -> Manifest:
    """Write one version of the root `files` to the folder `target`, without what is deleted.

    Raises:
        NotPublished: nothing is published, or there is no such version.
        RefusedError: `target` holds another export, or the version is fused and is to be exported as it is.
        CorruptFile, FileMissing: a file of the version is not the one that the log names.
    """
    state = read_state(files)
    if state.init is None:
        raise NotPublished(f"{files.root}: there is no log here, so nothing to export. Mend the path.")
    version = choose_version(files, state, request.version)
    segments = segments_of(files, version)
    deleted = Deleted.read(files, state.deletions)
    if (whole := _finished(target)) is not None and _is_of(whole, files, version, deleted, request):
        return whole
    exported = _begin(files, target, state.init, version, segments, deleted, request)
    parts = [_Part(unit=chunk_unit(_name(segment, deleted)), segment=segment) for segment in segments]
    receipts = find_receipts(target, RECEIPTS, {part.unit for part in parts})
    missing = [part for part in parts if part.unit not in receipts]
    work = partial(_export_parts, files, target, exported, version, deleted)
    rows = sum(part.segment.live_rows for part in parts)
    done = sum(receipts[part.unit].rows for part in parts if part.unit in receipts)
    with progress.stage("export", rows, "items", done=done) as bar:
        for receipt in engine.run_units(work, [[part] for part in missing]):
            receipts[receipt.unit] = receipt
            bar.advance(receipt.rows)
    ordered = [receipts[part.unit] for part in parts]
    counts = {state: sum(r.rows for p, r in zip(parts, ordered, strict=True) if p.segment.state == state)
              for state in ("new", "stale")}  # fmt: skip
    manifest = Manifest(
        **exported.model_dump(),
        rows=sum(receipt.rows for receipt in ordered),
        new_rows=counts["new"],
        stale_rows=counts["stale"],
        is_exact=all(receipt.details.get("exact", True) for receipt in ordered),
        files=tuple(output for receipt in ordered for output in receipt.outputs),
    )
    target.put_data(MANIFEST, seal_file(MANIFEST, manifest))
    return manifest


def read_manifest(target: Files) -> Manifest:
    """The manifest of a finished export.

    Raises:
        FileMissing: there is none, or it is not finished.
        CorruptFile: it is damaged.
    """
    return unseal_file(MANIFEST, target.get(MANIFEST), Manifest)


def _finished(target: Files) -> Manifest | None:
    try:
        return read_manifest(target)
    except FileMissing:
        return None


def _is_of(found: Exported, files: Files, version: Version, deleted: Deleted, request: ExportRequest) -> bool:
    """Whether an export is of this version, under these deletions, and baked or not as requested."""
    theirs = found.root, found.version, found.plan, found.deletions, found.baking is not None
    return theirs == (files.root, version.version, version.plan, deleted.fingerprint, request.baked)


def _begin(
    files: Files,
    target: Files,
    init: Init,
    version: Version,
    segments: Sequence[Segment],
    deleted: Deleted,
    request: ExportRequest,
) -> Exported:
    """What is exported, bound to the folder: a later call goes on with what an earlier one put down."""
    try:
        found = unseal_file(REQUEST, target.get(REQUEST), Exported)
    except FileMissing:
        found = None
    if found is not None:
        if not _is_of(found, files, version, deleted, request):
            baked = "baked" if found.baking is not None else "not baked"
            raise RefusedError(
                f"{target.root}: holds an export of version {found.version} of {found.root}, {baked}, or of other "
                f"deletions; this one is of version {version.version} of {files.root}. Give --to another folder, or "
                "remove that one."
            )
        return found
    fused = next((segment for segment in segments if segment.fusion is not None), None)
    if fused is not None and not request.baked:
        raise RefusedError(
            f"{files.root}: version {version.version} is fused: its stale vectors have {fused.dim} dims and its new "
            f"ones {init.new_dim}, so no store can hold both in one column. Export it with --baked."
        )
    baking = _bake(files, init, segments) if request.baked else None
    exported = Exported(
        root=files.root,
        version=version.version,
        plan=version.plan,
        deletions=deleted.fingerprint,
        old_space=init.old_space,
        new_space=init.new_space,
        id_type=init.id_type,
        metric=init.metric if baking is None else "ip",
        dim=init.new_dim if baking is None else baking.dim,
        baking=baking,
    )
    target.put_data(REQUEST, seal_file(REQUEST, exported))
    return exported


def _bake(files: Files, init: Init, segments: Sequence[Segment]) -> Baking:
    """How this version's items are baked; under l2 about the centre of some of them."""
    fused = next((segment for segment in segments if segment.needs_old_queries), None)
    old_dim = 0 if fused is None else init.old_dim
    old_centre: tuple[float, ...] = ()
    new_centre: tuple[float, ...] = ()
    if init.metric == "l2":
        if fused is not None and fused.fusion is not None:
            halves = _first_vectors(files, init, fused)[:, :old_dim]
            old_centre = _mean(halves / np.float32(fused.fusion.old))
        plain = next((segment for segment in segments if segment.fusion is None), None)
        if plain is not None:
            new_centre = _mean(_first_vectors(files, init, plain))
    return Baking(
        metric=init.metric, new_dim=init.new_dim, old_dim=old_dim, old_centre=old_centre, new_centre=new_centre
    )


def _first_vectors(files: Files, init: Init, segment: Segment) -> F32:
    index = _load(files, init.metric, segment)
    vectors: F32 = index.reconstruct_n(0, min(index.ntotal, _CENTRE_ROWS))
    return vectors


def _mean(vectors: F32) -> tuple[float, ...]:
    return tuple(float(value) for value in vectors.mean(axis=0))


def _load(files: Files, metric: Metric, segment: Segment) -> Any:
    name = segment.index.path
    return load_index(get_verified(files, segment.index), dim=segment.dim, metric=metric, rows=segment.rows, name=name)


def _name(segment: Segment, deleted: Deleted) -> str:
    """What a segment's part follows from, within one export."""
    vector = "" if segment.deletion is None else segment.deletion.file.sha256
    return fingerprint([segment.index.sha256, segment.ids.sha256, vector, deleted.fingerprint,
                        segment.calibration.model_dump()])  # fmt: skip


def _export_parts(
    files: Files, target: Files, exported: Exported, version: Version, deleted: Deleted, parts: Sequence[_Part]
) -> Iterator[Receipt]:
    for part in parts:
        segment = part.segment
        metric = exported.metric if exported.baking is None else exported.baking.metric
        index = _load(files, metric, segment)
        ids, live = _live(files, segment, version, deleted)
        outputs = []
        for start in range(0, segment.rows, _PART_ROWS):
            rows = live[(live >= start) & (live < start + _PART_ROWS)]
            if len(rows) == 0:
                continue
            stored: F32 = index.reconstruct_n(start, min(_PART_ROWS, segment.rows - start))[rows - start]
            vectors = stored
            if exported.baking is not None:
                vectors = exported.baking.items(stored, segment.calibration, segment.fusion)
            data = _part_bytes(ids.take(pa.array(rows)), vectors, segment.state)
            outputs.append(put_content(target, lambda digest: f"data/part-{digest[:16]}.parquet", data))
        receipt = Receipt(
            unit=part.unit, outputs=tuple(outputs), rows=len(live), details={"exact": _keeps_vectors(index)}
        )
        yield put_receipt(target, f"{RECEIPTS}/{part.unit}.receipt.json", receipt)


def _live(files: Files, segment: Segment, version: Version, deleted: Deleted) -> tuple[pa.Array, I64]:
    """The ids (N,) of a segment, and the ascending rows that a search can return: as ``open_index`` has them."""
    ids, vector = read_ids(files, segment), read_deletion(files, segment)
    hidden = vector.rows
    if not deleted.are_flagged_in(version):
        hidden = np.union1d(vector.rows[~vector.deleted], deleted.rows_of(ids))
    return ids, np.setdiff1d(np.arange(segment.rows), hidden)


def _part_bytes(ids: pa.Array, vectors: F32, state: Literal["stale", "new"]) -> bytes:
    """Parquet with columns id, vector (list<float>) and state."""
    count, dim = vectors.shape
    offsets = pa.array(np.arange(0, (count + 1) * dim, dim, dtype=np.int32))
    table = pa.table(
        {
            "id": ids,
            "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
            "state": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([state])),
        }
    )
    sink = pa.BufferOutputStream()
    # Floats of vectors do not compress: nothing is gained but time lost.
    pq.write_table(
        table,
        sink,
        row_group_size=_GROUP_ROWS,
        compression={"id": "zstd", "vector.list.element": "none", "state": "zstd"},
        use_dictionary=["state"],
        write_statistics=["id", "state"],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _keeps_vectors(index: Any) -> bool:
    """Whether what the index gives back is what it was given."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        inner = faiss.downcast_index(inner.storage)
    return isinstance(inner, faiss.IndexFlat | faiss.IndexIVFFlat)
