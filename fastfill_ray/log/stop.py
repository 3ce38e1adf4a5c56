"""When the rest of a backfill is not worth its price: decided after each version, from the log and the rule alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastfill_ray.config import StopConfig
from fastfill_ray.log.records import MetricValue, Plan, Version

_HOUR_S = 3600.0


class StopDecision(NamedTuple):
    """Whether the run ends here, and why or why not; `why` is empty where there is nothing to decide_stop."""

    stop: bool
    why: str


def decide_stop(
    plan: Plan, versions: Sequence[Version], rule: StopConfig, *, spent_before_s: float = 0.0
) -> StopDecision:
    """Whether the run ends after the newest version; a rule that is met is enough.

    Never right after the gallery has changed: what changed is embedded first.

    `target_gain`: the objective on the audit items has covered this share of the way from old/old to new/new; the way
    starts at version 0 where old/old is not known. A version that the gate holds has reached nothing.

    `budget_hours`: the work time of the plan's versions has used the budget up, or the next wave would: its rows times
    the embedding time per row so far, and as much for building and measuring as the last wave took.

    Args:
        versions: the plan's, in wave order.
        spent_before_s: work time of the plans that this one follows.
    """
    if not versions or versions[-1].final or versions[-1].cause == "change":
        return StopDecision(False, "")
    reasons = []
    for decision in (
        _gain(plan, versions, rule.target_gain),
        _budget(plan, versions, rule.budget_hours, spent_before_s),
    ):
        if decision.stop:
            return decision
        reasons.append(decision.why)
    return StopDecision(False, "; ".join(why for why in reasons if why))


def _gain(plan: Plan, versions: Sequence[Version], target: float | None) -> StopDecision:
    if target is None:
        return StopDecision(False, "")
    old, new = (_objective(plan, plan.baselines.get(arm, ())) for arm in ("old/old", "new/new"))
    first, now = _objective(plan, versions[0].metrics), _objective(plan, versions[-1].metrics)
    start, name = (old, "old/old") if old is not None else (first, "version 0")
    if start is None or new is None or now is None:
        return StopDecision(
            False, f"stop.target_gain cannot be applied: {plan.objective} was not measured on the audit items"
        )
    if new <= start:
        return StopDecision(
            False, f"there is no gain to reach: {plan.objective} is {new:.3f} on new/new, {start:.3f} on {name}"
        )
    share = (now - start) / (new - start)
    why = f"{share:.1%} of the gain from {name} to new/new is reached, stop.target_gain is {target:.1%}"
    if not versions[-1].verdict.publish:
        return StopDecision(False, f"version {versions[-1].version} is held and counts for no gain")
    return StopDecision(share >= target, why)


def _budget(plan: Plan, versions: Sequence[Version], budget: float | None, spent_before_s: float) -> StopDecision:
    if budget is None:
        return StopDecision(False, "")
    spent = spent_before_s + sum(version.seconds for version in versions)
    if spent >= budget * _HOUR_S:
        return StopDecision(True, f"{_hours(spent)} are spent, stop.budget_hours is {budget:g}")
    newest, per_row = versions[-1], embed_seconds_per_row(plan, versions)
    # Version 0 builds the whole gallery's index, which says nothing about a wave.
    built = newest.seconds - newest.embed_seconds if newest.wave > 0 else 0.0
    wave = plan.version_waves[len(versions)]
    after = spent + sum(plan.wave_rows[newest.wave + 1 : wave + 1]) * per_row + built
    why = f"wave {wave} would bring {_hours(spent)} to {_hours(after)}, stop.budget_hours is {budget:g}"
    return StopDecision(after > budget * _HOUR_S, why)


def embed_seconds_per_row(plan: Plan, versions: Sequence[Version]) -> float:
    """Work time of one row that the plan's versions embedded; 0 where they embedded none."""
    if not versions:
        return 0.0
    # What was new before the plan was not embedded for it.
    known = 0 if plan.known is None else versions[0].new_rows
    rows = versions[-1].new_rows + versions[-1].quarantined - known
    return sum(version.embed_seconds for version in versions) / max(rows, 1)


def _hours(seconds: float) -> str:
    return f"{seconds / _HOUR_S:.3g} hours"


def _objective(plan: Plan, metrics: Iterable[MetricValue]) -> float | None:
    """The objective's mean on the audit items, as served."""
    wanted = ("audit", *plan.objective.split("/"), True, None)
    found = (m.value for m in metrics if (m.scope, m.relevance, m.metric, m.calibrated, m.group) == wanted)
    return next(found, None)
