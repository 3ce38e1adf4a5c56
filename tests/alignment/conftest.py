"""Digits as pairs of two real models, once per session: N items, D = 32 old and E = 64 new dims, C = 10 classes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.ordering.classifier import Classifier


@dataclass(frozen=True)
class Digits:
    train: TrainingPairs
    old: NDArray[np.float32]
    new: NDArray[np.float32]
    labels: NDArray[np.int64]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small matrices on shared cores: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The paper's protocol: the old model knows half of the classes, the new one all. 900 train pairs, 600 held out."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(images))[:1500]
    images, labels = images[chosen] / 16.0, labels[chosen].astype(np.int64)
    train = np.arange(900)
    half = train[labels[train] < 5]
    old_model = MLPClassifier((32,), max_iter=60, random_state=0, tol=0.01).fit(images[half], labels[half])
    new_model = MLPClassifier((64,), max_iter=60, random_state=0, tol=0.01).fit(images[train], labels[train])
    old, new = _hidden(old_model, images), _hidden(new_model, images)
    weight, bias = new_model.coefs_[1].T.astype(np.float32), new_model.intercepts_[1].astype(np.float32)
    classifier = Classifier.of_class_numbers(weight, bias)
    return Digits(
        train=TrainingPairs(old[:900], new[:900], labels[:900], classifier),
        old=old[900:],
        new=new[900:],
        labels=labels[900:],
    )


def _hidden(model: MLPClassifier, images: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.maximum(images @ model.coefs_[0] + model.intercepts_[0], 0).astype(np.float32)
