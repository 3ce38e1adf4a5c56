"""One (set, seed): every part of the benchmark, one after another, as one JSON value."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from benchmarks.quality.autos import auto_rows, chosen_forms, winner_of
from benchmarks.quality.material import MAP, Limits, Material, prepare
from benchmarks.quality.rows import arms, authors_rows, form_rows, order_rows, paper_rows, side_rows, told
from benchmarks.quality.studies import gallery_size, groups, refit

# The studies that one set at one seed is enough for.
SIZE_SETS, REFIT_SETS, STUDY_SEED = ("glyphs",), ("docstrings", "glyphs"), 0
GROUP_SETS = ("glyphs-biased",)


def measure(
    name: str, seed: int, cache: Path, limits: Limits, *, paper: bool, stream: TextIO = sys.stderr
) -> dict[str, Any]:
    """Everything about one set at one seed. ``seconds`` are those of the processor, by part."""
    seconds: dict[str, float] = {}

    def timed(part: str, do: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = do()
        seconds[part] = round(time.process_time() - start, 1)
        print(f"{name}, seed {seed}: {part} in {seconds[part]} s", file=stream, flush=True)
        return found

    material: Material = timed("prepare", lambda: prepare(name, seed, cache, limits, stream))
    rows = timed("published", lambda: authors_rows(material, material.trained))
    if paper and seed == STUDY_SEED:
        rows += timed("paper", lambda: paper_rows(material))
    rows += timed("orders", lambda: order_rows(material))
    auto = timed("auto", lambda: auto_rows(material))
    forms = timed("forms", lambda: form_rows(material, chosen_forms(material, auto)))
    side = timed("side", lambda: side_rows(material))
    found: dict[str, Any] = {}
    if name in SIZE_SETS and seed == STUDY_SEED:
        at = winner_of(auto, material.objectives[0], "label-free", "aligned only")
        found["gallery_size"] = timed("gallery size", lambda: gallery_size(material, at))
    if name in REFIT_SETS and seed == STUDY_SEED:
        found["refit"] = timed("refit", lambda: refit(material))
    if name in GROUP_SETS:
        winners = {track: winner_of(auto, MAP, track, "fused or aligned") for track in ("label-free", "labelled")}
        found["groups"] = timed("groups", lambda: groups(material, winners))
    parts = {"train": material.train, "calibration": material.calibration.items, "audit": material.audit.items}
    return {
        "set": name,
        "seed": seed,
        "description": material.built.description,
        "metric": material.metric,
        "limits": asdict(material.limits),
        "items": {part: len(items.ids) for part, items in parts.items()},
        "queries": {
            "calibration": len(material.calibration.asked.new),
            "audit": len(material.audit.asked.new),
        },
        "objectives": [told(objective) for objective in material.objectives],
        "seconds": seconds | {"all": round(sum(seconds.values()), 1)},
        "arms": arms(material.audit.split.scene, seed),
        "rows": rows,
        "auto": auto,
        "forms": forms,
        "side": side,
        **found,
    }
