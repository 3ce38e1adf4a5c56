"""Prepared units: the same vectors, digests and quarantine as units that were not, whatever could be prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.engine.interface import Attempt
from fastfill_ray.stages.embed import UnitEmbedder, embed_units, pool_work, read_items, read_vectors, unit_preparer
from fastfill_ray.stages.prepare import Columns, is_prepared, longest_first, prepare_table, read_prepared
from tests.stages.test_embed import BAD_TEXT, DIM, job, unit

HERE = "tests.stages.test_prepare"
ROWS = ["a", "bb", "ccc", "dddd", "bad", "late"]


class Lengths:
    """Embeds texts as their lengths; "bad" raises wherever it is read, "late" only once it is prepared."""

    @classmethod
    def preparer(cls) -> Any:
        return prepared_of

    def __init__(self) -> None:
        self.num_tokens = 0

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return self.embed_prepared({name: pa.array(column) for name, column in prepared_of(batch, role).items()}, role)

    def embed_prepared(self, prepared: dict[str, pa.Array], role: str) -> Any:
        letters = prepared["letters"].to_pylist()
        if any(row == list(b"late") for row in letters):
            raise ValueError("late")
        self.num_tokens += sum(map(len, letters))
        return np.array([[len(row)] * DIM for row in letters], np.float32)


def prepared_of(batch: dict[str, Sequence[Any]], role: str) -> dict[str, Any]:
    if "bad" in batch["x"]:
        raise ValueError("bad")
    return {"letters": pa.array([list(text.encode()) for text in batch["x"]], pa.list_(pa.int32()))}


@given(st.lists(st.lists(st.sampled_from(ROWS), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 5))
def test_a_unit_leaves_the_same_receipt_vectors_and_digests_with_and_without(rows: list[list[str]], size: int) -> None:
    task = replace(job(size, f"{HERE}:Lengths"), retry_delays_s=(), version_column="at")
    units, tables = [], []
    for number, texts in enumerate(rows):
        whole, table = unit(texts)
        units.append(whole.model_copy(update={"unit": f"c{number}"}))
        tables.append(table.append_column("at", pa.array(range(len(texts)))))
    left = []
    for prepare in (False, True):
        here = replace(task, files=type(task.files)())  # type: ignore[call-arg]  # an empty one
        if prepare:
            preparer = unit_preparer(here)
            assert preparer is not None
            tables = list(preparer(units, tables, None))
        receipts = embed_units(here, units, tables, Lengths())()
        vectors = read_vectors(here.files, receipts, DIM)
        left.append(
            (
                [receipt.model_dump(exclude={"seconds", "details"}) for receipt in receipts],
                vectors[0], vectors[1].tolist(), read_items(here.files, receipts).to_pylist(),
            )
        )  # fmt: skip
    assert left[0] == left[1]


def test_the_payload_travels_only_where_a_row_could_not_be_prepared() -> None:
    columns = Columns(("x",), None, "item")
    _, table = unit(["a", "bb", "ccc"])
    made = prepare_table(table, columns, prepared_of, 2)
    assert "x" not in made.column_names
    assert is_prepared(made).all()
    assert read_prepared(made, np.array([2, 0]))["letters"].to_pylist() == [[99, 99, 99], [97]]
    _, mixed = unit(["a", "bad", "ccc"])
    made = prepare_table(mixed, columns, prepared_of, 2)
    assert made.column("x").to_pylist() == ["a", "bad", "ccc"]
    assert is_prepared(made).tolist() == [True, False, True]
    _, none = unit(["bad", "bad"])
    assert prepare_table(none, columns, prepared_of, 2) is none
    assert prepare_table(table.slice(0, 0), columns, prepared_of, 2).num_rows == 0


def test_rows_that_cannot_be_read_are_not_shown_to_the_preparer() -> None:
    shown: list[str] = []

    def preparer(batch: dict[str, Sequence[Any]], role: str) -> dict[str, Any]:
        shown.extend(batch["x"])
        return prepared_of(batch, role)

    _, table = unit(list("0123"))
    made = prepare_table(table.set_column(2, "x", BAD_TEXT), Columns(("x",), None, "query"), preparer, 9)
    assert shown == ["0", "2"]
    assert is_prepared(made).tolist() == [True, False, True, False]
    assert made.column("x").chunk(0).buffers()[2] == BAD_TEXT.buffers()[2], "the bytes that nobody can read are there"


def test_batches_go_by_the_lengths_of_what_was_prepared() -> None:
    _, table = unit(["a", "dddd", "bad", "bb"])
    made = prepare_table(table, Columns(("x",), None, "item"), prepared_of, 4)
    order = longest_first(made, ["x"])
    assert order[is_prepared(made)[order]].tolist() == [1, 3, 0]


def test_a_suspect_unit_is_embedded_in_a_process_of_its_own_as_it_was_prepared() -> None:
    class Journal:
        def begin(self, call: str) -> int:
            return 0

        def end(self, call: str) -> None: ...

    task = replace(job(4, f"{HERE}:Lengths"), retry_delays_s=())
    whole, table = unit(["a", "late", "ccc"])
    preparer = unit_preparer(task)
    assert preparer is not None
    tables = preparer([whole], [table], None)
    [receipt] = UnitEmbedder(task)([whole], tables, Attempt(60.0, Journal()))()
    assert [(fault.row, fault.reason) for fault in receipt.quarantined] == [(1, "embedder raised ValueError: late")]
    assert read_vectors(task.files, [receipt], DIM)[1][:, 0].tolist() == [1, 3]
    assert receipt.details["embedding"]["tokens"] is None, "that process does not say"


def test_a_receipt_says_how_many_tokens_were_embedded() -> None:
    task = job(4, f"{HERE}:Lengths")
    whole, table = unit(["a", "bb", "ccc"])
    [receipt] = UnitEmbedder(task)([whole], [table], Attempt())()
    assert receipt.details["embedding"]["tokens"] == 6


@pytest.mark.parametrize(("spec", "offered"), [(f"{HERE}:Lengths", True), ("tests.deadly:Deadly", False)])
def test_the_pool_is_told_what_the_model_offers(spec: str, offered: bool) -> None:
    work = pool_work(job(4, spec))
    assert work.prepare is not None
    assert (work.prepare() is not None) == offered
