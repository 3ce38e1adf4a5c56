import itertools

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.errors import ConfigError, CorruptFile, SpaceMismatch
from fastfill_ray.index.ivf import coarse, inverted_part, template_key
from fastfill_ray.index.segment import (
    HiddenRows,
    build_index,
    load_index,
    prepare_queries,
    search_segment,
    train_template,
)
from fastfill_ray.types import Metric
from tests.rounding import assert_equal_up_to_rounding

METRICS: list[Metric] = ["cosine", "ip", "l2"]


def vectors(rows: int, dim: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def brute_force(queries: NDArray[np.float32], items: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    """Scores (Q, N) by the definition, in float64."""
    q, x = queries.astype(np.float64), items.astype(np.float64)
    if metric == "l2":
        return -np.square(q[:, None, :] - x[None, :, :]).sum(axis=2)
    if metric == "cosine":
        q, x = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x))
    return q @ x.T


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "PCA8,IVF8,Flat"])
@given(rows=st.integers(1, 60), k=st.integers(1, 80), num_queries=st.integers(0, 30), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_probing_every_list_equals_brute_force(
    factory: str, metric: Metric, rows: int, k: int, num_queries: int, seed: int
) -> None:
    items, queries = vectors(rows, seed=seed), vectors(num_queries, seed=seed + 1)
    template = train_template(factory, 8, metric, vectors(400, seed=7))
    index = load_index(build_index(template, items, metric), dim=8, metric=metric, rows=rows, name="segment")
    prepared = prepare_queries(queries, 8, metric)
    scores, found = search_segment(index, prepared, k, metric, coarse(index, prepared, nprobe=8))
    assert scores.shape == found.shape == (num_queries, k)
    assert scores.dtype == np.float32
    assert found.dtype == np.int64
    truth = brute_force(queries, items, metric)
    kept = min(k, rows)
    # PCA to all 8 dims is a rotation about the mean: only distances survive it.
    if not factory.startswith("PCA") or metric == "l2":
        assert np.allclose(scores[:, :kept], -np.sort(-truth, axis=1)[:, :kept], atol=1e-4)
        assert np.allclose(np.take_along_axis(truth, found[:, :kept], axis=1), scores[:, :kept], atol=1e-4)
    assert np.all(scores[:, kept:] == -np.inf)
    assert np.all(found[:, kept:] == -1)
    assert all(len(set(row)) == kept for row in found[:, :kept].tolist())


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IVF4,PQ2x4", "PCA4,IVF4,Flat", "HNSW8", "SQ8"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_same_input_gives_an_index_that_answers_alike(factory: str, metric: Metric) -> None:
    training, items, queries = vectors(200), vectors(100, seed=1), prepare_queries(vectors(5, seed=2), 8, metric)

    def answers() -> NDArray[np.float32]:
        data = build_index(train_template(factory, 8, metric, training), items, metric)
        index = load_index(data, dim=8, metric=metric, rows=100, name="segment")
        return search_segment(index, queries, 100, metric)[0]

    assert_equal_up_to_rounding(answers(), answers())


def test_inputs_are_left_as_they_were() -> None:
    items = vectors(50)
    before = items.copy()
    build_index(train_template("Flat", 8, "cosine", items), items, "cosine")
    prepare_queries(items, 8, "cosine")
    assert np.array_equal(items, before)


def test_segments_of_one_template_share_a_coarse_assignment() -> None:
    template, other = (train_template("IVF8,Flat", 8, "l2", vectors(400, seed=s)) for s in (0, 1))
    first, second, third = (
        load_index(build_index(t, vectors(40, seed=s), "l2"), dim=8, metric="l2", rows=40, name="segment")
        for t, s in ((template, 1), (template, 2), (other, 2))
    )
    flat = load_index(train_template("Flat", 8, "l2", vectors(1)), dim=8, metric="l2", rows=0, name="segment")
    assert template_key(first) == template_key(second) != template_key(third)
    assert template_key(flat) is None
    assert coarse(flat, vectors(1)) is None
    queries = vectors(5, seed=3)
    shared, own = coarse(first, queries, 2), coarse(second, queries, 2)
    assert shared is not None
    assert own is not None
    assert np.array_equal(shared.lists, own.lists)
    narrow = search_segment(second, queries, 10, "l2", shared)[0]
    assert_equal_up_to_rounding(narrow, search_segment(second, queries, 10, "l2", own)[0])
    assert narrow.sum() < search_segment(second, queries, 10, "l2", coarse(second, queries, 8))[0].sum()


@pytest.mark.parametrize("factory", ["IVF8,Flat", "IVF8,PQ4x4", "PCA4,IVF8,SQ8"])
def test_threads_share_the_queries_of_a_given_assignment_and_find_the_same(factory: str) -> None:
    data = build_index(train_template(factory, 8, "ip", vectors(400)), vectors(300, seed=1), "ip")
    index = load_index(data, dim=8, metric="ip", rows=300, name="segment")
    inverted, queries = inverted_part(index), vectors(33, seed=2)
    assert inverted is not None
    assert inverted.ivf.parallel_mode == 3  # FAISS' default of 0 searches given lists on one thread
    assignment, threads = coarse(index, queries, 4), faiss.omp_get_max_threads()
    try:
        answers = []
        for each in (1, 3):
            faiss.omp_set_num_threads(each)
            answers.append(search_segment(index, queries, 5, "ip", assignment))
    finally:
        faiss.omp_set_num_threads(threads)
    for one, several in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, several)


def test_an_ivf_template_stores_a_useful_number_of_probes() -> None:
    for lists, probes in ((4, 4), (64, 16), (8, 8)):
        template = train_template(f"IVF{lists},Flat", 8, "ip", vectors(400))
        assert load_index(template, dim=8, metric="ip", rows=0, name="template").nprobe == probes


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("Flot", "could not parse index string Flot"),
        ("IVF64,Flat", r"training points \(20\)"),
        ("PQ3", "multiple of the number of subquantizers"),
        ("IDMap,Flat", "add does not make sense"),
    ],
)
def test_a_factory_that_faiss_cannot_use_is_refused_with_its_reason(factory: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"index\.factory '{factory}' .*20 training vectors: .*{said}") as caught:
        train_template(factory, 8, "l2", vectors(20))
    assert ".cpp" not in str(caught.value)


def test_queries_are_checked_before_faiss_reads_them() -> None:
    with pytest.raises(SpaceMismatch, match="dim 7, the index has 8"):
        prepare_queries(vectors(2, 7), 8, "ip")
    for wrong in (vectors(8)[0], np.full((1, 8), "a"), np.ones((1, 8), bool)):
        with pytest.raises(ValueError, match=r"expected numbers of shape \(Q, 8\)"):
            prepare_queries(wrong, 8, "ip")
    for broken in (np.nan, np.inf, -np.inf):
        queries = vectors(3)
        queries[1, 2] = broken
        with pytest.raises(ValueError, match="vector 1 holds values that are not finite"):
            prepare_queries(queries, 8, "cosine")
    assert prepare_queries(np.asfortranarray(vectors(4), dtype=np.float64), 8, "ip").flags.c_contiguous
    assert np.allclose(np.linalg.norm(prepare_queries(5 * vectors(4), 8, "cosine"), axis=1), 1)
    assert not prepare_queries(np.zeros((1, 8)), 8, "cosine").any()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_cut_or_lengthened_file_is_refused_by_name(data: st.DataObject) -> None:
    whole = build_index(train_template("IVF4,Flat", 8, "l2", vectors(200)), vectors(30), "l2")
    cut = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:cut], whole + b"\0" * (cut + 1)):
        with pytest.raises(CorruptFile, match=r"^index/b0\.faiss"):
            load_index(damaged, dim=8, metric="l2", rows=30, name="index/b0.faiss")


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,PQ4x4", "PCA4,IVF8,SQ8", "HNSW8", "IVF8,PQ8x4fs"])
def test_an_index_keeps_the_bytes_that_it_reads(factory: str) -> None:
    template, queries = train_template(factory, 8, "ip", vectors(400)), vectors(3, seed=2)

    def loaded() -> faiss.Index:
        data = build_index(template, vectors(300, seed=1), "ip")
        return load_index(data, dim=8, metric="ip", rows=300, name="segment")

    indexes = [loaded() for _ in range(50)]  # each one's memory would be that of the next
    first, *others = [search_segment(index, queries, 5, "ip")[1].tolist() for index in indexes]
    assert others == [first] * 49
    assert first == search_segment(loaded(), queries, 5, "ip")[1].tolist()


def test_an_index_of_another_dim_metric_or_size_is_refused() -> None:
    data = build_index(train_template("Flat", 8, "ip", vectors(1)), vectors(30), "ip")
    assert load_index(data, dim=8, metric="cosine", rows=30, name="s").ntotal == 30
    expected: list[tuple[int, Metric, int]] = [(9, "ip", 30), (8, "l2", 30), (8, "ip", 31)]
    for dim, metric, rows in expected:
        with pytest.raises(CorruptFile, match=r"s: holds \(dim, FAISS metric, rows\) \(8, 0, 30\)"):
            load_index(data, dim=dim, metric=metric, rows=rows, name="s")


def test_lists_behind_a_refinement_are_probed_as_well() -> None:
    template = train_template("IVF16,Flat,RFlat", 8, "ip", vectors(800, dim=8))
    assert faiss.extract_index_ivf(load_index(template, dim=8, metric="ip", rows=0, name="template")).nprobe == 8


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "Flat,RFlat", "IVF8,Flat,RFlat"])
@given(data=st.data(), k=st.integers(1, 80), num_queries=st.integers(0, 30), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_hidden_rows_are_left_out_exactly_where_a_search_is_exact(
    factory: str, metric: Metric, data: st.DataObject, k: int, num_queries: int, seed: int
) -> None:
    rows = data.draw(st.integers(1, 60))
    hidden = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
    items, queries = vectors(rows, seed=seed), vectors(num_queries, seed=seed + 1)
    template = train_template(factory, 8, metric, vectors(400, seed=7))
    index = load_index(build_index(template, items, metric), dim=8, metric=metric, rows=rows, name="segment")
    prepared = prepare_queries(queries, 8, metric)
    scores, found = search_segment(
        index, prepared, k, metric, coarse(index, prepared, nprobe=8), HiddenRows(hidden, rows)
    )
    truth = brute_force(queries, items, metric)
    truth[:, hidden] = -np.inf
    kept = min(k, rows - len(hidden))
    assert scores.shape == found.shape == (num_queries, k)
    assert np.allclose(scores[:, :kept], -np.sort(-truth, axis=1)[:, :kept], atol=1e-4)
    assert np.allclose(np.take_along_axis(truth, found[:, :kept], axis=1), scores[:, :kept], atol=1e-4)
    assert np.all(scores[:, kept:] == -np.inf)
    assert np.all(found[:, kept:] == -1)
    assert all(len(set(row)) == kept for row in found[:, :kept].tolist())


FACTORIES = [
    "SQ8", "PQ4x4", "PQ8x4fs", "RQ2x4", "RaBitQ", "HNSW8", "HNSW8,SQ8", "IVF16,Flat", "IVF16,PQ4x4", "IVF16,SQ8",
    "IVF16,RQ2x4", "IVF16,PQ8x4fs", "IVF16,RaBitQ", "PCA12,HNSW8", "OPQ4,PQ4x4", "PCA12,IVF16,Flat", "SQ8,RFlat",
    "IVF16,PQ4x4,RFlat",
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_with_hidden_rows_no_index_finds_less_than_a_search_of_as_many_more(factory: str, metric: Metric) -> None:
    rows, k, dim = 2000, 10, 16
    items, queries = vectors(rows, dim), vectors(20, dim, seed=1)
    template = train_template(factory, dim, metric, items[:700])
    index = load_index(build_index(template, items, metric), dim=dim, metric=metric, rows=rows, name="segment")
    prepared = prepare_queries(queries, dim, metric)
    assignment = coarse(index, prepared)
    # What a search of everything would say: an index with codes ranks by them, not by the vectors.
    everything = search_segment(index, prepared, rows, metric, coarse(index, prepared, 16))[1]
    anywhere = np.random.default_rng(2).permutation(rows)
    for count, order in itertools.product((1, 40, 1900), (everything[0], anywhere)):
        hidden = np.sort(order[:count])
        hidden = hidden[hidden >= 0]
        assert len(hidden)
        searched = HiddenRows(hidden, rows)
        scores, found = search_segment(index, prepared, k, metric, assignment, searched)
        assert not searched.mask[found[found >= 0]].any()
        assert ((found < 0) == (scores == -np.inf)).all()
        fetched = search_segment(index, prepared, min(rows, k + len(hidden)), metric, assignment)
        live = np.where((fetched[1] >= 0) & ~searched.mask[fetched[1]], fetched[0], -np.inf)
        best = -np.sort(-live, axis=1)[:, :k]
        # The i-th score is at least that of the over-fetch, up to rounding.
        assert (scores >= best - 1e-4 * np.abs(np.where(np.isfinite(best), best, 0)).max()).all()
