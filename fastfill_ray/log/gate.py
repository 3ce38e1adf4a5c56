"""Publish or hold: a version that serves users worse than what they have is not published."""

from __future__ import annotations

from fastfill_ray.log.records import Verdict
from fastfill_ray.retrieval.intervals import paired_difference
from fastfill_ray.types import F64


def judge(now: F64, before: F64 | None, *, against: str, max_regression: float, seed: int = 0) -> Verdict:
    """The gate.

    Args:
        now: (Q,) the objective per query on this version, NaN where a query has no relevant item.
        before: (Q,) the same on what is published (for the first version: on old/old); None where that is not known.
        against: what `before` is, for the reason.
        max_regression: a loss of the mean up to this is accepted.

    Returns:
        Held iff the paired 95 % interval of now - before lies wholly below -max_regression. An interval that reaches
        both sides decides nothing; that is said, and the version published.
    """
    if before is None:
        return Verdict(publish=True, reason=f"{against} is not known, nothing to compare with")
    difference = paired_difference(now, before, seed=seed)
    if difference.queries == 0:
        return Verdict(publish=True, reason=f"no query has a value both here and on {against}")
    figures = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] against {against}"
    known = {"difference": difference.value, "low": difference.low, "high": difference.high}
    if difference.high < -max_regression:
        return Verdict(publish=False, reason=f"{figures}, worse than {max_regression:.4f} allowed", **known)
    if difference.low < -max_regression:
        return Verdict(publish=True, reason=f"undecided: {figures}", **known)
    return Verdict(publish=True, reason=figures, **known)
