"""The kernel map against plain kernel ridge regression, and against really leaving pairs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastfill_ray.alignment import kernel as module
from fastfill_ray.alignment import maps
from fastfill_ray.alignment.kernel import Kernel, gaussian, kernel_ridge
from fastfill_ray.alignment.linear import ridge
from fastfill_ray.alignment.maps import Alignment, KernelMap
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import CorruptFile

Floats = NDArray[np.float64]


def toy(rows: int, seed: int = 0, noise: float = 0.3) -> tuple[Floats, Floats]:
    """Inputs (N, 3), smooth non-linear targets (N, 4) with a mean."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = np.sin(0.8 * x @ np.random.default_rng(9).normal(size=(3, 4))) + noise * rng.normal(size=(rows, 4)) + 2
    return x, y


def make(rows: int = 80, seed: int = 0, side: bool = False) -> TrainingPairs:
    x, y = toy(rows, seed)
    others = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32) * 50 if side else None
    return TrainingPairs(x.astype(np.float32) * 3, y.astype(np.float32) * 7, side=others)


def fitted(pairs: TrainingPairs) -> Alignment:
    fit = Fit("kernel", "default", pairs, seed=1)
    fit.step()
    return fit.finish()


# The fit


def test_the_kernel_is_gaussian_in_the_distance() -> None:
    x, landmarks = toy(5)[0], toy(4, seed=1)[0]
    result = gaussian(x, landmarks, 0.7)
    for i in range(5):
        for j in range(4):
            assert result[i, j] == pytest.approx(np.exp(-0.7 * ((x[i] - landmarks[j]) ** 2).sum()), abs=1e-12)
    assert gaussian(x, x, 3.0).max() <= 1


def test_a_map_of_many_tiles_is_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kernel = Kernel(rng.normal(size=(50, 3)), 0.4, rng.normal(size=(50, 4)), rng.normal(size=4))
    x = rng.normal(size=(101, 3))
    monkeypatch.setattr(maps, "_TILE_NUMBERS", 50 * 7)
    with torch.inference_mode():
        h, _ = KernelMap.of(kernel)(torch.from_numpy(x.astype(np.float32)))
    np.testing.assert_allclose(h.numpy(), kernel(x), atol=2e-5)


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_with_every_row_a_landmark_it_is_kernel_ridge_regression(noise: float) -> None:
    x, y = toy(70, noise=noise)
    result, _ = kernel_ridge(x, y, seed=0)
    among = gaussian(x, x, result.gamma)
    dual = np.linalg.solve(among + result.strength * np.eye(70), y - y.mean(axis=0))
    unseen = toy(40, seed=5)[0]
    expected = gaussian(unseen, x, result.gamma) @ dual + y.mean(axis=0)
    np.testing.assert_allclose(result(unseen), expected, atol=1e-3)
    assert sorted(map(tuple, result.landmarks.tolist())) == sorted(map(tuple, x.tolist()))


def test_with_fewer_landmarks_it_is_the_least_squares_problem_of_nystroem() -> None:
    x, y = toy(90)
    result, _ = kernel_ridge(x, y, seed=0, max_landmarks=20)
    assert result.landmarks.shape == (20, 3)
    assert {tuple(row) for row in result.landmarks.tolist()} <= {tuple(row) for row in x.tolist()}
    rows, among = (
        gaussian(x, result.landmarks, result.gamma),
        gaussian(result.landmarks, result.landmarks, result.gamma),
    )
    targets = y - y.mean(axis=0)
    weight = np.linalg.solve(rows.T @ rows + result.strength * among, rows.T @ targets)
    np.testing.assert_allclose(rows @ result.weight, rows @ weight, atol=1e-4)


@pytest.mark.parametrize("noise", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("landmarks", [15, 60])
def test_left_out_predictions_are_those_of_fits_without_the_row(noise: float, landmarks: int) -> None:
    x, y = toy(60, noise=noise)
    result, left_out = kernel_ridge(x, y, seed=0, max_landmarks=landmarks)
    rows, among = (
        gaussian(x, result.landmarks, result.gamma),
        gaussian(result.landmarks, result.landmarks, result.gamma),
    )
    expected = np.empty_like(y)
    for row in range(len(x)):  # the landmarks stay: they carry no target
        rest = np.arange(len(x)) != row
        normal = rows[rest].T @ rows[rest] + result.strength * among
        normal += 1e-9 * np.diag(normal).mean() * np.eye(len(normal))
        bias = y[rest].mean(axis=0)
        expected[row] = rows[row] @ np.linalg.solve(normal, rows[rest].T @ (y[rest] - bias)) + bias
    # The bias is fitted before the rest, not with it, which the closed form knows but up to 1 / N of its own change.
    error = np.abs(y - expected).mean()
    assert np.abs(left_out - expected).max() < 0.1 * error
    assert np.square(y - left_out).mean() == pytest.approx(np.square(y - expected).mean(), rel=0.01)


def test_blocks_of_rows_and_tiles_of_landmarks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = toy(50)
    whole, left_out = kernel_ridge(x, y, seed=0, max_landmarks=20)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 9)
    monkeypatch.setattr(module, "_TILE", 6)
    tiled, left_out_tiled = kernel_ridge(x, y, seed=0, max_landmarks=20)
    np.testing.assert_allclose(tiled(x), whole(x), atol=1e-6)
    np.testing.assert_allclose(left_out_tiled, left_out, atol=1e-6)


def test_only_the_rows_asked_for_are_left_out_one_by_one() -> None:
    x, y = toy(50)
    rows = np.array([3, 4, 49, 20])
    result, left_out = kernel_ridge(x, y, seed=0, max_landmarks=20, left_out=rows)
    of_all, left_out_of_all = kernel_ridge(x, y, seed=0, max_landmarks=20)
    np.testing.assert_allclose(left_out, left_out_of_all[rows], atol=1e-6)
    np.testing.assert_allclose(result(x), of_all(x), atol=1e-6)


def test_width_and_strength_are_those_of_least_generalised_cross_validation_error() -> None:
    x, y = toy(50)
    result, _ = kernel_ridge(x, y, seed=0)
    spread = 2 * np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    targets, best = y - y.mean(axis=0), (np.inf, 0.0, 0.0)
    for width in module.WIDTHS:
        among = gaussian(x, x, width / spread)
        for factor in module.STRENGTHS:
            strength = np.trace(among) / 50 * factor
            hat = among @ np.linalg.inv(among + strength * np.eye(50))
            freedom = 1 - (np.trace(hat) + 1) / 50
            if freedom > 1e-3:
                best = min(best, (np.square(targets - hat @ targets).sum() / freedom**2, width / spread, strength))
    assert (result.gamma, result.strength) == (pytest.approx(best[1]), pytest.approx(best[2]))


def test_it_beats_ridge_on_a_function_that_bends() -> None:
    x, y = toy(400, noise=0.1)
    unseen, truth = toy(200, seed=5, noise=0.1)
    smooth, straight = kernel_ridge(x, y, seed=0)[0](unseen), ridge(x, y)(unseen)
    assert np.square(smooth - truth).mean() < 0.3 * np.square(straight - truth).mean()


def test_many_rows_are_fitted_on_a_sample_of_landmarks_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHOOSE_ROWS", 40)
    x, y = toy(100)
    first, second, other = (kernel_ridge(x, y, seed=seed, max_landmarks=30)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.landmarks, second.landmarks)
    np.testing.assert_allclose(first.weight, second.weight, rtol=1e-6, atol=1e-6)
    assert not np.array_equal(first.landmarks, other.landmarks)


@pytest.mark.parametrize("rows", [16, 17, 33])
def test_few_and_repeated_rows_are_fitted_without_nan(rows: int) -> None:
    x, y = toy(rows)
    x[1] = x[0]
    result, left_out = kernel_ridge(x, y, seed=0)
    assert np.isfinite(result(x)).all()
    assert np.isfinite(left_out).all()


# The map


def test_the_map_computes_in_float32_what_the_fit_says_in_float64() -> None:
    x, y = toy(300)
    result, _ = kernel_ridge(x, y, seed=0)
    unseen = toy(50, seed=5)[0].astype(np.float32)
    aligned, log_variance = KernelMap.of(result)(torch.from_numpy(unseen))
    assert log_variance is None
    assert aligned.dtype == torch.float32
    np.testing.assert_allclose(aligned.numpy(), result(unseen), atol=2e-3)


def test_a_row_equal_to_a_landmark_has_kernel_one_however_large_it_is() -> None:
    landmarks = np.full((1, 64), 300.0)
    made = KernelMap.of(Kernel(landmarks, 1.0, np.ones((1, 2)), np.zeros(2)))
    aligned, _ = made(torch.from_numpy(landmarks.astype(np.float32)))
    assert aligned.tolist() == [[1.0, 1.0]]


def test_scaled_old_and_side_vectors_are_read_as_one_input() -> None:
    pairs = make(side=True)
    assert pairs.side is not None
    scales = [np.sqrt(np.square(v, dtype=np.float64).mean()) for v in (pairs.old, pairs.side, pairs.new)]
    inputs = np.concatenate([pairs.old / scales[0], pairs.side / scales[1]], axis=1).astype(np.float32)
    result, _ = kernel_ridge(inputs, (pairs.new / scales[2]).astype(np.float32), seed=1)
    np.testing.assert_allclose(fitted(pairs)(pairs.old, pairs.side)[0], result(inputs) * scales[2], atol=2e-2)


def test_its_log_variance_tells_held_out_errors_on_average() -> None:
    pairs, unseen = make(300), make(200, seed=5)
    aligned, log_variance = fitted(pairs)(unseen.old)
    error = np.square(aligned - unseen.new).mean() / np.square(pairs.new).mean()
    assert np.exp(log_variance).mean() == pytest.approx(error, rel=0.4)


@pytest.mark.parametrize("side", [False, True])
def test_a_saved_kernel_map_gives_the_same_vectors(side: bool) -> None:
    pairs = make(side=side)
    alignment = fitted(pairs)
    again = Alignment.load(*alignment.save())
    assert (again.method, again.side_dim) == ("kernel", 2 if side else None)
    for result, expected in zip(again(pairs.old, pairs.side), alignment(pairs.old, pairs.side), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    assert again.save() == alignment.save()


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("side", [False, True])
def test_a_restored_fit_ends_where_an_unbroken_one_ends(after: int, side: bool) -> None:
    pairs = make(side=side)
    broken = Fit("kernel", "default", pairs, seed=1)
    assert broken.epochs == 1
    if after:
        broken.step()
    state = broken.state()
    restored = Fit("kernel", "default", pairs, seed=1)
    restored.restore(state)
    assert restored.epoch == after
    if not after:
        restored.step()
    for result, expected in zip(
        restored.finish()(pairs.old, pairs.side), fitted(pairs)(pairs.old, pairs.side), strict=True
    ):
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_more_rows_than_landmarks_are_saved_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfill_ray.alignment.training.MAX_LANDMARKS", 25)
    monkeypatch.setattr(kernel_ridge, "__kwdefaults__", {"max_landmarks": 25})
    pairs = make()
    alignment = fitted(pairs)
    assert Alignment.load(*alignment.save())(pairs.old)[0].shape == (80, 4)
    fit = Fit("kernel", "default", pairs, seed=1)
    fit.step()
    again = Fit("kernel", "default", pairs, seed=1)
    again.restore(fit.state())
    np.testing.assert_allclose(again.finish()(pairs.old)[0], alignment(pairs.old)[0], rtol=1e-6, atol=1e-6)


def test_the_report_is_the_left_out_error() -> None:
    pairs = make()
    report = Fit("kernel", "default", pairs, seed=1).step()
    scales = [np.sqrt(np.square(v, dtype=np.float64).mean()) for v in (pairs.old, pairs.new)]
    scaled = (pairs.new / scales[1]).astype(np.float32)
    result, left_out = kernel_ridge((pairs.old / scales[0]).astype(np.float32), scaled, seed=1)
    assert report["squared_error"] == report["loss"]
    assert report["loss"] == pytest.approx(np.square(left_out - scaled).mean())
    assert report["strength"] == pytest.approx(result.strength)


@pytest.mark.parametrize("change", ["missing", "scalar", "narrow", "nan"])
def test_damaged_landmarks_are_refused(change: str) -> None:
    import safetensors.torch

    weights, info = fitted(make(side=True)).save()
    tensors = safetensors.torch.load(weights)
    landmarks = tensors.pop("map.landmarks")
    if change == "scalar":
        tensors["map.landmarks"] = torch.tensor(1.0)
    if change == "narrow":
        tensors["map.landmarks"] = landmarks[:, :3].contiguous()
    if change == "nan":
        tensors["map.landmarks"] = landmarks * torch.nan
    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        Alignment.load(safetensors.torch.save(tensors), info)


def test_the_order_of_columns_and_the_units_do_not_matter() -> None:
    pairs = make()
    turned = replace(pairs, old=(pairs.old[:, ::-1] * 1024).astype(np.float32), new=pairs.new * np.float32(1 / 64))
    expected = fitted(pairs)(pairs.old)[0]
    np.testing.assert_allclose(fitted(turned)(turned.old)[0] * 64, expected, atol=1e-2)
