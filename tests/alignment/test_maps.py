from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from fastfill_ray.alignment.maps import INFERENCE_ROWS, Alignment, LearntMap, Method
from fastfill_ray.alignment.pairs import TrainingPairs
from fastfill_ray.alignment.training import Fit
from fastfill_ray.errors import CorruptFile, SpaceMismatch
from tests.rounding import assert_equal_up_to_rounding

METHODS: list[Method] = ["fastfill", "fct", "kernel", "ridge", "procrustes"]


def fitted(method: Method) -> Alignment:
    rng = np.random.default_rng(0)
    old = rng.normal(size=(60, 6)).astype(np.float32)
    new = (np.tanh(old @ rng.normal(size=(6, 8))) * 3).astype(np.float32)
    fit = Fit(method, "default", TrainingPairs(old, new), seed=1)
    while fit.epoch < fit.epochs:
        fit.step()
    return fit.finish()


@pytest.fixture(params=METHODS, scope="module")
def alignment(request: pytest.FixtureRequest) -> Alignment:
    return fitted(request.param)


def vectors(rows: int, dim: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(rows, dim)).astype(np.float32)


def test_the_published_map_has_the_published_layers() -> None:
    made = LearntMap(128, 128, 2048, head=True)
    shapes = [tuple(p.shape) for name, p in made.named_parameters() if name.endswith("weight") and p.ndim == 2]
    branch = [(256, 128), (256, 256)]
    assert shapes == [*branch, *branch, (2048, 512), (2048, 2048), (128, 2048), (1, 128)]
    assert [name for name, _ in made.named_parameters() if name == "mixer.6.bias"] == ["mixer.6.bias"]


def test_a_saved_alignment_is_loaded_bit_for_bit_and_maps_alike(alignment: Alignment) -> None:
    weights, info = alignment.save()
    again = Alignment.load(weights, {**info, "old_space": "added by the run"})
    for found, expected in zip(again(vectors(50)), alignment(vectors(50)), strict=True):
        assert found.dtype == np.float32
        assert_equal_up_to_rounding(found, expected)
    assert again.save()[0] == weights
    assert info["direction"] == "old->new"


def test_batching_changes_nothing_beyond_rounding(alignment: Alignment) -> None:
    old = vectors(INFERENCE_ROWS + 37)
    whole = alignment(old)
    parts = [alignment(part) for part in np.array_split(old, 11)]
    assert whole[0].shape == (len(old), 8)
    assert whole[1].shape == (len(old),)
    for number in (0, 1):
        assert np.allclose(whole[number], np.concatenate([part[number] for part in parts]), rtol=1e-5, atol=1e-5)


def test_threads_and_repetitions_change_nothing_beyond_rounding(alignment: Alignment) -> None:
    old = vectors(500)
    expected = alignment(old)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(alignment, [old] * 8):
            assert_equal_up_to_rounding(found[0], expected[0])
            assert_equal_up_to_rounding(found[1], expected[1])


def test_one_row_no_row_and_doubles_are_mapped(alignment: Alignment) -> None:
    assert alignment(vectors(0))[0].shape == (0, 8)
    assert_equal_up_to_rounding(alignment(vectors(1).astype(np.float64))[0], alignment(vectors(1))[0])


def test_vectors_of_another_dim_are_refused() -> None:
    with pytest.raises(SpaceMismatch, match=r"dim 6.*\(3, 7\)"):
        fitted("ridge")(vectors(3, 7))


def test_another_direction_is_refused() -> None:
    weights, info = fitted("ridge").save()
    with pytest.raises(SpaceMismatch, match=r"'new->old', expected 'old->new'"):
        Alignment.load(weights, {**info, "direction": "new->old"})


@pytest.mark.parametrize(
    "change",
    [{"old_dim": 7}, {"method": "magic"}, {"method": "fct"}, {"new_scale": 0.0}, {"new_dim": 2**40}, {"preset": 1}],
)
def test_a_description_that_does_not_fit_the_tensors_is_refused(change: dict[str, object]) -> None:
    weights, info = fitted("fastfill").save()
    with pytest.raises(CorruptFile, match=r"alignment\.json"):
        Alignment.load(weights, {**info, **change})


def test_damaged_weights_are_refused() -> None:
    weights, info = fitted("procrustes").save()
    for damaged in (weights[:-4], b"", b"\x80\x04 not safetensors", weights + b"xx"):
        with pytest.raises(CorruptFile, match=r"model\.safetensors"):
            Alignment.load(damaged, info)
    tensors = safetensors.torch.load(weights)
    tensors["map.affine.bias"][0] = torch.nan
    with pytest.raises(CorruptFile, match=r"map\.affine\.bias .*not finite"):
        Alignment.load(safetensors.torch.save(tensors), info)
    del tensors["map.affine.bias"]
    with pytest.raises(CorruptFile, match=r"map\.affine\.bias"):
        Alignment.load(safetensors.torch.save(tensors), info)
