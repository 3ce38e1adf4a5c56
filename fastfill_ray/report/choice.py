"""What `auto` became and what was tried on the way there, as the rows of tables: from PLAN alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastfill_ray.log.records import Plan
from fastfill_ray.report.model import MISSING

LAST_STAGE = "calibration"
SHOWN = 8
HEADINGS = ("method", "stale mode", "aligned share", "policy", "calibration", "area", "outcome")


def choice_words(plan: Plan) -> dict[str, str]:
    """{what: what it became and why}; empty where nothing was chosen."""
    if not plan.choices and not plan.choice:
        return {}
    words = {**plan.choices, "calibration": plan.form}
    relevance = plan.objective.partition("/")[0]
    if plan.fitted_by not in (None, relevance):
        words["chosen and fitted by"] = f"{plan.fitted_by}: too few calibration queries have an answer by {relevance}"
    margin = plan.choice.get("margin")
    if isinstance(margin, Mapping) and "queries" in margin:
        words["margin"] = (
            f"{_signed(margin.get('value'))} ({_signed(margin.get('low'))} to {_signed(margin.get('high'))}) of the "
            f"area under the curve, over {margin['queries']} queries of the audit pairs"
        )
    return words


def trial_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The best candidates of the last stage under ``HEADINGS``, best first, at most ``SHOWN``."""
    trials = plan.choice.get("trials") or []
    last = [trial for trial in trials if trial.get("stage") == LAST_STAGE][:SHOWN]
    outcomes = {
        _cells(plan.choice.get(key) or {}): words for key, words in (("runner_up", "runner-up"), ("winner", "chosen"))
    }
    return [(*_cells(trial), _number(trial.get("area"), ".4f"), outcomes.get(_cells(trial), "")) for trial in last]


def _cells(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("method", "stale_mode", "weight", "policy", "calibration")
    return tuple(_number(candidate.get(name), "g") for name in names)


def _signed(value: object) -> str:
    return _number(value, "+.4f")


def _number(value: object, form: str) -> str:
    """Numbers as `form` says, everything else as text: a record's `choice` is free-form."""
    if value is None:
        return MISSING
    return format(value, form) if isinstance(value, int | float) else str(value)
