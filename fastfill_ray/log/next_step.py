"""What a run does next, decided from the log alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfill_ray.config import StopConfig
from fastfill_ray.errors import PlanMismatch
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

    A plan that `rule` stopped goes on as soon as the rule is loosened, and another request gets a plan of its own. A
    rule that was tightened after the newest version ends the run too, but the log does not say so: like `last_wave` it
    leaves the plan unfinished.

    Args:
        request: fingerprint of what this run asks for.
        last_wave: stop after the version of this wave (-1: after PLAN); None: go on to the end.

    Raises:
        PlanMismatch: the root holds an unfinished plan for another request.
    """
    plan, versions = state.plan, state.plan_versions
    if versions and versions[-1].verdict.publish and versions[-1].version not in state.published:
        return Step("publish")  # also where a driver died between the two records
    if plan is None or (plan.request != request and state.ended):
        return Step("plan")
    if plan.request != request:
        raise PlanMismatch(f"plan {plan.plan} was made for another request and is not finished")
    if (
        state.finished
        or decide_stop(plan, versions, rule).stop
        or len(versions) > (len(plan.waves) if last_wave is None else last_wave)
    ):
        return Step("stop")
    return Step("version", wave=len(versions))
