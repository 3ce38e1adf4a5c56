"""Factory strings that cannot serve are refused before there are vectors; those that can are not."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError
from fastfill_ray.index.factory import check_factory
from fastfill_ray.index.segment import build_index, coarse, load_index, search_segment, train_template
from fastfill_ray.types import Metric

METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")

ANY_METRIC = [
    "Flat", "IVF1024,Flat", "IVF1024_HNSW32,Flat", "IVF256(IVF16,Flat),Flat", "IVF256_NSG32,Flat", "IVF64,FlatDedup",
    "IVF1024,PQ16", "IVF1024,PQ16x4fs", "IVF1024,PQ16x4fsr,RFlat", "IVF64,SQ8", "IVF64,RaBitQ", "IVF64,RaBitQfs",
    "IVF64,RQ4x4", "IVF64,Flat,RFlat", "IVF64,PQ8,Refine(SQ8)",
    "PQ16", "PQ16x4", "PQ16x12", "PQ16x4fs", "SQ4", "SQ8", "SQfp16", "SQbf16", "RaBitQ", "RaBitQ4",
    "RQ8x8", "LSQ8x8", "PRQ4x2x8", "PLSQ4x2x8", "RQ1x10_3x8_Nqint8",
    "HNSW32", "HNSW32,Flat", "HNSW32,SQ8", "SQ8,RFlat",
    "PCA32,Flat", "PCAR32,IVF64,SQ8", "OPQ16_64,IVF1024,PQ16", "OPQ16,IVF1024_HNSW32,PQ16x4fs,RFlat", "RR32,Flat",
    "L2norm,Flat", "PCA32,HNSW16",
]  # fmt: skip


@pytest.mark.parametrize("factory", ANY_METRIC)
def test_a_factory_that_can_serve_is_taken(factory: str) -> None:
    for metric in METRICS:
        check_factory(factory, 128, metric, 8000)


L2_ONLY = {
    "HNSW32,PQ16": "for L2 whatever the metric",
    "HNSW32,PQ16,RFlat": "for L2 whatever the metric",
    "PCA32,HNSW16_PQ8": "for L2 whatever the metric",
    "HNSW16_2x4+PQ16": "for L2 whatever the metric",
    "IVF64,PQ8+8": "not implemented for inner product",
    "IMI2x4,PQ8": "not implemented for inner prod",
}


@pytest.mark.parametrize("factory", L2_ONLY)
def test_a_factory_for_l2_alone_is_taken_for_l2_alone(factory: str) -> None:
    check_factory(factory, 128, "l2", 8000)
    for metric in ("cosine", "ip"):
        with pytest.raises(ConfigError, match=L2_ONLY[factory]):
            check_factory(factory, 128, metric, 8000)


REFUSED = {
    "IDMap,Flat": "row numbers. Leave IDMap out",
    "IDMap2,Flat": "row numbers. Leave IDMap out",
    "IDMap,IVF4,Flat": "row numbers. Leave IDMap out",
    "PCA32,IDMap2,Flat": "row numbers. Leave IDMap out",
    "IDMap,SQ8,RFlat": "row numbers. Leave IDMap out",
    "LSH": "bits that differ",
    "ITQ32,LSH": "bits that differ",
    "NSG32": "100 items and more.* Use HNSW",
    "NSG32,SQ8": "100 items and more.* Use HNSW",
    "IVF16_NSG16,Flat": "smaller than 100",
    "Residual2x4,PQ8": "not implemented",
    "SQ8_direct": "whole numbers only.* Use SQ8",
    "IVF16,SQ8_direct_signed": "whole numbers only.* Use SQ8",
    "ZnLattice4x10_4": "cannot read back",
    "PCA200,Flat": "more dims than there are",
    "PQ5": "multiple of the number of subquantizers",
    "IVF4(PQ8),Flat": r"training points \(4\)",
    "BIVF16": "could not parse",
    "Flatt": "could not parse index string Flatt",
    "": "could not parse",
}


@pytest.mark.parametrize("factory", REFUSED)
def test_a_factory_that_cannot_serve_is_refused_with_what_to_do(factory: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[factory]) as caught:
        check_factory(factory, 64, "l2", 8000, "index.stale_factory")
    assert str(caught.value).startswith(f"index.stale_factory {factory!r} cannot be used with dim 64 and metric l2: ")
    assert ".cpp" not in str(caught.value)


NEEDS = {
    "IVF300,Flat": (300, "300 lists"),
    "PCA16,IVF300,Flat,RFlat": (300, "300 lists"),
    "PQ8np": (256, "256 centroids"),
    "IVF4,PQ8x9np": (512, "512 centroids"),
    "OPQ8,Flat": (256, "256 centroids"),
    "PCA48,Flat": (48, "48 principal components"),
    "RQ2x4": (64, "64 principal components"),
    "PRQ2x2x4": (32, "32 principal components"),
    "RQ2x7": (128, "128 centroids"),
}


@pytest.mark.parametrize("factory", NEEDS)
def test_what_cannot_be_trained_on_the_pairs_is_refused_and_one_vector_more_is_enough(factory: str) -> None:
    """The number is FAISS' own: it trains on as many, and not on one less."""
    needed, what = NEEDS[factory]
    check_factory(factory, 64, "l2", needed)
    with pytest.raises(ConfigError, match=f"has {what}.*, but there are {needed - 1} vectors of the pairs"):
        check_factory(factory, 64, "l2", needed - 1)
    vectors = np.random.default_rng(0).standard_normal((needed, 64)).astype(np.float32)
    faiss.index_factory(64, factory).train(vectors)
    with pytest.raises(RuntimeError):
        faiss.index_factory(64, factory).train(vectors[:-1])


@given(
    before=st.sampled_from(["", "PCA8,", "PCAR16,", "RR16,", "L2norm,"]),
    lists=st.sampled_from(["", "IVF4,", "IVF16_HNSW8,"]),
    codes=st.sampled_from(["Flat", "SQ8", "SQ4", "SQfp16", "PQ4x4", "PQ8x4fs", "RaBitQ", "RQ2x4", "SQ8_direct"]),
    after=st.sampled_from(["", ",RFlat", ",Refine(SQ8)"]),
    metric=st.sampled_from(METRICS),
    rows=st.integers(1, 70),
)
@settings(max_examples=60, deadline=None)
def test_what_is_taken_serves_and_what_is_refused_would_not(
    before: str, lists: str, codes: str, after: str, metric: Metric, rows: int
) -> None:
    factory, vectors = before + lists + codes + after, np.random.default_rng(rows).standard_normal((200, 16))
    training = vectors.astype(np.float32)
    try:
        check_factory(factory, 16, metric, len(training))
    except ConfigError:
        assert codes == "SQ8_direct"
        return
    index = load_index(
        build_index(train_template(factory, 16, metric, training), training[:rows], metric),
        dim=16, metric=metric, rows=rows, name="segment",
    )  # fmt: skip
    items = training[:rows]  # each is in a list that it probes itself
    scores, hits = search_segment(index, items, rows, metric, coarse(index, items))
    assert (hits[:, 0] >= 0).all()
    assert hits.max() < rows
    assert np.isfinite(scores[hits >= 0]).all()
