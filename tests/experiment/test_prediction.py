"""What is promised of the published index: the pairs as one gallery, and its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fastfill_ray.experiment.candidate import Candidate, MapView, Objective
from fastfill_ray.experiment.curves import FittedCalibrations, stand_for_pairs
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.experiment.prediction import all_pairs, as_unseen, new_at_first, predict_gallery
from fastfill_ray.retrieval.intervals import Interval
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.retrieval.similarity import similarity
from fastfill_ray.types import F32
from tests.experiment.evidence import COUNTS, evidence_of, objects, pairs_of, users_of

RIDGE = Candidate(MapView("ridge"), 1.0, "uncertainty", "identity")
LABEL_MAP, KNOWN_ITEM = Objective("label", "map"), Objective("qrels", "recall@1")
PAIRS = sum(COUNTS.values())


def predict(evidence: Evidence, objective: Objective, *fractions: float) -> tuple[Interval, ...]:
    return predict_gallery(evidence, RIDGE, FittedCalibrations(), objective, fractions)


def test_errors_of_seen_items_get_the_size_of_the_others_and_keep_their_direction() -> None:
    rng = np.random.default_rng(0)
    new = rng.normal(size=(300, 8)).astype(np.float32)
    seen = np.arange(300) < 200
    errors = rng.normal(size=new.shape).astype(np.float32) * np.where(seen, 0.1, 0.4)[:, None].astype(np.float32)
    made = as_unseen(new + errors, new, seen)
    np.testing.assert_array_equal(made[~seen], (new + errors)[~seen])
    changed, size = (made - new)[seen], np.square(errors).sum(axis=1)
    np.testing.assert_allclose(np.square(changed).sum(axis=1).mean(), size[~seen].mean(), rtol=1e-4)
    directions = (changed * errors[seen]).sum(axis=1) / np.linalg.norm(changed, axis=1) / np.sqrt(size[seen])
    np.testing.assert_allclose(directions, 1, rtol=1e-3)


@pytest.mark.parametrize("seen", [[True, True], [False, False], [True, False]])
def test_where_nothing_tells_the_size_of_errors_aligned_vectors_are_as_they_are(seen: list[bool]) -> None:
    new = np.ones((2, 3), np.float32)
    aligned = new + np.array([[0], [1]], np.float32)  # the first one is met exactly
    np.testing.assert_array_equal(as_unseen(aligned, new, np.array(seen)), aligned)


def test_the_pairs_of_all_splits_are_searched_each_part_in_an_order_of_its_own() -> None:
    evidence = evidence_of(users_of())
    split = all_pairs(evidence, RIDGE, LABEL_MAP, PAIRS)
    assert sorted(split.items.ids) == sorted(evidence.pairs.ids)
    order = split.order(RIDGE)
    first = split.items.split[order[: PAIRS // 2]] == "train"
    assert first.sum() == pytest.approx(COUNTS["train"] / 2, abs=1)
    held_out = split.items.split != "train"
    _, log_variance = evidence.maps["ridge"](split.items.old, None)
    place = np.argsort(order)
    np.testing.assert_array_equal(np.argsort(place[held_out]), np.argsort(-log_variance[held_out], kind="stable"))


def test_items_that_taught_a_map_their_labels_are_left_out_where_ranks_of_all_of_a_class_count() -> None:
    evidence = evidence_of(users_of())
    taught = replace(evidence, maps={"fastfill": evidence.maps["ridge"]})
    fastfill = replace(RIDGE, view=MapView("fastfill"))
    parts = all_pairs(taught, fastfill, LABEL_MAP, PAIRS).items.split
    assert set(parts) == {"calibration", "audit"}
    for objective in (Objective("label", "cmc@1"), KNOWN_ITEM):
        assert len(all_pairs(taught, fastfill, objective, PAIRS).items.ids) == PAIRS


@pytest.mark.parametrize("with_users", [True, False])
def test_where_the_pairs_are_the_gallery_the_value_is_what_they_measure(with_users: bool) -> None:
    evidence = evidence_of(users_of() if with_users else None)
    [predicted] = predict(evidence, LABEL_MAP, 1.0)
    split = all_pairs(evidence, RIDGE, LABEL_MAP, PAIRS)
    shadow = split.shadow(split.answered("label"))
    plain = measure(shadow.new, {"label": shadow.relevant["label"]})["label"]["map"]
    assert predicted.value == pytest.approx(np.nanmean(plain), abs=1e-6)
    assert predicted.low < predicted.value < predicted.high


def test_the_states_are_those_of_the_runs_fractions() -> None:
    evidence = evidence_of(users_of())
    share = 0.2
    sampled = stand_for_pairs(evidence.pairs.id_hash, share, evidence.seed)
    assert sampled.mean() == pytest.approx(share, abs=0.08)
    values = [interval.value for interval in predict(evidence, LABEL_MAP, share, 0.5, 1.0)]
    assert values == sorted(values)
    assert len(set(values)) == 3


def known_items(size: int, queries: int = 150, *, of: int | None = None) -> tuple[F32, Queries]:
    """Items on a sphere, and queries near some of the first `of`: the more items, the harder to find."""
    rng = np.random.default_rng(0)
    new = rng.normal(size=(size, 6)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    sought = np.arange(queries) * ((of or size) // queries)
    asking = new[sought] + 0.35 * rng.normal(size=(queries, 6)).astype(np.float32)
    judged = tuple(Judgement(query, f"item-{item}") for query, item in enumerate(sought.tolist()))
    return new, Queries(objects([f"q{i}" for i in range(queries)]), asking, judged=judged)


def test_a_known_item_is_harder_to_find_in_a_gallery_than_among_its_pairs() -> None:
    gallery, queries = known_items(4800, of=600)
    pairs = 600
    items = PairedItems(
        ids=objects([f"item-{i}" for i in range(pairs)]),
        old=gallery[:pairs],
        new=gallery[:pairs],
        split=objects(["train"] * 200 + ["calibration"] * 200 + ["audit"] * 200),
    )
    evidence = evidence_of(queries, pairs=items, maps={"ridge": lambda old, side=None: (old, old[:, 0])})
    predicted = predict(evidence, KNOWN_ITEM, pairs / len(gallery), 1.0)[-1]

    def found(size: int) -> float:
        scores = similarity(queries.new, gallery[:size], "cosine")
        sought = [int(str(each.item).removeprefix("item-")) for each in queries.judged or ()]
        return float((scores.argmax(axis=1) == sought).mean())

    assert found(pairs) > predicted.high > found(4800) > predicted.low
    assert predicted.queries == len(queries.ids)


def test_what_no_query_has_an_answer_for_is_not_predicted() -> None:
    unlabelled = evidence_of(replace(users_of(), labels=None))
    for objective in (LABEL_MAP, KNOWN_ITEM):
        assert [interval.queries for interval in predict(unlabelled, objective, 0.1, 1.0)] == [0, 0]


def test_nothing_depends_on_the_order_of_the_pairs() -> None:
    evidence = evidence_of(users_of())
    turned = replace(evidence, pairs=pairs_of().take(np.arange(PAIRS)[::-1]))
    for one, other in zip(predict(evidence, LABEL_MAP, 0.1, 0.5), predict(turned, LABEL_MAP, 0.1, 0.5), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


# Known items, of which some are pairs and the others were added

SOUGHT = 12


def known_evidence(order: Sequence[float], *, per_added: float | None = 1.0, rows: int = 200) -> Evidence:
    """A sample of which the first SOUGHT items are sought as often as as many that were added: the mapped vector of
    every item is that of another direction, so that a sought item is found as it is new, and not before.

    Args:
        order: the priority of the added items; that of the sample is 0.
    """
    rng = np.random.default_rng(2)
    size = 100 + SOUGHT
    new = np.eye(size, dtype=np.float32)
    ids = objects([f"item-{i}" for i in range(size)])
    split = objects(
        [["train", "calibration", "audit"][i % 3] for i in range(100)] + ["calibration", "audit"] * (SOUGHT // 2)
    )
    priority = np.concatenate([np.zeros(100), order]).astype(np.float32)
    items = PairedItems(ids, -new, new, split, priority=priority, added=np.arange(size) >= 100)
    sought = [*range(SOUGHT), *range(100, size)]
    judged = tuple(Judgement(query, f"item-{item}") for query, item in enumerate(sought))
    asking = new[sought] + 0.01 * rng.normal(size=(len(sought), size)).astype(np.float32)
    queries = Queries(
        objects([f"q{i}" for i in range(len(sought))]), asking.astype(np.float32), judged=judged, judged_as="log"
    )
    made = evidence_of(queries, pairs=items, maps={"ridge": lambda old, side=None: (old, old[:, 0])})
    return replace(made, answers_per_added=per_added)


def predict_known(evidence: Evidence, *fractions: float) -> list[float]:
    candidate = Candidate(MapView("ridge"), 1.0, "column", "identity")
    objective = Objective("log", "recall@1")
    return [p.value for p in predict_gallery(evidence, candidate, FittedCalibrations(), objective, fractions)]


def test_what_is_sought_is_new_from_the_start_where_it_is_a_pair_and_in_its_turn_where_it_was_added() -> None:
    first, later, last = predict_known(known_evidence([1.0] * SOUGHT), 0.5, 0.6, 1.0)
    assert (first, later, last) == pytest.approx((0.5, 1, 1), abs=0.02)
    # By another order they come when all of the gallery has.
    first, later, last = predict_known(known_evidence([-1.0] * SOUGHT), 0.5, 0.6, 1.0)
    assert (first, later, last) == pytest.approx((0.5, 0.5, 1), abs=0.02)


def test_of_those_that_come_first_only_as_many_are_new_as_the_wave_has_place_for() -> None:
    [_, half, _] = predict_known(known_evidence(list(range(1, SOUGHT + 1))), 0.5, 0.53, 1.0)
    assert half == pytest.approx(0.75, abs=0.03), "6 of the 100 that are no pairs, and all 6 of them are sought"


def test_where_not_all_were_added_those_that_were_stand_for_the_others() -> None:
    [first, _] = predict_known(known_evidence([1.0] * SOUGHT, per_added=3.0), 0.5, 1.0)
    assert first == pytest.approx(0.25, abs=0.02)


# What an earlier plan has made new


def test_what_is_carried_is_no_part_of_the_size_of_the_gallery() -> None:
    """As many pairs in a gallery of the same size: only what is new in version 0 differs."""
    evidence = evidence_of(users_of())
    carried = replace(evidence, carried_share=0.4)
    first, half, last = predict(evidence, LABEL_MAP, 0.1, 0.5, 1.0)
    at_half, then = predict(carried, LABEL_MAP, 0.5, 1.0)
    assert then == pytest.approx(last, abs=1e-6)
    assert first.value < at_half.value <= then.value
    assert at_half.value == pytest.approx(half.value, abs=0.05), "by chance instead of by the order"


def test_where_all_is_carried_version_0_is_the_new_index() -> None:
    evidence = evidence_of(users_of())
    [*_, last] = predict(evidence, LABEL_MAP, 0.1, 1.0)
    for predicted in predict(replace(evidence, carried_share=0.9), LABEL_MAP, 1.0, 1.0, 1.0):
        assert predicted == pytest.approx(last, abs=1e-6)


def test_of_added_items_those_that_are_carried_are_new_and_the_others_wait() -> None:
    evidence = known_evidence([1.0] * SOUGHT)
    half = np.arange(100 + SOUGHT) >= 100 + SOUGHT // 2
    carried = replace(evidence, pairs=replace(evidence.pairs, carried=half), carried_share=0.05)
    first, later, last = predict_known(carried, 0.55, 0.65, 1.0)
    assert (first, later, last) == pytest.approx((0.75, 1, 1), abs=0.02)


def test_an_earlier_order_says_which_items_stand_for_what_is_carried_and_chance_fills_up() -> None:
    pairs = pairs_of()
    none, carried = np.zeros(PAIRS, bool), np.arange(PAIRS) % 4 == 0
    items = replace(pairs, carried=carried)
    drawn = new_at_first(items, none, 0.5, 0)
    assert drawn.sum() == PAIRS // 2
    assert drawn[carried].all()
    plain = new_at_first(pairs, none, 0.5, 0)
    assert plain.sum() == PAIRS // 2
    assert (drawn & ~carried & ~plain).sum() == 0, "the same chance"
    fewer = new_at_first(items, none, 0.1, 0)
    assert fewer.sum() == PAIRS // 10
    assert carried[fewer].all()
