"""What the report's page shows, as plain values: every decision is made here, the template only writes it down."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from fastfill_ray.log.records import Plan
from fastfill_ray.log.state import State
from fastfill_ray.report.chart import svg
from fastfill_ray.report.choice import choice_words
from fastfill_ray.report.model import (
    METRIC_COLUMNS,
    MeasuredCurve,
    change_note,
    column_note,
    measured_curves,
    objective_curve,
    status,
)
from fastfill_ray.report.prediction import drawn_prediction, prediction_error
from fastfill_ray.report.tables import (
    MetricTable,
    Table,
    areas_table,
    flips_table,
    groups_table,
    predictions_table,
    trials_table,
    versions_table,
)
from fastfill_ray.report.wording import MISSING, RELEVANCE_WORDS, SCOPE_WORDS, metric_name, percent, score


@dataclass(frozen=True)
class Standing:
    """Where the run stands. `fraction` is of the newest version, None before the first; `gain` is of the objective."""

    rows: str
    fraction: str | None
    ended: bool
    stopped: str | None
    serving: int | None
    gain: Gain | None


@dataclass(frozen=True)
class Gain:
    """How far a version is on the way from old/old to new/new."""

    version: int
    metric: str
    value: str
    share: str


@dataclass(frozen=True)
class Figure:
    """One chart with its words."""

    metric: str
    relevance: str
    is_objective: bool
    caption: str
    chart: Markup


@dataclass(frozen=True)
class Page:
    """The whole page of a run that has a plan, section by section; None or empty where there is nothing to show.

    figures: the objective's first. errors: of the predicted shares of the gain, by scope.
    """

    standing: Standing
    figures: tuple[Figure, ...]
    column_note: str
    versions: Table
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


def page_of(state: State, plan: Plan) -> Page:
    """The page of a run's last plan, and of those that it follows."""
    curves, errors = measured_curves(state), prediction_error(state)
    return Page(
        standing=_standing(state, plan),
        figures=tuple(_figure(state, curve, is_objective=curve.name == plan.objective) for curve in curves),
        column_note=column_note(state),
        versions=versions_table(state),
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


def _standing(state: State, plan: Plan) -> Standing:
    versions, best = state.plan_versions, objective_curve(state)
    gain = None
    if best is not None and best.gain_share is not None:
        last = best.points[-1]
        gain = Gain(last.version, metric_name(best.metric), score(last.value), percent(best.gain_share))
    fraction = percent(versions[-1].fraction) if versions else None
    return Standing(f"{plan.rows:,}", fraction, state.ended, state.stopped, state.serving, gain)


def _figure(state: State, curve: MeasuredCurve, *, is_objective: bool) -> Figure:
    words = f"{RELEVANCE_WORDS[curve.relevance]}; {SCOPE_WORDS[curve.scope]}."
    return Figure(
        metric=metric_name(curve.metric),
        relevance=curve.relevance,
        is_objective=is_objective,
        caption=words[0].upper() + words[1:],
        chart=svg(curve, drawn_prediction(state, curve.relevance, curve.metric, curve.scope)),
    )


def _remarks(state: State) -> tuple[str, ...]:
    """Held versions with the gate's full reasons, and the rows that are not where they should be."""
    versions = state.order_versions
    held = (v for v in versions if status(state, v) == "held")
    remarks = [f"Version {version.version} is held: {version.verdict.reason}" for version in held]
    if change := change_note(state):
        remarks.append(change)
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
