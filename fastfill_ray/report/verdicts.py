"""What the gate said of a version, and what became of it, in a few words each."""

from __future__ import annotations

from typing import Literal

from fastfill_ray.log.records import Version
from fastfill_ray.log.state import State
from fastfill_ray.report.model import objective_curve, status
from fastfill_ray.report.wording import MISSING

# better, no worse: than what was published, by the whole interval, up to serving.max_regression. undecided: the
# interval reaches both sides. not compared: nothing was there to compare with. change: the gate is not asked.
Judgement = Literal["better", "no worse", "undecided", "held", "not compared", "change"]


def judgement(version: Version) -> Judgement:
    """The gate's verdict as a word."""
    verdict = version.verdict
    if version.cause == "change":
        return "change"
    if not verdict.publish:
        return "held"
    if verdict.low is None:
        return "not compared"
    if verdict.reason.startswith("undecided"):
        return "undecided"
    return "better" if verdict.low > 0 else "no worse"


def outcome(state: State, version: Version) -> str:
    """The verdict, and what became of the version where that is more than the verdict says."""
    word, now = judgement(version), status(state, version)
    if state.serving == version.version:
        return f"{word}, served"
    if now == "held" or (now == "published" and word != "held"):
        return word
    return f"{word}, {now}"


def gate_difference(version: Version) -> str:
    """What the gate looked at: the difference with its 95 % interval."""
    verdict = version.verdict
    if verdict.difference is None:
        return MISSING
    if verdict.low is None or verdict.high is None:
        return f"{verdict.difference:+.3f}"
    return f"{verdict.difference:+.3f} [{verdict.low:+.3f}, {verdict.high:+.3f}]"


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
