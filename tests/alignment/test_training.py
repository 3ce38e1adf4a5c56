from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastfill_ray.alignment.maps import Alignment, Method
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import AlignmentFailed, CorruptFile
from fastfill_ray.ordering.classifier import Classifier
from tests.alignment.conftest import Digits

METHODS: list[Method] = ["fastfill", "fct", "kernel", "ridge", "procrustes"]


def small(rows: int = 40, seed: int = 0) -> TrainingPairs:
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(rows, 5)).astype(np.float32)
    return TrainingPairs(old, np.tanh(old @ rng.normal(size=(5, 7))).astype(np.float32), np.arange(rows) % 3)


def constant_classifier(classes: int, dim: int, weight: float = 1.0) -> Classifier:
    return Classifier.of_class_numbers(np.full((classes, dim), weight, np.float32), np.ones(classes, np.float32))


def train(fit: Fit) -> Alignment:
    while fit.epoch < fit.epochs:
        report = fit.step()
        assert all(np.isfinite(value) for value in report.values())
    return fit.finish()


def ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values)).astype(np.float64)


def cmc_at_1(digits: Digits, gallery: NDArray[np.float32]) -> float:
    """Share of new-model queries whose nearest other gallery item by cosine has the same digit."""
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in (digits.new, gallery)]
    scores = unit[0] @ unit[1].T
    np.fill_diagonal(scores, -np.inf)
    return float((digits.labels[scores.argmax(axis=1)] == digits.labels).mean())


@pytest.mark.parametrize(
    ("method", "labelled"),
    [(method, "classifier") for method in METHODS] + [("fastfill", "labels"), ("fastfill", "neither")],
)
def test_a_map_makes_new_queries_find_old_items_and_knows_where_it_errs(
    digits: Digits, method: Method, labelled: str
) -> None:
    pairs = digits.train
    if labelled != "classifier":
        pairs = replace(pairs, classifier=None, labels=pairs.labels if labelled == "labels" else None)
    aligned, log_variance = train(Fit(method, "default", pairs, seed=0))(digits.old)
    error = np.square(aligned - digits.new).mean(axis=1)
    constant = np.square(digits.new - digits.train.new.mean(axis=0)).mean()
    assert error.mean() < 0.7 * constant
    assert cmc_at_1(digits, aligned) > 0.7
    assert np.corrcoef(ranks(log_variance), ranks(error))[0, 1] > 0.1
    if method != "fastfill":
        scale = np.square(digits.train.new).mean()
        assert np.isclose(np.exp(log_variance).mean(), error.mean() / scale, rtol=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_fit_ends_where_an_unbroken_one_ends(method: Method) -> None:
    pairs = small()
    whole = Fit(method, "default", pairs, seed=3)
    expected = train(whole)(pairs.old)
    broken = Fit(method, "default", pairs, seed=3)
    stops = {0, 5, broken.epochs // 2, broken.epochs}
    while broken.epoch < broken.epochs:
        if broken.epoch in stops:
            state, epoch = broken.state(), broken.epoch
            broken = Fit(method, "default", pairs, seed=3)
            broken.restore(state)
            assert broken.epoch == epoch
        broken.step()
    last = Fit(method, "default", pairs, seed=3)
    last.restore(broken.state())
    for result, reference in zip(last.finish()(pairs.old), expected, strict=True):
        assert np.allclose(result, reference, atol=1e-6)


def test_the_seed_decides_everything_and_the_global_generator_nothing() -> None:
    pairs = small()
    torch.manual_seed(1)
    first = train(Fit("fastfill", "default", pairs, seed=3))(pairs.old)[0]
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert np.allclose(train(Fit("fastfill", "default", pairs, seed=3))(pairs.old)[0], first, atol=1e-5)
    assert torch.equal(torch.rand(1), drawn)
    assert not np.allclose(train(Fit("fastfill", "default", pairs, seed=4))(pairs.old)[0], first, atol=1e-3)


def test_a_checkpoint_of_other_pairs_or_of_other_bytes_is_refused() -> None:
    fit = Fit("fct", "default", small(), seed=3)
    fit.step()
    for other in (
        Fit("fct", "default", small(seed=1), seed=3),
        Fit("fct", "default", small(), seed=4),
        Fit("ridge", "default", small(), seed=3),
    ):
        with pytest.raises(AlignmentFailed, match="another method, preset or seed"):
            other.restore(fit.state())
    for damaged in (b"", fit.state()[:-1], b"x" * 100):
        with pytest.raises(CorruptFile, match="not a training checkpoint"):
            fit.restore(damaged)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [16, 17, 33, 257])
def test_few_pairs_train_without_nan(method: Method, rows: int) -> None:
    pairs = small(rows)
    aligned, log_variance = train(Fit(method, "default", pairs, seed=0))(pairs.old)
    assert np.isfinite(aligned).all()
    assert np.isfinite(log_variance).all()


def test_units_do_not_matter() -> None:
    pairs = small()
    scaled = replace(pairs, old=pairs.old * np.float32(1024), new=pairs.new * np.float32(2**-10))
    aligned, log_variance = train(Fit("fct", "default", pairs, seed=0))(pairs.old)
    other, other_variance = train(Fit("fct", "default", scaled, seed=0))(scaled.old)
    assert np.allclose(other * 1024, aligned, atol=1e-5)
    assert np.allclose(other_variance, log_variance, atol=1e-5)


def test_a_classifier_reads_vectors_in_the_new_models_own_units(digits: Digits) -> None:
    pairs, factor = digits.train, np.float32(8)
    assert pairs.classifier is not None
    narrower = replace(pairs.classifier, weight=pairs.classifier.weight / factor)
    scaled = replace(pairs, new=pairs.new * factor, classifier=narrower)
    losses = [Fit("fastfill", "default", p, seed=0).step()["discriminative"] for p in (pairs, scaled)]
    assert np.isclose(*losses, rtol=1e-4)


def test_labels_that_name_single_items_are_no_classes() -> None:
    pairs = small()
    unlabelled = Fit("fastfill", "default", replace(pairs, labels=None), seed=0)
    single = Fit("fastfill", "default", replace(pairs, labels=np.arange(40) * 7 - 3), seed=0)
    assert single.step() == pytest.approx(unlabelled.step(), rel=1e-4)


def test_a_perfect_linear_map_has_a_finite_log_variance() -> None:
    pairs = small(200)
    pairs = replace(pairs, new=pairs.old @ np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32))
    aligned, log_variance = train(Fit("ridge", "default", pairs, seed=0))(pairs.old)
    assert np.allclose(aligned, pairs.new, atol=0.01)
    assert np.isfinite(log_variance).all()


def bad(**change: object) -> TrainingPairs:
    return replace(small(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (small(15), r"15 training pairs are too few, at least 16.*pairs\.count"),
        (bad(old=np.ones((40, 5), np.float32)), "old vectors of all 40 pairs are the same"),
        (bad(new=np.zeros((40, 7), np.float32)), "new vectors of all 40 pairs are the same"),
        (bad(new=np.where(np.arange(40)[:, None] == 9, np.nan, small().new)), "new vector in row 9"),
        (bad(new=small(41).new), r"\(40, 5\).*\(41, 7\)"),
        (bad(labels=np.zeros(39, np.int64)), r"labels are int64 \(39,\)"),
        (bad(labels=np.zeros(40)), r"labels are float64 \(40,\), expected integers"),
        (
            bad(classifier=constant_classifier(2, 7)),
            "labels run from 0 to 2.*classes 0 to 1",
        ),
        (
            bad(classifier=constant_classifier(3, 6)),
            r"weight is \(3, 6\).*expected \(C, 7\)",
        ),
        (bad(classifier=constant_classifier(3, 7, np.inf)), "not finite"),
    ],
)
def test_pairs_that_no_map_can_be_fitted_on_are_refused(pairs: TrainingPairs, message: str) -> None:
    with pytest.raises(AlignmentFailed, match=message):
        Fit("fastfill", "default", pairs, seed=0)


def test_a_loss_that_is_not_finite_names_the_epoch() -> None:
    rng = np.random.default_rng(0)
    weight = np.full((3, 7), 3e38, np.float32) * rng.choice([-1, 1], size=(3, 7)).astype("f4")
    classifier = Classifier.of_class_numbers(weight, np.zeros(3, "f4"))
    fit = Fit("fastfill", "default", bad(classifier=classifier), seed=0)
    with pytest.raises(AlignmentFailed, match=r"loss became .* in epoch 0 of 24"):
        fit.step()


def test_steps_and_epochs_must_match() -> None:
    fit = Fit("ridge", "default", small(), seed=0)
    with pytest.raises(RuntimeError, match="0 of 1 epochs"):
        fit.finish()
    fit.step()
    with pytest.raises(RuntimeError, match="all 1 epochs are done"):
        fit.step()
