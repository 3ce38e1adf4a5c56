"""What a store says of an object without reading it."""

from __future__ import annotations

from typing import NamedTuple


class Stat(NamedTuple):
    """An object's size in bytes, and a tag (ETag, mtime) that changes when somebody writes it again."""

    size: int
    tag: str
