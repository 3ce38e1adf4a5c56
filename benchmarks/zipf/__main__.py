"""What a query log is worth, by set and by how much of the later traffic the log covers.

    python -m benchmarks.zipf --cache sets --out results [--sets docstrings-80 ...] [--seeds 0 1 2]
    python -m benchmarks.zipf --out results --tables > tables.md

Known items: each query seeks one item; a state is judged by the share of the test's traffic that finds its answer
first. A log without taken items orders by `demand`, one with them by `taken`; `auto` is the order and stale mode of the
largest area under the calibration part's traffic. Nothing is downloaded; a file that exists is not measured again. One
core is enough (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.maps import kept_maps
from benchmarks.quality.material import Limits, draw, items_of
from benchmarks.results import main_with_maps
from benchmarks.sets import load_set
from benchmarks.zipf.curves import (
    FIT_EVENTS,
    FRACTIONS,
    Side,
    best_prior,
    best_weight,
    interval,
    published,
    rounded,
    traffic_curve,
)
from benchmarks.zipf.tables import render
from benchmarks.zipf.traffic import VIEW, ask, orders
from fastfill_ray.experiment.heldout import Evidence

COVERAGES = {"50": 0.5, "80": 0.8, "95": 0.95}
SETS = {
    f"{name}-{share}": (name, coverage)
    for name in ("docstrings", "operations")
    for share, coverage in COVERAGES.items()
}
LIMITS = Limits(train=2400, calibration=2000, audit=5000)
ORDERS = ("random", "uncertainty", "expected_gain", "demand", "taken")


def measure(name: str, seed: int, cache: Path, folder: Path) -> dict[str, Any]:
    """Every order, aligned and fused, and what was taken as a prior: see ``render``."""
    data, coverage = SETS[name]
    start = time.process_time()
    built = load_set(data, cache)
    pairs = items_of(built, draw(built, seed, LIMITS))
    maps = kept_maps(pairs, [VIEW.method], None, seed=seed, folder=folder, stream=sys.stderr)
    evidence = Evidence(pairs, None, built.metric, maps, None, seed)
    calibration, audit = (ask(evidence, built, split, coverage) for split in ("calibration", "audit"))
    if abs(audit.covered - coverage) > 0.05:
        raise AssertionError(f"the log covers {audit.covered:.3f} of the test's traffic, {coverage} is meant")
    priorities = [orders(part, calibration.part) for part in (calibration, audit)]

    events = calibration.events(FIT_EVENTS, seed)
    fitting = Side.of(calibration, events, np.ones(len(events)))
    test = Side.tested(audit)
    arms = {arm: test.mean(test.arm(arm)) for arm in ("old/old", "new/new")}
    rows: dict[str, Any] = {}

    def add(mode: str, fit: Side, traced: Side, weight: float, names: tuple[str, ...]) -> None:
        curves = {order: traffic_curve(fit, traced, priorities, order, weight) for order in names}
        for order, curve in curves.items():
            end = float(traced.weights @ curve.states[-1])
            if abs(end - traced.mean(traced.arm("new/new"))) > 1e-9:
                raise AssertionError(f"{order}: a backfill that is through gives {end}, not what new/new gives")
            rows[f"{mode}/{order}"] = {
                "at": [round(float(traced.weights @ found), 4) for found in curve.at],
                "curve": [round(float(traced.weights @ found), 4) for found in curve.states],
                "published": [round(value, 4) for value in published(traced, curve, seed=seed)],
                "area": rounded(interval(curve.area, traced.weights, seed=seed)),
                "above": {
                    other: rounded(interval(curve.area - curves[other].area, traced.weights, seed=seed))
                    for other in ("random", "expected_gain")
                    if other in curves and other != order
                },
            }

    weight = best_weight(fitting)
    modes = {"aligned": 1.0, "fused": weight}
    for mode, share in modes.items():
        add(mode, fitting, test, share, ORDERS)
    comparing = Side.tested(calibration)
    areas = {
        f"{mode}/{order}": float(
            comparing.weights @ traffic_curve(fitting, comparing, (priorities[0], priorities[0]), order, share).area
        )
        for mode, share in modes.items()
        for order in ORDERS
    }
    for auto, left_out in (("auto, nothing taken", "taken"), ("auto", "")):
        best = max((row for row in areas if row.partition("/")[2] != left_out), key=lambda row: areas[row])
        rows[auto] = rows[best] | {"chosen": best}
    strengths = {arm: best_prior(fitting, arm) for arm in arms}
    priors = {
        f"{arm} + prior": test.with_prior(strength).mean(test.with_prior(strength).arm(arm))
        for arm, strength in strengths.items()
    }
    strength = strengths["new/new"]
    add("fused + prior", fitting.with_prior(strength), test.with_prior(strength), weight, ("random", "demand", "taken"))
    return {
        "set": name,
        "seed": seed,
        "description": built.description,
        "items": len(audit.part.items.ids),
        "queries": len(audit.rows),
        "log_events": int(audit.logged.sum()),
        "logged_queries": int((audit.logged > 0).sum()),
        "covered": round(audit.covered, 4),
        "fractions": FRACTIONS,
        "weight": weight,
        "strengths": strengths,
        "arms": {arm: round(value, 4) for arm, value in (arms | priors).items()},
        "rows": rows,
        "seconds": round(time.process_time() - start, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    main_with_maps("benchmarks.zipf", __doc__, arguments, sets=SETS, measure=measure, render=render)


if __name__ == "__main__":
    main()
