"""Which rows of which segments a store lacks that holds an earlier version, and which ids it has too many.

Legend: N rows of a segment, C rows that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from pydantic import Field

from fastfill_ray.errors import CorruptFile
from fastfill_ray.index.deletion_vector import read_deletion, read_ids
from fastfill_ray.index.deletions import Deleted, hidden_in
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Delete, FileRef, Segment, Undelete, Version
from fastfill_ray.log.state import State
from fastfill_ray.storage.files import Files
from fastfill_ray.types import I64, Bools, Model, fingerprint

# A segment by its files: its rows, whatever is hidden of them.
Key: TypeAlias = tuple[str, str]


class Held(Model):
    """What a store holds: a version, without what the first so many deletions of the log delete."""

    version: int = Field(ge=0)
    num_deletions: int = Field(ge=0)


class Portion(Model):
    """Rows of one segment: those that can be found after so many deletions of the log, less those of `earlier`.

    are_flagged: the segment's deletion vector says what is deleted, no id has to be looked up. rows: how many, as far
    as is known without reading. earlier: what a store has of the same files; None where it has none.
    """

    segment: Segment
    num_deletions: int
    are_flagged: bool
    rows: int
    earlier: Portion | None = None

    @property
    def key(self) -> Key:
        return self.segment.index.sha256, self.segment.ids.sha256

    @property
    def digest(self) -> str:
        """Names the rows."""
        return fingerprint(self.model_dump(mode="json", exclude={"rows": True, "earlier": {"rows"}}))


class Upsert(Model):
    """What a store is to take in: the rows of a portion that no portion of `held`, which the store has, holds alike."""

    portion: Portion
    held: tuple[Portion, ...] = ()

    @property
    def digest(self) -> str:
        """Names the rows."""
        of_portion = self.portion.digest
        return fingerprint([of_portion, [each.digest for each in self.held]]) if self.held else of_portion


@dataclass(frozen=True)
class Changes:
    """What takes a store from what it holds to a version. upserted: what it is to take in. deleted: files of the ids
    that it is to take out, deleted_rows of them.
    """

    upserted: tuple[Upsert, ...]
    deleted: tuple[FileRef, ...] = ()
    deleted_rows: int = 0


class PortionReader:
    """Reads portions.

    Args:
        files: the output root.
        deletions: of the log, as many as any portion counts.
    """

    def __init__(self, files: Files, deletions: Sequence[Delete | Undelete]) -> None:
        self._files, self._deletions = files, deletions
        self._known: dict[int, Deleted] = {}
        self._segments: dict[int, tuple[Segment, ...]] = {}

    @property
    def root(self) -> str:
        """Of the output, for messages."""
        return self._files.root

    def segments(self, version: Version) -> tuple[Segment, ...]:
        """The segments of a version; their list is read once."""
        if version.version not in self._segments:
            self._segments[version.version] = segments_of(self._files, version)
        return self._segments[version.version]

    def deleted(self, num_deletions: int) -> Deleted:
        """What the first so many deletions of the log delete."""
        if num_deletions not in self._known:
            self._known[num_deletions] = Deleted.read(self._files, self._deletions[:num_deletions])
        return self._known[num_deletions]

    def portions(self, version: Version, num_deletions: int) -> dict[Key, Portion]:
        """All of a version that can be found, by segment."""
        are_flagged = self.deleted(num_deletions).are_flagged_in(version)
        found = [
            Portion(segment=segment, num_deletions=num_deletions, are_flagged=are_flagged, rows=segment.live_rows)
            for segment in self.segments(version)
        ]
        return {portion.key: portion for portion in found}

    def rows(self, portion: Portion) -> tuple[pa.Array, I64]:
        """The ids (N,) of the portion's segment, and its rows (C,), ascending."""
        ids = read_ids(self._files, portion.segment)
        wanted = self._findable(portion, ids)
        if portion.earlier is not None:
            wanted &= ~self._findable(portion.earlier, ids)
        return ids, np.flatnonzero(wanted)

    def ids(self, portion: Portion) -> pa.Array:
        """The ids (C,) of its rows."""
        ids, rows = self.rows(portion)
        return ids.take(pa.array(rows))

    def is_same(self, one: Portion, other: Portion) -> bool:
        """Whether two portions of the same files cannot differ: the same deletion vector, and the same ids deleted."""
        vectors = [
            None if each.segment.deletion is None else each.segment.deletion.file.sha256 for each in (one, other)
        ]
        in_force = [self.deleted(each.num_deletions).fingerprint for each in (one, other)]
        return vectors[0] == vectors[1] and in_force[0] == in_force[1] and one.are_flagged == other.are_flagged

    def _findable(self, portion: Portion, ids: pa.Array) -> Bools:
        """Which rows (N,) ``open_index`` would find."""
        vector, deleted = read_deletion(self._files, portion.segment), self.deleted(portion.num_deletions)
        findable = np.ones(portion.segment.rows, bool)
        findable[hidden_in(vector, ids, deleted, are_flagged=portion.are_flagged)] = False
        return findable


def changes_since(
    reader: PortionReader, state: State, version: Version, held: Held
) -> tuple[list[Portion], list[Portion]]:
    """What can be found in a version without all that the log deletes, and could not be in what a store holds; and what
    could be found in that and cannot any more. Segments of which the same rows are hidden in both are in neither.

    Raises:
        CorruptFile, FileMissing: a list of segments or of deletions is damaged or gone.
    """
    earlier = state.version(held.version)
    if earlier is None:
        raise CorruptFile(f"{reader.root}: there is no version {held.version} in the log")
    now = reader.portions(version, len(state.deletions))
    then = reader.portions(earlier, held.num_deletions)
    return _differing(reader, now, then), _differing(reader, then, now)


def _differing(reader: PortionReader, of: dict[Key, Portion], others: dict[Key, Portion]) -> list[Portion]:
    """What can be found of a version's portions, and cannot in those of another one."""
    differing = []
    for key, portion in of.items():
        other = others.get(key)
        if other is None or not reader.is_same(portion, other):
            differing.append(portion.model_copy(update={"earlier": other}))
    return differing
