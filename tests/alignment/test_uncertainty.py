"""The second opinion on the log-variance, and artefacts that have none."""

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from fastfill_ray.alignment.maps import Alignment, LearntMap, Method, PresetName
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.alignment.uncertainty import ResidualModel, fit_residual_model
from fastfill_ray.errors import CorruptFile, SpaceMismatch
from tests.alignment.conftest import Digits


def make(rows: int) -> TrainingPairs:
    rng = np.random.default_rng(0)
    old = rng.normal(size=(rows, 6)).astype(np.float32)
    return TrainingPairs(old, (np.tanh(old @ rng.normal(size=(6, 8))) * 3).astype(np.float32))


def fitted(method: Method, pairs: TrainingPairs, preset: PresetName = "default", seed: int = 1) -> Alignment:
    fit = Fit(method, preset, pairs, seed=seed)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()


def test_fastfill_gives_two_opinions_and_the_second_one_is_calibrated(digits: Digits) -> None:
    alignment = fitted("fastfill", digits.train)
    aligned, log_variance = alignment(digits.old)
    second = alignment.second_opinion(digits.old)
    assert second.shape == log_variance.shape
    assert second.dtype == np.float32
    assert np.abs(second - log_variance).max() > 0.1
    assert np.allclose(alignment.second_opinion(digits.old, aligned=aligned), second, atol=1e-5)
    error = np.square(aligned - digits.new).mean(axis=1)
    assert np.isclose(np.exp(second).mean(), error.mean() / np.square(digits.train.new).mean(), rtol=0.3)
    ranks = [np.argsort(np.argsort(values)) for values in (second, error)]
    assert np.corrcoef(*ranks)[0, 1] > 0.1


def test_pairs_kept_aside_shape_the_second_opinion_and_not_the_map() -> None:
    pairs = make(300)
    held = np.random.default_rng([1, 0]).permutation(300)[: math.ceil(0.15 * 300)]
    new = pairs.new.copy()
    new[held] *= -1  # the rms stays
    first, other = (safetensors.torch.load(fitted("fastfill", p).save()[0]) for p in (pairs, replace(pairs, new=new)))
    changed = {name for name in first if not np.allclose(first[name], other[name], atol=1e-5)}
    assert changed == {"residuals.weight", "residuals.constants"}


@pytest.mark.parametrize("method", ["fct", "kernel", "ridge", "procrustes"])
def test_of_many_pairs_a_sample_tells_what_all_of_them_would(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make(900)
    by_all = fitted(method, pairs)(pairs.old)[1]
    monkeypatch.setattr("fastfill_ray.alignment.training.MAX_HELD_OUT", 130)
    by_few = fitted(method, pairs)(pairs.old)[1]
    assert not np.allclose(by_few, by_all, atol=1e-3)
    assert np.corrcoef(by_few, by_all)[0, 1] > 0.8
    assert np.isclose(np.exp(by_few).mean(), np.exp(by_all).mean(), rtol=0.2)


@pytest.mark.parametrize("method", ["fct", "ridge", "procrustes"])
def test_where_the_second_opinion_is_the_only_one_both_are_the_same(method: Method) -> None:
    pairs = make(300)
    alignment = fitted(method, pairs)
    assert np.allclose(alignment.second_opinion(pairs.old), alignment(pairs.old)[1], atol=1e-5)


@pytest.mark.parametrize(("preset", "rows"), [("paper", 230), ("default", 206)])
def test_fastfill_as_published_or_on_few_pairs_trains_on_all_and_has_its_own_opinion_only(
    preset: PresetName, rows: int
) -> None:
    pairs = make(rows)
    fit = Fit("fastfill", preset, pairs, seed=1)
    batches = math.ceil(rows / 32) if preset == "default" else 1
    fit.step()
    tracked = safetensors.torch.load(fit.state())["map.mixer.1.num_batches_tracked"]
    assert int(tracked) == batches
    fit.epoch = fit.epochs  # what is left would only take time
    alignment = fit.finish()
    assert np.allclose(alignment.second_opinion(pairs.old), alignment(pairs.old)[1], atol=1e-5)
    assert not [name for name in safetensors.torch.load(alignment.save()[0]) if name.startswith("residuals.")]


def test_aligned_vectors_of_another_shape_are_refused() -> None:
    pairs = make(40)
    with pytest.raises(SpaceMismatch, match=r"aligned vectors are \(39, 8\), expected \(40, 8\)"):
        fitted("ridge", pairs).second_opinion(pairs.old, aligned=pairs.new[1:])


@pytest.mark.parametrize("method", ["fastfill", "fct"])
def test_an_artefact_of_an_earlier_release_still_loads(method: Method) -> None:
    made = LearntMap(6, 8, 512, head=method == "fastfill")
    tensors = {f"map.{name}": tensor for name, tensor in made.state_dict().items()}
    if method == "fct":
        tensors |= {f"residuals.{name}": tensor for name, tensor in ResidualModel(6, 8).state_dict().items()}
    info = {
        "direction": "old->new",
        "method": method,
        "preset": "default",
        "old_dim": 6,
        "new_dim": 8,
        "old_scale": 2.0,
        "new_scale": 3.0,
        "spaces": {"old": "a", "new": "b"},
    }
    alignment = Alignment.load(safetensors.torch.save(tensors), info)
    old = make(20).old
    aligned, log_variance = alignment(old)
    assert aligned.shape == (20, 8)
    assert alignment.side_dim is None
    assert np.allclose(alignment.second_opinion(old, aligned=aligned), log_variance, atol=1e-5)
    assert {**alignment.save()[1], "spaces": info["spaces"]} == info
    if method == "fct":
        del tensors["residuals.weight"]
        with pytest.raises(CorruptFile, match=r"residuals\.weight"):
            Alignment.load(safetensors.torch.save(tensors), info)


def test_on_too_few_held_out_pairs_the_log_variance_is_the_log_of_the_mean_residual() -> None:
    rng = np.random.default_rng(0)
    old, aligned, new = (rng.normal(size=(31, dim)).astype(np.float32) for dim in (6, 8, 8))
    model = fit_residual_model(old, aligned, new)
    expected = np.log(np.square(aligned - new).mean())
    assert np.allclose(model(torch.from_numpy(old), torch.from_numpy(aligned)).numpy(), expected, atol=1e-5)
