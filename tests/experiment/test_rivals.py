"""Cheaper ways than a backfill: each against plain loops over whole rankings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastfill_ray.experiment.candidate import Objective
from fastfill_ray.experiment.curves import backfill_order, published_cutoffs
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.rivals import (
    MAPPED_RANK_MERGE,
    NAIVE_SWAP,
    QUERY_MAP,
    RANK_MERGE,
    RRF,
    SWAP_AT_END,
    RankedLists,
    rival_curves,
)
from fastfill_ray.experiment.shadow import make_shadow
from fastfill_ray.ordering.policies import random_priority
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.types import F32, Bools
from tests.experiment.evidence import pairs_of, users_of

OBJECTIVES = [Objective("label", "map"), Objective("new_model", "recall@10"), Objective("label", "cmc@1")]


def reciprocal_ranks(new: F32, old: F32, is_new: Bools) -> F32:
    """The scores (Q, N) that the words define: 1 / (60 + rank), of equal ranks the new item a little more."""
    scores = np.full(new.shape, -np.inf, np.float32)
    for query in range(len(new)):
        for of_list, part, ahead in ((new, is_new, 1e-6), (old, ~is_new, 0)):
            ranked = sorted(np.flatnonzero(part & np.isfinite(new[query])), key=lambda item: -of_list[query, item])
            for place, item in enumerate(ranked):
                scores[query, item] = 1 / (60 + 1 + place) + ahead
    return scores


@pytest.mark.parametrize("ask_themselves", [False, True])
def test_every_rival_is_what_its_name_says(ask_themselves: bool) -> None:
    items = pairs_of().part("audit")
    queries = items.as_queries().first(20) if ask_themselves else users_of().first(20)
    assert queries.old is not None
    mapped = np.roll(queries.old, 1, axis=1)
    curves = rival_curves(items, queries, "cosine", mapped=mapped, seed=0)
    shadow = make_shadow(items, queries, "cosine")
    of_mapped = make_shadow(items, replace(queries, old=mapped), "cosine").old
    assert shadow.old is not None
    assert of_mapped is not None
    order = backfill_order(random_priority(items.id_hash, 0), items.id_hash)
    for point, cutoff in enumerate(published_cutoffs(len(order))):
        is_new = np.zeros(len(order), bool)
        is_new[order[:cutoff]] = True
        states = {
            SWAP_AT_END: shadow.new if is_new.all() else shadow.old,
            QUERY_MAP: of_mapped,
            RANK_MERGE: np.where(is_new, shadow.new, shadow.old),
            MAPPED_RANK_MERGE: np.where(is_new, shadow.new, of_mapped),
            RRF: reciprocal_ranks(shadow.new, shadow.old, is_new),
        }
        assert set(curves) == set(states)  # the models' dimensions differ
        for name, scores in states.items():
            measured = shadow.measure(scores)
            for objective in OBJECTIVES:
                expected = measured[objective.relevance, objective.metric]
                assert curves[name].values[objective.relevance, objective.metric][point] == pytest.approx(
                    expected, nan_ok=True
                )


def test_of_equal_ranks_the_new_item_is_first_and_a_list_that_ends_gives_way() -> None:
    new = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32)
    old = np.array([[0.1, 0.5, 0.3, 0.2, 0.4]], np.float32)
    lists = RankedLists.of(new, old)
    everything = RelevantItems.of(np.ones((1, 5), bool))

    def ranks(*is_new: int) -> list[int]:
        return list(lists.merged(np.array(is_new, bool)).ranks(everything))

    assert ranks(0, 1, 0, 1, 0) == [5, 1, 4, 3, 2]
    assert ranks(1, 0, 0, 0, 0) == [1, 2, 4, 5, 3]
    assert ranks(1, 1, 1, 1, 1) == [1, 2, 3, 4, 5]
    assert ranks(0, 0, 0, 0, 0) == [5, 1, 3, 4, 2]


def test_a_naive_swap_is_there_where_dimensions_agree_and_old_queries_only_where_they_are_given() -> None:
    items, users = pairs_of().part("audit"), users_of(old=False)
    assert rival_curves(items, users, "cosine", mapped=None, seed=0) == {}
    same = replace(items, new=items.old)
    asking = replace(users_of(), new=users_of().old)
    curves = rival_curves(same, replace(asking, old=None), "cosine", mapped=None, seed=0)
    assert set(curves) == {NAIVE_SWAP}
    of_model = curves[NAIVE_SWAP].values["new_model", "recall@10"]
    assert of_model == pytest.approx(np.ones_like(of_model))  # it is the same model


def test_queries_in_blocks_are_measured_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    items: PairedItems = pairs_of().part("audit")
    queries: Queries = users_of()
    whole = rival_curves(items, queries, "l2", mapped=None, seed=1)[RRF]
    monkeypatch.setattr("fastfill_ray.experiment.rivals._BLOCK_SCORES", 7 * len(items.ids))
    parts = rival_curves(items, queries, "l2", mapped=None, seed=1)[RRF]
    for key, values in whole.values.items():
        assert np.array_equal(values, parts.values[key], equal_nan=True)
