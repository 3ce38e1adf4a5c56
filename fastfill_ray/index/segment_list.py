"""The segments of a version, or that a plan begins with: the list grows with the gallery, so a record names a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.records import FileRef, Segment, Version
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import segment_list_path
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.types import Model, canonical


class _Segments(Model):
    segments: tuple[Segment, ...]


def put_segments(files: Files, plan: str, segments: Sequence[Segment]) -> FileRef:
    """Store a list of segments, in the order in which they are searched."""
    data = canonical(_Segments(segments=tuple(segments)).model_dump(mode="json"))
    return put_content(files, partial(segment_list_path, plan), data)


def listed(files: Files, plan: str, segments: Sequence[Segment]) -> dict[str, Any]:
    """The fields of a VERSION that say which segments it has; the list is stored."""
    return {
        "segments": put_segments(files, plan, segments),
        "num_segments": len(segments),
        "index_bytes": sum(file.size for segment in segments for file in segment.files),
        "stale_rows": sum(segment.plan_rows for segment in segments if segment.state == "stale"),
    }


def read_segments(files: Files, reference: FileRef) -> tuple[Segment, ...]:
    """What ``put_segments`` stored.

    Raises:
        CorruptFile, FileMissing: names the list.
    """
    try:
        return _Segments.model_validate_json(get_verified(files, reference)).segments
    except ValueError as error:
        raise CorruptFile(f"{files.root}/{reference.path}: not a list of segments ({error})", reference.path) from error


def segments_of(files: Files, version: Version) -> tuple[Segment, ...]:
    """The segments of a version."""
    return read_segments(files, version.segments)
