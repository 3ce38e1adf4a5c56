"""One live line per stage on a terminal, plain log lines otherwise; totals are exact, in the stage's own unit."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from fastfill_ray.sanitize import printable

_LINE_EVERY_S = 5.0


class Bar:
    """Progress of one stage."""

    def __init__(self, name: str, total: int, unit: str, done: int, stream: TextIO) -> None:
        self._stream = stream
        self._last = time.monotonic()
        self._live = stream.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=f"{name:<10}",
            unit=f" {unit}",
            file=stream,
            # Off a terminal tqdm would draw a bar per update into the log; we print its figures as lines instead.
            disable=not self._live,
            leave=True,
            dynamic_ncols=True,
        )
        self._name, self._total, self._unit, self._start = name, total, unit, time.monotonic()
        self._done = self._initial = done

    def advance(self, amount: int) -> None:
        self._done += amount
        self._bar.update(amount)
        if not self._live and time.monotonic() - self._last >= _LINE_EVERY_S and self._done < self._total:
            self._last = time.monotonic()
            self.line()

    def __str__(self) -> str:
        return f"{self._name}, {self._done:,} of {self._total:,} {self._unit}"

    def line(self) -> None:
        meter = tqdm.format_meter(
            self._done,
            self._total,
            time.monotonic() - self._start,
            initial=self._initial,
            unit=f" {self._unit}",
            ncols=0,
            prefix=f"{self._name:<10}",
        )
        print(meter, file=self._stream, flush=True)

    def close(self) -> None:
        self._bar.close()
        if not self._live:
            self.line()


class Progress:
    """Where stages say what they do. ``seconds`` keeps what each took, for the profile at the end of a run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self.seconds: dict[str, float] = {}
        self._at_work: list[str | Bar] = []

    @contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        bar = Bar(name, total, unit, done, self._stream)
        with self.timed(name):
            self._at_work[-1] = bar
            try:
                yield bar
            finally:
                bar.close()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self._at_work.append(name)
        try:
            yield
        finally:
            self._at_work.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    @property
    def now(self) -> str:
        """What is at work, and how far it is; "" between two stages. Another thread may ask."""
        return "".join(str(stage) for stage in self._at_work[-1:])

    def say(self, text: str) -> None:
        """One line. Labels and texts of the user's data in it cannot act on the terminal."""
        tqdm.write(printable(text), file=self._stream)
