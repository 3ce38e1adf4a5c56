"""Two versions asked the same queries: what it says to people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from fastfill_ray.report.hits import Hit, cut, display_width, hits_table, padded, shown
from fastfill_ray.report.wording import percent, score, score_interval
from fastfill_ray.retrieval.flips import Flips
from fastfill_ray.retrieval.intervals import Interval
from fastfill_ray.sanitize import printable

# Of an example, in the text: lists of ten side by side fill the screen with what is the same.
_HITS_SHOWN = 5
_GAP = "   "
# Longer ids than this part of a side, where there is a payload, and the versions stand below each other.
_ID_SHARE = 4


class Latency(NamedTuple):
    """Of one query at a time, in milliseconds."""

    median_ms: float
    p95_ms: float


class Taken(NamedTuple):
    """By the items that users took: MRR of either version, and which queries the later one helps and hurts."""

    mrr: tuple[Interval, Interval]
    flips: Flips


class Example(NamedTuple):
    """A query whose first hit changed. query: its payload; overlap: of its hits; hits: in either version."""

    query: str
    row: str
    traffic: float
    overlap: float
    hits: tuple[Sequence[Hit], Sequence[Hit]]


@dataclass(frozen=True)
class Comparison:
    """What two versions answer to the same queries; every mean is by traffic.

    Attributes:
        versions, latency: of what is compared with, and of the version looked at.
        queries: that both answered. dropped: that have no vector.
        is_weighed: whether some are asked more often than others.
        covered: the share of the file's traffic that the queries are.
        k: hits per query.
        taken: None where the file says nothing of what was taken.
        changed: how many queries have another first hit; some of them are the examples.
        columns, payload: {id: their values}, as the gallery has them now; empty where it is not at hand.
    """

    versions: tuple[int, int]
    queries: int
    dropped: int
    is_weighed: bool
    covered: float
    k: int
    overlap: Interval
    same_first: Interval
    taken: Taken | None
    latency: tuple[Latency, Latency]
    changed: int
    examples: tuple[Example, ...]
    columns: tuple[str, ...]
    payload: Mapping[int | str, Sequence[object]]


def shadow_json(comparison: Comparison) -> dict[str, Any]:
    """Every figure and example, payload as text."""
    of_taken = None
    if comparison.taken is not None:
        flips = comparison.taken.flips
        of_taken = {
            "mrr": _by_version(comparison, [each._asdict() for each in comparison.taken.mrr]),
            "worse": flips.nfr._asdict(),
            "better": flips.pfr._asdict(),
            "mean_loss": flips.mean_loss,
            "mean_gain": flips.mean_gain,
        }
    return {
        "versions": list(comparison.versions),
        "queries": comparison.queries,
        "dropped": comparison.dropped,
        "covered": comparison.covered,
        "k": comparison.k,
        "overlap": comparison.overlap._asdict(),
        "same_first": comparison.same_first._asdict(),
        "taken": of_taken,
        "latency": _by_version(comparison, [each._asdict() for each in comparison.latency]),
        "changed": comparison.changed,
        "examples": [
            {
                **example._asdict(),
                "hits": _by_version(comparison, [[_hit_json(comparison, h) for h in hits] for hits in example.hits]),
            }
            for example in comparison.examples
        ],
    }


def _by_version(comparison: Comparison, values: Sequence[Any]) -> dict[str, Any]:
    return {str(version): value for version, value in zip(comparison.versions, values, strict=True)}


def _hit_json(comparison: Comparison, hit: Hit) -> dict[str, Any]:
    if (values := comparison.payload.get(hit.id)) is None:
        return hit._asdict()
    return {**hit._asdict(), "payload": {n: shown(v) for n, v in zip(comparison.columns, values, strict=True)}}


def shadow_text(comparison: Comparison, width: int) -> str:
    """The figures, then the examples, both versions side by side; one below the other where ids are long.

    Args:
        width: columns of the terminal.
    """
    before, now = comparison.versions
    weighed = ", each counted as often as it was asked" if comparison.is_weighed else ""
    covered = "" if comparison.covered > 0.9995 else f", {percent(comparison.covered)} of the file's traffic"
    several = comparison.queries > 1
    asked = f"{comparison.queries:,} queries" if several else "query"
    lines = [
        f"Versions {before} and {now}, asked the same {asked}{weighed}{covered}."
        + (" In brackets: 95 % intervals." if several else ""),
        f"the same among the first {comparison.k}: {_share(comparison.overlap)}",
        f"the same first hit: {_share(comparison.same_first)}",
    ]
    if comparison.taken is not None:
        (mrr_before, mrr_now), flips = comparison.taken
        lines += [
            f"MRR of what users took, of {_counted(mrr_now.queries)}: version {before} {_score(mrr_before)}, "
            f"version {now} {_score(mrr_now)}",
            f"of these, version {now} ranks it better for {_share(flips.pfr)}, worse for {_share(flips.nfr)}",
        ]
    for version, latency in zip(comparison.versions, comparison.latency, strict=True):
        spread = f", 95 of 100 within {latency.p95_ms:.2f} ms" if several else ""
        median = f"{'median ' if several else ''}{latency.median_ms:.2f} ms"
        lines.append(f"latency of version {version}, one query at a time: {median}{spread}")
    if comparison.changed:
        some = "" if comparison.changed == len(comparison.examples) else f" {len(comparison.examples)} of them:"
        have = "has" if comparison.changed == 1 else "have"
        lines.append(f"\n{_counted(comparison.changed)} {have} another first hit.{some}")
    lines += [_example(comparison, example, width) for example in comparison.examples]
    return "\n".join(lines)


def _counted(queries: int) -> str:
    return f"{queries:,} {'query' if queries == 1 else 'queries'}"


def _share(interval: Interval) -> str:
    """One query has no interval."""
    if interval.queries < 2:
        return percent(interval.value)
    return f"{percent(interval.value)} ({percent(interval.low)} to {percent(interval.high)})"


def _score(interval: Interval) -> str:
    return score(interval.value) if interval.queries < 2 else score_interval(*interval[:3])


def _example(comparison: Comparison, example: Example, width: int) -> str:
    half = (width - len(_GAP)) // 2
    beside = [hits[:_HITS_SHOWN] for hits in example.hits]
    longest = max((display_width(printable(str(hit.id))) for hits in beside for hit in hits), default=0)
    # Ids are whole: long ones would leave half a line no room for the payload.
    is_stacked = bool(comparison.columns) and longest > half // _ID_SHARE
    sides = []
    for version, hits in zip(comparison.versions, beside, strict=True):
        table = hits_table([hits], comparison.columns, comparison.payload, width if is_stacked else half)
        sides.append([f"version {version}", *table.splitlines()])
    if is_stacked:
        rows = [line for side in sides for line in side]
    else:
        room = max([half if comparison.columns else 0, *(display_width(line) for line in sides[0])])
        rows = [f"{padded(left, room)}{_GAP}{right}".rstrip() for left, right in zip_longest(*sides, fillvalue="")]
    counted = f"asked {example.traffic:,.0f} times" if example.traffic.is_integer() else f"traffic {example.traffic:g}"
    times = f", {counted}" if example.traffic != 1 else ""
    same = f"{round(example.overlap * comparison.k)} of {comparison.k} hits the same"
    return "\n".join([f"\n{cut(example.query, width)}", f"({example.row}{times}; {same})", *rows])
