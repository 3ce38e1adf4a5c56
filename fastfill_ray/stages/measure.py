"""Values per query: as means, per group and as flips for the log, as Parquet for comparisons query by query.

Legend: Q queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from fastfill_ray.config import ObjectiveConfig
from fastfill_ray.log.records import FileRef, FlipValue, MetricValue
from fastfill_ray.retrieval.flips import Flips, flips
from fastfill_ray.retrieval.intervals import Interval, summarise
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.refs import get_verified
from fastfill_ray.types import F64

PerQuery = dict[tuple[str, str, bool], dict[str, F64]]
"""{(scope, relevance, calibrated): {metric: (Q,)}}"""


# Metrics of which flips are counted, and, with the objective's own, those that are given per group.
FLIP_METRICS = GROUP_METRICS = ("cmc@1", "recall@1", "map")
# Groups beyond this many, the smallest, have no figures of their own.
_MAX_GROUPS = 20


def metric_values(values: PerQuery, depth: Mapping[str, int], seed: int) -> tuple[MetricValue, ...]:
    """Means with intervals of everything in `values`, in a fixed order."""
    return tuple(
        _metric_value(scope, relevance, metric, interval, depth[scope], calibrated=calibrated)
        for (scope, relevance, calibrated), metrics in sorted(values.items())
        for metric, interval in summarise(metrics, seed=seed).items()
    )


def group_values(
    values: PerQuery, depth: Mapping[str, int], seed: int, groups: np.ndarray | None, metric: str
) -> tuple[MetricValue, ...]:
    """The same per group, largest group first: of ``GROUP_METRICS`` and `metric`, calibrated, for the 20 largest.

    Args:
        groups: (Q,) the group of each query, None in it where a query has none; None if no query has one.
    """
    if groups is None:
        return ()
    names = np.array([None if group is None else str(group) for group in groups.tolist()], dtype=object)
    sizes = Counter(name for name in names.tolist() if name is not None)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:_MAX_GROUPS]
    wanted = [name for name in METRICS if name in {*GROUP_METRICS, metric}]
    found = []
    for group in largest:
        mine = names == group
        for (scope, relevance, calibrated), metrics in sorted(values.items()):
            if calibrated:
                means = summarise({name: metrics[name][mine] for name in wanted}, seed=seed)
                found += [_metric_value(scope, relevance, name, means[name], depth[scope], group) for name in means]
    return tuple(found)


def _metric_value(
    scope: str,
    relevance: str,
    metric: str,
    interval: Interval,
    depth: int,
    group: str | None = None,
    *,
    calibrated: bool = True,
) -> MetricValue:
    return MetricValue.model_validate(
        {
            "scope": scope,
            "relevance": relevance,
            "metric": metric,
            "group": group,
            "calibrated": calibrated,
            **interval._asdict(),
            "depth": depth,
        }
    )


def flip_values(now: PerQuery, before: Mapping[str, PerQuery], seed: int) -> tuple[FlipValue, ...]:
    """Flips of ``FLIP_METRICS``, calibrated, in every scope and relevance that both sides have.

    Args:
        before: {"old/old" or "version before": its values}, of the same queries.
    """
    found = []
    for against, values in before.items():
        for scope, relevance, calibrated in sorted(now.keys() & values.keys()):
            if not calibrated:
                continue
            key = scope, relevance, calibrated
            for metric in FLIP_METRICS:
                counted = flips(now[key][metric], values[key][metric], seed=seed)
                if counted.nfr.queries:
                    found.append(_flip_value(scope, relevance, metric, against, counted))
    return tuple(found)


def _flip_value(scope: str, relevance: str, metric: str, against: str, counted: Flips) -> FlipValue:
    return FlipValue.model_validate(
        {
            "scope": scope,
            "relevance": relevance,
            "metric": metric,
            "against": against,
            "nfr": counted.nfr.value,
            "nfr_low": counted.nfr.low,
            "nfr_high": counted.nfr.high,
            "pfr": counted.pfr.value,
            "pfr_low": counted.pfr.low,
            "pfr_high": counted.pfr.high,
            "mean_gain": counted.mean_gain,
            "mean_loss": counted.mean_loss,
            "queries": counted.nfr.queries,
        }
    )


def query_table(values: PerQuery, queries: str) -> bytes:
    """Per-query metrics as Parquet, so that a later version can be held against this one query by query."""
    columns: dict[str, list[object]] = {name: [] for name in ("queries", "scope", "relevance", "calibrated", *METRICS)}
    for (scope, relevance, calibrated), metrics in sorted(values.items()):
        count = len(metrics[METRICS[0]])
        columns["queries"] += [queries] * count
        columns["scope"] += [scope] * count
        columns["relevance"] += [relevance] * count
        columns["calibrated"] += [calibrated] * count
        for metric in METRICS:
            columns[metric] += metrics[metric].tolist()
    return table_bytes(pa.table(columns))


def read_values(files: Files, reference: FileRef, queries: str) -> PerQuery:
    """What ``query_table`` stored, empty if it was measured on other queries.

    Args:
        queries: fingerprint of the queries that are asked now.
    """
    table = read_table(get_verified(files, reference), name=reference.path)
    rows: dict[tuple[str, str, bool], list[int]] = {}
    for i, row in enumerate(table.select(["queries", "scope", "relevance", "calibrated"]).to_pylist()):
        if row["queries"] == queries:
            rows.setdefault((row["scope"], row["relevance"], row["calibrated"]), []).append(i)
    columns = {metric: table.column(metric).to_numpy() for metric in METRICS}
    return {key: {metric: columns[metric][mine] for metric in METRICS} for key, mine in rows.items()}


def read_objective(
    files: Files, reference: FileRef, queries: str, scope: str, objective: ObjectiveConfig
) -> F64 | None:
    """The objective per query of a stored version (calibrated, as served); None if it was measured on other queries."""
    found = read_values(files, reference, queries).get((scope, objective.relevance, True))
    return None if found is None else found[objective.metric]
