"""Deletions that are in force become deletion vectors: the segments of a new version, each with what it hides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.index.deletion_vector import DeletionVector, put_deletion, read_deletion, read_ids
from fastfill_ray.index.deletions import Deleted
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Segment, Version
from fastfill_ray.stages.context import Context
from fastfill_ray.storage.files import Files


def hide_deleted(
    context: Context,
    deleted: Deleted,
    segments: Sequence[Segment],
    path_of: Callable[[Segment], str],
    before: Version | None,
) -> list[Segment]:
    """The segments in their order, each with a deletion vector of its superseded rows and of those that are deleted.

    Read are the ids of segments whose rows may have to be hidden or shown: of none, if nothing is deleted and nothing
    was; of those that `before` does not have, if it was made under the same deletions; else of all. A segment that
    hides what it should is returned as it is, and no file is written for it.

    The VERSION that gets all of these segments says so: its `deletions` is ``deleted.fingerprint``.

    Args:
        deleted: by the state of the log that the version follows.
        path_of: ``index.deletion_vector.fresh_path`` for a segment; called where the work is done.
        before: a version some of whose segments may be among these; None if there is none.

    Raises:
        CorruptFile, FileMissing: of a segment's ids, or of its deletion vector.
    """
    exact = set[tuple[str, ...]]()
    if before is not None and deleted.are_flagged_in(before):
        exact = {_place(segment) for segment in segments_of(context.files, before)}
    doubtful = {
        number: segment
        for number, segment in enumerate(segments)
        if _place(segment) not in exact and (len(deleted) or _num_flagged(segment))
    }
    result = list(segments)
    hide = _Hide(context.files, deleted, path_of)
    hiding = context.engine.run_tasks(hide, doubtful.values(), name="hide deleted", ordered=True)
    for number, (_, segment) in zip(doubtful, hiding, strict=True):
        result[number] = segment
    return result


def _place(segment: Segment) -> tuple[str, ...]:
    return tuple(file.path for file in segment.files)


def _num_flagged(segment: Segment) -> int:
    return 0 if segment.deletion is None else segment.deletion.deleted_rows


@dataclass(frozen=True)
class _Hide:
    """One segment's task."""

    files: Files
    deleted: Deleted
    path_of: Callable[[Segment], str]

    def __call__(self, segment: Segment) -> Segment:
        ids = read_ids(self.files, segment)
        now = read_deletion(self.files, segment)
        wanted = _vector(now.rows[~now.deleted], self.deleted.rows_of(ids))
        if np.array_equal(wanted.rows, now.rows):  # the superseded are the same, so the flags are, too
            return segment
        deletion = None
        if len(wanted.rows):
            deletion = put_deletion(self.files, self.path_of(segment), wanted, ids)
        return segment.model_copy(update={"deletion": deletion})


def _vector(superseded: np.ndarray, deleted: np.ndarray) -> DeletionVector:
    """A row that is both is superseded: an UNDELETE does not bring it back."""
    rows = np.union1d(superseded, deleted)
    return DeletionVector(rows, ~np.isin(rows, superseded))
