"""Judgements with and without grades: what counts as relevant, by which value, and what is refused by row."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.judgements import pin_judgements, read_judgements
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.retrieval.relevance import Judgement
from fastfill_ray.types import IdType

ROW_OF = {"q0": 0, "q1": 1}


def read(path: Path, columns: dict[str, Any], id_type: IdType = "string") -> tuple[Judgement, ...]:
    pq.write_table(pa.table(columns), path / "qrels.parquet")
    pinned = pin_judgements(InputStore(), str(path), id_type)
    return read_judgements(InputStore(), pinned, ROW_OF)


PAIRS = {"query_id": ["q0", "q1", "q0", "q9"], "item_id": ["a", "b", "b", "a"]}


def test_without_a_grade_every_row_counts_as_one(tmp_path: Path) -> None:
    assert read(tmp_path, PAIRS) == ((0, "a", 1), (1, "b", 1), (0, "b", 1))


@pytest.mark.parametrize("name", ["score", "relevance"])
@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(5, 2), pa.dictionary(pa.int8(), pa.int64())],
    ids=str,
)
def test_a_grade_of_zero_or_less_is_not_relevant(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    grades = [2, 0, 1, 3]
    values: list[Any] = [Decimal(grade) for grade in grades] if pa.types.is_decimal(kind) else grades
    if kind == pa.float16():
        values = [np.float16(grade) for grade in grades]
    assert read(tmp_path, {**PAIRS, name: pa.array(values, kind)}) == ((0, "a", 2), (0, "b", 1))
    assert read(tmp_path, {**PAIRS, name: [2, -1, 1, 3]}) == ((0, "a", 2), (0, "b", 1))


@given(st.lists(st.tuples(st.sampled_from(["q0", "q1", "q2"]), st.sampled_from("ab"), st.integers(-1, 3)), min_size=1))
@settings(max_examples=60, deadline=None)
def test_of_a_pair_that_is_judged_twice_the_highest_grade_counts(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]
) -> None:
    highest: dict[tuple[int, str], int] = {}
    for query, item, grade in rows:
        if query in ROW_OF:
            highest[ROW_OF[query], item] = max(grade, highest.get((ROW_OF[query], item), grade))
    expected = {pair: grade for pair, grade in highest.items() if grade > 0}
    names = ("query_id", "item_id", "score")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    path = tmp_path_factory.mktemp("qrels")
    if expected:
        assert {(j.query, j.item): j.grade for j in read(path, columns)} == expected
    else:
        with pytest.raises(InputError, match="no query_id occurs" if not highest else "has a grade above 0"):
            read(path, columns)


@pytest.mark.parametrize(
    ("kind", "values", "id_type", "expected"),
    [
        (pa.int32(), [1, 2], "int64", [1, 2]),
        (pa.uint64(), [1, 2], "int64", [1, 2]),
        (pa.dictionary(pa.int8(), pa.int16()), [1, 2], "int64", [1, 2]),
        (pa.large_string(), ["a", "b"], "string", ["a", "b"]),
        (pa.string_view(), ["a", "b"], "string", ["a", "b"]),
        (pa.dictionary(pa.int8(), pa.large_string()), ["a", "b"], "string", ["a", "b"]),
        (pa.binary(), [b"a", b"b"], "string", ["a", "b"]),
    ],
    ids=str,
)
def test_item_ids_are_compared_by_value(
    tmp_path: Path, kind: pa.DataType, values: list[Any], id_type: IdType, expected: list[Any]
) -> None:
    found = read(tmp_path, {"query_id": ["q0", "q1"], "item_id": pa.array(values, kind)}, id_type)
    assert found == tuple(Judgement(row, item) for row, item in enumerate(expected))
    assert {type(judgement.item) for judgement in found} == {type(expected[0])}


@pytest.mark.parametrize(
    ("columns", "id_type", "error", "message"),
    [
        (
            {**PAIRS, "score": [1] * 4, "relevance": [1] * 4},
            "string",
            InputError,
            "'score' and 'relevance' are both there.* Drop 'score', or drop 'relevance'",
        ),
        (
            {**PAIRS, "score": ["1"] * 4},
            "string",
            InputError,
            r"qrels\.parquet: column 'score' is string; numbers are expected: cast it",
        ),
        (
            {**PAIRS, "relevance": [True] * 4},
            "string",
            InputError,
            "column 'relevance' is bool; numbers are expected: cast it",
        ),
        ({**PAIRS, "score": [1, None, 2, 3]}, "string", InputError, r"qrels\.parquet: column 'score' is None in row 1"),
        ({**PAIRS, "score": [1, 2, 3, np.nan]}, "string", InputError, "column 'score' is nan in row 3"),
        ({**PAIRS, "score": [1, 2, np.inf, 1]}, "string", InputError, "column 'score' is inf in row 2"),
        ({**PAIRS, "score": [0, 0, -1, 5]}, "string", InputError, "no judgement of these queries has a grade above 0"),
        ({"query_id": ["q7"], "item_id": ["a"]}, "string", InputError, "no query_id occurs in the queries' id column"),
        ({"query_id": ["q0"], "item_id": [7]}, "string", InputError, "'item_id' is int64, but .* ids are string"),
        ({"query_id": ["q0"], "item_id": ["7"]}, "int64", InputError, "'item_id' is string, but .* ids are int64"),
        (
            {"query_id": ["q0", "q1"], "item_id": ["a", None]},
            "string",
            InputError,
            "row 1: id column 'item_id' is null",
        ),
        (
            {"query_id": [None, "q1"], "item_id": ["a", "b"]},
            "string",
            InputError,
            "row 0: id column 'query_id' is null",
        ),
        (
            {"query_id": ["q0"], "item_id": pa.array([2**63], pa.uint64())},
            "int64",
            InputError,
            "row 0: id column 'item_id' holds 9223372036854775808, which does not fit into int64",
        ),
        (
            {**PAIRS, "score": pa.nulls(4)},
            "string",
            InputError,
            r"qrels\.parquet: column 'score' is None in row 0, expected a finite number",
        ),
        (
            {"query_id": ["q0"], "item_id": pa.nulls(1)},
            "string",
            InputError,
            r"qrels\.parquet row 0: id column 'item_id' is null",
        ),
        (
            {"query_id": pa.nulls(1), "item_id": ["a"]},
            "string",
            InputError,
            r"qrels\.parquet row 0: id column 'query_id' is null",
        ),
        ({"query": ["q0"], "item_id": ["a"]}, "string", ConfigError, "column 'query_id' is not in"),
    ],
)
def test_judgements_that_say_nothing_are_refused(
    tmp_path: Path, columns: dict[str, Any], id_type: IdType, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, columns, id_type)


def test_a_grade_that_only_one_file_has_is_not_overlooked(tmp_path: Path) -> None:
    pq.write_table(pa.table({**PAIRS, "score": [0, 1, 2, 3]}), tmp_path / "b.parquet")
    with pytest.raises((InputError, ConfigError), match=r"column 'score'.* is missing"):
        read(tmp_path, PAIRS)
    pq.write_table(pa.table({**PAIRS, "score": [0, 1, 2, 3]}), tmp_path / "a.parquet")
    (tmp_path / "qrels.parquet").rename(tmp_path / "c.parquet")
    with pytest.raises((InputError, ConfigError), match=r"(?s)c\.parquet.*'score'|'score'.*c\.parquet"):
        pin_judgements(InputStore(), str(tmp_path), "string")


def test_a_grade_that_is_null_in_all_of_one_file_is_refused_in_that_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({**PAIRS, "score": [0, 1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"qrels\.parquet: column 'score' is None in row 0"):
        read(tmp_path, {**PAIRS, "score": pa.nulls(4)})
