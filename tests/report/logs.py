"""States of a log as the tests of the report need them: finished, with flips, with groups, with a choice."""

from __future__ import annotations

from collections.abc import Sequence

from fastfill_ray.log.records import ROLLBACK, FileRef, FlipValue, Init, MetricValue, Plan, Segment, Verdict, Version
from fastfill_ray.log.state import State

FRACTIONS = (0.05, 0.125, 0.25, 0.5, 1.0)
ITEMS = 6012


def metric(relevance: str, name: str, value: float, *, scope: str = "gallery", calibrated: bool = True) -> MetricValue:
    return MetricValue.model_validate(
        {
            "scope": scope,
            "relevance": relevance,
            "metric": name,
            "calibrated": calibrated,
            "value": value,
            "low": value - 0.02,
            "high": value + 0.02,
            "queries": 1000,
            "depth": 10,
        }
    )


def arm(start: float) -> tuple[MetricValue, ...]:
    names = (("label", "cmc@1"), ("label", "map"), ("qrels", "recall@1"), ("qrels", "recall@10"))
    return tuple(metric(r, m, start + 0.03 * i) for i, (r, m) in enumerate(names))


def flip(against: str, nfr: float, pfr: float, *, name: str = "map", scope: str = "gallery") -> FlipValue:
    return FlipValue.model_validate(
        {
            "scope": scope,
            "relevance": "label",
            "metric": name,
            "against": against,
            "nfr": nfr,
            "nfr_low": nfr - 0.01,
            "nfr_high": nfr + 0.01,
            "pfr": pfr,
            "pfr_low": pfr - 0.02,
            "pfr_high": pfr + 0.02,
            "mean_gain": 0.25,
            "mean_loss": 0.125,
            "queries": 1000,
        }
    )


def better() -> Verdict:
    return Verdict(publish=True, reason="+0.0300 [+0.0100, +0.0500]", difference=0.03, low=0.01, high=0.05)


def worse(reason: str) -> Verdict:
    return Verdict(publish=False, reason=reason, difference=-0.03, low=-0.05, high=-0.01)


def version(number: int, fraction: float, *, held: str = "", metrics: Sequence[MetricValue] | None = None) -> Version:
    gain = 0.4 + 0.2 * fraction**0.4
    if metrics is None:
        metrics = (
            *arm(gain),
            metric("label", "map", gain + 0.03 - 0.05 * (1 - fraction), calibrated=False),
            metric("new_model", "recall@10", 0.5 + fraction / 2, scope="audit"),
        )
    blob = FileRef(path=f"index/v{number}", size=1000, sha256="0" * 64)
    segment = Segment(
        bucket=0, wave=0, state="new", space="new", dim=384, rows=ITEMS, ids_digest="", index=blob, ids=blob
    )
    return Version(
        version=number,
        plan="ab12",
        wave=number,
        segments=blob,
        num_segments=1,
        index_bytes=sum(file.size for file in segment.files),
        stale_rows=0,
        rows=ITEMS,
        new_rows=round(fraction * ITEMS),
        quarantined=3 if number else 0,
        absent=0,
        fraction=fraction,
        ids_digest="",
        metrics=tuple(metrics),
        query_metrics=None,
        verdict=Verdict(
            publish=not held, reason=held or "no worse than the version before", difference=-0.03 if held else None
        ),
        seconds=12.5 + number,
        final=fraction == 1.0,
    )


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "plan": "ab12",
        "request": "r",
        "settings": {},
        "ids_digest": "0",
        "snapshot": "s",
        "pairs": "p",
        "alignment": "a",
        "scores": "c",
        "method": "fastfill",
        "policy": "uncertainty",
        "stale_mode": "aligned",
        "waves": FRACTIONS,
        "thresholds": (5, 4, 3, 2, 0),
        "version_waves": (0, 1, 2, 3, 4, 5),
        "wave_rows": (301, 451, 751, 1503, 3006),
        "rows": ITEMS,
        "unusable_rows": 0,
        "factory": "Flat",
        "stale_factory": "Flat",
        "segment_rows": 1_000_000,
        "units": {"path": "scores/units", "size": 1, "sha256": "0"},
        "templates": {},
        "objective": "label/map",
        "baselines": {"old/old": arm(0.35), "new/new": arm(0.6)},
        "baseline_queries": None,
        "choices": {"alignment": "fastfill: mAP 0.512 at 0 % against 0.498 for ridge"},
    }
    return Plan.model_validate({**fields, **changes})


INIT = Init(id_type="string", metric="cosine", old_dim=64, new_dim=384, old_space="o", new_space="n")


def finished() -> State:
    """Five versions, the second one held, the last one served."""
    held = "its mAP is lower than version 0's by 0.030 (0.010 to 0.050)"
    versions = tuple(version(i, f, held=held if i == 1 else "") for i, f in enumerate(FRACTIONS))
    return State(
        next_seq=13, init=INIT, epoch=1, plans=(plan(),), versions=versions, published=(0, 2, 3, 4),
        publish_reasons=("gate",) * 4, served_before=(None, 0, 0, 2, 3),
    )  # fmt: skip


def judged(state: State) -> State:
    """The same with an interval in every verdict."""
    verdicts = [better() if v.verdict.publish else worse(v.verdict.reason) for v in state.versions]
    versions = [v.model_copy(update={"verdict": r}) for v, r in zip(state.versions, verdicts, strict=True)]
    return state.model_copy(update={"versions": tuple(versions)})


def flipped() -> State:
    """The finished state, with flips in each version: of CMC@1 as well, and on the audit items."""
    noise = (flip("old/old", 0.9, 0.9, name="cmc@1"), flip("old/old", 0.8, 0.8, scope="audit"))
    made = []
    for v in finished().versions:
        before = (flip("version before", 0.04, 0.1),) if v.version else ()
        made.append(v.model_copy(update={"flips": (*noise, flip("old/old", 0.05 + v.version / 100, 0.3), *before)}))
    return finished().model_copy(update={"versions": tuple(made)})


def grouped(groups: dict[str, float]) -> State:
    """Two versions whose groups lie `groups` away from the overall value, and the arms."""

    def with_groups(values: Sequence[MetricValue]) -> tuple[MetricValue, ...]:
        overall = [m for m in values if m.metric == "map" and m.calibrated]
        beside = (
            m.model_copy(update={"group": name, "value": m.value + by, "queries": 10})
            for name, by in groups.items()
            for m in overall
        )
        return (*values, *beside)

    versions = (version(0, 0.1), version(1, 1.0))
    arms = {"old/old": with_groups(arm(0.35)), "new/new": with_groups(arm(0.6))}
    return State(
        plans=(plan(baselines=arms),),
        versions=tuple(v.model_copy(update={"metrics": with_groups(v.metrics)}) for v in versions),
    )


def candidate(method: str, area: float, stage: str = "calibration", weight: float = 1.0) -> dict[str, object]:
    fields = {"method": method, "stale_mode": "aligned" if weight == 1 else "fused", "weight": weight}
    return {**fields, "policy": "expected_gain", "calibration": "offset", "area": area, "stage": stage, "queries": 400}


def predicted(**changes: object) -> State:
    """The finished state with what a run chose and promised: 0.43 to 0.63 of mAP on the audit items, 0.36 to 0.66."""

    def on_audit(value: float) -> MetricValue:
        return metric("label", "map", value, scope="audit")

    trials = [candidate("kernel", 0.6 - i / 100, weight=0.8 if i % 2 else 1) for i in range(10)]
    promise = [
        {"fraction": f, "relevance": "label", "metric": "map", "value": v, "low": v - 0.05, "high": v + 0.05}
        for f, v in zip(FRACTIONS, (0.43, 0.48, 0.53, 0.58, 0.63), strict=True)
    ]
    fields: dict[str, object] = {
        "baselines": {"old/old": (*arm(0.35), on_audit(0.36)), "new/new": (*arm(0.6), on_audit(0.66))},
        "choices": {"alignment.method": "kernel: best label/map", "runner-up": "kernel, fused 0.8; ahead by +0.0100"},
        "choice": {
            "objective": "label/map",
            "winner": {k: v for k, v in trials[0].items() if k not in ("area", "stage", "queries")},
            "runner_up": {k: v for k, v in trials[1].items() if k not in ("area", "stage", "queries")},
            "margin": {"value": 0.01, "low": -0.002, "high": 0.022, "queries": 450},
            "trials": [*trials, candidate("ridge", 0.9, stage="map")],
        },
        "prediction": promise,
        "form": "scale_offset",
    }
    versions = (
        v.model_copy(update={"metrics": (*v.metrics, on_audit(0.46 + v.version / 20))}) for v in finished().versions
    )
    return finished().model_copy(update={"plans": (plan(**{**fields, **changes}),), "versions": tuple(versions)})


def promised(values: tuple[float, ...] = (0.43, 0.48, 0.53, 0.58, 0.63), **changes: object) -> Plan:
    """Version 0 and four waves, predicted on the audit items, where old/old has 0.36 and new/new 0.66."""
    planned = predicted(version_waves=(0, 1, 2, 3, 4), **changes).plans[0]
    promised = [p.model_copy(update={"value": v}) for p, v in zip(planned.prediction, values, strict=False)]
    return planned.model_copy(update={"prediction": tuple(promised)})


def running(made: int, of: Plan | None = None, *, verdict: Verdict | None = None, **changes: object) -> State:
    """So many versions made, each after the other and each published, but for a last one that `verdict` holds."""
    versions = [v.model_copy(update={"verdict": better(), "embed_seconds": 10.0}) for v in predicted().versions[:made]]
    if verdict is not None:
        versions[-1] = versions[-1].model_copy(update={"verdict": verdict})
    published = tuple(v.version for v in versions if v.verdict.publish)
    fields = {
        "init": INIT, "plans": (of or promised(),), "versions": tuple(versions), "published": published,
        "publish_reasons": ("gate",) * len(published), "served_before": (None, *range(made - 1)),
    }  # fmt: skip
    return State.model_validate({**fields, **changes})


def rolled_back(state: State, to: int) -> State:
    reasons = (*state.publish_reasons, ROLLBACK)
    return state.model_copy(update={"published": (*state.published, to), "publish_reasons": reasons})


def living() -> State:
    """The gallery changed after the third version of five, and once more after the last one.

    Versions 0 to 2 are of the plan; 3 to 5 of one that follows it: a change, and the two waves that were left; 6 is a
    night's change, of which all is new.
    """
    moved = {"added": 30, "changed": 20, "removed": 11}
    night = {"added": 1, "changed": 1_000, "removed": 0}
    follows = plan(
        plan="cd34", follows="ab12", base=2, version_waves=(2, 3, 4), changes=moved, baselines={"old/old": arm(0.3)}
    )
    nightly = plan(plan="ef56", follows="ab12", base=5, version_waves=(5,), changes=night)

    def change(number: int, fraction: float, of: str) -> Version:
        reason = "follows the gallery: some items differ"
        verdict = Verdict(publish=True, reason=reason)
        fields = {"plan": of, "cause": "change", "verdict": verdict, "wave": 2, "final": fraction == 1.0}
        return version(number, fraction).model_copy(update=fields)

    waves = (
        version(number, fraction).model_copy(update={"plan": "cd34", "wave": wave, "final": fraction == 1.0})
        for number, fraction, wave in ((4, 0.5, 3), (5, 1.0, 4))
    )
    first = tuple(version(number, fraction) for number, fraction in enumerate(FRACTIONS[:3]))
    made = (*first, change(3, 0.24, "cd34"), *waves, change(6, 1.0, "ef56"))
    return State(
        next_seq=20, init=INIT, epoch=1, plans=(plan(), follows, nightly), versions=made, published=tuple(range(7)),
        publish_reasons=("gate",) * 7, served_before=(None, *range(6)),
    )  # fmt: skip
