"""What `auto` makes of each objective: winner, runner-up, and how far it stays behind the best of the finalists.

Chosen on calibration by the product's own search, reported on audit.
"""

from __future__ import annotations

from typing import Any

from benchmarks.quality.curves import AuditCurves
from benchmarks.quality.material import OVERLAP, Material
from fastfill_ray.experiment.candidate import WEIGHTS, Allowed, Candidate, MapView, Objective
from fastfill_ray.experiment.search import Choice, choose
from fastfill_ray.retrieval.intervals import mean_interval, paired_difference

MODES = {"fused or aligned": WEIGHTS, "aligned only": (1.0,)}


def auto_rows(material: Material, curves: AuditCurves) -> list[dict[str, Any]]:
    """`auto` for an objective, by track, with fused stale vectors allowed and without."""
    tracks, choices = material.tracks(curves.objective), {}
    for track, policies in tracks.items():
        for modes, weights in MODES.items():
            allowed = Allowed(material.evidence.views, policies, weights)
            choice = choose(material.calibration, allowed, curves.objective, material.seed)
            choices[track, modes] = allowed, choice
    # Each is compared with the finalists of all as far as they were open to it.
    tried = [candidate for _, choice in choices.values() for candidate in finalists(choice)]
    rows = []
    for (track, modes), (allowed, choice) in choices.items():
        rivals = [c for c in tried if c.policy in allowed.policies and c.weight in allowed.weights]
        rows.append({"track": track, "modes": modes, **_row(curves, choice, list(dict.fromkeys(rivals)))})
        rows[-1]["name"] = f"auto, {modes}"
    return rows


def finalists(choice: Choice) -> list[Candidate]:
    """The candidates of the last stage, the winner among them."""
    last = choice.trials[0].stage
    return list(dict.fromkeys(trial.candidate for trial in choice.trials if trial.stage == last))


def best_of(curves: AuditCurves, rivals: list[Candidate]) -> Candidate:
    """The candidate with the largest area on the audit part: known afterwards only."""
    return max(rivals, key=lambda candidate: curves.curve(candidate).area(curves.objective).value)


def _row(curves: AuditCurves, choice: Choice, rivals: list[Candidate]) -> dict[str, Any]:
    """One choice. minus_best: its area minus that of the best rival, paired; minus_old: its curve minus old/old."""
    winner, seed = choice.winner, curves.seed
    best, margin = best_of(curves, rivals), None
    if choice.runner_up is not None:
        margin = mean_interval(curves.areas(winner) - curves.areas(choice.runner_up), seed=seed)._asdict()
    row = {
        "objective": str(curves.objective),
        "winner": str(winner),
        "runner_up": None if choice.runner_up is None else str(choice.runner_up),
        "margin": margin,
        "expected": choice.expected._asdict(),
        "trials": len(choice.trials),
        "rivals": len(rivals),
        "best": str(best),
        "minus_best": mean_interval(curves.areas(winner) - curves.areas(best), seed=seed)._asdict(),
        **curves.figures(winner),
    }
    if "old/old" in curves.arms:
        values = curves.curve(winner).values[curves.objective.relevance, curves.objective.metric]
        before = curves.constant("old/old")
        row["minus_old"] = [paired_difference(now, before, seed=seed)._asdict() for now in values]
    return row


def winner_of(rows: list[dict[str, Any]], objective: Objective, track: str, modes: str) -> Candidate:
    """The candidate of one of the rows of `auto_rows`."""
    wanted = (str(objective), track, modes)
    row = next(r for r in rows if (r["objective"], r["track"], r["modes"]) == wanted)
    return Candidate(MapView(row["method"], row["norms_kept"]), row["weight"], row["policy"], row["calibration"])


def chosen_forms(material: Material, rows: list[dict[str, Any]]) -> dict[Objective, Candidate]:
    """Where forms of calibration are compared: the label-free choice among aligned vectors, by objective."""
    wanted = (material.objectives[0], OVERLAP)
    return {objective: winner_of(rows, objective, "label-free", "aligned only") for objective in wanted}
