"""What a run does next, decided from the log alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfill_ray.config import StopConfig
from fastfill_ray.log.state import State
from fastfill_ray.log.stop import decide_stop

_NO_RULE = StopConfig()


@dataclass(frozen=True)
class Step:
    """What comes next. `wave` is set for "version"."""

    do: Literal["plan", "version", "publish", "stop"]
    wave: int = 0


def next_step(state: State, request: str, *, last_wave: int | None = None, rule: StopConfig = _NO_RULE) -> Step:
    """Decide from the log alone.

    Another request, be it of a changed gallery or of other settings, gets a plan of its own at any time: what is
    embedded is carried over to it. A plan that `rule` stopped goes on as soon as the rule is loosened. A rule that was
    tightened after the newest version ends the run too, but the log does not say so: like `last_wave` it leaves the
    plan unfinished.

    Args:
        request: fingerprint of what this run asks for.
        last_wave: stop after the version of this wave, and not before the plan's first version (-1: after PLAN); None:
            go on to the end.
    """
    plan, versions = state.plan, state.plan_versions
    newest = state.versions[-1] if state.versions else None
    if newest is not None and newest.verdict.publish and newest.version not in state.published:
        return Step("publish")  # also where a driver died between the two records
    if plan is None or plan.request != request:
        return Step("plan")
    wave = state.next_wave
    if (
        wave is None
        or decide_stop(plan, versions, rule, spent_before_s=state.spent_before_s).stop
        or _is_enough(state, last_wave)
    ):
        return Step("stop")
    return Step("version", wave=wave)


def _is_enough(state: State, last_wave: int | None) -> bool:
    """Whether the last plan has what is asked for."""
    if last_wave is None:
        return False
    return last_wave < 0 or (bool(state.plan_versions) and (state.next_wave or 0) > last_wave)
