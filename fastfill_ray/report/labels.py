"""Where the texts of a chart go, so that none lies on another: geometry alone, widths of texts are estimated."""

from __future__ import annotations

from collections.abc import Sequence

# Of texts of 12 px in the wide ones among the fonts that a system may have.
CHAR_WIDTH, LINE_HEIGHT = 7.3, 15.0


def text_width(text: str) -> float:
    return CHAR_WIDTH * len(text)


def spread(centres: Sequence[float], heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Centres of boxes moved apart until none overlaps, order kept, all inside [top, bottom] where they fit."""
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    placed = list(centres)
    limit = top
    for i in order:
        placed[i] = max(placed[i], limit + heights[i] / 2)
        limit = placed[i] + heights[i] / 2
    limit = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], limit - heights[i] / 2)
        limit = placed[i] - heights[i] / 2
    return placed


def without_overlap(centres: Sequence[float], texts: Sequence[str], gap: float = 6.0) -> list[int]:
    """Which of the texts on one line have room: the outer ones, then the others from the left.

    Args:
        centres: of each text, ascending.
    """
    halves = [text_width(text) / 2 + gap / 2 for text in texts]
    chosen: list[int] = []
    outer = [0, len(texts) - 1] if texts else []
    for i in dict.fromkeys([*outer, *range(len(texts))]):
        if all(abs(centres[i] - centres[j]) >= halves[i] + halves[j] for j in chosen):
            chosen.append(i)
    return sorted(chosen)


def wrapped(names: Sequence[str], value: str, width: float) -> list[str]:
    """Names and one value as lines that are no wider than `width`, if a name itself is not."""
    lines: list[str] = []
    for part in [*(f"{name}," for name in names[:-1]), names[-1], value]:
        if lines and text_width(f"{lines[-1]} {part}") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return lines
