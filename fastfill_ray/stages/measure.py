"""Values per query, as means with intervals for the log and as Parquet for comparisons query by query.

Legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from fastfill_ray.config import ObjectiveConfig
from fastfill_ray.core.metrics import METRICS, Floats, summarise
from fastfill_ray.core.records import FileRef, MetricValue
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.tables import get_verified, read_table, table_bytes

PerQuery = dict[tuple[str, str, bool], dict[str, Floats]]
"""{(scope, relevance, calibrated): {metric: (Q,)}}"""


def metric_values(values: PerQuery, depth: Mapping[str, int], seed: int) -> tuple[MetricValue, ...]:
    """Means with intervals of everything in `values`, in a fixed order."""
    return tuple(
        MetricValue.model_validate(
            {
                "scope": scope,
                "relevance": relevance,
                "metric": metric,
                "calibrated": calibrated,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "queries": interval.queries,
                "depth": depth[scope],
            }
        )
        for (scope, relevance, calibrated), metrics in sorted(values.items())
        for metric, interval in summarise(metrics, seed=seed).items()
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


def read_objective(
    files: Files, reference: FileRef, queries: str, scope: str, objective: ObjectiveConfig
) -> Floats | None:
    """The objective per query of a stored version (calibrated, as served); None if it was measured on other queries."""
    table = read_table(get_verified(files, reference), name=reference.path)
    keep = [
        row["queries"] == queries
        and row["scope"] == scope
        and row["relevance"] == objective.relevance
        and row["calibrated"]
        for row in table.select(["queries", "scope", "relevance", "calibrated"]).to_pylist()
    ]
    if not any(keep):
        return None
    return table.column(objective.metric).to_numpy()[np.array(keep)]
