"""What `auto` makes of each objective: winner, runner-up, and how far it stays behind the best of all that was tried.

Chosen on calibration, reported on audit, by the product's own laboratory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from benchmarks.quality.material import CMC, MAP, OVERLAP, Material, Objective
from benchmarks.quality.rows import show, told
from fastfill_ray.experiment import experiment as laboratory
from fastfill_ray.experiment import search as choice
from fastfill_ray.experiment.candidate import Candidate, kept_views
from fastfill_ray.experiment.curves import KNOTS, Curve, arm
from fastfill_ray.experiment.experiment import Findings, Split, investigate
from fastfill_ray.experiment.results import candidate_json, words
from fastfill_ray.experiment.search import WEIGHTS, Allowed
from fastfill_ray.ordering.policies import LABELLED
from fastfill_ray.retrieval.intervals import mean_interval, paired_difference

MODES = {"fused or aligned": WEIGHTS, "aligned only": (1.0,)}


def tracks_of(objective: Objective) -> tuple[str, ...]:
    """Gallery labels are an order's business only where the label is what is right."""
    return ("label-free", "labelled") if objective in (MAP, CMC) else ("label-free",)


def auto_rows(material: Material) -> list[dict[str, Any]]:
    """`auto` for every objective of the set, by track, with fused stale vectors allowed and without."""
    rows = []
    for objective in material.objectives:
        with shared_trials():
            # The richest first: what it reports, the others are compared with as far as it was open to them too.
            found: dict[tuple[str, str], Findings] = {}
            for track in reversed(tracks_of(objective)):
                for modes in MODES:
                    found[track, modes] = _investigate(material, objective, track, modes)
            curves = {r.candidate: r.curve for findings in found.values() for r in findings.reported}
            rows += [_row(material, objective, *key, findings, curves) for key, findings in found.items()]
    return rows


def allowed(material: Material, track: str, modes: str) -> Allowed:
    """What may be chosen in a track."""
    orders = [p for p in material.policies if track == "labelled" or p not in LABELLED]
    views = list(material.calibration.split.views)
    return Allowed(views, orders, MODES[modes], cautious=kept_views(views))


def _investigate(material: Material, objective: Objective, track: str, modes: str) -> Findings:
    calibration, audit = (_only(part.split, objective[0]) for part in (material.calibration, material.audit))
    open_to = allowed(material, track, modes)
    return investigate(calibration, audit, open_to, *objective, seed=material.seed, everything=True)


def _only(split: Split, relevance: str) -> Split:
    """The split with one relevance: the others need not be ranked."""
    return Split(replace(split.scene, truths={relevance: split.scene.truths[relevance]}), split.views)


def _row(
    material: Material,
    objective: Objective,
    track: str,
    modes: str,
    findings: Findings,
    curves: dict[Candidate, Curve],
) -> dict[str, Any]:
    """One choice. minus_best: its area minus that of the best candidate reported that was open to it, paired."""
    winner, seed, open_to = findings.choice.winner, material.seed, allowed(material, track, modes)
    rivals = {
        candidate: curve
        for candidate, curve in curves.items()
        if candidate.policy in open_to.policies and candidate.weight in open_to.weights
    }
    best = max(rivals, key=lambda candidate: rivals[candidate].area(*objective).value)
    mine = findings.curve(winner)
    behind = mean_interval(mine.area_per_query(*objective) - rivals[best].area_per_query(*objective), seed=seed)
    shown, _ = show(material.calibration.split, material.audit.split, winner, objective, seed)
    row = {
        "track": track,
        "modes": modes,
        "objective": told(objective),
        "name": f"auto, {modes}",
        "winner": words(winner),
        "runner_up": None if findings.choice.runner_up is None else candidate_json(findings.choice.runner_up),
        "margin": None if findings.margin is None else findings.margin._asdict(),
        "trials": len(findings.choice.trials),
        "reported": len(rivals),
        "best": words(best),
        "minus_best": behind._asdict(),
        **shown,
    }
    scene = material.audit.split.scene
    if scene.old is not None:
        before = arm(scene.old, scene)[objective]
        steps = [paired_difference(values, before, seed=seed) for values in mine.values[objective]]
        row["minus_old"] = [step._asdict() for step in steps]
    return row


def winner_of(rows: list[dict[str, Any]], objective: Objective, track: str, modes: str) -> Candidate:
    """The candidate that a row of `auto_rows` tells of."""
    row = next(r for r in rows if (r["objective"], r["track"], r["modes"]) == (told(objective), track, modes))
    return Candidate(row["method"], row["weight"], row["policy"], row["calibration"])


def chosen_forms(material: Material, rows: list[dict[str, Any]]) -> list[tuple[Objective, Candidate]]:
    """Where forms of calibration are compared: the label-free choice among aligned vectors, by objective."""
    wanted = [material.objectives[0], OVERLAP]
    return [(objective, winner_of(rows, objective, "label-free", "aligned only")) for objective in wanted]


@contextmanager
def shared_trials() -> Iterator[None]:
    """Within it, choices by one objective on the same two splits trace what they have in common once.

    What may be chosen differs between tracks, what is measured for a candidate does not.
    """
    traced: dict[Any, Any] = {}
    run, carry = choice.run, laboratory.carry

    def run_once(scene: Any, stale: Any, priority: Any, candidate: Candidate, *objective: str, **how: Any) -> Curve:
        key = (candidate, objective, len(stale), how["points"], tuple(how.get("knots", KNOTS)))
        if key not in traced:
            traced[key] = run(scene, stale, priority, candidate, *objective, **how)
        return traced[key]

    def carry_once(fit_on: Any, show_on: Any, candidate: Candidate, *objective: str, **how: Any) -> Any:
        key = ("carry", candidate, objective, tuple(how["cutoffs"]))
        if key not in traced:
            traced[key] = carry(fit_on, show_on, candidate, *objective, **how)
        return traced[key]

    with patch.object(choice, "run", run_once), patch.object(laboratory, "carry", carry_once):
        yield
