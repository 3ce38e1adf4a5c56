"""What a map is fitted on, and the classifier that orders read: the same whatever the order of a file's rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastfill_ray.alignment.maps import METHODS
from fastfill_ray.alignment.pairs import classifier_for, training_pairs
from fastfill_ray.errors import ConfigError
from fastfill_ray.experiment.items import PairedItems
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.ordering.partition import MIN_SPLIT

ROWS, OLD, NEW, CLASSES = 60, 4, 5, 3
SEEDS = st.integers(0, 2**32 - 1)


def objects(values: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def train_items(labels: list[Any] | None = None, rows: int = ROWS) -> PairedItems:
    """Train pairs whose new vectors lie about the centre of their class, row i in class i % CLASSES."""
    rng = np.random.default_rng(0)
    new = 2 * np.eye(CLASSES, NEW)[np.arange(rows) % CLASSES] + 0.5 * rng.normal(size=(rows, NEW))
    return PairedItems(
        ids=objects(list(range(rows))),
        old=rng.normal(size=(rows, OLD)).astype(np.float32),
        new=new.astype(np.float32),
        split=objects(["train"] * rows),
        labels=None if labels is None else objects(labels),
        side=np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
    )


def own_classifier() -> Classifier:
    return Classifier.of_class_numbers(np.eye(CLASSES, NEW, dtype=np.float32), np.zeros(CLASSES, np.float32))


# Training pairs


@given(SEEDS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_training_pairs_are_in_the_order_of_their_ids_hashes_whatever_the_order_of_the_rows(
    seed: int, method: str
) -> None:
    items = train_items([f"class-{i % CLASSES}" for i in range(ROWS)])
    order = np.argsort(hash_ids(items.ids), kind="stable")
    made = training_pairs(items.take(np.random.default_rng(seed).permutation(ROWS)), method, None)
    assert made.side is not None
    assert items.side is not None
    np.testing.assert_array_equal(made.old, items.old[order])
    np.testing.assert_array_equal(made.new, items.new[order])
    np.testing.assert_array_equal(made.side, items.side[order])
    if method == "fastfill":
        assert made.labels is not None
        assert made.labels.tolist() == (order % CLASSES).tolist()
    else:
        assert made.labels is None


@pytest.mark.parametrize("method", [method for method in METHODS if method != "fastfill"])
def test_a_map_that_reads_no_label_learns_from_every_pair_and_gets_no_classifier(method: str) -> None:
    items = train_items([None if i % 2 else i % CLASSES for i in range(ROWS)])
    made = training_pairs(items, method, own_classifier())
    assert (len(made.old), made.labels, made.classifier) == (ROWS, None, None)


def test_fastfill_learns_from_the_labelled_pairs_if_they_are_enough_and_else_from_all_without_labels() -> None:
    least = MIN_SPLIT["train"]
    for known, rows in ((least, least), (least - 1, ROWS)):
        items = train_items([i % CLASSES if i < known else None for i in range(ROWS)])
        made = training_pairs(items, "fastfill", own_classifier())
        assert len(made.old) == len(made.new) == rows
        assert (made.labels is None) == (made.classifier is None) == (rows == ROWS)
        if rows < ROWS:
            kept = items.take(np.arange(known)).by_hash()
            np.testing.assert_array_equal(made.old, kept.old)


def test_without_labels_fastfill_gets_no_classifier_even_if_one_is_given() -> None:
    made = training_pairs(train_items(), "fastfill", own_classifier())
    assert (len(made.old), made.labels, made.classifier) == (ROWS, None, None)


@pytest.mark.parametrize(
    ("labels", "expected"), [(["b", "a", "b"], [1, 0, 1]), ([70, 8, 9], [0, 1, 2]), (["x", "x", "x"], [0, 0, 0])]
)
def test_without_a_classifier_labels_are_numbered_in_the_order_of_their_words(
    labels: list[Any], expected: list[int]
) -> None:
    made = training_pairs(train_items([labels[i % 3] for i in range(ROWS)]), "fastfill", None)
    order = np.argsort(hash_ids(train_items().ids), kind="stable")
    assert made.labels is not None
    assert made.labels.tolist() == [expected[row % 3] for row in order]
    assert made.classifier is None


@pytest.mark.parametrize("labels", [[2, 0, 1], ["2", "0", "1"]])
def test_beside_a_classifier_labels_are_the_numbers_of_its_rows(labels: list[Any]) -> None:
    own = own_classifier()
    made = training_pairs(train_items([labels[i % 3] for i in range(ROWS)]), "fastfill", own)
    order = np.argsort(hash_ids(train_items().ids), kind="stable")
    assert made.labels is not None
    assert made.labels.tolist() == [int(labels[row % 3]) for row in order]
    assert made.classifier is own


def test_a_label_that_is_no_class_number_is_named_with_what_to_do() -> None:
    items = train_items(["cat"] * ROWS)
    message = (
        r"a label is no class number: .*'cat'.* With the new model's classifier labels are the numbers of its rows; "
        r"mend the label column, or leave the classifier out\."
    )
    with pytest.raises(ConfigError, match=message):
        training_pairs(items, "fastfill", own_classifier())
    assert training_pairs(items, "ridge", own_classifier()).labels is None, "no map but fastfill reads a label"


def test_lists_of_labels_teach_no_class_and_a_classifier_with_them_is_refused() -> None:
    items = train_items([("a", "b") if i % 2 else ("b", f"only-{i}") for i in range(ROWS)])
    assert training_pairs(items, "fastfill", None).labels is None
    assert len(training_pairs(items, "fastfill", None).old) == ROWS
    assert classifier_for(None, items) is None
    message = "needs one class per item, but the labels here are lists"
    with pytest.raises(ConfigError, match=message):
        training_pairs(items, "fastfill", own_classifier())
    with pytest.raises(ConfigError, match=message):
        classifier_for(own_classifier(), items)


# The classifier that orders read


def test_a_classifier_that_is_given_is_the_one_that_orders_read() -> None:
    own = own_classifier()
    assert classifier_for(own, train_items(["a", "b"] * (ROWS // 2))) is own
    assert classifier_for(own, train_items()) is own
    assert classifier_for(None, train_items()) is None


@pytest.mark.parametrize("unit", [0.01, 1.0, 50.0])
def test_else_one_is_fitted_on_the_labelled_pairs_in_the_new_models_own_units(unit: float) -> None:
    items = train_items([None if i % 7 == 0 else f"class-{i % CLASSES}" for i in range(ROWS)])
    scaled = replace(items, new=items.new * np.float32(unit))
    fitted = classifier_for(None, scaled)
    assert fitted is not None
    assert fitted.classes.tolist() == [f"class-{number}" for number in range(CLASSES)]
    assert (fitted.weight.shape, fitted.bias.shape) == ((CLASSES, NEW), (CLASSES,))
    chosen = fitted.log_probabilities(scaled.new).argmax(axis=1)
    assert (chosen == np.arange(ROWS) % CLASSES).mean() > 0.9


def test_the_fitted_classifier_does_not_depend_on_the_order_of_the_rows() -> None:
    items = train_items([f"class-{i % CLASSES}" for i in range(ROWS)])
    first = classifier_for(None, items)
    second = classifier_for(None, items.take(np.random.default_rng(1).permutation(ROWS)))
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.weight, second.weight, atol=1e-5)
    np.testing.assert_allclose(first.bias, second.bias, atol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [["one"] * ROWS, [f"item-{i}" for i in range(ROWS)], [None] * ROWS, ["a"] + [None] * (ROWS - 2) + ["b"]],
)
def test_labels_that_say_too_little_give_no_classifier(labels: list[Any]) -> None:
    assert classifier_for(None, train_items(labels)) is None
