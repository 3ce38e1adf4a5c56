"""Versions with fused segments against brute force over the scores of both halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastfill_ray.errors import CorruptFile, SpaceMismatch
from fastfill_ray.index.reader import open_index
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Publish
from fastfill_ray.retrieval.calibration import Calibration
from fastfill_ray.retrieval.fusion import fusion_of
from fastfill_ray.types import Metric
from tests.index.test_reader import DIM, OLD_DIM, Root
from tests.index.test_segment import brute_force, vectors


def fused_root(path: Path, metric: Metric, factory: str, weight: float) -> tuple[Root, Any]:
    """Version 0: 30 new items, then 40 and 5 fused ones. Version 1: new ones alone. And the brute-force scores of 0."""
    root = Root(path, metric, "int64", factory, fusion_of(weight, metric, old_scale=0.5))
    assert root.fusion is not None
    new, olds = vectors(30, seed=1), [vectors(rows, OLD_DIM, seed=rows) for rows in (40, 5)]
    aligned = [vectors(rows, seed=rows + 1) for rows in (40, 5)]
    calibrations = [Calibration(scale=1.5, offset=-0.3), Calibration(scale=0.7, offset=0.2)]
    shared = root.segment(new, range(30))
    stale = [
        root.fused(old, mapped, range(first, first + len(old)), calibration)
        for old, mapped, first, calibration in zip(olds, aligned, (30, 70), calibrations, strict=True)
    ]
    root.commit(shared, *stale)
    root.commit(shared, root.segment(vectors(45, seed=7), range(30, 75)))

    def truth(queries: NDArray[np.float32], old_queries: NDArray[np.float32]) -> NDArray[np.float64]:
        scale = 1.0 if metric == "cosine" else 0.5
        parts = [brute_force(queries, new, metric)]
        for old, mapped, calibration in zip(olds, aligned, calibrations, strict=True):
            both = (1 - weight) * scale * brute_force(old_queries, old, metric)
            both = both + weight * brute_force(queries, mapped, metric)
            parts.append(calibration.scale * both + calibration.offset)
        return np.concatenate(parts, axis=1)

    return root, truth


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_fused_and_new_segments_are_searched_as_one_calibrated_gallery(
    tmp_path: Path, metric: Metric, factory: str, weight: float
) -> None:
    _, truth = fused_root(tmp_path, metric, factory, weight)
    index = open_index(str(tmp_path), 0)
    assert index.needs_old_queries is (weight < 1)
    assert (index.rows, index.dim, index.old_dim) == (75, DIM, OLD_DIM)
    queries, old_queries = 3 * vectors(6, seed=99), 5 * vectors(6, OLD_DIM, seed=98)
    expected = truth(queries, old_queries)
    order = np.argsort(-expected, axis=1)
    for k in (1, 10, 75):
        scores, found = index.search(queries, k, old_queries=old_queries, nprobe=8)
        np.testing.assert_allclose(scores, np.take_along_axis(expected, order, axis=1)[:, :k], rtol=1e-4, atol=1e-3)
        assert found.tolist() == order[:, :k].tolist()
    if weight == 1:
        np.testing.assert_array_equal(index.search(queries, 75, nprobe=8)[1], order)


def test_a_reader_asks_for_old_queries_only_while_a_segment_is_fused(tmp_path: Path) -> None:
    root, truth = fused_root(tmp_path, "l2", "IVF8,Flat", 0.5)
    queries, old_queries = vectors(3, seed=99), vectors(3, OLD_DIM, seed=98)
    root.log.append(Publish(version=0, reason="rollback"))
    index = open_index(str(tmp_path))
    assert index.needs_old_queries is True
    with pytest.raises(ValueError, match="version 0 is fused"):
        index.search(queries)
    root.log.append(Publish(version=1))
    assert index.refresh() is True
    assert index.needs_old_queries is False
    found = index.search(queries, nprobe=8)
    np.testing.assert_array_equal(index.search(queries, old_queries=old_queries, nprobe=8)[1], found[1])
    root.log.append(Publish(version=0, reason="rollback"))
    assert index.refresh() is True
    best = np.argsort(-truth(queries, old_queries), axis=1)[:, :10]
    assert index.search(queries, old_queries=old_queries, nprobe=8)[1].tolist() == best.tolist()


def test_old_queries_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fused_root(tmp_path, "cosine", "Flat", 0.5)
    index, queries = open_index(str(tmp_path), 0), vectors(3)
    broken = vectors(3, OLD_DIM)
    broken[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"version 0 is fused: .* Give old_queries: \(3, 4\)"):
        index.search(queries)
    with pytest.raises(SpaceMismatch, match="old queries have dim 8, the index has 4: embed them with the old model"):
        index.search(queries, old_queries=vectors(3))
    with pytest.raises(ValueError, match="there are 2 old queries for 3 queries"):
        index.search(queries, old_queries=vectors(2, OLD_DIM))
    with pytest.raises(ValueError, match=r"old queries are float32 \(4,\)"):
        index.search(queries, old_queries=vectors(3, OLD_DIM)[0])
    with pytest.raises(ValueError, match="old vector 1 holds values that are not finite"):
        index.search(queries, old_queries=broken)


def test_a_fused_segment_is_of_the_dims_that_the_root_is_bound_to(tmp_path: Path) -> None:
    root, _ = fused_root(tmp_path, "cosine", "Flat", 0.5)
    fused = segments_of(root.files, root.log.state.versions[0])[1]
    number = root.commit(fused.model_copy(update={"dim": DIM}))
    with pytest.raises(CorruptFile, match=r"recorded with dim 8, .* bound to 12"):
        open_index(str(tmp_path), number)
