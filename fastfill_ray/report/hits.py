"""What a search returns, as a table for people: one line per hit, as wide as the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastfill_ray.report.wording import MISSING
from fastfill_ray.sanitize import printable

_GAP = "  "
_LEAST_CELL = 8  # less of a payload says nothing
_MORE = "..."


class Hit(NamedTuple):
    id: int | str
    score: float


def hits_table(
    hits: Sequence[Sequence[Hit]], columns: Sequence[str], payload: Mapping[int | str, Sequence[object]], width: int
) -> str:
    """Headings, then rank, score, id and payload of each hit; in front the query's number where there are several.

    Ids are whole, whatever that takes; the payload is what is left of a line.

    Args:
        hits: per query, best first. columns: of the payload; none where it is not known. payload: {id: values}.
        width: columns of the terminal.
    """
    several = len(hits) > 1
    headings = [*(["query"] if several else []), "rank", "score", "id"]
    rows = [
        [*([str(number)] if several else []), str(rank), f"{hit.score:.4f}", printable(str(hit.id))]
        for number, ranked in enumerate(hits)
        for rank, hit in enumerate(ranked, 1)
    ]
    widths = [max(map(display_width, column)) for column in zip(headings, *rows, strict=True)]
    widths[-1] = min(widths[-1], width // 2)  # a few long ids leave room beside the others
    each = (width - sum(widths) - len(_GAP) * (len(widths) - 1)) // max(1, len(columns)) - len(_GAP)
    lines = [_line(headings, widths, [printable(name) for name in columns], each, width)]
    of_hits = [hit.id for ranked in hits for hit in ranked]
    for cells, item in zip(rows, of_hits, strict=True):
        values = payload.get(item, [None] * len(columns))
        lines.append(_line(cells, widths, [shown(value) for value in values], each, width))
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], payload: Sequence[str], each: int, width: int) -> str:
    """Numbers to the right, the id and the payload to the left, each payload column `each` wide."""
    numbers = [cell.rjust(size) for cell, size in zip(cells[:-1], widths[:-1], strict=True)]
    line = _GAP.join([*numbers, padded(cells[-1], widths[-1])])
    room = width - display_width(line) - len(_GAP)
    if not payload or room < _LEAST_CELL:
        return line.rstrip()
    shown = _GAP.join([*(padded(cut(value, each), each) for value in payload[:-1]), payload[-1]])
    return f"{line}{_GAP}{cut(shown.rstrip(), room)}"


def shown(value: object) -> str:
    """A payload's value on one line, for people."""
    if value is None:
        return MISSING
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return printable(" ".join(str(value)[:10_000].split()))


def cut(text: str, width: int) -> str:
    """A text that takes at most so many columns, "..." at its end where something is missing."""
    if display_width(text) <= width:
        return text
    kept = text[: max(0, width - len(_MORE))]
    while kept and display_width(kept) > width - len(_MORE):
        kept = kept[:-1]
    return kept.rstrip() + _MORE


def padded(text: str, width: int) -> str:
    """A text with spaces behind it, as wide as that."""
    return text + " " * max(0, width - display_width(text))


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: wide characters two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
