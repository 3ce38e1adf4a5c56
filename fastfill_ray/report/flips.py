"""Who wins and who loses: flips per version and figures per group, from the log alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastfill_ray.log.records import FlipValue, MetricValue, Version
from fastfill_ray.log.state import State

AGAINST = ("old/old", "version before")


def flips_of(state: State, version: Version) -> dict[str, FlipValue]:
    """{against: flips} of the objective's relevance and metric, of CMC@1 where flips of that metric are not counted.

    In the scope of the published index where it was measured there, else on the audit items.
    """
    if state.plan is None:
        return {}
    relevance, _, metric = state.plan.objective.partition("/")
    found: dict[str, FlipValue] = {}
    for against in AGAINST:
        mine = {(f.scope, f.metric): f for f in version.flips if (f.relevance, f.against) == (relevance, against)}
        places = [(scope, name) for name in (metric, "cmc@1") for scope in ("gallery", "audit")]
        value = next((mine[place] for place in places if place in mine), None)
        if value is not None:
            found[against] = value
    return found


def flips_note(state: State) -> str:
    """One line on the newest version's flips; empty where none are known."""
    versions = state.plan_versions
    found = flips_of(state, versions[-1]) if versions else {}
    if not found:
        return ""
    parts = [f"against {against} {100 * f.nfr:.1f} % worse, {100 * f.pfr:.1f} % better" for against, f in found.items()]
    first = next(iter(found.values()))
    name = f"{first.metric} by {first.relevance} ({first.scope})"
    return f"Queries of version {versions[-1].version}, {name}: {'; '.join(parts)}."


def group_metrics(values: Iterable[MetricValue]) -> dict[tuple[str, str, str], dict[str, MetricValue]]:
    """{(scope, relevance, metric): {group: value}}, groups in the order of the log: largest first."""
    found: dict[tuple[str, str, str], dict[str, MetricValue]] = {}
    for value in values:
        if value.group is not None:
            found.setdefault((value.scope, value.relevance, value.metric), {})[value.group] = value
    return found


def group_gap(state: State) -> list[dict[str, Any]]:
    """Per scope, relevance and metric: for each version its overall value and the gap, largest minus smallest group."""
    gaps: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for version in state.plan_versions:
        overall: dict[tuple[str, str, str], float] = {
            (m.scope, m.relevance, m.metric): m.value for m in version.metrics if m.group is None and m.calibrated
        }
        for place, groups in group_metrics(version.metrics).items():
            best = max(groups, key=lambda name: groups[name].value)
            worst = min(groups, key=lambda name: groups[name].value)
            gaps.setdefault(place, []).append(
                {
                    "version": version.version,
                    "overall": overall.get(place),
                    "gap": groups[best].value - groups[worst].value,
                    "best": best,
                    "worst": worst,
                }
            )
    return [
        {"scope": scope, "relevance": relevance, "metric": metric, "versions": rows}
        for (scope, relevance, metric), rows in gaps.items()
    ]
