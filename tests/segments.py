"""The segments of versions, read as a run reads them."""

from __future__ import annotations

from pathlib import Path

from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Segment, Version
from fastfill_ray.storage.files import open_files


def segments_in(root: Path | str, version: Version) -> tuple[Segment, ...]:
    """The segments of a version under a root."""
    return segments_of(open_files(str(root)), version)
