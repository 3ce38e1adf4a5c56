"""What a plan holds, as people read it before the waves are paid for: the choice, the prediction, the work."""

from __future__ import annotations

from fastfill_ray.experiment.items import LEAST_ASKING
from fastfill_ray.experiment.results import ChoiceResult
from fastfill_ray.log.records import MetricValue, Plan, Prediction
from fastfill_ray.log.state import State
from fastfill_ray.report.choice import choice_words
from fastfill_ray.report.prediction import Promise, promises
from fastfill_ray.report.rest import (
    arm_of_prediction,
    asked,
    few_asked,
    peak_words,
    predicted_objective,
    predicted_scope,
    predicts_objective,
    prior_words,
    query_map_words,
)
from fastfill_ray.report.text import Column, table_lines, wrapped
from fastfill_ray.report.wording import MISSING, SCOPE_PLACES, metric_name, percent, score_interval
from fastfill_ray.wording import duration


def plan_text(state: State, item_s: float | None, price: float | None = None) -> str:
    """The last plan as lines for people.

    Args:
        item_s: seconds of one actor per item, as measured; None where nothing was.
        price: of an hour of one actor; None where none is given.
    """
    plan = state.plan
    if plan is None:
        return "No plan yet: the run has not got as far as its first commit."
    relevance, _, metric = plan.objective.partition("/")
    first = f"{plan.wave_rows[0]:,} of them {_first_words(plan, ' or ')}"
    title = f"Plan {plan.plan}: {plan.rows:,} items, {first}. Objective: "
    lines = [f"{title}{metric_name(metric)} by {relevance}.", "", *_choice(plan), "", *_versions(state, plan)]
    notes = (peak_words(plan), query_map_words(plan), prior_words(state), _work(plan, item_s, price))
    return "\n".join([*lines, "", *(wrapped(note) for note in notes if note)])


def _choice(plan: Plan) -> list[str]:
    """What is used and why; what was compared with it."""
    words = choice_words(plan)
    share = "" if plan.choice is None or plan.stale_mode == "aligned" else f", {plan.choice.winner.weight:g} aligned"
    used = {
        "alignment.method": ("map", plan.method),
        "serving.stale_mode": ("stale mode", plan.stale_mode + share),
        "policy.name": ("policy", plan.policy),
    }
    lines = [
        f"  {name:<12} {value}{'' if key in words else ' (as the config says)'}" for key, (name, value) in used.items()
    ]
    # The same reason holds for everything that was chosen.
    reasons = dict.fromkeys(words[key].partition(": ")[2] for key in used if key in words)
    notes = [f"Why: {why}." for why in reasons if why]
    if fitted_by := words.get("chosen and fitted by"):
        notes.append(f"Chosen and fitted by {fitted_by}.")
    notes.append(_runner_up(plan.choice))
    if (log := plan.choices.get("queries.log_path")) is not None:
        notes.append(f"Query log: {log}.")
    if (metric := plan.choices.get("new_model.metric")) is not None:
        notes.append(f"Metric: {metric}.")
    if (judged := plan.choices.get("queries.qrels_path")) is not None:
        notes.append(f"Judgements: {judged}.")
    return ["Chosen:", *lines, f"  {'calibration':<12} {plan.form}", *(wrapped(note) for note in notes if note)]


def _runner_up(choice: ChoiceResult | None) -> str:
    """What came second and by how much; empty where nothing was compared."""
    if choice is None or choice.runner_up is None:
        return ""
    second, margin = choice.runner_up, choice.margin
    mode = second.stale_mode if second.stale_mode == "aligned" else f"fused, {second.weight:g} aligned"
    name = f"Runner-up: {second.method}, {mode}, {second.policy}, {second.calibration}."
    if margin is None:
        return name
    meaning = "The interval holds 0: by these pairs both are as good." if margin.low <= 0 <= margin.high else ""
    if margin.high < 0:
        meaning = "The choice was made on the calibration pairs."
    if margin.queries < LEAST_ASKING:
        meaning = "So few queries tell next to nothing."
    lead = f"ahead by {margin.value:+.4f} ({margin.low:+.4f} to {margin.high:+.4f})"
    if margin.value < 0:
        lead = f"behind by {-margin.value:.4f} ({-margin.high:.4f} to {-margin.low:.4f})"
    return (
        f"{name} The choice is {lead} of the area under the curve, over {margin.queries} queries of the audit pairs. "
        f"{meaning}"
    ).rstrip()


def _versions(state: State, plan: Plan) -> list[str]:
    """A row per version: the rows that become new in it, and what is predicted of it; the arms around them."""
    promised = dict(enumerate(promises(state)))
    relevance, _, metric = predicted_objective(plan).partition("/")
    arms = {arm: arm_of_prediction(plan, arm) for arm in ("old/old", "new/new")}
    rows = {
        arm: (arm, *[MISSING] * 3, _interval(value), share)
        for (arm, value), share in zip(arms.items(), (percent(0), percent(1)), strict=True)
        if value is not None
    }
    versions = [_version(plan, number, promised.get(wave)) for number, wave in enumerate(plan.version_waves)]
    table = [row for row in (rows.get("old/old"), *versions, rows.get("new/new")) if row is not None]
    headings = ("version", "wave", "new", "rows", "predicted", "of the gain")
    has_shares = not few_asked(plan) and any(promise.share is not None for promise in promised.values())
    columns = [
        Column(heading, cells, is_left=heading == "version")
        for heading, cells in zip(headings, zip(*table, strict=True), strict=True)
        if has_shares or heading != "of the gain"
    ]
    queries = "" if (count := asked(plan)) is None else f" over {count:,} {'query' if count == 1 else 'queries'}"
    title = (
        f"Predicted {metric_name(metric)} by {relevance}, {SCOPE_PLACES[predicted_scope(plan)]}, with 95 % intervals"
        f"{queries}:"
    )
    return [title, *table_lines(columns), *map(wrapped, _notes_on_prediction(plan, has_shares=has_shares))]


def _notes_on_prediction(plan: Plan, *, has_shares: bool) -> list[str]:
    """What the predicted figures do not tell, and why."""
    if not plan.prediction:
        return []
    notes = []
    if few := few_asked(plan):
        notes.append(f"These figures tell next to nothing: {few}.")
    if not predicts_objective(plan):
        by = plan.objective.partition("/")[0]
        notes.append(f"They are not by {by}: too few of the queries that are held out have an answer by that.")
    ends = predicted_scope(plan) == "audit" or plan.prediction[-1].fraction == 1
    if ends and not has_shares and not few:
        notes.append("There is no share of the gain: that there is a gain is not sure, by these intervals.")
    return notes


def _version(plan: Plan, number: int, promise: Promise | None) -> tuple[str, ...]:
    wave = plan.version_waves[number]
    newest, before = plan.newest_wave(number), plan.newest_wave(number - 1) if number else -1
    share = None if wave == 0 else plan.waves[wave - 1]
    predicted, of_gain = MISSING, MISSING
    if promise is not None:
        share, predicted = promise.prediction.fraction, _interval(promise.prediction)
        of_gain = MISSING if promise.share is None else percent(promise.share)
    first = f" ({_first_words(plan, ', ')})" if newest == 0 else ""
    rows = f"{sum(plan.wave_rows[before + 1 : newest + 1]):,}{first}"
    return str(number), str(wave), MISSING if share is None else percent(share), rows, predicted, of_gain


def _first_words(plan: Plan, between: str) -> str:
    """What is new in version 0."""
    return f"pairs{between}carried" if plan.carried_share else "pairs"


def _interval(value: MetricValue | Prediction) -> str:
    return score_interval(value.value, value.low, value.high)


def _work(plan: Plan, item_s: float | None, price: float | None) -> str:
    """What the waves cost."""
    last = plan.version_waves[-1] + 1
    due = sum(plan.wave_rows[1:last]) - sum(plan.known_rows[1:last])
    if not due:
        return "Nothing is left to embed."
    # Plans of before do not say how many of them are embedded already.
    most = "at most " if plan.known is not None and not plan.known_rows else ""
    if item_s is None:
        return f"To embed: {most}{due:,} items. Nothing was embedded so far that would say how long that takes."
    cost = ""
    if price is not None:
        cost = f" At {price:g} an hour that is {due * item_s / 3600 * price:,.2f}, "
        cost += f"{item_s * 1_000_000 / 3600 * price:,.2f} for a million items."
    hours = f"{due * item_s / 3600:,.2g}" if due * item_s < 36000 else f"{due * item_s / 3600:,.0f}"
    return (
        f"To embed: {most}{due:,} items at {item_s:.2g} s each, as measured at the pairs: {hours} actor-hours "
        f"({duration(due * item_s)} of one actor), without the loading of models and the building of versions.{cost}"
    )
