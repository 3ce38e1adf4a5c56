"""The results as Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks.results import Result, markdown


def render(results: list[Result]) -> str:
    """Per set and coverage: the arms, then every order; means over the seeds."""
    parts = [f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; numpy {np.__version__}."]
    for name, group in groupby(results, key=lambda result: result["set"]):
        parts.append(_set(name, list(group)))
    return "\n\n".join(parts)


def _set(name: str, results: list[Result]) -> str:
    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    def arm(key: str) -> float:
        return mean(result["arms"][key] for result in results)

    first = results[0]
    covered = mean(result["covered"] for result in results)
    head = (
        f"### {name} ({len(results)} seeds)\n\n{first['description']} {first['items']} items in the part, "
        f"{first['queries']} queries, {first['logged_queries']} of them in a log of {first['log_events']} events, "
        f"{100 * covered:.1f} % of the test's traffic. R@1 by traffic: "
        + ", ".join(f"{key} {100 * arm(key):.1f}" for key in first["arms"])
        + "."
    )
    shares = [f"{100 * fraction:g} %" for fraction in first["fractions"]]
    lines = []
    for row in first["rows"]:
        rows = [result["rows"][row] for result in results]
        prior = " + prior" if row.startswith("fused + prior") else ""
        low, high = arm("old/old" + prior), arm("new/new" + prior)
        at = [mean(each["at"][place] for each in rows) for place in range(len(shares))]
        gains = [f"{100 * value:.1f} ({_share(value, low, high)})" for value in at]
        arms = [result["arms"]["old/old"] for result in results]
        lowest = [
            f"{100 * min(min(each[key]) - old for each, old in zip(rows, arms, strict=True)):+.1f}"
            for key in ("curve", "published")
        ]
        above = [_difference([_above(each, other) for each in rows]) for other in ("random", "expected_gain")]
        chosen = Counter(each["chosen"] for each in rows if "chosen" in each).most_common()
        named = f"{row}: " + ", ".join(f"{count} x {order}" for order, count in chosen) if chosen else row
        lines.append(
            [
                named,
                *gains,
                f"{100 * mean(e['area']['value'] for e in rows):.1f}",
                *above,
                *lowest,
            ]
        )
    columns = [
        "order",
        *shares,
        "area",
        "above random",
        "above expected_gain",
        "lowest against old/old",
        "lowest published",
    ]
    return f"{head}\n\n{markdown(columns, lines)}"


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.0f} %" if high > low else "no gain"


def _above(row: dict[str, Any], other: str) -> dict[str, float] | None:
    """The area above another order's; 0 where `auto` took that order; None where they are not compared."""
    itself = row.get("chosen", "").endswith(f"/{other}")
    return dict.fromkeys(("value", "low", "high"), 0.0) if itself else row["above"].get(other)


def _difference(intervals: list[dict[str, Any] | None]) -> str:
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return ""
    # Each seed draws its own traffic: the errors of the mean add up as those of independent draws.
    value, low, high = (np.array([interval[end] for interval in known]) for end in ("value", "low", "high"))
    below, beyond = (float(np.hypot.reduce(side)) / len(known) for side in (value - low, high - value))
    mean = float(value.mean())
    return f"{100 * mean:+.1f} ({100 * (mean - below):+.1f}..{100 * (mean + beyond):+.1f})"
