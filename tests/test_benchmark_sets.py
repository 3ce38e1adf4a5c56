"""The digits set: shapes, splits and its cache. The larger sets take minutes to build and share this code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sets import BenchmarkSet, load_set
from benchmarks.sets.base import check
from benchmarks.sets.digits import SIDE_DIM, build_digits
from fastfill_ray.errors import CorruptFile
from tests.digits import NEW_DIM, NUM_TRAIN, OLD_DIM

NUM_ITEMS = 1797


@pytest.fixture(scope="module")
def digits() -> BenchmarkSet:
    return build_digits()


def test_digits_has_both_models_the_classifier_and_side_information(digits: BenchmarkSet) -> None:
    assert check(digits) is digits
    assert digits.old.shape == (NUM_ITEMS, OLD_DIM)
    assert digits.new.shape == (NUM_ITEMS, NEW_DIM)
    assert digits.side is not None
    assert digits.side.shape == (NUM_ITEMS, SIDE_DIM)
    assert set(digits.labels.tolist()) == set(range(10))
    assert digits.query_item is None
    assert digits.classifier is not None
    weight, bias = digits.classifier
    audit = digits.split(0)["audit"]
    predicted = (digits.new[audit] @ weight.T + bias).argmax(axis=1)
    assert (predicted == digits.labels[audit]).mean() > 0.9


def test_parts_are_disjoint_and_the_same_for_the_same_seed(digits: BenchmarkSet) -> None:
    parts = digits.split(3)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 900, "calibration": 300, "audit": 597}
    rows = np.concatenate(list(parts.values()))
    assert len(np.unique(rows)) == NUM_ITEMS
    for name, again in digits.split(3).items():
        np.testing.assert_array_equal(again, parts[name])
    other = digits.split(4)
    np.testing.assert_array_equal(other["train"], parts["train"])  # what the networks were trained on
    assert not np.array_equal(other["audit"], parts["audit"])


def test_train_is_drawn_where_it_is_not_given(digits: BenchmarkSet) -> None:
    drawn = dataclasses.replace(digits, train_rows=None)
    assert len(drawn.split(0)["train"]) == NUM_TRAIN
    assert not np.array_equal(drawn.split(0)["train"], drawn.split(1)["train"])
    assert len(np.unique(np.concatenate(list(drawn.split(0).values())))) == NUM_ITEMS


def test_what_the_cache_gives_is_what_was_built(
    digits: BenchmarkSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = dataclasses.replace(digits, groups=np.array(["even", "odd"], dtype=object)[digits.labels % 2])
    builds: list[str] = []

    def build() -> BenchmarkSet:
        builds.append("digits")
        return grouped

    monkeypatch.setattr("benchmarks.sets.digits.build_digits", build)
    for found in (load_set("digits", tmp_path), load_set("digits", tmp_path)):
        for field in dataclasses.fields(BenchmarkSet):
            expected, value = getattr(grouped, field.name), getattr(found, field.name)
            pairs = zip(value, expected, strict=True) if field.name == "classifier" else [(value, expected)]
            for mine, theirs in pairs:
                np.testing.assert_array_equal(mine, theirs)
                assert np.asarray(mine).dtype == np.asarray(theirs).dtype
    assert builds == ["digits"]


def test_a_torn_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits-v1.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CorruptFile, match=r"digits-v1\.npz"):
        load_set("digits", tmp_path)


def test_an_unknown_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digits, docstrings, glyphs, glyphs-biased, operations"):
        load_set("letters", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": np.zeros((3, OLD_DIM), np.float32)}, "old has 3 rows, expected 1797"),
        ({"new": np.zeros((NUM_ITEMS, NEW_DIM))}, "new is float64"),
        ({"old": np.full((NUM_ITEMS, OLD_DIM), np.nan, np.float32)}, "not finite"),
        ({"classifier": (np.zeros((9, NEW_DIM), np.float32), np.zeros(9, np.float32))}, "for 10 classes"),
    ],
)
def test_a_set_whose_fields_disagree_is_refused(digits: BenchmarkSet, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(digits, **change))  # type: ignore[arg-type]
