"""What `auto` became and what was tried on the way there, as the rows of tables: from PLAN alone."""

from __future__ import annotations

from fastfill_ray.experiment.results import CandidateResult
from fastfill_ray.log.records import Plan

SHOWN = 8
HEADINGS = ("method", "stale mode", "aligned share", "policy", "calibration", "area", "outcome")


def choice_words(plan: Plan) -> dict[str, str]:
    """{what: what it became and why}; empty where nothing was chosen."""
    if not plan.choices and plan.choice is None:
        return {}
    words = {**plan.choices, "calibration": plan.form}
    relevance = plan.objective.partition("/")[0]
    if plan.fitted_by not in (None, relevance):
        words["chosen and fitted by"] = f"{plan.fitted_by}: too few calibration queries have an answer by {relevance}"
    if plan.choice is not None and (margin := plan.choice.margin) is not None:
        words["margin"] = (
            f"{margin.value:+.4f} ({margin.low:+.4f} to {margin.high:+.4f}) of the area under the curve, over "
            f"{margin.queries} queries of the audit pairs"
        )
    return words


def trial_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The best candidates of the last stage under ``HEADINGS``, best first, at most ``SHOWN``."""
    choice = plan.choice
    if choice is None or not choice.trials:
        return []
    outcomes = {_cells(choice.winner): "chosen"}
    if choice.runner_up is not None:
        outcomes.setdefault(_cells(choice.runner_up), "runner-up")
    last = [trial for trial in choice.trials if trial.stage == choice.trials[0].stage][:SHOWN]
    return [(*_cells(trial), f"{trial.area:.4f}", outcomes.get(_cells(trial), "")) for trial in last]


def _cells(candidate: CandidateResult) -> tuple[str, ...]:
    method = f"{candidate.method}, norms kept" if candidate.norms_kept else candidate.method
    return method, candidate.stale_mode, f"{candidate.weight:g}", candidate.policy, candidate.calibration
