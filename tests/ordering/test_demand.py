"""Orders by demand: what they agree with, what traffic does to them, and what they keep apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.ordering.demand import (
    Demand,
    TakenItems,
    column_priority,
    demand,
    taken,
    with_thresholds,
)
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.policies import expected_gain
from fastfill_ray.ordering.proxies import Proxies
from fastfill_ray.ordering.waves import order_key
from fastfill_ray.types import F32

OLD_DIM, NEW_DIM = 6, 8


def vectors(rows: int, dim: int, seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def logged(traffic: list[float], metric: str = "recall@10") -> tuple[F32, F32, Demand]:
    """Old and aligned vectors of 60 items, and queries of this traffic with their thresholds."""
    count = len(traffic)
    old, aligned = vectors(60, OLD_DIM, 0), vectors(60, NEW_DIM, 1)
    proxies = Proxies(vectors(count, NEW_DIM, 2), vectors(count, OLD_DIM, 3), "cosine", 0.2, 1.0)
    return old, aligned, with_thresholds(Demand(proxies, np.array(traffic)), old, aligned, metric)


def test_equal_traffic_is_expected_gain() -> None:
    old, aligned, asked = logged([1.0] * 5)
    np.testing.assert_allclose(demand(old, aligned, asked), expected_gain(old, aligned, asked.proxies), rtol=1e-5)


def test_a_query_that_is_asked_twice_is_two_queries() -> None:
    old, aligned, asked = logged([1.0, 2.0, 1.0])
    rows = [0, 1, 1, 2]
    proxies = asked.proxies
    assert proxies.thresholds is not None
    apart = replace(
        asked,
        proxies=replace(proxies, new=proxies.new[rows], old=proxies.old[rows], thresholds=proxies.thresholds[rows]),
        traffic=np.ones(4),
    )
    np.testing.assert_allclose(demand(old, aligned, asked), demand(old, aligned, apart), rtol=1e-5)


def test_the_only_query_puts_its_best_candidates_first() -> None:
    old, aligned, asked = logged([3.0], metric="cmc@1")
    evidence = asked.proxies.evidence(old, aligned)[0]
    priority = demand(old, aligned, asked)
    assert np.argsort(-priority, kind="stable").tolist() == np.argsort(-evidence, kind="stable").tolist()
    assert priority.max() == pytest.approx(1.5)  # at its own threshold: as likely above as below


def test_traffic_beyond_float32_and_of_nothing_is_finite() -> None:
    old, aligned, asked = logged([2.0**60, 1.0])
    assert np.isfinite(demand(old, aligned, asked)).all()
    assert (demand(old, aligned, replace(asked, traffic=np.zeros(2))) == 0).all()


def test_fewer_items_than_the_metric_looks_at_are_all_among_the_best() -> None:
    old, aligned, asked = logged([2.0, 1.0])
    few = with_thresholds(asked, old[:4], aligned[:4], "recall@10")
    np.testing.assert_allclose(demand(old[:4], aligned[:4], few), 3.0)


def test_chunks_do_not_matter() -> None:
    old, aligned, asked = logged([1.0, 4.0])
    parts = [demand(old[rows], aligned[rows], asked) for rows in (slice(0, 7), slice(7, 60))]
    np.testing.assert_allclose(np.concatenate(parts), demand(old, aligned, asked), rtol=1e-5)


def test_what_is_missing_is_said() -> None:
    old, aligned, asked = logged([1.0, 4.0])
    with pytest.raises(ValueError, match="needs thresholds"):
        demand(old, aligned, replace(asked, proxies=replace(asked.proxies, thresholds=None)))
    with pytest.raises(ValueError, match="3 traffics for 2 logged queries"):
        demand(old, aligned, replace(asked, traffic=np.ones(3)))


@given(
    st.lists(st.integers(0, 1400), min_size=2, max_size=30),
    st.lists(st.floats(0, 2.0**100, width=32), min_size=30, max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_taken_items_come_by_traffic_and_all_others_behind_them_by_demand(
    counts: list[int], demands: list[float]
) -> None:
    ids = np.array([f"i{n}" for n in range(len(counts))], object)
    demanded = np.array(demands[: len(counts)], np.float32)
    some = np.flatnonzero(counts)
    items = TakenItems.of(ids[some], np.array(counts, np.float64)[some])
    priority = taken(hash_ids(ids), items, demanded)
    for one in range(len(counts)):
        for other in range(len(counts)):
            if counts[one] > counts[other]:
                assert priority[one] > priority[other]
            elif counts[one] == counts[other] and demanded[one] >= demanded[other]:
                assert priority[one] >= priority[other]


def test_a_column_of_the_users_keeps_its_order_and_what_is_missing_comes_last() -> None:
    values = np.array([np.nan, -np.inf, -1e300, 0.0, 2.0, np.inf])
    keys = order_key(column_priority(values), np.arange(6, dtype=np.uint64))
    assert np.argsort(keys, kind="stable")[3:].tolist() == [3, 4, 5]
    assert keys[0] < keys[3]


def test_traffic_that_is_shares_orders_as_counts_do() -> None:
    ids = np.arange(200)
    counts = np.random.default_rng(4).integers(1, 400, 200).astype(np.float64)
    demanded = np.zeros(200, np.float32)
    hashes = hash_ids(ids)
    whole = taken(hashes, TakenItems.of(ids, counts), demanded)
    shares = taken(hashes, TakenItems.of(ids, counts / counts.sum()), demanded)
    order = np.argsort(-shares, kind="stable")
    assert (np.diff(counts[order]) <= 0).all()
    assert (np.diff(whole[order]) <= 0).all()
