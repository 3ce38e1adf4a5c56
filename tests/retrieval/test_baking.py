"""Baked vectors under a plain inner product against calibrated scores, computed the plain way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.retrieval.baking import Baking
from fastfill_ray.retrieval.calibration import OrderCalibration
from fastfill_ray.retrieval.fusion import fuse, fusion_of
from fastfill_ray.retrieval.similarity import similarity, unit_rows
from fastfill_ray.types import F32, Metric

OLD, NEW = 5, 7
ORDER, PLACE = OrderCalibration(scale=1.4, offset=-0.3, slope=0.2), 0.6
SERVED = ORDER.at(PLACE)
IN_BAKING = {"scale": ORDER.scale, "offset": ORDER.offset, "slope": ORDER.slope}


def drawn(rows: int, dim: int, seed: int, shift: float = 0.0) -> F32:
    return (np.random.default_rng(seed).standard_normal((rows, dim)) + shift).astype(np.float32)


def tolerance(metric: Metric, queries: F32, items: F32) -> np.ndarray:
    """1e-5 x (|q|^2 + |x|^2), (Q, N)."""
    q, x = ((unit_rows(each) if metric == "cosine" else each) for each in (queries, items))
    return 1e-5 * ((q**2).sum(axis=1)[:, None] + (x**2).sum(axis=1)[None, :] + 1)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@given(seed=st.integers(0, 1000), shift=st.sampled_from([0.0, 3.0]))
def test_of_new_and_aligned_items_the_inner_product_is_the_calibrated_score(
    metric: Metric, seed: int, shift: float
) -> None:
    items, queries = drawn(20, NEW, seed, shift), drawn(4, NEW, seed + 1, shift)
    indexed = unit_rows(items) if metric == "cosine" else items
    centre = tuple(items.mean(axis=0).tolist()) if metric == "l2" else ()
    baking = Baking(metric=metric, new_dim=NEW, new_centre=centre, **IN_BAKING)
    scores = similarity(queries, items, metric)
    asked = baking.queries(queries)
    assert asked.shape == (4, baking.dim)
    near = tolerance(metric, queries, items)
    assert (np.abs(asked @ baking.items(indexed).T - scores) <= near).all()
    served = SERVED.scale * scores + SERVED.offset
    assert (np.abs(asked @ baking.items(indexed, PLACE).T - served) <= 2 * near).all()


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_of_fused_items_it_is_the_sum_of_both_halves_scores(metric: Metric, weight: float) -> None:
    fusion = fusion_of(weight, metric, old_scale=0.5)
    old, aligned = drawn(20, OLD, 1, 2.0), drawn(20, NEW, 2, 2.0)
    queries, old_queries = drawn(4, NEW, 3, 2.0), drawn(4, OLD, 4, 2.0)
    centres = {"old_centre": (2.0,) * OLD, "new_centre": (2.0,) * NEW} if metric == "l2" else {}
    baking = Baking(metric=metric, new_dim=NEW, old_dim=OLD, **centres, **IN_BAKING)
    stale = baking.items(fuse(old, aligned, fusion, metric), PLACE, fusion)
    asked = baking.queries(queries, old_queries)
    assert stale.shape[1] == asked.shape[1] == baking.dim
    of_old, of_new = similarity(old_queries, old, metric), similarity(queries, aligned, metric)
    expected = SERVED.scale * (fusion.old**2 * of_old + fusion.new**2 * of_new) + SERVED.offset
    near = tolerance(metric, queries, aligned) + tolerance(metric, old_queries, old)
    assert (np.abs(asked @ stale.T - expected) <= 2 * near).all()
    indexed = unit_rows(aligned) if metric == "cosine" else aligned
    assert (np.abs(asked @ baking.items(indexed).T - of_new) <= near).all()


def test_what_does_not_fit_is_refused() -> None:
    baking = Baking(metric="ip", new_dim=NEW, old_dim=OLD)
    with pytest.raises(ValueError, match="queries of the old model are missing"):
        baking.queries(drawn(2, NEW, 0))
    with pytest.raises(ValueError, match=r"queries of the new model are \(2, 5\), expected \(2, 7\)"):
        baking.queries(drawn(2, OLD, 0), drawn(2, OLD, 0))
    with pytest.raises(ValueError, match="expected 0 old and 7 new dims"):
        baking.items(drawn(2, OLD, 0))
    with pytest.raises(ValueError, match="expected 0 old"):
        Baking(metric="ip", new_dim=NEW).items(drawn(2, NEW, 0), fusion=fusion_of(0.0, "ip"))
