"""Values per query: what is said of groups and flips equals a loop over the queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.config import ObjectiveConfig
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.stages.measure import (
    PerQuery,
    flip_values,
    group_values,
    metric_values,
    query_table,
    read_objective,
    read_values,
)
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.refs import put_file

DEPTH = {"audit": 7, "gallery": 9}


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def measured(queries: int, seed: int = 0) -> PerQuery:
    """Two scopes, with and without calibration; some queries have no value."""
    rng = np.random.default_rng(seed)
    keys = [
        ("audit", "label", True),
        ("audit", "label", False),
        ("audit", "new_model", True),
        ("gallery", "label", True),
    ]
    return {
        key: {
            metric: np.where(rng.random(queries) < 0.2, np.nan, rng.integers(0, 3, queries) / 2) for metric in METRICS
        }
        for key in keys
    }


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=30), st.sampled_from(METRICS))
@settings(max_examples=40, deadline=None)
def test_a_groups_figures_are_the_means_over_its_queries(groups: list[str | None], objective: str) -> None:
    values = measured(len(groups))
    found = {
        (m.scope, m.relevance, m.metric, m.group): m for m in group_values(values, DEPTH, 0, objects(groups), objective)
    }
    expected = set()
    for scope, relevance, calibrated in values:
        for metric in {"cmc@1", "recall@1", "map", objective}:
            for group in set(groups) - {None}:
                column = values[scope, relevance, calibrated][metric].tolist()
                mine = [v for v, g in zip(column, groups, strict=True) if g == group and v == v]
                if calibrated and mine:
                    expected.add((scope, relevance, metric, group))
                    value = found[scope, relevance, metric, group]
                    assert value.value == pytest.approx(sum(mine) / len(mine))
                    assert (value.queries, value.depth, value.calibrated) == (len(mine), DEPTH[scope], True)
                    assert value.low <= value.value + 1e-12
                    assert value.value <= value.high + 1e-12
    assert found.keys() == expected


def test_only_the_twenty_largest_groups_have_figures_and_names_are_text() -> None:
    # Group 0 has one query, group 24 has 25.
    groups = objects([number for number in range(25) for _ in range(number + 1)])
    found = group_values(measured(len(groups)), DEPTH, 0, groups, "map")
    assert list(dict.fromkeys(m.group for m in found)) == [str(number) for number in range(24, 4, -1)]


def test_without_groups_there_are_no_figures_per_group_and_the_overall_ones_have_none() -> None:
    values = measured(10)
    assert group_values(values, DEPTH, 0, None, "map") == ()
    assert group_values(values, DEPTH, 0, objects([None] * 10), "map") == ()
    assert {m.group for m in metric_values(values, DEPTH, 0)} == {None}


def test_flips_are_counted_where_both_sides_were_measured_as_served() -> None:
    now, before = measured(40, 1), measured(40, 2)
    del before["audit", "new_model", True]
    found = flip_values(now, {"old/old": before, "version before": {}}, 0)
    assert {(f.scope, f.relevance, f.against) for f in found} == {
        ("audit", "label", "old/old"),
        ("gallery", "label", "old/old"),
    }
    assert {f.metric for f in found} == {"cmc@1", "recall@1", "map"}
    for flip in found:
        key = (flip.scope, flip.relevance, True)
        pairs = zip(now[key][flip.metric].tolist(), before[key][flip.metric].tolist(), strict=True)
        differences = [a - b for a, b in pairs if a == a and b == b]
        losses = [-d for d in differences if d < 0]
        assert flip.queries == len(differences)
        assert flip.nfr == pytest.approx(len(losses) / len(differences))
        assert flip.mean_loss == pytest.approx(sum(losses) / len(losses))
        assert flip.nfr_low <= flip.nfr <= flip.nfr_high


def test_what_is_stored_per_query_is_read_back_for_the_same_queries_only(tmp_path: Path) -> None:
    files, values = open_files(str(tmp_path)), measured(12)
    reference = put_file(files, "evaluation/x.parquet", query_table(values, "these"))
    found = read_values(files, reference, "these")
    assert found.keys() == values.keys()
    for key, metrics in values.items():
        for metric in METRICS:
            np.testing.assert_array_equal(found[key][metric], metrics[metric])
    assert read_values(files, reference, "others") == {}
    objective = ObjectiveConfig(relevance="label", metric="mrr")
    again = read_objective(files, reference, "these", "gallery", objective)
    np.testing.assert_array_equal(again, values["gallery", "label", True]["mrr"])
    assert read_objective(files, reference, "others", "gallery", objective) is None
