"""Who wins and who loses: flips per version and figures per group, from the log alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastfill_ray.log.records import FlipValue, MetricValue, Version
from fastfill_ray.log.state import State

AGAINST = ("old/old", "version before")


def flips_of(state: State, version: Version) -> dict[str, FlipValue]:
    """{against: flips} by the objective's relevance and metric, or by CMC@1 where that metric's flips are not counted.

    Those of the published index where they were measured there, else those of the audit items.
    """
    if state.plan is None:
        return {}
    relevance, _, metric = state.plan.objective.partition("/")
    # The first of these that was counted.
    preferred = [(scope, name) for name in (metric, "cmc@1") for scope in ("gallery", "audit")]
    flips: dict[str, FlipValue] = {}
    for against in AGAINST:
        counted = {(f.scope, f.metric): f for f in version.flips if (f.relevance, f.against) == (relevance, against)}
        first = next((counted[place] for place in preferred if place in counted), None)
        if first is not None:
            flips[against] = first
    return flips


def group_metrics(values: Iterable[MetricValue]) -> dict[tuple[str, str, str], dict[str, MetricValue]]:
    """{(scope, relevance, metric): {group: value}}, groups in the order of the log: largest first."""
    groups: dict[tuple[str, str, str], dict[str, MetricValue]] = {}
    for value in values:
        if value.group is not None:
            groups.setdefault((value.scope, value.relevance, value.metric), {})[value.group] = value
    return groups


def group_gap(state: State) -> list[dict[str, Any]]:
    """Per scope, relevance and metric: for each version its overall value and the gap, largest minus smallest group."""
    gaps: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for version in state.order_versions:
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
