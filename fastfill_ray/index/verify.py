"""Everything a version names, read again: checksums, rows, every id exactly once, and that the ids sum to the plan's.

Memory: one segment, and the hashes of at most ``_PARTITION_IDS`` ids, whatever the size of the version.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import CorruptFile, FileMissing, NotPublished
from fastfill_ray.index.deletion_vector import DeletionVector, read_deletion, read_ids
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.index.segment import load_index, segment_dim
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Init, Plan, Segment, Version
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import NO_IDS, combine_digests, hash_ids, ids_digest
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import I64, U64

# Ids whose hashes (8 bytes each) are compared at a time; those of the others wait in temporary files.
_PARTITION_IDS = 1 << 22


@dataclass(frozen=True)
class Verified:
    """One version that is whole: its number, its segments, its ids, and how many of these were deleted by then."""

    version: int
    segments: int
    rows: int
    deleted: int = 0


def verify(files: Files, version: int | None = None) -> list[Verified]:
    """Check the log, the deletions, and one version, or all that are not expired.

    Raises:
        CorruptFile, FileMissing: names the first object that is damaged or gone, and says which versions are whole.
        NotPublished: no log, no such version, or it is expired.
    """
    state = read_state(files)
    if state.init is None:
        raise NotPublished(f"{files.root}: there is no log here, so nothing to verify. Mend the path.")
    versions = [v for v in state.versions if v.version not in state.expired and version in (None, v.version)]
    if version is not None and not versions:
        there = ", ".join(str(v.version) for v in state.versions if v.version not in state.expired) or "none"
        raise NotPublished(f"{files.root}: there is no version {version}; live versions: {there}")
    deleted = Deleted.read(files, state.deletions)
    whole: list[Verified] = []
    damage: dict[int, CorruptFile | FileMissing] = {}
    for each in versions:
        try:
            whole.append(_verify_version(files, state.init, state, each, deleted))
        except (CorruptFile, FileMissing) as error:
            damage[each.version] = error
    if damage:
        first = next(iter(damage.values()))
        intact = ", ".join(str(checked.version) for checked in whole) or "none"
        damaged = ", ".join(map(str, damage))
        raise type(first)(f"{str(first).rstrip('.')}. Damaged versions: {damaged}; whole: {intact}.", *first.paths)
    return whole


def _verify_version(files: Files, init: Init, state: State, version: Version, deleted: Deleted) -> Verified:
    plan = state.plan_of(version)
    segments = segments_of(files, version)
    with _Hashes(sum(segment.rows for segment in segments)) as hashes:
        for segment in segments:
            _verify_index(files, init, plan, segment)
            ids, hidden = _verify_ids(files, segment)
            if deleted.are_flagged_in(version):
                _check_flags(segment, hidden, deleted.rows_of(ids))
            hashes.add(_plan_ids(segment, ids, hidden))
        for repeated in hashes.repeated():
            _check_unique(files, version, repeated)
    _check_sum(version, segments, plan)
    return Verified(version.version, len(segments), version.rows, version.deleted)


def _verify_index(files: Files, init: Init, plan: Plan, segment: Segment) -> None:
    if segment.dim != (bound := segment_dim(segment, init)):
        raise CorruptFile(f"{segment.index.path}: recorded with dim {segment.dim}, its space has {bound}")
    if segment.state == "stale" and segment.fusion != plan.fusion:
        raise CorruptFile(f"{segment.index.path}: fused with {segment.fusion}, plan {plan.plan} says {plan.fusion}")
    data = get_verified(files, segment.index)
    load_index(data, dim=segment.dim, metric=init.metric, rows=segment.rows, name=segment.index.path)


def _verify_ids(files: Files, segment: Segment) -> tuple[pa.Array, DeletionVector]:
    """The ids (N,) of a segment and what it hides, both as recorded."""
    ids = read_ids(files, segment)
    _check_digest(segment.ids.path, ids, segment.rows, segment.ids_digest)
    hidden = read_deletion(files, segment)
    if (deletion := segment.deletion) is not None:
        path, rows = deletion.file.path, hidden.rows
        _check_digest(path, ids.take(pa.array(rows)), deletion.rows, deletion.ids_digest)
        by_delete = ids.take(pa.array(rows[hidden.deleted]))
        _check_digest(path, by_delete, deletion.deleted_rows, deletion.deleted_ids_digest)
    return ids, hidden


def _check_flags(segment: Segment, hidden: DeletionVector, deleted: I64) -> None:
    """Readers of a version that was made under the deletions in force ask nothing but the flags."""
    flagged = hidden.rows[hidden.deleted]
    if not np.array_equal(flagged, expected := np.setdiff1d(deleted, hidden.rows[~hidden.deleted])):
        path = segment.ids.path if segment.deletion is None else segment.deletion.file.path
        raise CorruptFile(
            f"{path}: {len(flagged):,} rows are hidden by DELETE, {len(expected):,} are deleted, and "
            f"{len(np.intersect1d(flagged, expected)):,} are both"
        )


def _check_digest(path: str, ids: pa.Array, rows: int, digest: str) -> None:
    found = ids_digest(ids)
    if len(ids) != rows or found != digest:
        raise CorruptFile(f"{path}: {len(ids)} ids, digest {found}; recorded are {rows}, {digest}")


def _plan_ids(segment: Segment, ids: pa.Array, hidden: DeletionVector) -> pa.Array:
    """The ids that count towards the plan: all but those of superseded rows."""
    counts = np.ones(segment.rows, bool)
    counts[hidden.rows[~hidden.deleted]] = False
    return ids.filter(pa.array(counts))


def _check_unique(files: Files, version: Version, hashes: U64) -> None:
    """Each id once, of the ids with these hashes: different strings may share one."""
    count: Counter[int | str] = Counter()
    for segment in segments_of(files, version):
        ids = _plan_ids(segment, read_ids(files, segment), read_deletion(files, segment))
        count.update(ids.filter(pa.array(np.isin(_hash(ids), hashes))).to_pylist())
        repeated = [item for item, times in count.items() if times > 1]
        if repeated:
            raise CorruptFile(f"{segment.ids.path}: id {repeated[0]!r} is in version {version.version} twice")


def _hash(ids: pa.Array) -> U64:
    return hash_ids(ids.to_numpy() if pa.types.is_integer(ids.type) else ids.to_pylist())


def _check_sum(version: Version, segments: Sequence[Segment], plan: Plan) -> None:
    """Segments - superseded rows + absent = plan: in rows, and in digests modulo 2**128."""
    rows = sum(segment.plan_rows for segment in segments)
    if rows != version.rows:
        raise CorruptFile(f"version {version.version}: {rows} ids, the record says {version.rows}")
    deleted = sum(segment.deletion.deleted_rows for segment in segments if segment.deletion is not None)
    if deleted != version.deleted:
        raise CorruptFile(f"version {version.version}: {deleted} deleted ids, the record says {version.deleted}")
    digest = combine_digests(segment.plan_ids_digest for segment in segments)
    if (
        digest != version.ids_digest
        or rows + version.absent != plan.rows
        or combine_digests([digest, version.absent_digest]) != plan.ids_digest
        or (version.absent == 0 and version.absent_digest != NO_IDS)
    ):
        raise CorruptFile(
            f"version {version.version}: {rows} ids (digest {digest}, recorded {version.ids_digest}) and "
            f"{version.absent} absent (digest {version.absent_digest}); plan {plan.plan} has {plan.rows} (digest "
            f"{plan.ids_digest})"
        )


class _Hashes:
    """The hashes of many ids, in temporary files by range: equal ones lie in one file.

    Args:
        count: ids that come at most.
    """

    def __init__(self, count: int) -> None:
        num_parts = max(1, -(-count // _PARTITION_IDS))
        # The upper halves of hashes at which a file ends and the next one begins.
        self._ranges = np.array([(part << 32) // num_parts for part in range(1, num_parts)], np.uint64)
        self._stack = ExitStack()
        self._parts: list[IO[bytes]] = []

    def __enter__(self) -> _Hashes:
        for _ in range(len(self._ranges) + 1):
            self._parts.append(self._stack.enter_context(tempfile.TemporaryFile()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, ids: pa.Array) -> None:
        hashes = np.sort(_hash(ids))
        ends = np.searchsorted(hashes >> np.uint64(32), self._ranges)
        for file, part in zip(self._parts, np.split(hashes, ends), strict=True):
            file.write(part.tobytes())

    def repeated(self) -> Iterator[U64]:
        """The hashes that came more than once, file by file."""
        for file in self._parts:
            file.seek(0)
            hashes = np.sort(np.frombuffer(file.read(), np.uint64))
            if len(again := hashes[1:][hashes[1:] == hashes[:-1]]):
                yield np.unique(again)
