from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.alignment.linear import STRENGTHS, Affine, procrustes, ridge


@given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 5), (4, 9), (9, 4)]))
@settings(max_examples=20, deadline=None)
def test_procrustes_finds_a_rotation_with_scale_and_shift(seed: int, dims: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    narrow, wide = sorted(dims)
    basis = np.linalg.qr(rng.normal(size=(wide, wide)))[0][:narrow]
    rotation = basis if dims[0] == narrow else basis.T
    # Wider inputs must lie in the plane that the rotation keeps, else no orthogonal map is exact.
    x = rng.normal(size=(40, dims[0])) if dims[0] == narrow else rng.normal(size=(40, narrow)) @ basis
    y = 2.5 * x @ rotation + rng.normal(size=dims[1])
    assert np.allclose(procrustes(x, y)(x), y, atol=1e-6)


@pytest.mark.parametrize("dims", [(6, 6), (4, 9), (9, 4)])
def test_procrustes_is_a_scaled_partial_isometry_that_keeps_the_spread(dims: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, dims[0]))
    y = rng.normal(size=(50, dims[1])) + 3
    fitted = procrustes(x, y)
    narrow = fitted.weight if dims[0] > dims[1] else fitted.weight.T
    product = narrow.T @ narrow
    assert np.allclose(product, product[0, 0] * np.eye(min(dims)), atol=1e-9)
    assert np.isclose(fitted(x).std(axis=0).__pow__(2).sum(), y.var(axis=0).sum())


def test_ridge_solves_the_normal_equations_at_the_strength_it_chose() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 7)) + 1
    y = x @ rng.normal(size=(7, 3)) + rng.normal(size=(80, 3)) - 2
    fitted = ridge(x, y)
    centered = x - x.mean(axis=0)
    weight = np.linalg.solve(centered.T @ centered + fitted.strength * np.eye(7), centered.T @ (y - y.mean(axis=0)))
    assert np.allclose(fitted.weight, weight)
    assert np.allclose(fitted(x).mean(axis=0), y.mean(axis=0))


def test_ridge_takes_the_strength_of_least_generalised_cross_validation() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(30, 12))
    y = 0.3 * x[:, :1] + rng.normal(size=(30, 2))
    centered, targets = x - x.mean(axis=0), y - y.mean(axis=0)

    def gcv(strength: float) -> float:
        hat = centered @ np.linalg.solve(centered.T @ centered + strength * np.eye(12), centered.T) + 1 / 30
        return float(np.square(targets - (hat - 1 / 30) @ targets).sum() / (1 - np.trace(hat) / 30) ** 2)

    scale = np.linalg.eigvalsh(centered.T @ centered).mean()
    assert np.isclose(ridge(x, y).strength, min(scale * STRENGTHS, key=gcv))


@pytest.mark.parametrize("fit", [ridge, procrustes])
def test_rows_are_read_block_by_block(fit: Callable[..., Affine], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    x, y = (rng.normal(size=(50, dim)).astype(np.float32) for dim in (4, 6))
    whole = fit(x, y)
    monkeypatch.setattr("fastfill_ray.alignment.linear._BLOCK_ROWS", 7)
    assert np.allclose(fit(x, y).weight, whole.weight)
    assert np.allclose(fit(x, y).bias, whole.bias)


def test_ridge_with_fewer_rows_than_dims_does_not_interpolate_noise() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(20, 3))
    assert np.square(ridge(x, y)(rng.normal(size=(200, 50)))).mean() < 0.5
