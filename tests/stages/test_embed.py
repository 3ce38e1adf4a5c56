"""A unit's rows: what is raised once is tried again, and what is raised always costs its own row alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.engine.interface import Attempt
from fastfill_ray.errors import EmbedderError
from fastfill_ray.inputs.changes import payload_digests, version_digests
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.inputs.table import Column, pin
from fastfill_ray.ordering.ids import ids_digest, item_keys
from fastfill_ray.stages import embed as stage
from fastfill_ray.stages.batches import Space
from fastfill_ray.stages.embed import (
    Job,
    Unit,
    UnitEmbedder,
    embed_units,
    items_file,
    read_items,
    read_units,
    read_vectors,
    vectors_file,
)
from fastfill_ray.storage.arrow import keys_of
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.receipts import Receipt
from tests.deadly import DIM, Deadly
from tests.faults import MemoryFiles


def job(batch_size: int, spec: str = "tests.deadly:Deadly", **kwargs: Any) -> Job:
    space = Space(spec, kwargs, DIM, "ip", batch_size)
    return Job(MemoryFiles(), InputStore(), "id", "int64", ("x",), (), {"new": space}, retry_delays_s=(0.5, 2.0, 8.0))


def unit(rows: Sequence[str]) -> tuple[Unit, pa.Table]:
    size = len(rows)
    file = PinnedFile.model_construct(path="gallery.parquet")
    numbers = pa.array(range(size))
    whole = Unit.model_construct(
        unit="c0", folder="pairs/f", file=file, start=0, length=size, rows=size, role="item", model="new", wave=0
    )
    return whole, pa.table({"__row": numbers, "__id": numbers, "x": list(rows)})


def embed_unit(job: Job, unit: Unit, table: pa.Table, model: Any) -> Receipt:
    [receipt] = embed_units(job, [unit], [table], model)()
    return receipt


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: waited.append(seconds) if seconds else None)
    return waited


class Moody:
    """Raises in its first `bad` calls, then embeds."""

    def __init__(self, bad: int) -> None:
        self.bad, self.calls = bad, 0

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        self.calls += 1
        if self.calls <= self.bad:
            raise ConnectionError("away")
        return np.ones((len(batch["x"]), DIM))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_whose_call_raises_once_is_embedded(batch_size: int, waits: list[float]) -> None:
    receipt = embed_unit(job(batch_size), *unit(list("0123")), Moody(1))
    assert (receipt.rows, receipt.quarantined) == (4, ())
    assert waits == ([0.5] if batch_size == 1 else []), "of a batch, the halves are the second try"


def test_what_is_away_for_a_while_is_waited_for_once_per_unit(waits: list[float]) -> None:
    model = Moody(8 + 8 + 8)
    receipt = embed_unit(job(1), *unit(list("01234567")), model)
    assert (receipt.rows, receipt.quarantined) == (8, ())
    assert waits == [0.5, 2, 8]
    assert model.calls == 4 * 8


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_raises_always_is_quarantined_after_three_more_tries_and_nothing_else_is(
    batch_size: int, waits: list[float]
) -> None:
    rows = ["0", "raise", "2", "KeyboardInterrupt", "SystemExit", "5", "GeneratorExit", "7"]
    receipt = embed_unit(job(batch_size), *unit(rows), Deadly())
    assert waits == [0.5, 2, 8]
    assert receipt.rows == 4
    assert {fault.row: fault.reason for fault in receipt.quarantined} == {
        1: "embedder raised ValueError: cannot be read",
        3: "embedder raised KeyboardInterrupt:",
        4: "embedder raised SystemExit: 0",
        6: "embedder raised GeneratorExit:",
    }


def test_vectors_that_cannot_be_used_are_not_asked_for_again(waits: list[float]) -> None:
    model = Moody(0)
    receipt = embed_unit(job(4), *unit(list("01")), lambda batch, role: model(batch, role) * np.nan)
    assert {fault.reason for fault in receipt.quarantined} == {"non_finite"}
    assert (model.calls, waits) == (1, [])


def test_units_share_batches_longest_texts_first_and_each_gets_its_own_rows() -> None:
    batches: list[list[str]] = []

    def lengths(batch: dict[str, Sequence[Any]], role: str) -> Any:
        batches.append(list(batch["x"]))
        if any("bad" in text for text in batch["x"]):
            raise ValueError("bad")
        return np.array([[len(text)] * DIM for text in batch["x"]], np.float32)

    task = replace(job(4), retry_delays_s=())
    first, table = unit(["aaa", "a", "aaaaa"])
    others = pa.table({"__row": [7, 8, 9], "__id": [17, 18, 19], "x": ["aa", "bad!", "aaaaaa"]})
    second = first.model_copy(update={"unit": "c1"})
    # What a table's own schema says of its columns is not read as another one's.
    third = first.model_copy(update={"unit": "c2", "rows": 1})
    alone = pa.table({"__row": [0], "__id": [1], "x": pa.array(["aaaaaaa"], pa.large_string())})
    receipts = embed_units(task, [first, third, second], [table, alone, others], lengths)()
    assert batches[0] == ["aaaaaa", "aaaaa", "bad!", "aaa"], "a batch over two units, the longest first"
    assert batches[-1] == ["aaaaaaa"]
    assert [receipt.unit for receipt in receipts] == ["c0", "c2", "c1"]
    made = [read_vectors(task.files, [receipt], DIM) for receipt in receipts]
    assert [ids for ids, _ in made] == [[0, 1, 2], [1], [17, 19]]
    assert [vectors[:, 0].tolist() for _, vectors in made] == [[3, 1, 5], [7], [2, 6]]
    assert [(fault.id, fault.row) for fault in receipts[2].quarantined] == [(18, 8)]


def test_units_of_a_block_are_written_side_by_side() -> None:
    class SlowFiles(MemoryFiles):
        """Takes nothing of a unit until something of another one is to be written."""

        both = threading.Barrier(2)

        def put_data(self, path: str, data: bytes) -> None:
            if "items" not in path:
                self.both.wait(timeout=20)
            super().put_data(path, data)

    task = replace(job(4), files=SlowFiles())
    first, table = unit(["0"])
    second = first.model_copy(update={"unit": "c1"})
    receipts = embed_units(task, [first, second], [table, table], Deadly())()
    assert [receipt.unit for receipt in receipts] == ["c0", "c1"]


def test_of_units_that_are_begun_again_those_that_are_finished_are_not_embedded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BuiltAt, "tries", 0)
    task = job(4, "tests.stages.test_embed:BuiltAt", number=1)
    whole, table = unit(["0"])
    done = UnitEmbedder(task)([whole], [table], Attempt())()
    assert list(UnitEmbedder(task)([whole], [table], Attempt(again=True))()) == done
    assert BuiltAt.tries == 1, "the second one needed no model"


def test_an_embedder_that_says_that_it_cannot_go_on_ends_the_run() -> None:
    with pytest.raises(EmbedderError, match=r"^the key has expired$"):
        embed_unit(job(2), *unit(["0", "refuse"]), Deadly())


class BuiltAt:
    """Its constructor raises until it is called for the `number`-th time."""

    tries = 0

    def __init__(self, number: int) -> None:
        BuiltAt.tries += 1
        if BuiltAt.tries < number:
            raise ConnectionError("too many requests")

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> Any:
        return np.ones((len(batch["x"]), DIM))


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_constructor_that_raises_is_called_three_times(
    number: int, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuiltAt, "tries", 0)
    worker = UnitEmbedder(job(4, "tests.stages.test_embed:BuiltAt", number=number))
    whole, table = unit(["0"])
    if number > 3:
        with pytest.raises(EmbedderError, match=r"called with kwargs \['number'\], raised ConnectionError: too many"):
            worker([whole], [table], Attempt())
    else:
        assert worker([whole], [table], Attempt())()[0].rows == 1
    assert BuiltAt.tries == min(number, 3)
    assert waits == [0.5, 2][: min(number, 3) - 1]


# What is known of the items


def known(files: Files, receipt: Receipt) -> pa.Table:
    """The unit's items, which are those of its vectors, in their order."""
    ids, _ = read_vectors(files, [receipt], DIM)
    items = read_items(files, [receipt])
    assert items.schema.equals(pa.schema([(name, pa.binary(16)) for name in ("key", "payload", "version")]))
    assert np.array_equal(keys_of(items.column("key")), item_keys(ids))
    assert receipt.ids_digest == ids_digest(ids)
    return items


def test_a_unit_of_items_records_what_it_read_of_each_row_that_it_embedded(waits: list[float]) -> None:
    task = job(2)
    whole, table = unit(["0", "raise", "2"])
    items = known(task.files, embed_unit(task, whole, table, Deadly()))
    assert items.column("payload").to_pylist() == payload_digests(table.take([0, 2]), ["x"]).to_pylist()
    assert items.column("version").null_count == 2, "no version column"
    dated = table.append_column("at", pa.array([7, 8, None]))
    receipt = embed_unit(replace(task, version_column="at"), whole, dated, Deadly())
    again = known(task.files, receipt)
    assert again.column("payload") == items.column("payload")
    assert again.column("version").to_pylist() == [version_digests(dated, "at")[0].as_py(), None]


def test_queries_and_units_without_an_embedded_row_have_no_items() -> None:
    task = replace(job(2), query_payload_columns=("x",))
    whole, table = unit(["0", "1"])
    queries = embed_unit(task, whole.model_copy(update={"role": "query"}), table, Moody(0))
    assert (vectors_file(queries) is None, items_file(queries)) == (False, None)
    nothing = embed_unit(task, whole, table, lambda batch, role: np.full((len(batch["x"]), DIM), np.nan))
    assert (vectors_file(nothing), items_file(nothing)) == (None, None)
    assert read_items(task.files, [queries, nothing]).num_rows == 0
    assert read_vectors(task.files, [queries, nothing], DIM)[0] == [0, 1]


def test_the_version_is_read_with_the_payload_and_is_not_shown_to_the_embedder(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [3, 4], "x": ["a", "b"], "at": [7, 8]}), tmp_path / "a.parquet")
    file = pin(InputStore(), InputStore().find(str(tmp_path)), [Column("id", "id"), Column("at", "at")]).files[0]
    whole = unit(["", ""])[0].model_copy(update={"file": file})
    for version in ("at", "x", "id"):
        task = replace(job(4), version_column=version)
        table = next(read_units(task, [whole]))
        shown: list[str] = []

        def model(batch: dict[str, Sequence[Any]], role: str, shown: list[str] = shown) -> Any:
            shown.extend(batch)
            return np.ones((len(batch["x"]), DIM))

        items = known(task.files, embed_unit(task, whole, table, model))
        assert shown == ["x"]
        assert items.column("version").null_count == 0


BAD_TEXT = pa.Array.from_buffers(pa.string(), 4, pa.array([b"0", b"caf\xe9", b"2", b"\xff"]).buffers())


def test_payload_that_cannot_be_read_is_quarantined_and_never_shown_or_asked_for_again(waits: list[float]) -> None:
    shown: list[Any] = []

    def model(batch: dict[str, Sequence[Any]], role: str) -> Any:
        shown.extend(batch["x"])
        return np.ones((len(batch["x"]), DIM))

    whole, table = unit(list("0123"))
    task = job(2)
    receipt = embed_unit(task, whole, table.set_column(2, "x", BAD_TEXT), model)
    assert receipt.rows == known(task.files, receipt).num_rows == 2
    assert {fault.row: fault.reason for fault in receipt.quarantined} == {
        1: "payload column 'x': not UTF-8",
        3: "payload column 'x': not UTF-8",
    }
    assert (shown, waits) == (["0", "2"], [])


def test_where_no_payload_can_be_read_the_embedder_is_not_called() -> None:
    whole, table = unit(["a", "b"])
    years = pa.array([2**62, 2**61], pa.timestamp("us"))
    receipt = embed_unit(job(2), whole, table.set_column(2, "x", years), Moody(99))
    assert receipt.rows == 0
    assert [fault.reason[:45] for fault in receipt.quarantined] == ["payload column 'x': cannot be read: OverflowE"] * 2


@pytest.mark.parametrize("offsets", [None, (0, 1, 3)])
def test_the_rows_of_a_unit_keep_what_says_how_to_read_them(tmp_path: Path, offsets: tuple[int, ...] | None) -> None:
    """Views, which Arrow cannot take from, and tensors, whose shape may stand in the field's metadata alone."""
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": "[2, 1]"}
    schema = pa.schema(
        [
            pa.field("id", pa.string_view()),
            pa.field("text", pa.string_view()),
            pa.field("image", pa.list_(pa.uint8()), metadata=metadata),
        ]
    )
    rows = [{"id": f"item {i}", "text": f"text {i}", "image": [i, i + 1]} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    file = pin(InputStore(), InputStore().find(str(tmp_path)), [Column(name, name) for name in schema.names]).files[0]
    chosen = range(4) if offsets is None else offsets
    whole = unit([""] * 4)[0].model_copy(update={"file": file, "offsets": offsets, "rows": len(chosen)})
    reader = replace(job(4), id_type="string", payload_columns=("text", "image"))
    table = next(read_units(reader, [whole]))
    assert table.column("__id").to_pylist() == [f"item {i}" for i in chosen]
    shown: dict[str, Sequence[Any]] = {}

    def model(batch: dict[str, Sequence[Any]], role: str) -> Any:
        shown.update(batch)
        return np.ones((len(batch["text"]), DIM))

    assert embed_unit(reader, whole, table, model).rows == len(chosen)
    assert shown["text"] == [f"text {i}" for i in chosen]
    assert [image.tolist() for image in shown["image"]] == [[[i], [i + 1]] for i in chosen]
