"""Everything that a notebook would plot of a run: what metrics.json and ``--json`` hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastfill_ray.log.state import State
from fastfill_ray.report.decision import decision
from fastfill_ray.report.findings import finding, gains
from fastfill_ray.report.flips import group_gap
from fastfill_ray.report.model import change_of, measured_curves, objective_curve, status
from fastfill_ray.report.prediction import prediction_error, prediction_json


def report_json(state: State) -> dict[str, Any]:
    """Everything a notebook would plot, as plain JSON values.

    Keys: ``finished``, ``stopped`` (why, null if not), ``serving``, ``init``, ``plan`` (without its file references,
    and without arms and prediction, which have keys of their own), ``objective`` (``value`` of the last version,
    ``serving_value`` of the served one, both arms and ``gain_share``), ``versions`` (of the plan and of those that it
    follows, with ``status``, ``finding`` (the gate's verdict as a word), ``gain`` (the objective over that of the
    version before), all ``metrics``, ``flips``, ``segments``, ``index_bytes``, and ``changes`` where the gallery
    changed),
    ``baselines``, ``curves`` (each with its points, both areas and both arms), ``group_gap`` (per scope, relevance and
    metric: the gap between the groups in each version, beside the overall value), ``prediction`` (per version:
    ``predicted``, ``audit`` and ``gallery``, each with value, interval and share of the gain), ``prediction_error``
    (per scope: mean absolute difference of the shares), ``decision`` (``action``, ``version`` to roll back to, and
    sentences: ``words``, ``gained``, ``cost``, ``rest``, empty where nothing is known). Keys are there even when empty:
    null, [] or {}.
    """
    own_keys = {"kind", "units", "templates", "baselines", "baseline_queries", "prediction", "inherited", "known"}
    plan, best, gained = state.plan, objective_curve(state), gains(state)
    return {
        "finished": state.finished,
        "stopped": state.stopped,
        "serving": state.serving,
        "init": None if state.init is None else state.init.model_dump(mode="json", exclude={"kind"}),
        "plan": None if plan is None else plan.model_dump(mode="json", exclude=own_keys),
        "objective": None
        if plan is None
        else {
            "name": plan.objective,
            "scope": best.scope if best else None,
            "value": best.points[-1].value if best else None,
            "serving_value": next((p.value for p in best.points if p.version == state.serving), None) if best else None,
            "old/old": best.old.value if best and best.old else None,
            "new/new": best.new.value if best and best.new else None,
            "gain_share": best.gain_share if best else None,
        },
        "versions": [
            {
                **v.model_dump(mode="json", exclude={"kind", "segments", "query_metrics"}),
                "changes": None if (change := change_of(state, v)) is None else change.model_dump(mode="json"),
                "status": status(state, v),
                "finding": finding(v),
                "gain": gained.get(v.version),
                "segments": v.num_segments,
            }
            for v in state.order_versions
        ],
        "baselines": {}
        if plan is None
        else {arm: [m.model_dump(mode="json") for m in values] for arm, values in plan.baselines.items()},
        "curves": [
            {
                "relevance": c.relevance,
                "metric": c.metric,
                "scope": c.scope,
                "points": [asdict(p) for p in c.points],
                "uncalibrated": [asdict(p) for p in c.uncalibrated],
                "area": c.area,
                "area_uncalibrated": c.area_uncalibrated,
                "old/old": None if c.old is None else c.old.model_dump(mode="json"),
                "new/new": None if c.new is None else c.new.model_dump(mode="json"),
            }
            for c in measured_curves(state)
        ],
        "group_gap": group_gap(state),
        "prediction": prediction_json(state),
        "prediction_error": prediction_error(state),
        "decision": decision(state).as_json(),
    }
