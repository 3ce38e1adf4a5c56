"""How fast work goes, and how long the rest takes: from what was measured, without the time in which models load."""

from __future__ import annotations

# What was measured before weighs as much as this share of the work.
_WEIGHT = 0.1
# Without any measurement before, a shorter time says nothing.
_LEAST_S = 1.0
# What comes within this time came together: several actors end at once.
_TOGETHER_S = 0.25


class Pace:
    """Seconds per item of one piece of work.

    The clock starts when the first items are there: until then processes start and models load, which says nothing
    about the items after them. Items count once the next ones come: of a burst the first alone would look slow, and all
    of it fast.

    Args:
        total: items that are to come.
        before_s: seconds per item as measured before; None where nothing was.
    """

    def __init__(self, total: int, before_s: float | None = None) -> None:
        self._total, self._before_s = total, before_s
        self._come = self._counted = self._in_burst = 0
        self._first_s: float | None = None
        self._burst_s = self._elapsed_s = 0.0

    def add(self, items: int, now_s: float) -> None:
        """So many more are there.

        Args:
            now_s: on a clock that does not jump.
        """
        if self._first_s is None:
            self._first_s = self._burst_s = now_s
        elif now_s - self._burst_s > _TOGETHER_S:
            if self._burst_s > self._first_s:
                self._counted += self._in_burst
                self._elapsed_s = self._burst_s - self._first_s
            self._burst_s, self._in_burst = now_s, 0
        self._come += items
        self._in_burst += items

    @property
    def item_s(self) -> float | None:
        """Seconds per item; None where nothing is known yet."""
        if self._before_s is not None:
            weight = max(1.0, _WEIGHT * self._total)
            return (weight * self._before_s + self._elapsed_s) / (weight + self._counted)
        return self._elapsed_s / self._counted if self._counted and self._elapsed_s >= _LEAST_S else None

    @property
    def left_s(self) -> float | None:
        """Seconds until all are there; None where nothing is known yet."""
        item_s = self.item_s
        return None if item_s is None else max(0, self._total - self._come) * item_s
