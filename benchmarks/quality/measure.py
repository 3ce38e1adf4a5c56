"""One (set, seed): every part of the benchmark, one after another, as one JSON value."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from benchmarks.quality.autos import auto_rows, chosen_forms, winner_of
from benchmarks.quality.curves import audit_curves
from benchmarks.quality.material import MAP, SETS, Limits, Material, prepare
from benchmarks.quality.rows import arms, form_rows, order_rows, paper_rows, published_rows, side_rows
from benchmarks.quality.studies import gallery_size, groups, refit
from fastfill_ray.types import SPLITS

# The studies that one set at one seed is enough for.
SIZE_SETS, REFIT_SETS, STUDY_SEED = ("glyphs",), ("docstrings", "glyphs"), 0
GROUP_SETS = ("glyphs-biased",)
# Of the calibration items only some are sought by one of a set's own queries: take all there are.
JUDGED_CALIBRATION = 2000


def measure(
    name: str,
    seed: int,
    *,
    cache: Path,
    limits: Limits,
    paper: bool = False,
    folder: Path | None = None,
    stream: TextIO = sys.stderr,
) -> dict[str, Any]:
    """Everything about one set at one seed. ``seconds`` are those of the processor, by part.

    Args:
        folder: where trained maps are kept.
    """
    seconds: dict[str, float] = {}

    def timed(part: str, do: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = do()
        seconds[part] = round(time.process_time() - start, 1)
        print(f"{name}, seed {seed}: {part} in {seconds[part]} s", file=stream, flush=True)
        return made

    if SETS[name][1]:
        limits = replace(limits, calibration=JUDGED_CALIBRATION)
    material: Material = timed("prepare", lambda: prepare(name, seed, cache, limits, folder=folder, stream=stream))
    rows = timed("published", lambda: published_rows(material, material.evidence.maps))
    if paper and seed == STUDY_SEED:
        rows += timed("paper", lambda: paper_rows(material))
    rows += timed("orders", lambda: order_rows(material))
    auto, constant = [], {}
    for objective in material.objectives:
        curves = audit_curves(material, objective)
        auto += timed(f"auto by {objective}", lambda curves=curves: auto_rows(material, curves))
        for arm, values in arms(curves).items():
            constant.setdefault(arm, {}).update(values)
    forms = timed("forms", lambda: form_rows(material, chosen_forms(material, auto)))
    side = timed("side", lambda: side_rows(material))
    studies: dict[str, Any] = {}
    if name in SIZE_SETS and seed == STUDY_SEED:
        at = winner_of(auto, material.objectives[0], "label-free", "aligned only")
        studies["gallery_size"] = timed("gallery size", lambda: gallery_size(material, at))
    if name in REFIT_SETS and seed == STUDY_SEED:
        studies["refit"] = timed("refit", lambda: refit(material))
    if name in GROUP_SETS:
        winners = {track: winner_of(auto, MAP, track, "fused or aligned") for track in ("label-free", "labelled")}
        studies["groups"] = timed("groups", lambda: groups(material, winners))
    return {
        "set": name,
        "seed": seed,
        "description": material.built.description,
        "metric": material.metric,
        "limits": asdict(material.limits),
        "items": {split: len(material.rows(split)) for split in SPLITS},
        "queries": {split: len(getattr(material, split).queries.ids) for split in SPLITS[1:]},
        "objectives": [str(objective) for objective in material.objectives],
        "seconds": seconds | {"all": round(sum(seconds.values()), 1)},
        "arms": constant,
        "rows": rows,
        "auto": auto,
        "forms": forms,
        "side": side,
        **studies,
    }
