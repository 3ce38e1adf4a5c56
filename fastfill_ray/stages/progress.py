"""What a run does, for people: live lines on a terminal, plain log lines otherwise; totals are exact.

A stage has a line of its own. The waves have one for all of them, which stands while versions are built and measured
beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TextIO

from tqdm import tqdm

from fastfill_ray.sanitize import printable
from fastfill_ray.stages.pace import Pace
from fastfill_ray.wording import duration

# Off a terminal a piece of work says no more than a line in this time, and a short one beside another says none.
_LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Work:
    """A piece of work that is counted.

    done: of `total` units that are there when it begins. waits_for: what happens before the first of the others can
    come, such as models that load; "" for nothing. before_s: seconds per unit as measured before, None where nothing
    was.
    """

    name: str
    total: int
    unit: str
    done: int = 0
    waits_for: str = ""
    before_s: float | None = None

    def counted(self, done: int) -> str:
        """How far it is."""
        return f"{done:,} of {self.total:,} {self.unit}"


@dataclass(frozen=True)
class WavesWork(Work):
    """All waves that a call makes. items: of the gallery; new: those of them that are new when it begins."""

    items: int = 0
    new: int = 0

    def counted(self, done: int) -> str:
        return f"{100 * (self.new + done) / max(self.items, 1):.0f} % of the items embedded"


class Bar:
    """Progress of one piece of work. inner: whether it goes on beside another one."""

    def __init__(self, work: Work, stream: TextIO, *, inner: bool) -> None:
        self._work, self._stream, self._inner = work, stream, inner
        self._pace = Pace(work.total - work.done, work.before_s)
        self._done, self._waits_for = work.done, work.waits_for if work.done < work.total else ""
        self._part, self._before = "", 0  # where it is cut into parts: the one at work, and what those before counted
        self._start = self._last = time.monotonic()
        self._live = stream.isatty()
        self._bar = tqdm(
            total=max(work.total, 1),
            initial=work.done,
            bar_format="{desc} |{bar}|",
            desc=printable(str(self)),
            file=stream,
            # Off a terminal tqdm would draw a bar per update into the log; we print lines instead.
            disable=not self._live,
            leave=not inner,
            dynamic_ncols=True,
        )
        if self._waits_for and not self._live:
            self._line(str(self))

    def rename(self, name: str) -> None:
        """The next part of the same work."""
        self._work = replace(self._work, name=name)
        self._show()
        self._bar.refresh()

    def begin(self, part: str, total: int) -> None:
        """The next part of it, counted from 0 to a total of its own: how many parts there will be, nobody knows."""
        self._part, self._before = part, self._before + self._done
        self._work, self._done, self._pace = replace(self._work, total=total), 0, Pace(total)
        if self._live:
            self._bar.reset(max(total, 1))
        self._show()

    def advance(self, amount: int = 1) -> None:
        self._done, self._waits_for = self._done + amount, ""
        self._pace.add(amount, time.monotonic())
        self._show()
        self._bar.update(amount)

    def __str__(self) -> str:
        parts = self._work.counted(self._done), self._waits_for or self._speed
        name = f"{self._work.name} ({self._part})" if self._part else self._work.name
        return f"{name}: {', '.join(filter(None, parts))}"

    @property
    def _speed(self) -> str:
        """The rate and what is left, "" where nothing is known yet."""
        item_s, left_s = self._pace.item_s, self._pace.left_s
        if self._part or not item_s or left_s is None:
            return ""
        rate = f"{1 / item_s:,.0f}" if item_s <= 0.1 else f"{1 / item_s:.2g}"
        return f"{rate} {self._work.unit}/s, {duration(left_s)} left"

    def _show(self) -> None:
        if self._live:
            self._bar.set_description_str(printable(str(self)), refresh=False)
        elif time.monotonic() - self._last >= _LINE_EVERY_S and self._done < self._work.total:
            self._line(str(self))

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        print(printable(text), file=self._stream, flush=True)

    def close(self) -> None:
        took_s = time.monotonic() - self._start
        counted = self._work.counted(self._done)
        if self._part:
            counted = f"{self._before + self._done:,} {self._work.unit}"
        text = f"{self._work.name}: {counted}, {duration(took_s)}"
        if self._live:
            self._bar.set_description_str(printable(text))
            self._bar.close()
        elif not self._inner or took_s >= _LINE_EVERY_S:
            self._line(text)


class Progress:
    """Where stages say what they do. ``seconds`` keeps what each took, for the table at the end of a run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self.seconds: dict[str, float] = {}
        self._at_work: list[str | Bar] = []
        self._said = ""

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0, waits_for: str = "") -> Iterator[Bar]:
        """A stage that is counted; see ``Work``."""
        with self.counted_seconds(name), self.shown(Work(name, total, unit, done, waits_for)) as bar:
            yield bar

    @contextmanager
    def shown(self, work: Work) -> Iterator[Bar]:
        """Work whose seconds are counted elsewhere, as other stages go on beside it."""
        bar = Bar(work, self._stream, inner=any(isinstance(other, Bar) for other in self._at_work))
        self._at_work.append(bar)
        try:
            yield bar
        finally:
            self._at_work.remove(bar)
            bar.close()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """A stage that cannot be counted."""
        self._at_work.append(name)
        try:
            with self.counted_seconds(name):
                yield
        finally:
            self._at_work.remove(name)

    @contextmanager
    def counted_seconds(self, name: str) -> Iterator[None]:
        """Add the time in here to ``seconds``; nothing is shown."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    @property
    def now(self) -> str:
        """What is at work, and how far it is; "" between two stages. Another thread may ask."""
        return "; ".join(map(str, list(self._at_work)))

    @property
    def doing(self) -> str:
        """What is at work; between two stages what was said last, such as that Ray is started."""
        return self.now or self._said

    def say(self, text: str) -> None:
        """One line. Labels and texts of the user's data in it cannot act on the terminal."""
        self._said = text
        tqdm.write(printable(text), file=self._stream)
