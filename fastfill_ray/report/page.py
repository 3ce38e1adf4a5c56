"""What the report's page shows, as plain values: every decision is made here, the template only writes it down."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup

from fastfill_ray.log.records import ROLLBACK, Plan
from fastfill_ray.log.state import State
from fastfill_ray.report.chart import WIDE, keys, svg
from fastfill_ray.report.choice import choice_words
from fastfill_ray.report.decision import Decision, decision, price_words
from fastfill_ray.report.model import (
    METRIC_COLUMNS,
    MeasuredCurve,
    change_note,
    column_note,
    measured_curves,
    status,
)
from fastfill_ray.report.prediction import drawn_prediction, prediction_error
from fastfill_ray.report.rest import arm_of_prediction, prior_words
from fastfill_ray.report.tables import (
    MetricTable,
    Table,
    areas_table,
    flips_table,
    groups_table,
    predictions_table,
    trials_table,
    verdicts_table,
    versions_table,
)
from fastfill_ray.report.wording import MISSING, RELEVANCE_WORDS, SCOPE_WORDS, metric_name, percent, score


@dataclass(frozen=True)
class Standing:
    """Where the run stands.

    rows, fraction: items of the newest version and the share that is new; before the first, of the plan, and None.
    stopped: why a rule ended the run, where the decision does not say so. by_hand: whether a person put the version
    there that readers open.
    """

    rows: str
    fraction: str | None
    ended: bool
    stopped: str | None
    serving: int | None
    by_hand: bool


@dataclass(frozen=True)
class NamedLine:
    """A line of a chart, as the key below it names it. `css`: suffix of its class."""

    name: str
    value: str
    css: str


@dataclass(frozen=True)
class Figure:
    """One chart with its words. `wide`: the same chart for a wide page, of the first one only."""

    metric: str
    relevance: str
    is_objective: bool
    caption: str
    small: Markup
    lines: tuple[NamedLine, ...]
    wide: Markup | None


@dataclass(frozen=True)
class Page:
    """The whole page of a run that has a plan, section by section; None or empty where there is nothing to show.

    figures: the objective's first. events: what became of versions. remarks: on the newest version. errors: of the
    predicted shares of the gain, by scope.
    """

    decision: Decision
    standing: Standing
    figures: tuple[Figure, ...]
    column_note: str
    versions: Table | None
    verdicts: Table | None
    events: tuple[str, ...]
    remarks: tuple[str, ...]
    flips: MetricTable | None
    groups: MetricTable | None
    predictions: MetricTable | None
    errors: dict[str, str]
    areas: Table | None
    choice: dict[str, str]
    trials: Table | None
    settings: dict[str, str]
    metric_columns: tuple[str, ...] = tuple(METRIC_COLUMNS)


def page_of(state: State, plan: Plan, price: float | None = None) -> Page:
    """The page of a run's last plan, and of those that it follows.

    Args:
        price: of an hour of one actor; None where none is given.
    """
    curves, errors, made = measured_curves(state), prediction_error(state), decision(state)
    made = replace(made, cost=" ".join(filter(None, [made.cost, price_words(state, price)])))
    return Page(
        decision=made,
        standing=_standing(state, plan, made),
        figures=_figures(state, plan, curves),
        column_note=column_note(state),
        versions=versions_table(state) if state.order_versions else None,
        verdicts=verdicts_table(state),
        events=_events(state),
        remarks=_remarks(state),
        flips=flips_table(state),
        groups=groups_table(state, plan),
        predictions=predictions_table(state),
        errors={scope: percent(error) for scope, error in errors.items() if error is not None},
        areas=areas_table(curves) if curves else None,
        choice=choice_words(plan),
        trials=trials_table(plan),
        settings=_settings(state, plan),
    )


def _standing(state: State, plan: Plan, made: Decision) -> Standing:
    newest = state.order_versions[-1] if state.order_versions else None
    fraction = None if newest is None else percent(newest.fraction)
    rows = plan.rows if newest is None else state.order_plans[newest.plan].rows
    stopped = None if state.stopped is not None and state.stopped in made.words else state.stopped
    by_hand = state.rolled_back_to is not None
    return Standing(f"{rows:,}", fraction, state.ended, stopped, state.serving, by_hand)


def _figures(state: State, plan: Plan, curves: tuple[MeasuredCurve, ...]) -> tuple[Figure, ...]:
    """Of every measured curve; before the first version of what is predicted."""
    if not curves and plan.prediction:
        first = plan.prediction[0]
        old, new = (arm_of_prediction(plan, arm) for arm in ("old/old", "new/new"))
        curves = (MeasuredCurve(first.relevance, first.metric, first.scope, (), (), old, new),)
    figures = []
    for curve in curves:
        predicted = drawn_prediction(state, curve.relevance, curve.metric, curve.scope)
        words = f"{RELEVANCE_WORDS[curve.relevance]}; {SCOPE_WORDS[curve.scope]}."
        figure = Figure(
            metric=metric_name(curve.metric),
            relevance=curve.relevance,
            is_objective=curve.name == plan.objective,
            caption=words[0].upper() + words[1:],
            small=svg(curve, predicted),
            lines=tuple(NamedLine(key.name, score(key.value), key.css) for key in keys(curve, predicted)),
            wide=svg(curve, predicted, WIDE) if curve is curves[0] else None,
        )
        figures.append(figure)
    return tuple(figures)


def _events(state: State) -> tuple[str, ...]:
    """Held versions with the gate's full reasons, changes of the gallery, and what people published."""
    held = (v for v in state.order_versions if status(state, v) == "held")
    events = [f"Version {version.version} is held: {version.verdict.reason}" for version in held]
    if change := change_note(state):
        events.append(change)
    by_hand = zip(state.published, state.publish_reasons, strict=False)
    events += [
        f"Somebody published version {number} by hand (fastfill-ray rollback)."
        for number, reason in by_hand
        if reason == ROLLBACK
    ]
    return tuple(events)


def _remarks(state: State) -> tuple[str, ...]:
    """The rows that are not where they should be; what a prior of what users took would bring."""
    versions, remarks = state.order_versions, [words for words in (prior_words(state),) if words]
    if versions and versions[-1].quarantined:
        remarks.append(
            f"{versions[-1].quarantined:,} items are quarantined: embedding them failed, so they stay stale. "
            "The receipts name each with its reason."
        )
    if versions and versions[-1].deleted:
        remarks.append(
            f"{versions[-1].deleted:,} items are deleted, as of version {versions[-1].version}: no search returns "
            "them. fastfill-ray undelete brings them back."
        )
    if versions and versions[-1].absent:
        remarks.append(
            f"{versions[-1].absent:,} items are absent: they have no old vector, or none that can be used, so they "
            "cannot be found until they are embedded."
        )
    return tuple(remarks)


def _settings(state: State, plan: Plan) -> dict[str, str]:
    relevance, _, metric = plan.objective.partition("/")
    stale = plan.stale_factory if plan.stale_factory != plan.factory else "the same"
    fused = f": {plan.fusion.old**2:.3g} x old + {plan.fusion.new**2:.3g} x aligned score" if plan.fusion else ""
    settings = {
        "objective": f"{metric_name(metric)} by {relevance}",
        "alignment": plan.method,
        "policy": plan.policy,
        "stale mode": plan.stale_mode + fused,
        "waves": ", ".join(percent(wave) for wave in plan.waves) + " of the items",
        "pairs": f"{plan.wave_rows[0]:,} items, wave 0" if plan.wave_rows else MISSING,
        "index": f"{plan.factory}; for stale items {stale}; up to {plan.segment_rows:,} rows a segment",
    }
    if state.init is not None:
        old, new = state.init.old_dim, state.init.new_dim
        settings["spaces"] = f"old {old} dimensions, new {new} dimensions, metric {state.init.metric}"
    follows = {} if plan.follows is None else {"follows": f"plan {plan.follows}: its pairs, map, order and calibration"}
    return {**settings, **follows, "plan": plan.plan}
