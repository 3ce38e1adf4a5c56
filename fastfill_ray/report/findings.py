"""What the gate found of a version, in words: against what it was held, and by how much it differs."""

from __future__ import annotations

from typing import Literal

from fastfill_ray.log.records import Version
from fastfill_ray.log.state import State
from fastfill_ray.report.model import objective_curve, status
from fastfill_ray.report.wording import MISSING, change_interval, score

Finding = Literal["better", "worse", "undecided", "not compared", "follows the gallery"]


def finding(version: Version) -> Finding:
    """By the paired 95 % interval of the objective's difference: undecided where it reaches both sides of 0."""
    verdict = version.verdict
    if version.cause == "change":
        return "follows the gallery"
    if not verdict.publish or (verdict.high is not None and verdict.high < 0):
        return "worse"
    if verdict.difference is None or verdict.low is None:
        return "not compared"
    return "better" if verdict.low > 0 else "undecided"


def against(state: State, version: Version) -> str:
    """What the gate held it against: old/old for a version that was made before anything was served."""
    if finding(version) in ("not compared", "follows the gallery"):
        return MISSING
    before = held_against(state, version)
    return "old/old" if before is None else f"version {before}"


def held_against(state: State, version: Version) -> int | None:
    """The version that was served when this one was judged; None if none was."""
    return next(iter(state.served_before[version.version : version.version + 1]), None)


def outcome(state: State, version: Version) -> str:
    """The finding in a word or two, and what became of the version where that is more than the finding says."""
    now = status(state, version)
    found = "change" if version.cause == "change" else finding(version)
    if now == "held":
        return "held"
    if state.serving == version.version:
        return f"{found}, served"
    return found if now == "published" and version.verdict.publish else f"{found}, {now}"


def difference(version: Version) -> str:
    """The objective's difference with its paired interval, in figures."""
    verdict = version.verdict
    if verdict.difference is None or version.cause == "change":
        return MISSING
    return change_interval(verdict.difference, verdict.low, verdict.high)


def loss(version: Version) -> str:
    """By how much a worse version is worse, as a positive figure with its interval; empty where it is not known."""
    verdict = version.verdict
    if verdict.difference is None:
        return ""
    if verdict.low is None or verdict.high is None:
        return score(-verdict.difference)
    return f"{score(-verdict.difference)} ({score(-verdict.high)} to {score(-verdict.low)})"


def gains(state: State) -> dict[int, float]:
    """{version: the objective over that of the version before; of the first one over old/old}.

    Only where both are known, and not across a change of the gallery.
    """
    curve = objective_curve(state)
    if curve is None:
        return {}
    value_of = {point.version: point.value for point in curve.points}
    before = None if curve.old is None else curve.old.value
    found = {}
    for version in state.order_versions:
        now = value_of.get(version.version)
        if now is not None and before is not None and version.cause == "wave":
            found[version.version] = now - before
        before = now
    return found
