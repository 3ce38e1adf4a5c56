"""The preset ``paper`` against plain numpy: one step of FastFill (Jaeckle et al., ICLR 2023) and the schedule."""

import math

import numpy as np
import pytest
import safetensors.torch
from numpy.typing import NDArray

from fastfill_ray.alignment.maps import PRESETS, Preset
from fastfill_ray.alignment.pairs import CLASSIFIER_PENALTY, TrainingPairs, softmax_classifier
from fastfill_ray.alignment.training import Fit
from fastfill_ray.ordering.classifier import Classifier

ROWS, OLD, NEW, CLASSES = 40, 6, 8, 3
Weights = dict[str, NDArray[np.float64]]


def make(kind: str) -> TrainingPairs:
    rng = np.random.default_rng(0)
    old, new = (rng.normal(size=(ROWS, dim)).astype(np.float32) for dim in (OLD, NEW))
    weight, bias = rng.normal(size=(CLASSES, NEW)).astype(np.float32), np.ones(CLASSES, np.float32)
    classifier = Classifier.of_class_numbers(weight, bias)
    labels = np.arange(ROWS) % CLASSES
    return TrainingPairs(
        old, new * 4, labels if kind != "neither" else None, classifier if kind == "classifier" else None
    )


def weights_of(fit: Fit) -> Weights:
    tensors = safetensors.torch.load(fit.state())
    return {name.removeprefix("map."): t.double().numpy() for name, t in tensors.items() if name.startswith("map.")}


def blocks(x: NDArray[np.float64], w: Weights, name: str) -> NDArray[np.float64]:
    """Two times Linear (no bias), BatchNorm on the batch, ReLU."""
    for linear, norm in ((0, 1), (3, 4)):
        x = x @ w[f"{name}.{linear}.weight"].T
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        x = np.maximum(x * w[f"{name}.{norm}.weight"] + w[f"{name}.{norm}.bias"], 0)
    return x


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("kind", "mu"), [("classifier", 1.0), ("labels", 0.3), ("neither", 0.1)])
def test_one_step_has_the_published_loss_and_the_published_gradient(kind: str, mu: float) -> None:
    pairs = make(kind)
    fit = Fit("fastfill", "paper", pairs, seed=0)
    before = weights_of(fit)
    report = fit.step()
    after = weights_of(fit)

    old, new = (v.astype(np.float64) / np.sqrt(np.square(v, dtype=np.float64).mean()) for v in (pairs.old, pairs.new))
    hidden = blocks(
        np.concatenate([blocks(old, before, "first"), blocks(old, before, "second")], axis=1), before, "mixer"
    )
    h = hidden @ before["mixer.6.weight"].T + before["mixer.6.bias"]
    s = h @ before["head.weight"][0] + before["head.bias"][0]
    squared = np.square(h - new).mean(axis=1)
    gradient_h = 2 * (h - new) / NEW
    if pairs.labels is None:
        discriminative = -np.diag(log_softmax(unit(h) @ unit(new).T / 0.07))
    else:
        # The model's own classifier reads vectors in its own units, a fitted one scaled vectors.
        scale = np.sqrt(np.square(pairs.new, dtype=np.float64).mean())
        own = pairs.classifier
        weight, bias = (own.weight, own.bias) if own else softmax_classifier(new, pairs.labels, CLASSES)
        matrix = weight * (scale if own else 1.0)
        target = np.full((ROWS, CLASSES), 0.1 / CLASSES)
        target[np.arange(ROWS), pairs.labels] += 0.9
        log_p = log_softmax(h @ matrix.T + bias)
        discriminative = -(target * log_p).sum(axis=1)
        gradient_h = gradient_h + mu * (np.exp(log_p) - target) @ matrix
    each = squared + mu * discriminative
    assert report["squared_error"] == pytest.approx(squared.mean(), rel=1e-4)
    assert report["discriminative"] == pytest.approx(discriminative.mean(), rel=1e-4)
    assert report["loss"] == pytest.approx((np.exp(-s) * each / 2 + s / 2).mean(), rel=1e-4)

    # The first step of Adam, lr = 5e-4 after the first of five epochs of warm-up: lr * g / (|g| + eps).
    in_s = (0.5 - 0.5 * np.exp(-s) * each) / ROWS
    gradients = {"head.bias": in_s.sum(keepdims=True), "head.weight": (in_s @ h)[None]}
    if pairs.labels is not None:
        # s passes its gradient on to h.
        passed = 0.5 * np.exp(-s)[:, None] * gradient_h / ROWS + in_s[:, None] * before["head.weight"]
        gradients["mixer.6.bias"] = passed.sum(axis=0)
    for name, gradient in gradients.items():
        decayed = gradient + 2.0**-15 * before[name]
        step = 5e-4 / 6 * decayed / (np.abs(decayed) + 1e-8)
        assert np.allclose(before[name] - after[name], step, rtol=1e-2, atol=2e-7), name


def test_the_paper_trains_in_batches_of_1024_for_80_epochs_and_freezes_batch_norm_at_40() -> None:
    assert PRESETS["paper"] == Preset(inner=2048, epochs=80, batch=1024)
    rng = np.random.default_rng(1)
    pairs = TrainingPairs(*(rng.normal(size=(1100, 2)).astype(np.float32) for _ in range(2)))
    fit = Fit("fastfill", "paper", pairs, seed=0)
    fit.step()
    assert weights_of(fit)["mixer.1.num_batches_tracked"] == math.ceil(1100 / 1024)

    fit = Fit("fastfill", "paper", make("classifier"), seed=0)
    tracked, losses = [], []
    while fit.epoch < fit.epochs:
        losses.append(fit.step()["loss"])
        if fit.epoch in (40, 80):
            tracked.append(weights_of(fit))
    assert [w["mixer.1.num_batches_tracked"] for w in tracked] == [40, 40]
    assert np.array_equal(tracked[0]["mixer.4.running_mean"], tracked[1]["mixer.4.running_mean"])
    assert not np.array_equal(tracked[0]["mixer.4.weight"], tracked[1]["mixer.4.weight"])
    assert losses[-1] < losses[0]


def test_the_fitted_classifier_is_the_optimum_of_penalised_cross_entropy() -> None:
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(200, NEW)), rng.integers(0, CLASSES, 200)
    weight, bias = softmax_classifier(x, labels, CLASSES)
    excess = np.exp(log_softmax(x @ weight.T + bias)) - np.eye(CLASSES)[labels]
    assert np.abs(excess.T @ x / 200 + CLASSIFIER_PENALTY * weight).max() < 1e-3
    assert np.abs(excess.mean(axis=0)).max() < 1e-3
