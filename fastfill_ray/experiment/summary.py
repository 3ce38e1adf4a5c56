"""Findings put into typed results for the log, and into plain JSON for simulation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastfill_ray.experiment.candidate import Candidate, Objective
from fastfill_ray.experiment.curves import Curve, last_crossing
from fastfill_ray.experiment.experiment import Findings, Reported
from fastfill_ray.experiment.metric_advice import BetterMetric
from fastfill_ray.experiment.results import CandidateResult, ChoiceResult, MeanValue, TrialResult
from fastfill_ray.experiment.shadow import Measured
from fastfill_ray.retrieval.intervals import Interval, mean_interval
from fastfill_ray.types import F64, Objects, Relevance

_DIGITS = 6
# The way beside its rivals that was chosen.
CHOICE = "the choice"
# Metrics whose curves are also given per group of the queries.
_BY_GROUP = ("cmc@1", "map", "recall@1")


def candidate_result(candidate: Candidate) -> CandidateResult:
    """The record of a candidate."""
    return CandidateResult(**_fields(candidate))


def choice_result(findings: Findings) -> ChoiceResult:
    """The record of a choice, with every trial that led to it; figures are rounded."""
    choice = findings.choice
    return ChoiceResult(
        objective=str(findings.chosen_by),
        winner=candidate_result(choice.winner),
        runner_up=None if choice.runner_up is None else candidate_result(choice.runner_up),
        margin=_mean_value(findings.margin),
        expected=_mean_value(choice.expected),
        trials=tuple(
            TrialResult(
                **_fields(trial.candidate), area=round(trial.area, _DIGITS), stage=trial.stage, queries=trial.queries
            )
            for trial in choice.trials
        ),
    )


def _fields(candidate: Candidate) -> dict[str, Any]:
    return {
        "method": candidate.view.method,
        "norms_kept": candidate.view.norms_kept,
        "stale_mode": candidate.stale_mode,
        "weight": candidate.weight,
        "policy": candidate.policy,
        "calibration": candidate.form,
    }


def _mean_value(interval: Interval | None) -> MeanValue | None:
    if interval is None or not interval.queries:
        return None
    value, low, high = (round(part, _DIGITS) for part in interval[:3])
    return MeanValue(value=value, low=low, high=high, queries=interval.queries)


def arms_json(arms: Mapping[str, Measured], *, seed: int) -> dict[str, Any]:
    """{arm: {relevance/metric: value, low, high, queries}}; a metric that no query has a value of is left out."""
    found: dict[str, Any] = {}
    for arm, values in arms.items():
        means = {f"{r}/{m}": _mean_value(mean_interval(column, seed=seed)) for (r, m), column in values.items()}
        found[arm] = {name: mean.model_dump(mode="json") for name, mean in means.items() if mean is not None}
    return found


def curve_json(
    reported: Reported, arms: Mapping[str, Any] | None, *, groups: Objects | None = None, seed: int
) -> dict[str, Any]:
    """One curve: every relevance and metric, its area M~ with interval, the value at 0 %, the fraction to 95 and 99 %.

    The gain runs from old/old (from the value at 0 % where old/old is not known) to new/new; the fraction to a share of
    it is the last crossing, and null where there is no gain.

    Args:
        arms: of ``arms_json``. groups: (Q,) of the queries.
    """
    curve = reported.curve
    values, by_group = {}, {}
    for relevance, metric in curve.values:
        objective = Objective(relevance, metric)
        mean = curve.mean(objective)
        if np.isnan(mean).any():
            continue
        area = curve.area(objective, seed=seed)
        start = (arms or {}).get("old/old", {}).get(str(objective), {}).get("value", float(mean[0]))
        values[str(objective)] = {
            "curve": _rounded(mean),
            **_area(area),
            "at_0": round(float(mean[0]), _DIGITS),
            "to_95": _crossing(curve.fractions, mean, start, 0.95),
            "to_99": _crossing(curve.fractions, mean, start, 0.99),
        }
        if groups is not None and metric in _BY_GROUP:
            by_group[str(objective)] = _curves_by_group(curve.values[relevance, metric], groups)
    made: dict[str, Any] = _fields(reported.candidate)
    made |= {"fractions": _rounded(curve.fractions), "values": values}
    return made | ({"groups": by_group} if by_group else {})


def _crossing(fractions: F64, mean: F64, start: float, share: float) -> float | None:
    gain = float(mean[-1]) - start
    return round(last_crossing(fractions, mean, start + share * gain), _DIGITS) if gain > 0 else None


def _curves_by_group(values: F64, groups: Objects) -> dict[str, list[float]]:
    """{group: curve} over the group's queries that have an answer."""
    curves = {}
    for group in dict.fromkeys(g for g in groups.tolist() if g is not None):
        of_group = values[:, groups == group]
        answered = of_group[:, ~np.isnan(of_group).all(axis=0)]
        if answered.shape[1]:
            curves[str(group)] = _rounded(answered.mean(axis=1))
    return curves


def findings_json(findings: Findings, *, seed: int) -> dict[str, Any]:
    """The whole experiment: arms, curves, and the choice with runner-up, margin and every trial that led to it."""
    arms = arms_json(findings.arms, seed=seed)
    groups = findings.groups
    return {
        "protocol": None,
        "arms": arms,
        "curves": [curve_json(reported, arms, groups=groups, seed=seed) for reported in findings.reported],
        "choice": choice_result(findings).model_dump(mode="json"),
    }


def rivals_json(rivals: Mapping[str, Curve], findings: Findings, *, seed: int) -> dict[str, Any]:
    """The chosen backfill and every rival of the same queries, by every relevance and metric; CHOICE is the first way.

    `gain` is new/new minus old/old. Of each way: `curve` and area M~, `below_new`, new/new minus its value while
    nothing is embedded, and `behind`, the area of the choice minus its own; differences are paired over the queries.
    """
    chosen, new = findings.curve(findings.choice.winner), findings.arms["new/new"]
    old = findings.arms.get("old/old")
    gain = {} if old is None else {key: mean_interval(new[key] - old[key], seed=seed) for key in new}

    def values(curve: Curve, key: tuple[Relevance, str]) -> dict[str, Any] | None:
        objective, of_way = Objective(*key), curve.values[key]
        if np.isnan(of_way).all():
            return None
        behind = mean_interval(chosen.area_per_query(objective) - curve.area_per_query(objective), seed=seed)
        return {
            "curve": _rounded(curve.mean(objective)),
            **_area(curve.area(objective, seed=seed)),
            "below_new": _json(mean_interval(new[key] - of_way[0], seed=seed)),
            "behind": None if curve is chosen else _json(behind),
        }

    ways = []
    for name, curve in {CHOICE: chosen, **rivals}.items():
        of_way = {str(Objective(*key)): values(curve, key) for key in curve.values}
        ways.append({"name": name, "values": {name: found for name, found in of_way.items() if found is not None}})
    return {
        "objective": str(findings.shown_by),
        "gain": {str(Objective(*key)): _json(interval) for key, interval in gain.items() if interval.queries},
        "ways": ways,
    }


def better_metric_json(better: BetterMetric | None) -> dict[str, Any] | None:
    """A metric under which the new model retrieves better; None without one."""
    return None if better is None else {"metric": better.metric, "gain": _json(better.gain)}


def _json(interval: Interval) -> dict[str, Any] | None:
    value = _mean_value(interval)
    return None if value is None else value.model_dump(mode="json")


def _area(area: Interval) -> dict[str, float]:
    """M~ and its interval."""
    return {name: round(part, _DIGITS) for name, part in zip(("area", "low", "high"), area, strict=False)}


def _rounded(values: F64) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
