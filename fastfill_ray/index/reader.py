"""Opening and searching a published version: verified bytes, calibrated scores, one whole version at a time.

Q queries, N rows of a segment, H hidden ones, K hits, D old dim, E new dim.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from numbers import Integral
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfill_ray.errors import CorruptFile, NotPublished
from fastfill_ray.index.block import Block, Blocks, BlockSearch, Found, Key, Member, arrange
from fastfill_ray.index.deletion_vector import NO_ROWS, DeletionVector, read_deletion
from fastfill_ray.index.deletions import Deleted, hidden_in
from fastfill_ray.index.ivf import Assignment, coarse
from fastfill_ray.index.parallel import run_searches
from fastfill_ray.index.segment import (
    HiddenRows,
    in_large_pages,
    load_index,
    prepare_queries,
    segment_dim,
    segment_queries,
)
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Delete, Init, Segment, Undelete, Version
from fastfill_ray.log.state import State
from fastfill_ray.retrieval.fusion import Fusion
from fastfill_ray.retrieval.merging import Hits, best_hits
from fastfill_ray.storage.arrow import id_array, read_table
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.overlap import read_ahead
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import F32, I64, U64, Metric

# Up to so many hits it takes less time to look their ids up one by one than to sort them by segment.
_FEW_HITS = 32


@dataclass(frozen=True)
class _Loaded:
    """A segment but for its index; what it was read from is its identity. What it hides may change while that stays.

    vector: of the file vector_key, None without one. deletions: fingerprint of those in force, None before anything is
    hidden. hidden: (H,) the rows that these two hide. prefixes: (N,) ``Deleted.prefixes_of`` the ids, once they were
    hashed: 8 bytes per id spare a second for each million of them at the next DELETE.
    """

    key: Key
    ids: pa.Array
    vector_key: str | None = None
    vector: DeletionVector = NO_ROWS
    deletions: str | None = None
    hidden: I64 = field(default_factory=lambda: NO_ROWS.rows)
    prefixes: U64 | None = None


@dataclass(frozen=True)
class _Snapshot:
    """One version, whole, and what is deleted by the deletions of the log."""

    version: Version
    records: tuple[Segment, ...]
    deletions: tuple[Delete | Undelete, ...]
    deleted: Deleted
    segments: tuple[_Loaded, ...]
    blocks: tuple[BlockSearch, ...]

    @cached_property
    def needs_old_queries(self) -> bool:
        return any(segment.needs_old_queries for segment in self.records)

    @cached_property
    def side_by_side(self) -> Blocks:
        return Blocks(self.blocks)

    @cached_property
    def sharing(self) -> Counter[tuple[str | None, Fusion | None]]:
        """How many blocks have a coarse quantiser, and queries in a space: they share an assignment."""
        return Counter((each.block.coarse_key, each.segment.fusion) for each in self.blocks)

    @property
    def live_rows(self) -> int:
        return sum(len(loaded.ids) - len(loaded.hidden) for loaded in self.segments)


class Index:
    """One published version, open for search. Safe to use from several threads, also during ``refresh``."""

    def __init__(self, files: Files, state: State, version: int | None) -> None:
        """Use ``open_index``."""
        self._files, self._pinned = files, version
        self._init = _init(files, state)
        self._refreshing = threading.Lock()
        deleted = Deleted.read(files, state.deletions)
        self._snapshot = self._load(choose_version(files, state, version), state.deletions, deleted, None)

    @property
    def version(self) -> int:
        """Number of the version that is searched."""
        return self._snapshot.version.version

    @property
    def rows(self) -> int:
        """Items that a search can return."""
        return self._snapshot.live_rows

    @property
    def dim(self) -> int:
        """Dims of the new model's vectors, and so of queries."""
        return self._init.new_dim

    @property
    def old_dim(self) -> int:
        """Dims of the old model's vectors, and so of old queries."""
        return self._init.old_dim

    @property
    def metric(self) -> Metric:
        return self._init.metric

    @property
    def needs_old_queries(self) -> bool:
        """Whether searches need the queries' old vectors, too: so it is while a segment is fused with old vectors."""
        return self._snapshot.needs_old_queries

    def search(
        self, queries: NDArray[Any], k: int = 10, old_queries: NDArray[Any] | None = None, *, nprobe: int | None = None
    ) -> tuple[F32, NDArray[Any]]:
        """The k best live items per query by calibrated score: what is deleted or superseded is never returned.

        Args:
            queries: (Q, E) new-model vectors; normalised here for cosine.
            k: hits per query, at least 1.
            old_queries: (Q, D) old-model vectors of the same queries; read only if ``needs_old_queries``, so that who
                always gives them need not ask.
            nprobe: inverted lists per query, for IVF segments; None for the number stored with them.

        Returns:
            scores (Q, k) float32, best first; ids (Q, k): int64, or an object array of strings. Where the version holds
            fewer than k live items: -inf, and -1 or None. Equal scores are ordered by segment and row.

        Raises:
            SpaceMismatch: queries or old queries of another dim.
            ValueError: queries that are not finite numbers; old queries that are needed and missing, or not as many as
                queries; k or nprobe that is no whole number of at least 1.
        """
        for name, given in (("k", k), ("nprobe", 1 if nprobe is None else nprobe)):
            if not isinstance(given, Integral) or given < 1:
                raise ValueError(f"{name} is {given!r}: a whole number of at least 1 is expected")
        snapshot = self._snapshot
        new = prepare_queries(queries, self.dim, self.metric)
        old = self._old_queries(snapshot, old_queries, len(new)) if snapshot.needs_old_queries else None
        vectors: dict[Fusion | None, F32] = {}  # the queries in each space that segments are in
        assignments: dict[tuple[str | None, Fusion | None], Assignment | None] = {}
        searches: list[Callable[[], Found]] = []
        scanned: list[Callable[[], int]] = []
        for each in snapshot.blocks:
            block, fusion = each.block, each.segment.fusion
            if fusion not in vectors:
                vectors[fusion] = segment_queries(each.segment, new, old, self.metric)
            shared = block.coarse_key, fusion
            if shared not in assignments:
                alone = nprobe is None and snapshot.sharing[shared] == 1  # then FAISS does it on the way
                assignments[shared] = (
                    None if alone or block.coarse_key is None else coarse(block.index, vectors[fusion], nprobe)
                )
            searches.append(partial(each.search, vectors[fusion], k, self.metric, assignments[shared]))
            scanned.append(partial(block.scanned_bytes, assignments[shared]))
        found = run_searches(searches, len(new), lambda: sum(scanned_bytes() for scanned_bytes in scanned))

        def again(number: int, query: int) -> Hits:
            each, row = snapshot.blocks[number], slice(query, query + 1)
            fusion, assignment = each.segment.fusion, assignments[each.block.coarse_key, each.segment.fusion]
            its_lists = None if assignment is None else Assignment(assignment.distances[row], assignment.lists[row])
            return each.first_of_equals(vectors[fusion][row], k, self.metric, its_lists)

        hits = best_hits([snapshot.side_by_side.hits(found, k, again)], k)
        return np.ascontiguousarray(hits.scores), self._ids(snapshot, hits)

    def _old_queries(self, snapshot: _Snapshot, old_queries: NDArray[Any] | None, count: int) -> F32:
        if old_queries is None:
            raise ValueError(
                f"version {snapshot.version.version} is fused: it is searched with the queries' old vectors, too. Give "
                f"old_queries: ({count}, {self.old_dim}), of the old model, for the same queries."
            )
        old = prepare_queries(old_queries, self.old_dim, self.metric, "old")
        if len(old) != count:
            raise ValueError(f"there are {len(old)} old queries for {count} queries; one for each is expected")
        return old

    def refresh(self) -> bool:
        """Adopt the version that is published now, as a whole, and the deletions that are in force now.

        Segments that both versions hold are kept in memory; of those with another deletion vector only that is read.
        ``needs_old_queries`` may change with the version. An index that was opened by number keeps its version; its
        deletions follow.

        If the new version or a deletion cannot be read, this raises, and the index stays as it was.

        Returns:
            Whether another version was adopted, or other ids are deleted.
        """
        with self._refreshing:  # of two at once, the one that read the log first must not have the last word
            state, before = read_state(self._files), self._snapshot
            version = before.version if self._pinned is not None else choose_version(self._files, state, None)
            deleted = before.deleted
            if state.deletions != before.deletions:
                deleted = Deleted.read(self._files, state.deletions)
            if (version.version, deleted.fingerprint) == (self.version, before.deleted.fingerprint):
                self._snapshot = replace(before, deletions=state.deletions)  # another way to delete the same
                return False
            self._snapshot = self._load(version, state.deletions, deleted, before)
        return True

    def _load(
        self,
        version: Version,
        deletions: tuple[Delete | Undelete, ...],
        deleted: Deleted,
        before: _Snapshot | None,
    ) -> _Snapshot:
        known = () if before is None else before.segments
        kept = {loaded.key: loaded for loaded in known}
        records = segments_of(self._files, version)
        members = [
            Member(_key(segment), (segment.calibration, segment.fusion), partial(self._read_index, segment))
            for segment in records
        ]
        blocks = arrange(members, () if before is None else [each.block for each in before.blocks])
        read = read_ahead(self._read_ids, (each for each in records if _key(each) not in kept))
        segments = tuple(
            self._hiding(kept.get(_key(segment)) or next(read), segment, version, deleted) for segment in records
        )
        numbers = {_key(segment): number for number, segment in enumerate(records)}
        return _Snapshot(
            version,
            records,
            deletions,
            deleted,
            segments,
            tuple(_search(block, [numbers[key] for key in block.keys], records, segments) for block in blocks),
        )

    def _hiding(self, loaded: _Loaded, segment: Segment, version: Version, deleted: Deleted) -> _Loaded:
        """A segment in memory with what is hidden of it: superseded rows for good, others while their id is deleted."""
        key, vector, prefixes = _vector_key(segment), loaded.vector, loaded.prefixes
        if (key, deleted.fingerprint) == (loaded.vector_key, loaded.deletions):
            return loaded
        if key != loaded.vector_key:
            vector = read_deletion(self._files, segment)
        are_flagged = deleted.are_flagged_in(version)
        if not are_flagged and len(deleted) and prefixes is None:
            prefixes = deleted.prefixes_of(loaded.ids)
        rows = hidden_in(vector, loaded.ids, deleted, are_flagged=are_flagged, prefixes=prefixes)
        return replace(
            loaded,
            vector_key=key,
            vector=vector,
            deletions=deleted.fingerprint,
            hidden=rows,
            prefixes=prefixes,
        )

    def _read_index(self, segment: Segment) -> faiss.Index:
        name = f"{self._files.root}/{segment.index.path}"
        if segment.dim != (bound := segment_dim(segment, self._init)):
            raise CorruptFile(f"{name}: recorded with dim {segment.dim}, the output root is bound to {bound}.")
        data = in_large_pages(get_verified(self._files, segment.index))
        return load_index(data, dim=segment.dim, metric=self.metric, rows=segment.rows, name=name)

    def _read_ids(self, segment: Segment) -> _Loaded:
        name = f"{self._files.root}/{segment.ids.path}"
        column = read_table(get_verified(self._files, segment.ids), name=name, columns=["id"]).column("id")
        if len(column) != segment.rows:
            raise CorruptFile(f"{name}: holds {len(column):,} ids, the record says {segment.rows:,} rows.")
        return _Loaded(_key(segment), id_array(column, self._init.id_type))

    def _ids(self, snapshot: _Snapshot, hits: Hits) -> NDArray[Any]:
        """The ids of hits (Q, K)."""
        missing, dtype = (-1, np.int64) if self._init.id_type == "int64" else (None, object)
        ids = np.full(hits.rows.shape, missing, dtype)
        segments, rows, flat = hits.segments.ravel(), hits.rows.ravel(), ids.reshape(-1)
        if len(rows) <= _FEW_HITS:
            for place, (number, row) in enumerate(zip(segments.tolist(), rows.tolist(), strict=True)):
                if number >= 0:
                    flat[place] = snapshot.segments[number].ids[row].as_py()
            return ids
        order = segments.argsort(kind="stable")  # hits of one segment side by side
        ends = [*(np.flatnonzero(np.diff(segments[order])) + 1).tolist(), len(order)]
        for start, end in zip([0, *ends], ends, strict=False):
            places = order[start:end]
            if (number := int(segments[places[0]])) >= 0:
                taken = snapshot.segments[number].ids.take(pa.array(rows[places]))
                flat[places] = taken.to_numpy(zero_copy_only=False)
        return ids


def open_index(root: str, version: int | None = None, *, s3_endpoint: str | None = None) -> Index:
    """Open the published version under an output root, or the version of that number.

    Every byte is checked against the log's checksums before it is used.

    Args:
        root: local path or s3:// URL of the run's output.
        version: None for the one that is published now; a number also opens one that was held.

    Ids that are deleted are left out of whatever version is opened.

    Raises:
        NotPublished: nothing is published, or there is no such version, or it is expired.
        CorruptFile: a file is not the one that the log names.
        FileMissing: a file that the log names is gone.
    """
    files = open_files(root, s3_endpoint=s3_endpoint)
    return Index(files, read_state(files), version)


def _search(block: Block, numbers: list[int], records: Sequence[Segment], segments: Sequence[_Loaded]) -> BlockSearch:
    """What a version that has these segments searches a block with."""
    hidden = [segments[number].hidden + start for number, start in zip(numbers, block.starts, strict=False)]
    return BlockSearch(
        block,
        np.array(numbers, np.int64),
        records[numbers[0]],
        HiddenRows.of(np.concatenate(hidden), block.index.ntotal),
    )


def _key(segment: Segment) -> Key:
    return segment.index.sha256, segment.ids.sha256


def _vector_key(segment: Segment) -> str | None:
    return None if segment.deletion is None else segment.deletion.file.sha256


def _init(files: Files, state: State) -> Init:
    if state.init is None:
        raise NotPublished(
            f"{files.root}: there is no log here, so no version either. Run the backfill, or mend the path."
        )
    return state.init


def choose_version(files: Files, state: State, number: int | None) -> Version:
    """The version of that number; None for the one that readers open.

    Raises:
        NotPublished: there is none, or it is expired; says which ones can be opened.
    """
    wanted = state.serving if number is None else number
    version = None if wanted is None or wanted in state.expired else state.version(wanted)
    if version is None:
        what = "nothing is published yet" if number is None else f"version {number} "
        if number is not None:
            what += "is expired" if number in state.expired else "does not exist"
        there = [v.version for v in state.versions if v.version not in state.expired]
        listed = (
            f"versions {', '.join(map(str, there))} can be opened by number" if there else "there are no versions yet"
        )
        raise NotPublished(f"{files.root}: {what}; {listed}.")
    return version
