"""Side vectors: what a map reads beside the old vector, how it is saved, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastfill_ray.alignment.linear import ridge
from fastfill_ray.alignment.maps import Alignment, LearntMap, Method
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import AlignmentFailed, CorruptFile, SpaceMismatch
from tests.rounding import assert_equal_up_to_rounding

READERS: list[Method] = ["fastfill", "fct", "kernel", "ridge"]
METHODS: list[Method] = [*READERS, "procrustes"]


def make(rows: int = 400, seed: int = 0) -> TrainingPairs:
    """Old vectors hold five of eight factors, side vectors the other three (in large units) and one of noise."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, 8)).astype(np.float32)
    new = factors @ np.random.default_rng(9).normal(size=(8, 7)).astype(np.float32)
    side = np.concatenate([factors[:, 5:] * 50, rng.normal(size=(rows, 1))], axis=1).astype(np.float32)
    return TrainingPairs(factors[:, :5].copy(), new, side=side)


def fitted(method: Method, pairs: TrainingPairs) -> Alignment:
    fit = Fit(method, "default", pairs, seed=1)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()


@pytest.fixture(params=METHODS, scope="module")
def alignment(request: pytest.FixtureRequest) -> Alignment:
    return fitted(request.param, make())


def error(alignment: Alignment, pairs: TrainingPairs, side: NDArray[np.float32] | None) -> float:
    return float(np.square(alignment(pairs.old, side)[0] - pairs.new).mean())


def test_the_second_branch_has_the_published_layers() -> None:
    made = LearntMap(16, 8, 32, head=True, side_dim=3)
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters() if p.ndim == 2}
    assert (shapes["first.0.weight"], shapes["first.3.weight"]) == ((32, 16), (16, 32))
    assert (shapes["second.0.weight"], shapes["second.3.weight"]) == ((6, 3), (16, 6))
    old, side = torch.randn(5, 16), torch.randn(5, 3)
    made.eval()
    branches = torch.cat([made.first(old), made.second(side)], dim=1)
    torch.testing.assert_close(made(old, side)[0], made.mixer(branches))


@pytest.mark.parametrize("method", READERS)
def test_a_map_learns_from_the_side_what_the_old_vector_lacks(method: Method) -> None:
    pairs, unseen = make(), make(seed=2)
    with_side, without = fitted(method, pairs), fitted(method, replace(pairs, side=None))
    assert with_side.side_dim == 4
    assert without.side_dim is None
    assert error(with_side, unseen, unseen.side) < 0.8 * error(without, unseen, None)


def test_ridge_reads_scaled_old_and_side_vectors_as_one_input() -> None:
    pairs = make()
    assert pairs.side is not None
    scales = [np.sqrt(np.square(v, dtype=np.float64).mean()) for v in (pairs.old, pairs.side, pairs.new)]
    inputs = np.concatenate([pairs.old / scales[0], pairs.side / scales[1]], axis=1).astype(np.float32)
    expected = ridge(inputs, (pairs.new / scales[2]).astype(np.float32))(inputs) * scales[2]
    assert np.allclose(fitted("ridge", pairs)(pairs.old, pairs.side)[0], expected, atol=1e-4)


def test_procrustes_has_no_place_for_side_vectors_and_ignores_them() -> None:
    pairs = make()
    with_side, without = fitted("procrustes", pairs), fitted("procrustes", replace(pairs, side=None))
    assert with_side.side_dim is None
    for found, expected in zip(with_side(pairs.old, pairs.side), without(pairs.old), strict=True):
        assert_equal_up_to_rounding(found, expected)


@pytest.mark.parametrize("method", READERS)
def test_the_units_of_the_side_do_not_matter(method: Method) -> None:
    pairs = make(60)
    assert pairs.side is not None
    scaled = replace(pairs, side=pairs.side * np.float32(1024))
    for found, expected in zip(
        fitted(method, scaled)(scaled.old, scaled.side), fitted(method, pairs)(pairs.old, pairs.side), strict=True
    ):
        assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_restored_fit_with_side_vectors_ends_where_an_unbroken_one_ends(method: Method) -> None:
    pairs = make(60)
    broken = Fit(method, "default", pairs, seed=1)
    while broken.epoch < broken.epochs:
        broken.step()
        if broken.epoch == broken.epochs // 2:
            state = broken.state()
            broken = Fit(method, "default", pairs, seed=1)
            broken.restore(state)
    for found, expected in zip(
        broken.finish()(pairs.old, pairs.side), fitted(method, pairs)(pairs.old, pairs.side), strict=True
    ):
        assert np.allclose(found, expected, atol=1e-6)


def test_a_checkpoint_of_other_side_vectors_is_refused() -> None:
    pairs = make(60)
    state = Fit("fct", "default", pairs, seed=1).state()
    assert pairs.side is not None
    for other in (None, pairs.side + 1):
        with pytest.raises(AlignmentFailed, match="other pairs"):
            Fit("fct", "default", replace(pairs, side=other), seed=1).restore(state)


def test_a_saved_alignment_is_loaded_bit_for_bit_and_reads_the_side_alike(alignment: Alignment) -> None:
    pairs = make(seed=3)
    weights, info = alignment.save()
    again = Alignment.load(weights, info)
    assert again.side_dim == alignment.side_dim
    assert ("side_dim" in info) == ("side_scale" in info) == (alignment.method != "procrustes")
    for found, expected in zip(again(pairs.old, pairs.side), alignment(pairs.old, pairs.side), strict=True):
        assert_equal_up_to_rounding(found, expected)
    found, expected = again.second_opinion(pairs.old, pairs.side), alignment.second_opinion(pairs.old, pairs.side)
    assert_equal_up_to_rounding(found, expected)
    assert again.save() == (weights, info)


@pytest.mark.parametrize("method", READERS)
def test_side_vectors_that_are_missing_or_of_another_shape_are_refused(method: Method) -> None:
    pairs = make(60)
    alignment, without = fitted(method, pairs), fitted(method, replace(pairs, side=None))
    assert pairs.side is not None
    for side in (None, pairs.side[:, :3], pairs.side[:-1], pairs.side[:, 0]):
        with pytest.raises(SpaceMismatch, match=r"side vectors \(60, 4\), found .*gallery\.side_column"):
            alignment(pairs.old, side)
        with pytest.raises(SpaceMismatch, match=r"side vectors \(60, 4\)"):
            alignment.second_opinion(pairs.old, side)
    with pytest.raises(SpaceMismatch, match=r"no side vectors, found \(60, 4\)"):
        without(pairs.old, pairs.side)


@pytest.mark.parametrize("change", [{"side_dim": 5}, {"side_dim": None}, {"side_scale": None}, {"side_scale": -1.0}])
def test_a_description_of_another_side_is_refused(change: dict[str, object]) -> None:
    weights, info = fitted("ridge", make(60)).save()
    with pytest.raises(CorruptFile, match=r"alignment\.json"):
        Alignment.load(weights, {**info, **change})


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (np.ones((59, 4), np.float32), r"side vectors are \(59, 4\), expected \(60, S\)"),
        (np.ones(60, np.float32), r"side vectors are \(60,\)"),
        (np.zeros((60, 4), np.float32), r"side vectors of all 60 pairs are the same; check gallery\.side_column"),
        (np.where(np.arange(60)[:, None] == 7, np.inf, np.eye(60, 4)), "side vector in row 7"),
    ],
)
def test_side_vectors_that_nothing_can_be_learnt_from_are_refused(side: NDArray[np.float32], message: str) -> None:
    with pytest.raises(AlignmentFailed, match=message):
        Fit("ridge", "default", replace(make(60), side=side), seed=0)
