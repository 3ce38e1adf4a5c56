"""How many items are pairs and at which fractions waves end: what `auto` becomes for a gallery of so many rows. Pure.

Fractions count all items, pairs included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastfill_ray.config import Auto
from fastfill_ray.errors import ConfigError
from fastfill_ray.ordering.partition import MIN_SPLIT, split_sizes
from fastfill_ray.ordering.waves import is_worth_a_wave

# Steps that waves end at: few versions, each worth looking at.
LADDER = (0.05, 0.1, 0.25, 0.5, 1.0)
# The first wave of `auto` ends at this multiple of the pairs' share at least.
_FIRST = 1.25
# More pairs than these do not make the map or the choice better by what they cost.
_ENOUGH_PAIRS, _MOST_PAIRS = 1_000, 20_000
# Of the least that can decide anything: some pairs have no usable vector.
_SLACK = 1.25


@dataclass(frozen=True)
class Schedule:
    """num_pairs: items that are sampled as pairs. waves: fractions at which waves end, ascending.

    rows: of the gallery that it is made for; None where a plan before has made it. left_out: given fractions that the
    pairs alone reach.
    """

    num_pairs: int
    waves: tuple[float, ...]
    rows: int | None = None
    left_out: tuple[float, ...] = ()

    def describe(self, count: int | Auto, waves: Sequence[float] | Auto) -> str:
        """For people, beside what the config says."""
        pairs = f"pairs: {self.num_pairs:,}"
        if self.rows is None:
            return f"{pairs}; waves: {_listed(self.waves)} (both as planned before)"
        pairs += f" of {self.rows:,} items{' (auto)' if count == 'auto' else ''}"
        why = " (auto)" if waves == "auto" else ""
        if self.left_out:
            why = f" ({_listed(self.left_out)} left out: the pairs alone reach that)"
        return f"{pairs}; waves: {_listed(self.waves)}{why}"


def make_schedule(
    rows: int, count: int | Auto, split: tuple[float, float, float], waves: Sequence[float] | Auto
) -> Schedule:
    """The schedule of a gallery of `rows` rows, for the config's ``pairs.count``, ``pairs.split`` and ``waves``.

    Raises:
        ConfigError: there are too few rows, too few pairs to decide anything, or the given waves end below their share.
    """
    num_pairs = auto_pairs(rows, split) if count == "auto" else count
    split_sizes(rows, num_pairs, split)
    if waves == "auto":
        return Schedule(num_pairs, auto_waves(num_pairs / rows), rows)
    return _without_idle_waves(rows, num_pairs, waves)


def auto_pairs(rows: int, split: tuple[float, float, float]) -> int:
    """5 % of the rows, but 1,000 where these are at most a quarter of the rows, and never more than 20,000.

    A small gallery gives more of its rows: as many as decide anything in every split.

    Raises:
        ConfigError: it has fewer rows than that.
    """
    least = max(math.ceil(size / share) for size, share in zip(MIN_SPLIT.values(), split, strict=True))
    if rows < least:
        raise ConfigError(
            f"gallery.path: found {rows} rows; with pairs.split {list(split)} at least {least} pairs are needed to "
            "decide anything. So small a gallery is better embedded as a whole."
        )
    wanted = min(max(rows // 20, min(_ENOUGH_PAIRS, rows // 4)), _MOST_PAIRS)
    return min(rows, max(wanted, math.ceil(_SLACK * least)))


def auto_waves(pairs_share: float) -> tuple[float, ...]:
    """The ladder from the first step that is clearly above the pairs' share."""
    return tuple(step for step in LADDER if step >= _FIRST * pairs_share or step == LADDER[-1])


def _without_idle_waves(rows: int, num_pairs: int, waves: Sequence[float]) -> Schedule:
    """The given waves without those that the pairs alone reach: version 0 is all that they would come to."""
    if (end := round(waves[-1] * rows)) < num_pairs:
        raise ConfigError(
            f"waves: the last is {waves[-1]} = {end} items, but the pairs alone are {num_pairs} of {rows} items; "
            f"raise it to at least {num_pairs / rows:.4f}, or lower pairs.count"
        )
    kept = tuple(wave for wave in waves[:-1] if is_worth_a_wave(round(wave * rows), num_pairs))
    return Schedule(num_pairs, (*kept, waves[-1]), rows, tuple(waves[: len(waves) - 1 - len(kept)]))


def parse_until(until: str | None, waves: Sequence[float] | Auto) -> int | None:
    """The last wave to make: -1 for "plan", 0 for "version0", K for "wave:K", None for all.

    Args:
        waves: as the config has them; what they come to is known once the rows are, see ``check_until``.

    Raises:
        ConfigError: it is none of these, or there are certainly fewer waves.
    """
    if until is None:
        return None
    if until in {"plan", "version0"}:
        return -1 if until == "plan" else 0
    num_waves = len(LADDER if waves == "auto" else waves)
    match = re.fullmatch(r"wave:([1-9]\d*)", until)
    if match is None or int(match[1]) > num_waves:
        raise _no_such_wave(until, num_waves)
    return int(match[1])


def check_until(last_wave: int | None, waves: Sequence[float]) -> None:
    """Raises ConfigError: there are fewer waves than `last_wave`, as ``parse_until`` gives it."""
    if last_wave is not None and last_wave > len(waves):
        raise _no_such_wave(f"wave:{last_wave}", len(waves), f"; waves end at {_listed(waves)}")


def _no_such_wave(until: str, num_waves: int, known: str = "") -> ConfigError:
    return ConfigError(f"--until {until}: plan, version0 or wave:K with K from 1 to {num_waves} is expected{known}")


def _listed(waves: Sequence[float]) -> str:
    return ", ".join(map(str, waves))
