"""Labels and groups of the gallery: what cannot be read or stored is named by its file, column and row in the file."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.config import GalleryConfig, ResourcesConfig
from fastfill_ray.errors import InputError
from fastfill_ray.inputs.gallery import Source, item_groups, item_labels
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import Span, read_rows
from fastfill_ray.stages import build, old_index, pairs, score
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.snapshot import inspect_gallery

ROWS, BAD, START = 40, 25, 20
STORE = InputStore()


def not_utf8(rows: int, bad: int) -> pa.Array:
    """Texts, of which one is no UTF-8: Arrow takes a string column at its word."""
    values = [b"caf\xe9" if row == bad else f"text {row}".encode() for row in range(rows)]
    return pa.Array.from_buffers(pa.string(), rows, pa.array(values, pa.binary()).buffers())


def gallery(folder: Path, files: list[dict[str, Any]], **config: Any) -> tuple[Source, list[Span]]:
    """Files of 40 items with the columns given, and the second half of each."""
    folder.mkdir(exist_ok=True)
    for number, columns in enumerate(files):
        plain = {"id": np.arange(ROWS) + ROWS * number, "old": [[1.0, float(row)] for row in range(ROWS)]}
        pq.write_table(pa.table({**plain, "x": [0] * ROWS, **columns}), folder / f"{number}.parquet")
    keys = {"path": str(folder), "id_column": "id", "old_vector_column": "old", "payload_columns": ["x"], **config}
    parsed = GalleryConfig(**keys)
    found = inspect_gallery(STORE, STORE.find(parsed.path), parsed, ResourcesConfig())
    source = Source(STORE, parsed, found.id_type, found.old_dim, "ip", label_kind=found.label_kind)
    return source, [Span(file, START, ROWS - START) for file in found.gallery.files]


def labels(source: Source, span: Span) -> Any:
    table = read_rows(STORE, span.file, ["label"], start=span.start, rows=span.rows)
    found = item_labels(table, source, span)
    assert found is not None
    return found.tolist()


def test_without_the_columns_there_are_neither_labels_nor_groups(tmp_path: Path) -> None:
    source, (span,) = gallery(tmp_path / "g", [{}])
    table = read_rows(STORE, span.file, ["id"])
    assert (item_labels(table, source, span), item_groups(table, source, span)) == (None, None)


def test_integers_that_float64_cannot_hold_are_refused_where_others_are_floats(tmp_path: Path) -> None:
    large, floats = {"label": [2**53 + row - BAD for row in range(ROWS)]}, {"label": [row / 2 for row in range(ROWS)]}
    source, (span,) = gallery(tmp_path / "alone", [large], label_column="label")
    assert labels(source, span) == large["label"][START:], "of integers alone all fit"
    source, (span, other) = gallery(tmp_path / "mixed", [large, floats], label_column="label")
    assert labels(source, other) == floats["label"][START:]
    found = (
        r"mixed/0\.parquet: gallery\.label_column 'label': row 26 is 9007199254740993\. .* cast the column to string"
    )
    with pytest.raises(InputError, match=found):
        labels(source, span)
    decimals = pa.array([[Decimal(value)] for value in large["label"]], pa.list_(pa.decimal128(20, 2)))
    source, (span,) = gallery(tmp_path / "lists", [{"label": decimals}], label_column="label")
    with pytest.raises(
        InputError, match=r"lists/0\.parquet: gallery\.label_column 'label': row 26 is 9007199254740993"
    ):
        labels(source, span)


def test_decimals_without_a_fraction_are_integers_of_any_precision(tmp_path: Path) -> None:
    wide = pa.decimal128(38, 0)
    values = [Decimal(2**62 + row) for row in range(ROWS)]
    source, (span,) = gallery(tmp_path / "g", [{"label": pa.array(values, wide)}], label_column="label")
    assert source.label_kind == "integer"
    assert labels(source, span) == [2**62 + row for row in range(START, ROWS)]
    values[BAD] = Decimal(10**30)
    source, (span,) = gallery(tmp_path / "g", [{"label": pa.array(values, wide)}], label_column="label")
    with pytest.raises(InputError, match=rf"'label': row {BAD} is {10**30}, which does not fit into int64"):
        labels(source, span)


READERS = ("sample", "score", "evaluate", "build")


def read_at(stage: str, source: Source, span: Span) -> None:
    """A chunk's labels and groups as a stage of a run reads them."""
    names = [name for name in ("label", "group") if getattr(source.config, f"{name}_column")]
    table = read_rows(STORE, span.file, ["id", "old", *names], start=span.start, rows=span.rows)
    scorer: Any = SimpleNamespace(source=source, policy="class_margin", align=lambda old, side: (old, None))
    if stage == "sample":
        offsets = (BAD - START,)
        unit = Unit(
            unit="u",
            folder="f",
            file=span.file,
            start=span.start,
            length=span.rows,
            rows=1,
            role="item",
            model="new",
            offsets=offsets,
        )
        pairs._old_of(unit, table, source)
    elif stage == "score":
        work = score._Work(unit="u", start=span.start, rows=span.rows, file=span.file, pairs=())
        score._score_chunk(scorer, work, table)
    elif stage == "evaluate":
        old_index._usable_old(source, table, span, with_ids=False)
    else:
        chunk: Any = SimpleNamespace(start=span.start, rows=span.rows)
        listed: Any = None
        job: Any = SimpleNamespace(scorer=scorer)
        build._read_gallery(job, build.BucketWork(0, (build.Place(chunk, span.file, listed),), (), (), {}))


@pytest.mark.parametrize("stage", READERS)
def test_every_stage_names_a_bad_label_by_file_column_and_row(tmp_path: Path, stage: str) -> None:
    source, (span,) = gallery(tmp_path / "g", [{"label": not_utf8(ROWS, BAD)}], label_column="label")
    with pytest.raises(InputError, match=rf"0\.parquet: gallery\.label_column 'label': row {BAD} is b'caf"):
        read_at(stage, source, span)


@pytest.mark.parametrize("stage", ["sample", "build"])
def test_every_stage_names_a_bad_group_by_file_column_and_row(tmp_path: Path, stage: str) -> None:
    source, (span,) = gallery(tmp_path / "g", [{"group": not_utf8(ROWS, BAD)}], group_column="group")
    with pytest.raises(InputError, match=rf"0\.parquet: gallery\.group_column 'group': row {BAD} is b'caf"):
        read_at(stage, source, span)
