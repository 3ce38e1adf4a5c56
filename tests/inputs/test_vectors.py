"""Vectors of a column: the right rows, or a reason."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.inputs.kinds import vector_kind, vectors_of

DIM = 3


def read(
    column: pa.Array | pa.ChunkedArray, metric: str = "l2", stated: str = "float32"
) -> tuple[np.ndarray, dict[int, str]]:
    return vectors_of(column, DIM, metric=metric, kind=vector_kind(pa.field("v", column.type), stated))


LIST_TYPES = {
    "list": lambda element: pa.list_(element),
    "large_list": lambda element: pa.large_list(element),
    "fixed_size_list": lambda element: pa.list_(element, DIM),
}
element = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([float("nan"), float("inf"), None, 60_000.0]))
ragged_row = st.one_of(st.none(), st.lists(element, min_size=DIM, max_size=DIM), st.lists(element, max_size=5))
even_row = st.one_of(st.none(), st.lists(element, min_size=DIM, max_size=DIM), st.just([0.0] * DIM))


def expected(rows: list[list[float | None] | None], metric: str) -> tuple[np.ndarray, dict[int, str]]:
    """The plain reference: one row at a time."""
    vectors, reasons = np.zeros((len(rows), DIM), np.float32), {}
    for number, row in enumerate(rows):
        if row is None:
            reasons[number] = "null_vector"
        elif len(row) != DIM:
            reasons[number] = f"wrong_dim: found {len(row)}, expected {DIM}"
        elif any(value is None or not np.isfinite(value) for value in row):
            reasons[number] = "non_finite"
        elif metric == "cosine" and not any(row):
            reasons[number] = "zero_norm"
        else:
            vectors[number] = row
    return vectors, reasons


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_vectors_of_any_list_column_equal_a_row_by_row_reading(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(LIST_TYPES)))
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    type_ = LIST_TYPES[kind](data.draw(st.sampled_from([pa.float16(), pa.float32(), pa.float64()])))
    rows = data.draw(st.lists(even_row if kind == "fixed_size_list" else ragged_row, max_size=12))
    array = pa.array(rows, type_)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    middle = data.draw(st.integers(start, stop))
    column = pa.chunked_array([array.slice(start, middle - start), array.slice(middle, stop - middle)], type_)
    vectors, unusable = read(column, metric)
    wanted, reasons = expected(rows[start:stop], metric)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert (vectors.tolist(), unusable) == (wanted.tolist(), reasons)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_of_a_sliced_binary_column_are_read_by_its_element_type(dtype: str) -> None:
    values = np.arange(12).reshape(4, DIM).astype(np.dtype(dtype).newbyteorder("<"))
    rows = [row.tobytes() for row in values]
    rows[2] = None
    column = pa.array(rows, pa.binary(values.itemsize * DIM)).slice(1)
    vectors, unusable = read(column, stated=dtype)
    assert (vectors.tolist(), unusable) == ([[3, 4, 5], [0, 0, 0], [9, 10, 11]], {1: "null_vector"})


def test_null_rows_that_occupy_elements_do_not_shift_the_rows_behind_them() -> None:
    values = pa.array(np.arange(9, dtype=np.float32))
    column = pa.ListArray.from_arrays(pa.array([0, 3, 6, 9], pa.int32()), values, mask=pa.array([False, True, False]))
    vectors, unusable = read(column)
    assert (vectors.tolist(), unusable) == ([[0, 1, 2], [0, 0, 0], [6, 7, 8]], {1: "null_vector"})


def test_what_overflows_float32_is_not_finite() -> None:
    column = pa.array([[1e39, 0, 0], [1e30, 0, 0], [1e15, 0, 0]], pa.list_(pa.float64()))
    assert read(column)[1] == {0: "non_finite", 1: "non_finite"}


def test_a_fixed_size_column_of_another_size_has_no_usable_row() -> None:
    column = pa.array([[1, 2], None], pa.list_(pa.float32(), 2))
    assert read(column)[1] == {0: "wrong_dim: found 2, expected 3", 1: "null_vector"}


def test_a_column_without_rows_or_chunks_has_no_vectors() -> None:
    for type_ in (pa.list_(pa.float32()), pa.list_(pa.float32(), DIM), pa.binary(12)):
        assert read(pa.chunked_array([], type_))[0].shape == (0, DIM)
        assert read(pa.array([], type_))[0].shape == (0, DIM)
        assert read(pa.nulls(2, type_))[1] == {0: "null_vector", 1: "null_vector"}
