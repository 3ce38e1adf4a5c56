"""Receipts: the first one wins, an absent one is None, a damaged one is refused by name."""

from __future__ import annotations

import pytest

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.records import FileRef
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import chunk_unit, unit_receipt
from fastfill_ray.storage.receipts import Quarantined, Receipt, Receipts, find_receipts, put_receipt, read_receipt
from fastfill_ray.storage.sealed import unseal_file
from tests.faults import flip_bit


def test_the_first_receipt_wins_and_its_twin_adopts_it(files: Files) -> None:
    first, second = Receipt(unit="c", rows=1), Receipt(unit="c", rows=2)
    assert put_receipt(files, "scores/a/receipt.json", first) == first
    assert put_receipt(files, "scores/a/receipt.json", second) == first
    assert read_receipt(files, "scores/a/receipt.json") == first
    assert read_receipt(files, "scores/b/receipt.json") is None


def test_the_units_of_a_folder_are_found_by_their_receipts(files: Files) -> None:
    made = {chunk_unit(f"{i:016x}"): Receipt(unit=chunk_unit(f"{i:016x}"), rows=i) for i in range(20)}
    for unit, receipt in made.items():
        put_receipt(files, unit_receipt("pairs/a", unit), receipt)
    put_receipt(files, "pairs/a/receipt.json", Receipt(unit="pairs", rows=3))
    assert find_receipts(files, "pairs/a") == made


def test_packed_receipts_come_out_as_they_went_in() -> None:
    output = FileRef(path="pairs/a/x.parquet", size=3, sha256="ab", tag="t")
    bad = (Quarantined(id="7", row=7, reason="ä"), Quarantined(id=7, row=8, reason=""))
    unknown = Quarantined(id=None, row=9, reason="r")
    details = {"unusable": 3, "s": "x"}
    whole = Receipt(unit="a", outputs=(output,), rows=2, quarantined=(*bad, unknown), seconds=0.1, details=details)
    plain = {"a": whole, "b": Receipt(unit="b", rows=0)}
    packed = Receipts()
    packed.update(plain)
    other = packed.copy()
    assert dict(packed) == plain
    assert len(packed) == 2
    del packed["a"]
    assert "a" not in packed
    assert other["a"] == whole


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"unit": "c"}', b'{"unit": "c", "rows": -1}'])
def test_a_damaged_receipt_is_refused_by_name(files: Files, damage: bytes) -> None:
    path = unit_receipt("scores/a", chunk_unit("0000000000000007"))
    files.put_data(path, damage)
    for read in (lambda: read_receipt(files, path), lambda: find_receipts(files, "scores/a")):
        with pytest.raises(CorruptFile, match=r"scores/a/c0000000000000007\.receipt\.json: not the receipt") as refused:
            read()
        assert refused.value.paths == (path,)


def test_every_single_bit_of_a_receipt_counts(files: Files) -> None:
    path = unit_receipt("scores/a", chunk_unit("0000000000000007"))
    put_receipt(files, path, Receipt(unit=chunk_unit("0000000000000007"), rows=3, details={"seconds": 0.5, "why": "ä"}))
    data = files.get(path)
    for bit in range(len(data) * 8):
        with pytest.raises(CorruptFile, match=path):
            unseal_file(path, flip_bit(data, bit), Receipt)


def test_a_receipt_of_another_place_is_refused(files: Files) -> None:
    here, there = (unit_receipt(f"vectors/p/wave={wave:02d}", chunk_unit("0000000000000007")) for wave in (1, 2))
    put_receipt(files, there, Receipt(unit=chunk_unit("0000000000000007"), rows=3))
    files.put_data(here, files.get(there))
    with pytest.raises(CorruptFile, match=here):
        read_receipt(files, here)


def test_all_damaged_receipts_of_a_folder_are_named_at_once(files: Files) -> None:
    for i in range(4):
        put_receipt(
            files, unit_receipt("pairs/a", chunk_unit(f"{i:016x}")), Receipt(unit=chunk_unit(f"{i:016x}"), rows=i)
        )
    damaged = tuple(unit_receipt("pairs/a", chunk_unit(f"{i:016x}")) for i in (1, 3))
    for path in damaged:
        files.put_data(path, b"")
    with pytest.raises(CorruptFile, match="1 more receipts in pairs/a") as refused:
        find_receipts(files, "pairs/a")
    assert refused.value.paths == damaged
