"""What is known is found again, however often it was gathered; what is known already is not written again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.ordering.ids import item_keys
from fastfill_ray.stages import known
from fastfill_ray.stages.known import Known, gather_known, put_known, read_known, read_partition
from fastfill_ray.storage.arrow import keys_column, keys_of, table_bytes
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import chunk_unit, items_output, unit_output, unit_receipt, wave_folder
from fastfill_ray.storage.receipts import Receipt, put_receipt
from fastfill_ray.storage.refs import put_content

Place = tuple[bytes, int, int]
"""Digest of a payload, number of the file, row in it."""


def embed(files: Files, plan: str, ids: list[int], payload: str) -> None:
    """A unit of that plan, which embeds these ids with these payloads."""
    folder, unit = wave_folder(plan, 1), chunk_unit("0" * 16)
    vectors = put_content(files, partial(unit_output, folder, unit), table_bytes(pa.table({"id": ids})))
    payloads = pa.array([payload.encode().ljust(16)] * len(ids), pa.binary(16))
    items = pa.table(
        {"key": keys_column(item_keys(ids)), "payload": payloads, "version": pa.nulls(len(ids), pa.binary(16))}
    )
    digests = put_content(files, partial(items_output, folder, unit), table_bytes(items))
    receipt = Receipt(unit=unit, outputs=(vectors, digests), rows=len(ids), details={"space": "new"})
    put_receipt(files, unit_receipt(folder, unit), receipt)


def places(files: Files, found: Known) -> dict[tuple[int, ...], list[Place]]:
    """{key: where its vectors are}, the first one of each payload."""
    result: dict[tuple[int, ...], dict[bytes, Place]] = {}
    for number in range(len(found.partitions)):
        table = read_partition(files, found, number)
        keys = keys_of(table.column("key"))
        assert (keys[:, 0] % np.uint64(len(found.partitions)) == number).all()
        for key, row in zip(keys.tolist(), table.drop_columns("key").to_pylist(), strict=True):
            place = (row["payload"], row["file"], row["row"])
            result.setdefault(tuple(key), {}).setdefault(row["payload"], place)
    return {key: sorted(payloads.values()) for key, payloads in sorted(result.items())}


@pytest.mark.parametrize("most_files", [1, 2, 16])
def test_gathered_night_by_night_is_gathered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_files: int
) -> None:
    monkeypatch.setattr(known, "_MOST_FILES", most_files)
    files, engine, nights = open_files(str(tmp_path)), InProcessEngine(), Known()
    for night in range(5):
        embed(files, f"{night:016x}", [*range(100 * night, 100 * night + 100), 7], f"night {night // 2}")
        nights = read_known(files, put_known(files, gather_known(engine, files, nights, "new", frozenset())))
        assert all(len(partition) <= max(1, most_files) for partition in nights.partitions)
    at_once = gather_known(engine, files, Known(), "new", frozenset())
    assert len(places(files, at_once)) == 500
    assert places(files, nights) == places(files, at_once)
    assert nights.files == at_once.files
    assert gather_known(engine, files, nights, "new", frozenset()) == nights, "nothing came"


def test_what_is_known_is_not_written_again_for_what_comes(tmp_path: Path) -> None:
    files, engine = open_files(str(tmp_path)), InProcessEngine()
    embed(files, "0" * 16, list(range(1000)), "a")
    before = gather_known(engine, files, Known(), "new", frozenset())
    embed(files, "1" * 16, [5], "b")
    after = gather_known(engine, files, before, "new", frozenset())
    for was, now in zip(before.partitions, after.partitions, strict=True):
        assert now[:-1] == was
        assert now[-1].size < was[0].size / 5
    assert (after.rows, after.unversioned) == (1001, 1001)
