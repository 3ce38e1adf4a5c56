"""Queries for baked exports: what cannot be baked is refused, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfill_ray.errors import ConfigError, CorruptFile, UnusableQueries
from fastfill_ray.export import bake_queries
from tests.index.test_reader import DIM, OLD_DIM
from tests.index.test_segment import vectors

RAGGED, TEXT = [[1.0] * DIM, [1.0] * 3], [[1.0] * DIM, ["a"] * DIM]


@pytest.mark.parametrize(
    ("queries", "told"),
    [
        (RAGGED, r"row 1 is float64 of shape \(3,\)"),
        (TEXT, r"row 1 is <U1 of shape \(8,\)"),
        ([[1.0] * DIM, None], r"row 1 is object of shape \(\)"),
        ([[1.0] * DIM, [[1.0], [2.0, 3.0]]], "row 1 is no list of numbers"),
        ([[True] * DIM], r"row 0 is bool of shape \(8,\)"),
        ("abc", r"found <U3 of shape \(\)"),
        ([1.0] * DIM, r"found float64 of shape \(8,\)"),
        ([], r"found float64 of shape \(0,\)"),
        ([[1.0] * 5] * 2, r"expected numbers of shape \(Q, 8\); found float64 of shape \(2, 5\)"),
        ([[1.0] * DIM, [np.nan] * DIM], "row 1 holds nan, expected numbers that are finite in float32"),
        ([[1.0] * DIM, [1.0, -np.inf] * (DIM // 2)], "row 1 holds -inf"),
        ([[1e39] * DIM], r"row 0 holds 1e\+39"),
        ({"a": 1}, r"found object of shape \(\)"),
    ],
)
def test_queries_that_cannot_be_baked_are_refused_by_row(queries: Any, told: str) -> None:
    baking = {"metric": "ip", "new_dim": DIM, "old_dim": OLD_DIM}
    good = vectors(len(queries) if isinstance(queries, list) else 1, OLD_DIM, seed=1)
    with pytest.raises(UnusableQueries, match=rf"^queries: .*{told}"):
        bake_queries({"baking": baking}, queries, good)
    with pytest.raises(ValueError, match=r"^old_queries: "):
        bake_queries({"baking": {**baking, "new_dim": OLD_DIM, "old_dim": DIM}}, good, queries)


def test_old_queries_are_one_for_each_query() -> None:
    manifest = {"baking": {"metric": "cosine", "new_dim": DIM, "old_dim": OLD_DIM}}
    with pytest.raises(UnusableQueries, match="old_queries are missing"):
        bake_queries(manifest, vectors(2))
    with pytest.raises(UnusableQueries, match="there are 3 old_queries, and 2 queries"):
        bake_queries(manifest, vectors(2), vectors(3, OLD_DIM))
    assert bake_queries(manifest, vectors(2).tolist(), vectors(2, OLD_DIM).astype(np.float64)).shape[0] == 2
    assert bake_queries({"baking": {"metric": "ip", "new_dim": DIM}}, np.ones((0, DIM), int), "not read").shape[0] == 0


def test_a_manifest_that_is_none_is_said(tmp_path: Path) -> None:
    for name, why in (("absent.json", "No such file"), (".", "Is a directory")):
        with pytest.raises(ConfigError, match=rf"{why}.* Give the manifest\.json of a baked export"):
            bake_queries(tmp_path / name, vectors(1))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFile, match="not a manifest"):
        bake_queries(tmp_path / "deep.json", vectors(1))
    for baking in ({"metric": "l2", "new_dim": DIM, "new_centre": [0.0]}, {"metric": "ip"}, [1], "x"):
        with pytest.raises(CorruptFile, match="not a manifest of an export"):
            bake_queries({"baking": baking}, vectors(1))
