"""What an embedder has done for its rows beforehand: vectors are the same, and a bad row costs itself alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.embedders.prepared import load_preparer, prepare_rows, why_not_prepared
from fastfill_ray.errors import EmbedderError

HERE = "tests.embedders.test_prepared"


class Counting:
    """Its preparer gives the lengths of texts; a row that holds "bad" raises there."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    @classmethod
    def preparer(cls, name: str = "") -> Any:
        if name == "none":
            return None
        if name == "raises":
            raise ConnectionError("away")
        return 3 if name == "number" else lengths

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return self.embed_prepared({"length": pa.array([len(text) for text in batch["x"]])}, role)

    def embed_prepared(self, prepared: Mapping[str, pa.Array], role: str) -> Any:
        return np.stack([prepared["length"].to_numpy()] * 3, axis=1)


def lengths(batch: dict[str, Sequence[Any]], role: str) -> dict[str, Any]:
    if "stop" in batch["x"]:
        raise EmbedderError("the key has expired")
    for text in batch["x"]:
        if text in ("bad", "SystemExit"):
            raise {"bad": ValueError, "SystemExit": SystemExit}[text]("cannot be read")
    if "short" in batch["x"]:
        return {"length": [1]}
    return {"length": pa.array([text if text == "odd" else len(text) for text in batch["x"]])}


class Inherits(Counting):
    pass


class Overrides(Counting):
    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return -super().__call__(batch, role)


class OtherKwargs(Counting):
    def __init__(self, folder: str) -> None:
        super().__init__(folder)


class OverridesBoth(Overrides):
    @classmethod
    def preparer(cls, name: str = "") -> Any:
        return lengths


class Halfway:
    @classmethod
    def preparer(cls) -> Any:
        return lengths

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any: ...


def made_by_a_function() -> Counting:
    return Counting()


@pytest.mark.parametrize("name", ["Counting", "Inherits", "OverridesBoth"])
def test_a_class_that_defines_how_its_rows_are_prepared_offers_it(name: str) -> None:
    preparer = load_preparer(f"{HERE}:{name}", {})
    assert preparer is not None
    assert preparer({"x": ["a"]}, "item") == {"length": pa.array([1])}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Overrides", {}),
        ("OtherKwargs", {"folder": "f"}),
        ("Counting", {"name": "none"}),
        ("made_by_a_function", {}),
    ],
)
def test_what_was_written_for_other_vectors_or_other_kwargs_is_not_inherited(name: str, kwargs: dict[str, Any]) -> None:
    assert load_preparer(f"{HERE}:{name}", kwargs) is None


@pytest.mark.parametrize(
    ("spec", "kwargs", "message"),
    [
        (f"{HERE}:Counting", {"name": "raises"}, r"its `preparer`, called with kwargs \['name'\], raised Connection"),
        (f"{HERE}:Counting", {"name": "number"}, r"its `preparer` returned int"),
        (f"{HERE}:Halfway", {}, r"needs a method embed_prepared\(self, prepared, role\)"),
        (f"{HERE}:Absent", {}, "has no attribute 'Absent'"),
    ],
)
def test_a_preparer_that_cannot_be_used_is_named_with_the_reason(
    spec: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(EmbedderError, match=message) as error:
        load_preparer(spec, kwargs)
    assert spec in str(error.value)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "bad", "SystemExit", "short"]), max_size=40))
def test_rows_that_cannot_be_prepared_are_null_and_all_others_are_what_they_are_alone(rows: list[str]) -> None:
    made = prepare_rows(lengths, {"x": rows}, "item")
    wanted = [{"length": {"a": 1, "bb": 2, "ccc": 3, "short": 1}.get(row)} for row in rows]
    expected = [None if each["length"] is None else each for each in wanted]
    assert (made is None and not any(expected)) or (made is not None and made.to_pylist() == expected)


def test_a_row_whose_columns_are_of_another_type_than_those_before_it_counts_as_not_prepared() -> None:
    made = prepare_rows(lengths, {"x": ["a", "odd", "bb"]}, "item")
    assert made is not None
    assert made.to_pylist() == [{"length": 1}, None, {"length": 2}]


def test_where_the_preparer_says_that_it_cannot_go_on_nothing_is_prepared() -> None:
    assert prepare_rows(lengths, {"x": ["a"] * 9 + ["stop"]}, "item") is None
    assert prepare_rows(lengths, {"x": ["bad", "bad"]}, "item") is None


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", "c"], pa.string_view()),
        pa.array([[b"a"], [], None], pa.list_(pa.binary_view())),
        pa.RunEndEncodedArray.from_arrays([2, 3], [5, 6]),
        pa.UnionArray.from_sparse(pa.array([0, 0, 0], pa.int8()), [pa.array([1, 2, 3])]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_which_arrow_takes_no_rows_counts_as_not_prepared(column: pa.Array) -> None:
    assert prepare_rows(lambda batch, role: {"y": column}, {"x": [1, 2, 3]}, "item") is None
    assert "column 'y' is of type" in why_not_prepared(lambda batch, role: {"y": column}, {"x": [1, 2, 3]}, "item")


def test_what_is_wrong_with_a_preparer_is_said() -> None:
    assert why_not_prepared(lengths, {"x": ["bad"]}, "item") == "ValueError: cannot be read"
    assert why_not_prepared(lengths, {"x": ["short", "b"]}, "item") == "it returned 1 rows for 2"
    assert "AttributeError" in why_not_prepared(lambda batch, role: None, {"x": [1]}, "item")  # type: ignore[arg-type,return-value]
