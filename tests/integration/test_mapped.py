"""Mapped old queries: `fused` goes on after the old model is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.errors import ConfigError, SpaceMismatch, UnusableQueries
from fastfill_ray.report.plan_text import plan_text
from fastfill_ray.search import SearchRequest, search
from fastfill_ray.shadow import ShadowRequest, shadow
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import Workshop, in_process


def config(workshop: Workshop, root: Path, **sections: Any) -> dict[str, Any]:
    """Fused, with queries, and no old model."""
    serving = {"stale_mode": "fused", "old_queries": "mapped"}
    return {**workshop.config(root, serving=serving), "old_model": {}, **sections}


@pytest.fixture(scope="module")
def served(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mapped") / "root"
    in_process(config(workshop, root), until="wave:1")
    return root


def test_a_fused_version_is_searched_with_mapped_queries(workshop: Workshop, served: Path, tmp_path: Path) -> None:
    index = ff.open_index(str(served))
    assert index.needs_old_queries
    queries = synthetic.new_vectors(workshop.x[workshop.asked])
    old = ff.map_queries(str(served), queries)
    assert old.shape == (len(queries), synthetic.OLD_DIM)
    true = synthetic.old_vectors(workshop.x[workshop.asked])
    assert np.square(old - true).sum() < 0.7 * np.square(true - true.mean(axis=0)).sum()
    scores, ids = index.search(queries, k=5, old_queries=old)
    np.save(tmp_path / "queries.npy", queries)
    asked = SearchRequest(str(served), None, None, 5, str(tmp_path / "queries.npy"), None, None, None, None, json=True)
    found = search(asked, lambda _: None)
    assert [[hit.id for hit in hits] for hits in found.hits] == ids.tolist()
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found.hits], scores, rtol=1e-5)


def test_the_plan_says_what_the_old_index_gives_with_mapped_queries_and_no_backfill(served: Path) -> None:
    read = read_state(open_files(str(served)))
    assert read.plan is not None
    assert set(read.plan.baselines) == {"query map", "new/new"}
    assert read.plan.reverse is not None
    assert "The old index as it is, asked with mapped queries and without any backfill, has" in plan_text(read, 0.1)


def test_what_is_not_mapped_and_what_does_not_fit_is_refused(workshop: Workshop, served: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match=r"queries have shape \(2, 3\), expected \(Q, 16\)"):
        ff.map_queries(str(served), np.ones((2, 3)))
    good = [1.0] * synthetic.NEW_DIM
    for queries, told in (
        ([good, [1.0]], r"queries: expected numbers of shape \(Q, 16\); row 1 is float64 of shape \(1,\)"),
        ([["1"] * synthetic.NEW_DIM], r"expected numbers of shape \(Q, 16\); row 0 is <U1 of shape"),
        ([good, [float("nan")] * synthetic.NEW_DIM], "row 1 holds nan, expected numbers that are finite in float32"),
    ):
        with pytest.raises(UnusableQueries, match=told):
            ff.map_queries(str(served), queries)
    root = tmp_path / "aligned"
    in_process(workshop.config(root), until="version0")
    with pytest.raises(ConfigError, match="version 0 has no map from new vectors to old ones"):
        ff.map_queries(str(root), np.ones((2, synthetic.NEW_DIM)))
    with pytest.raises(ConfigError, match="real old vectors serve better"):
        in_process(config(workshop, root, old_model={"embedder": "tests.synthetic:OldEmbedder"}))
    with pytest.raises(ConfigError, match="without users' queries nothing says how well"):
        in_process({**config(workshop, root), "queries": None})


def test_the_same_call_goes_on_to_the_end_where_nothing_is_fused_any_more(workshop: Workshop, served: Path) -> None:
    result = in_process(config(workshop, served))
    assert result.finished
    assert not ff.open_index(str(served)).needs_old_queries


def test_two_versions_are_asked_with_mapped_queries(workshop: Workshop, served: Path, tmp_path: Path) -> None:
    queries = synthetic.new_vectors(workshop.x[workshop.asked])
    pq.write_table(pa.table({"vector": list(queries)}), tmp_path / "queries.parquet")
    request = ShadowRequest(
        root=str(served), s3_endpoint=None, queries=str(tmp_path / "queries.parquet"), versions=(0, 1), config=None,
        vector_column="vector", old_vector_column=None,
    )  # fmt: skip
    found = shadow(request, lambda _: None)
    old = ff.map_queries(str(served), queries, version=1)
    first, second = (
        ff.open_index(str(served), version=number).search(queries, k=10, old_queries=old)[1].tolist()
        for number in (0, 1)
    )
    overlaps = [len(set(a) & set(b)) / 10 for a, b in zip(first, second, strict=True)]
    assert found.queries == len(queries)
    assert found.overlap.value == pytest.approx(np.mean(overlaps))
