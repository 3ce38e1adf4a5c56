"""What is said of rows that could not be embedded: whether they are at fault, or the embedder."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastfill_ray.config import QuarantineConfig
from fastfill_ray.errors import EmbedderError, QuarantineExceeded
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.stages.embed import Unit
from fastfill_ray.stages.quarantine import UnitGroup
from fastfill_ray.storage.receipts import Quarantined, Receipt
from tests.faults import MemoryFiles

ROWS = 20


def group(units: int = 3) -> UnitGroup:
    """Units of 20 rows, of which ten may be bad."""
    file = PinnedFile.model_construct(path="gallery.parquet")
    made = [
        Unit.model_construct(
            unit=f"c{number:016d}", folder="pairs/f", file=file, start=number * ROWS, length=ROWS, rows=ROWS
        )
        for number in range(units)
    ]
    return UnitGroup(MemoryFiles(), "pairs/f", "pairs", made, QuarantineConfig())


def add(group: UnitGroup, number: int, reasons: Sequence[str]) -> None:
    """The receipt of a unit whose first rows failed."""
    bad = tuple(Quarantined(id=row, row=row, reason=reason) for row, reason in enumerate(reasons))
    unit = group.units[number]
    group.add(unit, Receipt(unit=unit.unit, rows=ROWS - len(bad), quarantined=bad))


def test_where_all_rows_fail_alike_the_embedder_is_said_to_be_wrong_and_the_error_quoted_once() -> None:
    reasons = [f"embedder raised KeyError: 'text' in row {row}" for row in range(ROWS)]
    with pytest.raises(EmbedderError, match=r"^pairs: none of the 20 rows .* row 0 \(20 times, at last") as error:
        add(group(), 0, reasons)
    assert str(error.value).count("KeyError") == 1
    assert "The embedder or the config is wrong" in str(error.value)
    assert "quarantine" not in str(error.value)


def test_where_all_rows_of_one_file_fail_alike_it_is_named() -> None:
    units = group()
    add(units, 0, [])
    with pytest.raises(
        EmbedderError, match=r"none of the 20 rows of pairs/f/c0{15}1 .*not UTF-8 .*row 19 of gallery\.parquet"
    ):
        add(units, 1, ["payload column 'x': not UTF-8"] * ROWS)


@pytest.mark.parametrize(
    "reasons",
    [["non_finite"] * 11, ["non_finite"] * 10 + ["zero_norm"] * 10],
    ids=["some rows", "different faults"],
)
def test_where_some_rows_fail_or_faults_differ_rows_are_shown_and_the_limit_is_named(reasons: list[str]) -> None:
    with pytest.raises(QuarantineExceeded, match=r"of 60 rows .*id 0 \(row 0\): non_finite.*quarantine\.max_rows"):
        add(group(), 0, reasons)


def test_few_bad_rows_are_lived_with() -> None:
    units = group()
    add(units, 0, ["non_finite"] * 5)
    add(units, 1, ["non_finite"] * 5)
    assert len(units.receipts) == 2
