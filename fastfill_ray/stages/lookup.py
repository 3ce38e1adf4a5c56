"""What the gallery says of a few items, by their ids: for people who look at hits. Bounded, and never an error.

The ledger of a version's plan says in which row of which file an item lies; only the row groups of these are read.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastfill_ray.config import BackfillConfig, GalleryConfig
from fastfill_ray.errors import FastfillError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import PinnedFile, read_around
from fastfill_ray.inputs.payload import payload_values
from fastfill_ray.log.state import State
from fastfill_ray.ordering.ids import item_keys, rows_of_keys
from fastfill_ray.stages.ledger import LedgerPart, ledger_parts, read_keys
from fastfill_ray.stages.snapshot import Snapshot, read_snapshot
from fastfill_ray.storage.files import Files

# Of a gallery's rows, whose keys are looked through: 16 bytes each, a second for ten millions of them or so.
MOST_ROWS = 30_000_000
# Of the row groups that hits lie in, uncompressed: some seconds. Those of the best hits are read first.
MOST_BYTES = 2 << 30

# Hits whose payload is shown; nobody reads more.
_LOOKED_UP = 1_000
# A gallery of more rows takes seconds to look through, which is said before.
_MANY_ROWS = 2_000_000

_Place = tuple[PinnedFile, int]  # row in the file


@dataclass(frozen=True)
class Payloads:
    """values: {id: its payload columns' values}, of the items that could be looked up. note: why others could not, in
    words for people; "" where all could.
    """

    values: Mapping[int | str, Sequence[object]]
    note: str


def payload_of(
    files: Files,
    state: State,
    config: BackfillConfig,
    number: int,
    ids: Sequence[int | str],
    say: Callable[[str], None],
) -> Payloads:
    """What the gallery says of hits in a version, for people. Where it says nothing, `say` is told why.

    Args:
        ids: the most wanted first, each once.
    """
    version = state.version(number)
    if version is None or not ids:
        return Payloads({}, "")
    plan = state.plan_of(version)
    if len(ids) > _LOOKED_UP:
        say(f"payload shown of the first {_LOOKED_UP:,} of {len(ids):,} hits")
    if plan.rows > _MANY_ROWS:
        say(f"looking the hits up among {plan.rows:,} items ...")
    store = InputStore(config.storage.s3_endpoint, config.storage.anonymous)
    try:
        payloads = look_up(files, store, config.gallery, read_snapshot(files, plan.snapshot), ids[:_LOOKED_UP])
    except FastfillError as error:  # of the snapshot
        payloads = Payloads({}, str(error))
    if payloads.note:
        say(f"payload not shown: {payloads.note}")
    return payloads


def look_up(
    files: Files,
    store: InputStore,
    gallery: GalleryConfig,
    snapshot: Snapshot,
    ids: Sequence[int | str],
    *,
    most_rows: int = MOST_ROWS,
    most_bytes: int = MOST_BYTES,
) -> Payloads:
    """The payload of some items as the gallery has it now.

    Args:
        gallery: where it lies and which columns are its payload; no other file is opened, whatever the snapshot names.
        snapshot: of the plan whose version holds the items.
        ids: the most wanted first, each once.
    """
    if snapshot.rows > most_rows:
        return Payloads({}, f"the gallery has {snapshot.rows:,} items, too many to look hits up in ({most_rows:,})")
    try:
        there = {(file.path, file.size, file.tag) for file in store.find(gallery.path)}
        parts = [part for part in ledger_parts(snapshot) if (part.file.path, part.file.size, part.file.tag) in there]
        places = _places(files, parts, ids)
        chosen, left = _affordable(places, most_bytes)
        values = dict(_read(store, chosen, gallery.payload_columns))
    except FastfillError as error:
        return Payloads({}, str(error))
    notes = []
    if missing := len(ids) - len(places):
        notes.append(f"{missing:,} of {len(ids):,} hits are in files that have changed since, or are gone")
    if left:
        notes.append(f"{left:,} of {len(ids):,} hits lie in row groups that are too large to read for them")
    return Payloads(values, "; ".join(notes))


def _places(files: Files, parts: Sequence[LedgerPart], ids: Sequence[int | str]) -> dict[int | str, _Place]:
    """Where the items lie that are in these parts, in the order of the ids."""
    keys = item_keys(ids)  # (N, 2)
    places: dict[int | str, _Place] = {}
    for part in parts:
        if len(places) == len(ids):
            break
        rows, which = rows_of_keys(read_keys(files, part), keys)
        places |= {ids[n]: (part.file, part.start + row) for row, n in zip(rows.tolist(), which.tolist(), strict=True)}
    return {value: places[value] for value in ids if value in places}


def _affordable(places: Mapping[int | str, _Place], most_bytes: int) -> tuple[dict[int | str, _Place], int]:
    """The items whose row groups can be read, and how many others there are; the first one always can."""
    chosen: dict[int | str, _Place] = {}
    groups: set[tuple[str, int]] = set()
    cost = 0
    for value, (file, row) in places.items():
        group = bisect.bisect_right(file.row_ends, row)
        if (file.path, group) not in groups:
            size = file.read_bytes * file.row_groups[group] // max(1, file.rows)
            if groups and cost + size > most_bytes:
                continue
            groups.add((file.path, group))
            cost += size
        chosen[value] = (file, row)
    return chosen, len(places) - len(chosen)


def _read(
    store: InputStore, places: Mapping[int | str, _Place], columns: Sequence[str]
) -> Iterator[tuple[int | str, list[object]]]:
    """(id, values of its columns), file by file."""
    of_file: dict[PinnedFile, dict[int, int | str]] = {}
    for value, (file, row) in places.items():
        of_file.setdefault(file, {})[row] = value
    for file, id_of in of_file.items():
        rows = np.array(sorted(id_of), np.int64)
        for start, table, within in read_around(store, file, rows, columns):
            read = [payload_values(table.column(name), table.schema.field(name), within)[0] for name in columns]
            for row, values in zip((start + within).tolist(), zip(*read, strict=True), strict=True):
                yield id_of[row], list(values)
