"""A linear softmax classifier against plain loops, and the rows that labels of any type name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.ordering.classifier import Classifier

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 5), st.integers(1, 6), st.sampled_from([0.1, 1.0, 300.0]))
@settings(max_examples=100, deadline=None)
def test_log_probabilities_are_those_of_a_softmax_also_where_logits_are_huge(
    seed: int, items: int, classes: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = (spread * rng.normal(size=(classes, 3))).astype(np.float32)
    bias = rng.normal(size=classes).astype(np.float32)
    vectors = rng.normal(size=(items, 3)).astype("f4")
    logs = Classifier.of_class_numbers(weight, bias).log_probabilities(vectors)
    assert logs.shape == (items, classes)
    assert logs.dtype == np.float32
    for vector, row in zip(vectors.astype("f8"), logs, strict=True):
        logits = [float(vector @ w) + float(b) for w, b in zip(weight.astype("f8"), bias, strict=True)]
        total = max(logits) + math.log(sum(math.exp(logit - max(logits)) for logit in logits))
        assert row == pytest.approx([logit - total for logit in logits], rel=1e-4, abs=1e-3)


def test_a_label_names_its_row_whatever_its_type_and_unknown_ones_have_rows_of_their_own() -> None:
    made = Classifier(np.zeros((3, 2), np.float32), np.zeros(3, np.float32), np.array(["b", "a", "7"]))
    labels = np.array(["a", "b", 7, "7", "eel", None], object)
    assert made.rows(labels).tolist() == [1, 0, 2, 2, 3, 4]


def test_the_labels_of_the_new_models_own_classifier_are_the_numbers_of_its_rows() -> None:
    made = Classifier.of_class_numbers(np.zeros((11, 2), np.float32), np.zeros(11, np.float32))
    assert made.rows(np.array([0, "10", 10, 11, None], object)).tolist() == [0, 10, 10, 11, 12]
