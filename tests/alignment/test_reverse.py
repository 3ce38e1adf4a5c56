"""The reverse map: an alignment with the models' roles swapped."""

from __future__ import annotations

import numpy as np
import pytest

from fastfill_ray.alignment.reverse import fit_reverse, swapped
from fastfill_ray.experiment.items import PairedItems, Queries
from tests.alignment.conftest import Digits


def pairs(digits: Digits) -> PairedItems:
    train = digits.train
    return PairedItems(
        ids=np.arange(len(train.old)).astype(object),
        old=train.old,
        new=train.new,
        split=np.full(len(train.old), "train", object),
        labels=digits.labels[:1].repeat(len(train.old)).astype(object),
        side=train.old[:, :2],
    )


def test_it_maps_new_vectors_to_old_ones(digits: Digits) -> None:
    mapped, log_variance = fit_reverse(pairs(digits), "ridge", "default", seed=0)(digits.new)
    assert mapped.shape == digits.old.shape
    assert log_variance.shape == (len(digits.new),)
    error = np.square(mapped - digits.old).sum()
    assert error < 0.5 * np.square(digits.old - digits.old.mean(axis=0)).sum()


def test_swapping_twice_gives_the_pairs_without_what_a_query_lacks(digits: Digits) -> None:
    items = pairs(digits)
    twice = swapped(swapped(items))
    assert twice.old is items.old
    assert twice.new is items.new
    assert twice.side is None
    assert twice.labels is None


def test_queries_that_both_models_embedded_are_further_pairs(digits: Digits) -> None:
    items, some = pairs(digits), slice(0, 300)
    few = items.take(np.arange(20))
    ids = np.arange(300).astype(object)
    asked = Queries(ids, digits.new[some], digits.old[some])

    def error(queries: Queries | None) -> float:
        mapped = fit_reverse(few, "ridge", "default", seed=0, queries=queries)(digits.new[300:])[0]
        return float(np.square(mapped - digits.old[300:]).sum())

    assert error(asked) < error(None)
    with pytest.raises(ValueError, match="without old vectors"):
        error(Queries(ids, digits.new[some]))
