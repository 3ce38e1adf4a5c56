"""What an experiment says: typed results that the log keeps of a choice, and the plain JSON of simulation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from fastfill_ray.experiment.candidate import Candidate
from fastfill_ray.experiment.curves import arm, last_crossing
from fastfill_ray.experiment.experiment import Findings, Reported
from fastfill_ray.experiment.shadow import Scene
from fastfill_ray.retrieval.calibration import Form
from fastfill_ray.retrieval.intervals import mean_interval
from fastfill_ray.types import F64, Model

_DIGITS = 6


class MeanValue(Model):
    """A mean over `queries` queries with its bootstrap 95 % interval [low, high]."""

    value: float
    low: float
    high: float
    queries: int


class CandidateResult(Model):
    """One way to run a backfill, as the log keeps it."""

    method: str
    norms_kept: bool = Field(default=False, description="aligned vectors keep the norms that the map gives them")
    stale_mode: Literal["aligned", "fused"]
    weight: float = Field(description="the aligned score's share of a stale item's score; 1 in stale mode aligned")
    policy: str
    calibration: Form


class TrialResult(CandidateResult):
    """A candidate that was tried. Areas compare within one stage only."""

    area: float = Field(description="mean of the objective along a whole backfill of the calibration pairs")
    stage: str = Field(description="the stage of the choice that it was tried in")
    queries: int = Field(default=0, description="that the area is a mean over; 0: not recorded")


class ChoiceResult(Model):
    """What was chosen, what came second, by how much, and everything that was tried."""

    objective: str = Field(description="relevance/metric that chose")
    winner: CandidateResult
    runner_up: CandidateResult | None = None
    margin: MeanValue | None = Field(
        default=None, description="area of the winner minus that of the runner-up, paired over the audit queries"
    )
    expected: MeanValue | None = Field(default=None, description="area that the choice expects of the winner")
    trials: tuple[TrialResult, ...] = Field(default=(), description="the last stage first, best first within a stage")


def candidate_json(candidate: Candidate) -> dict[str, Any]:
    """method, stale_mode, weight of the aligned score, policy, calibration."""
    return {
        "method": candidate.method,
        "stale_mode": candidate.stale_mode,
        "weight": candidate.weight,
        "policy": candidate.policy,
        "calibration": candidate.form,
    }


def words(candidate: Candidate) -> str:
    """One line for people: `kernel, fused 0.8, expected_gain, scale_offset`."""
    mode = "aligned" if candidate.weight == 1 else f"fused {candidate.weight:g}"
    return f"{candidate.method}, {mode}, {candidate.policy}, {candidate.form}"


def arms_json(scene: Scene, *, seed: int) -> dict[str, Any]:
    """{old/old and new/new: {relevance/metric: value, low, high, queries}}; old/old where it can be measured."""
    states = {"new/new": scene.new} | ({} if scene.old is None else {"old/old": scene.old})
    return {name: _means(arm(scores, scene), seed) for name, scores in states.items()}


def _means(values: Mapping[tuple[str, str], F64], seed: int) -> dict[str, Any]:
    means = {key: mean_interval(column, seed=seed) for key, column in values.items()}
    return {
        f"{relevance}/{metric}": {name: _plain(part) for name, part in mean._asdict().items()}
        for (relevance, metric), mean in means.items()
        if mean.queries
    }


def curve_json(reported: Reported, scene: Scene, arms: Mapping[str, Any] | None, *, seed: int) -> dict[str, Any]:
    """One curve: every relevance and metric, its area M~ with interval, the value at 0 %, the fraction to 95 and 99 %.

    The gain runs from old/old (from the value at 0 % where old/old is not known) to new/new; the fraction to a share of
    it is the last crossing, and null where there is no gain.
    """
    curve = reported.curve
    values, groups = {}, {}
    for relevance, metric in curve.values:
        mean = curve.mean(relevance, metric)
        if np.isnan(mean).any():
            continue
        name = f"{relevance}/{metric}"
        area = curve.area(relevance, metric, seed=seed)
        base = float(mean[0])
        if arms is not None and "old/old" in arms and name in arms["old/old"]:
            base = arms["old/old"][name]["value"]
        gain = float(mean[-1]) - base
        values[name] = {
            "curve": [_plain(value) for value in mean],
            "area": _plain(area.value),
            "low": _plain(area.low),
            "high": _plain(area.high),
            "at_0": _plain(mean[0]),
            "to_95": _plain(last_crossing(curve.fractions, mean, base + 0.95 * gain)) if gain > 0 else None,
            "to_99": _plain(last_crossing(curve.fractions, mean, base + 0.99 * gain)) if gain > 0 else None,
        }
        if scene.groups is not None and metric in ("cmc@1", "map", "recall@1"):
            groups[name] = _by_group(curve.values[relevance, metric], scene.groups)
    told: dict[str, Any] = candidate_json(reported.candidate)
    told |= {"fractions": [_plain(fraction) for fraction in curve.fractions], "values": values}
    return told | ({"groups": groups} if groups else {})


def _by_group(values: F64, groups: Any) -> dict[str, list[float]]:
    """{group: curve} over the group's queries that have an answer."""
    found = {}
    for group in dict.fromkeys(g for g in groups.tolist() if g is not None):
        mine = values[:, groups == group]
        mine = mine[:, ~np.isnan(mine).all(axis=0)]
        if mine.shape[1]:
            found[str(group)] = [_plain(value) for value in mine.mean(axis=1)]
    return found


def findings_json(findings: Findings, scene: Scene, relevance: str, metric: str, *, seed: int) -> dict[str, Any]:
    """The whole experiment: arms, curves, the choice with runner-up and margin, and every trial that led to it."""
    arms = arms_json(scene, seed=seed)
    choice, margin = findings.choice, findings.margin
    return {
        "protocol": None,
        "objective": f"{relevance}/{metric}",
        "arms": arms,
        "curves": [curve_json(reported, scene, arms, seed=seed) for reported in findings.reported],
        "choice": {
            "winner": candidate_json(choice.winner),
            "runner_up": None if choice.runner_up is None else candidate_json(choice.runner_up),
            "margin": None if margin is None else {name: _plain(part) for name, part in margin._asdict().items()},
            "trials": [
                {**candidate_json(trial.candidate), "area": _plain(trial.area), "stage": trial.stage}
                for trial in choice.trials
            ],
        },
    }


def _plain(value: Any) -> Any:
    """A number that JSON can hold, rounded."""
    if isinstance(value, int | np.integer):
        return int(value)
    return None if not np.isfinite(value) else round(float(value), _DIGITS)
