"""What to do now: go on, stop, roll back. One sentence, and what it rests on, from the log alone.

The sentence is the same at the top of the report, in `status` and at the end of a run. It looks at the objective alone,
as the gate does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from fastfill_ray.log.records import MetricValue, Plan, Prediction, Version
from fastfill_ray.log.state import State
from fastfill_ray.log.stop import embed_seconds_per_row
from fastfill_ray.report.findings import against, difference, finding, held_against, loss
from fastfill_ray.report.flips import flips_of
from fastfill_ray.report.model import MeasuredCurve, objective_curve, status
from fastfill_ray.report.rest import (
    Rest,
    arm_of_prediction,
    asked,
    few_asked,
    objective_name,
    predicted_name,
    predicted_scope,
    predicts_objective,
    rest_of,
)
from fastfill_ray.report.wording import SCOPE_PLACES, change, metric_name, percent, score, score_interval
from fastfill_ray.wording import duration

_HOUR_S = 3600
Action = Literal["wait", "go on", "stop", "roll back", "done", "unknown"]


@dataclass(frozen=True)
class Answer:
    """One sentence, and what it comes to. version: to roll back to."""

    action: Action
    words: str
    version: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do now, and what that rests on.

    gained, cost, rest: what was gained and against what, what it cost, what the rest would bring; a sentence or two
    each, empty where nothing is known.
    """

    answer: Answer
    gained: str = ""
    cost: str = ""
    rest: str = ""

    @property
    def words(self) -> str:
        """The sentence."""
        return self.answer.words

    def as_json(self) -> dict[str, str | int | None]:
        return {**asdict(self.answer), "gained": self.gained, "cost": self.cost, "rest": self.rest}


def decision(state: State) -> Decision:
    """Any state gives one, from an empty log to a finished run."""
    plan = state.plan
    if plan is None:
        return Decision(Answer("unknown", "Run the backfill first: there is no plan yet, so nothing can be decided."))
    rest = rest_of(state, plan)
    rest_words = "" if rest is None else rest.in_full()
    if not state.order_versions:
        served = "" if state.serving is None else f"Version {state.serving}, of an earlier order, is served meanwhile."
        return Decision(_before_first_version(state, plan), gained=served, rest=rest_words)
    curve = objective_curve(state)
    gained = "" if curve is None else _gained(state, curve)
    return Decision(_answer(state, plan, curve, rest), gained, _cost(state), rest_words)


def _answer(state: State, plan: Plan, curve: MeasuredCurve | None, rest: Rest | None) -> Answer:
    """The first of these that applies."""
    newest = state.order_versions[-1]
    if status(state, newest) == "not published":
        return Answer("go on", f"Go on: version {newest.version} is made, and the next start publishes it.")
    if (worse := _worse_than_before(state, plan)) is not None:
        return worse
    if state.rolled_back_to not in (None, newest.version):
        return _after_rollback(state, newest)
    if curve is None:
        return Answer("unknown", f"Nothing can be decided: {objective_name(plan)} was not measured on any version.")
    if status(state, newest) == "held":
        return _held(state, newest, rest, curve)
    if state.finished:
        return Answer("done", _done(state, plan, curve, newest))
    return _on_what_is_left(state, plan, rest)


def _before_first_version(state: State, plan: Plan) -> Answer:
    """There is a plan, and no version in its order: only what was predicted, and the arms."""
    name, promised, where = predicted_name(plan), plan.prediction, SCOPE_PLACES[predicted_scope(plan)]
    old, new = arm_of_prediction(plan, "old/old"), arm_of_prediction(plan, "new/new")
    if few := few_asked(plan):
        nothing = "what is predicted tells next to nothing. Each version is measured when it is made"
        return Answer("wait", f"Make version {len(state.versions)} and decide then: {few}, so that {nothing}.")
    ends: list[Prediction | MetricValue] = [*promised, *([] if new is None else [new])]
    if old is not None and ends and max(end.value for end in ends) <= old.value:
        best, highest = max(ends, key=lambda end: end.value), max(end.high for end in ends)
        had = f"the old system has {score(old.value)}"
        if highest <= old.value:
            best_words = f"no version is expected to have more than {name} {score(best.value)}, {had}"
            return Answer("stop", f"Stop here, there is nothing to gain: {where} {best_words}.")
        return Answer("wait", _undecided_before(state, plan, f"{score_interval(best.value, best.low, highest)}, {had}"))
    may_be_held = old is not None and bool(promised) and promised[0].high < old.value
    held = ", so that it may be held" if may_be_held else ""
    known = [] if old is None else [f"the old system has {score(old.value)}{held}"]
    if promised:
        first, last = (score_interval(p.value, p.low, p.high) for p in (promised[0], promised[-1]))
        known.insert(0, f"{where} it is predicted to have {name} {first}")
        if len(promised) > 1:
            known.append(f"the last version is predicted to have {last}")
    elif new is not None:
        known.append(f"the full new model has {name} {score(new.value)}")
    why = ", ".join(known) if known else "nothing is predicted or measured yet"
    return Answer("wait", f"Make version {len(state.versions)} and decide then: {why}.")


def _undecided_before(state: State, plan: Plan, values: str) -> str:
    """Where the interval of the best version that is predicted reaches both sides of the old system."""
    queries = "the queries" if (count := asked(plan)) is None else f"{count:,} queries"
    return (
        f"Make version {len(state.versions)} and decide then: from these pairs and {queries} it cannot be told whether "
        f"there is a gain. {SCOPE_PLACES[predicted_scope(plan)].capitalize()} the best version is predicted to have "
        f"{predicted_name(plan)} {values}. Each version is measured when it is made; more queries, or more pairs, "
        "would tell before."
    )


def _worse_than_before(state: State, plan: Plan) -> Answer | None:
    """To roll back, where what is served is worse than what was served before, by the paired interval.

    The gate lets such a version pass within `serving.max_regression`, and `rollback` passes the gate by. Only within
    one gallery: a version of another one would bring back what is gone.
    """
    served = None if state.serving is None else state.version(state.serving)
    if served is None or served.version in state.expired or finding(served) != "worse":
        return None
    galleries = {p.plan: p.ids_digest for p in state.plans}
    best = served
    while finding(best) == "worse" and (before := _version_before(state, best)) is not None:
        if galleries[before.plan] != galleries[served.plan]:
            break
        best = before
    if best is served:
        return None
    by_hand = ", unless somebody published this one for a reason" if state.rolled_back_to == served.version else ""
    worse = f"version {served.version}, which is served, is worse than {against(state, served)}{_by(plan, served)}"
    in_turn = "" if held_against(state, served) == best.version else ", and that one is worse than others before it"
    return Answer("roll back", f"Roll back to version {best.version}{by_hand}: {worse}{in_turn}.", best.version)


def _version_before(state: State, version: Version) -> Version | None:
    """What the gate held it against, if that can be published again."""
    before = held_against(state, version)
    return None if before is None or before in state.expired else state.version(before)


def _after_rollback(state: State, newest: Version) -> Answer:
    """A person put an older version in front of users: the log does not know why."""
    back = state.rolled_back_to
    goes_on = "" if state.ended else f"; the next start goes on and publishes what is not worse than version {back}"
    words = {
        "better": f"is better than {against(state, newest)}, {difference(newest)}",
        "worse": f"is worse than {against(state, newest)}, {difference(newest)}",
        "undecided": f"is neither better nor worse than {against(state, newest)}, {difference(newest)}",
    }.get(finding(newest), "is newer")
    again = f"`fastfill-ray rollback ROOT --to {newest.version}` publishes that one again"
    why = f"version {newest.version} {words}; {again}"
    return Answer("stop", f"Stop until it is clear why somebody rolled back to version {back}: {why}{goes_on}.")


def _held(state: State, newest: Version, rest: Rest | None, curve: MeasuredCurve) -> Answer:
    """The newest version is worse than what is served."""
    plan = state.order_plans[newest.plan]
    stays, than = (
        "the old system" if number is None else f"version {number}"
        for number in (state.serving, held_against(state, newest))
    )
    why = f"version {newest.version} is held, because it is worse than {than}{_by(plan, newest)}"
    if state.stopped is not None:
        return Answer("stop", f"Stop here and keep {stays}, as the config's rule says: {state.stopped}; {why}.")
    if state.finished:
        return Answer("stop", f"Stop here and keep {stays}: {_peak(state, curve)}{why}, and it is the last one.")
    if rest is None or rest.outlook is None:
        return Answer("go on", f"Go on: {why}, and what is left is not predicted.")
    left = rest.in_brief(rest.outlook)
    # What is left has to make up for the loss, too.
    lost = (newest.verdict.difference or 0.0) if predicts_objective(plan) else 0.0
    if rest.outlook.is_little or rest.outlook.best + lost <= 0:
        return Answer("stop", f"Stop here and keep {stays}: {why}, and {left}.")
    return Answer("go on", f"Go on: {why}, but {left}.")


def _peak(state: State, curve: MeasuredCurve) -> str:
    """What the served version brought, where that is more than all items new bring; "" where it is not."""
    served = next((point for point in curve.points if point.version == state.serving), None)
    old, last = curve.old, curve.points[-1]
    if served is None or old is None or last.fraction < 1 or not old.value < last.value < served.value:
        return ""
    bend = _bend(curve)
    words = f"{metric_name(curve.metric)} rose from {score(old.value)} to {score(served.value)}"
    return f"{words}, and {bend.removeprefix('; ')} of embedding all; " if bend else f"{words}; "


def _done(state: State, plan: Plan, curve: MeasuredCurve, newest: Version) -> str:
    if newest.fraction == 1:
        reached = "every item is re-embedded"
    elif plan.waves[-1] == 1:
        reached = f"all but {plan.rows - newest.new_rows:,} items are re-embedded"
    else:
        reached = f"the plan ends with {percent(newest.fraction)} of the items re-embedded"
    name, value = metric_name(curve.metric), curve.points[-1].value
    work = f", for {duration(sum(version.seconds for version in state.order_versions))} of work"
    if curve.old is None:
        return f"Done: {reached}; {name} is {score(value)}{work}."
    old = score(curve.old.value)
    if value <= curve.old.value:
        return f"Done, but without a gain: {reached}; {name} is {score(value)}, the old system had {old}{work}."
    return f"Done: {reached}; {name} rose from {old} with the old system to {score(value)}{work}{_bend(curve)}."


def _bend(curve: MeasuredCurve) -> str:
    """What share of the items brought which share of the gain, where the curve bends up most; "" where it does not."""
    old, last = curve.old, curve.points[-1]
    if old is None or last.value <= old.value:
        return ""
    shares = {point: (point.value - old.value) / (last.value - old.value) for point in curve.points[:-1]}
    point = max(shares, key=lambda each: shares[each] - each.fraction / last.fraction, default=None)
    if point is None or shares[point] <= point.fraction / last.fraction:
        return ""
    return f"; the first {percent(point.fraction)} of the items brought {percent(shares[point])} of the gain"


def _on_what_is_left(state: State, plan: Plan, rest: Rest | None) -> Answer:
    """The newest version is served, or an equal of it, and there are waves to come."""
    outlook = None if rest is None else rest.outlook
    left = "what is left is not predicted" if rest is None or outlook is None else rest.in_brief(outlook)
    if state.stopped is not None:
        return Answer("stop", f"Stop here, as the config's rule says: {state.stopped}; {left}.")
    if plan.changes is not None and plan.changes.items and not state.plan_versions:
        brings_in = f"the next version brings in the {plan.changes.items:,} items of the gallery that differ"
        return Answer("go on", f"Go on: {brings_in}" + ("." if rest is None else f"; {left}."))
    if outlook is None or not outlook.is_little:
        return Answer("go on", f"Go on: {left}.")
    newest = state.order_versions[-1]
    if newest.cause == "wave" and outlook.is_beaten_by(newest.verdict.low):
        brought = f"version {newest.version} brought more than was predicted of it, {difference(newest)}"
        return Answer("go on", f"Go on: {brought}, though {left}.")
    if outlook.best <= 0:
        return Answer("stop", f"Stop here, the curve has peaked: {left}.")
    return Answer("stop", f"Stop here: {left}, only {percent(outlook.share or 0.0)} of the whole gain.")


def _by(plan: Plan, version: Version) -> str:
    """By how much a version is worse."""
    return f" by {loss(version)} of {objective_name(plan)}" if loss(version) else f" by {objective_name(plan)}"


def _gained(state: State, curve: MeasuredCurve) -> str:
    """What users have now, against what they had before."""
    if state.serving is None:
        return "Nothing yet: no version is published, users have the old system."
    name, version = metric_name(curve.metric), state.version(state.serving)
    point = next((p for p in curve.points if p.version == state.serving), None)
    if point is None or version is None:
        return f"Version {state.serving} is served; its {name} was not measured with the others here."
    has = f"Version {point.version}, which is served, has {name} {score_interval(point.value, point.low, point.high)}"
    old, new = curve.old, curve.new
    if old is None:
        return f"{has}. The old system was not measured."
    words = f"{has}, the old system {score_interval(old.value, old.low, old.high)}: {change(point.value - old.value)}"
    if new is not None and new.value > old.value:
        words += f", {percent((point.value - old.value) / (new.value - old.value))} of the way to the full new model"
    flips = flips_of(state, version).get("old/old")
    if flips is not None:
        words += f". Of the queries {percent(flips.pfr)} are better off than before, {percent(flips.nfr)} worse"
    return f"{words}."


def price_words(state: State, price: float | None) -> str:
    """What the embedding of the last plan's versions cost; "" where nothing was embedded, or no price is given.

    Args:
        price: of an hour of one actor.
    """
    if price is None or state.plan is None:
        return ""
    versions = state.plan_versions
    if not (item_s := embed_seconds_per_row(state.plan, versions)):
        return ""
    hours = sum(version.embed_seconds for version in versions) / _HOUR_S
    million = item_s * 1_000_000 / _HOUR_S
    return (
        f"At {price:g} an hour of one actor the embedding comes to {hours * price:,.2f}, {million * price:,.2f} for a "
        "million items."
    )


def _cost(state: State) -> str:
    total, embedding = (sum(getattr(v, name) for v in state.order_versions) for name in ("seconds", "embed_seconds"))
    part = f", {duration(embedding)} of it embedding" if embedding else ""
    return f"{duration(total)} of work so far{part}; training and choosing are not counted."
