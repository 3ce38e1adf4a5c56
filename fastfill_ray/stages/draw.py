"""Which items are pairs: those with the smallest seeded hashes of their keys, found in one pass over the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fastfill_ray.ordering.ids import item_keys, rows_of_keys
from fastfill_ray.ordering.partition import hash_bound, smallest, split_pairs, split_sizes
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.ledger import LedgerPart, key_groups, ledger_parts, read_keys
from fastfill_ray.stages.snapshot import Snapshot
from fastfill_ray.storage.arrow import read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import stage_output, stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt, read_receipt
from fastfill_ray.storage.refs import get_verified, put_content, sha256_hex
from fastfill_ray.types import I64, U64, Objects, fingerprint

Counts = Mapping[str, int]
"""{what: how many}: what is kept beside a sample."""


@dataclass(frozen=True)
class Drawn:
    """Per chunk that holds pairs, by its unit: the offsets of its pairs, ascending, and each pair's split."""

    offsets: dict[str, tuple[int, ...]]
    split_of: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Found:
    """Items that may be pairs: keys (N, 2), and rows (N,), counted from the first row of what was looked through."""

    keys: U64
    rows: I64

    def take(self, places: I64) -> _Found:
        return _Found(self.keys[places], self.rows[places])


def draw_pairs(context: Context, snapshot: Snapshot, count: int, split: tuple[float, float, float], seed: int) -> Drawn:
    """The sample, drawn once and kept: a run that goes on does not read the ledger again.

    Args:
        count: items to draw. split: shares of them for training, calibration and audit.

    Raises:
        ConfigError: the gallery or a split is too small.
    """
    sizes = split_sizes(snapshot.rows, count, split)

    def draw() -> tuple[pa.Table, Counts]:
        found = _find_smallest(context, snapshot, count, seed)
        return _by_chunk(snapshot, found.rows, split_pairs(found.keys, sizes, seed).tolist()), {"number": count}

    return _kept(context.files, _name(snapshot, list(sizes.items()), seed), draw)[0]


def _name(snapshot: Snapshot, *what: Any) -> str:
    return fingerprint([snapshot.fingerprint, snapshot.cut, snapshot.ledger, *what])


def _kept(files: Files, name: str, draw: Callable[[], tuple[pa.Table, Counts]]) -> tuple[Drawn, Counts]:
    """What was drawn under that name, or is now: columns unit, offset and split, and what was counted beside them."""
    receipt = read_receipt(files, stage_receipt("sample", name))
    if receipt is None:
        table, counts = draw()
        output = put_content(files, partial(stage_output, "sample", name, "sample.parquet"), table_bytes(table))
        receipt = Receipt(unit="sample", outputs=(output,), rows=table.num_rows, details=dict(counts))
        receipt = put_receipt(files, stage_receipt("sample", name), receipt)
    output = receipt.outputs[0]
    table = read_table(get_verified(files, output), name=output.path, columns=["unit", "offset", "split"])
    return _drawn(table), {key: int(value) for key, value in receipt.details.items()}


def _drawn(table: pa.Table) -> Drawn:
    """From columns unit, offset and split."""
    offsets, split_of = dict[str, tuple[int, ...]](), dict[str, tuple[str, ...]]()
    for unit, run in itertools.groupby(zip(*table.to_pydict().values(), strict=True), key=lambda row: row[0]):
        rows = list(run)
        offsets[unit] = tuple(row[1] for row in rows)
        split_of[unit] = tuple(row[2] for row in rows)
    return Drawn(offsets, split_of)


def draw_taken(
    context: Context,
    snapshot: Snapshot,
    ids: Objects,
    pairs: Mapping[str, tuple[int, ...]],
    most: int,
    seed: int,
) -> tuple[Drawn, int, int]:
    """The items that were taken, half of them for calibration and half for the audit: at most so many, each as likely
    as any other, and none that is a pair. And of the ids, pairs among them, how many distinct ones the gallery has, and
    how many with those that stand there often.

    Args:
        ids: (n,) of items, some of them often; those that the gallery lacks are left out.
        pairs: {unit of a chunk: offsets of the pairs in it}.
    """
    taken = item_keys(ids.tolist())
    wanted, times = np.unique(taken, axis=0, return_counts=True)

    def draw() -> tuple[pa.Table, Counts]:
        there = _find(context, snapshot, wanted)
        start_of = dict(zip((chunk.unit for chunk in snapshot.chunks), _starts(snapshot).tolist(), strict=True))
        known = [start_of[unit] + offset for unit, offsets in pairs.items() for offset in offsets]
        others = there.take(np.flatnonzero(~np.isin(there.rows, known)))
        chosen = others.take(smallest(others.keys, min(most, len(others.rows)), seed))
        splits = ["calibration" if rank % 2 else "audit" for rank in range(len(chosen.rows))]
        # What is there is among what is wanted, each once: so both together are the wanted ones, in their order.
        is_there = np.unique(np.concatenate([wanted, there.keys]), axis=0, return_counts=True)[1] == 2
        counts = {"number": len(there.rows), "in_all": int(times[is_there].sum())}
        return _by_chunk(snapshot, chosen.rows, splits), counts

    seen = sha256_hex(wanted.tobytes()), sha256_hex(times.tobytes())
    drawn, counts = _kept(context.files, _name(snapshot, "taken", *seen, sorted(pairs.items()), most, seed), draw)
    return drawn, counts["number"], counts["in_all"]


def count_known(context: Context, snapshot: Snapshot, ids: Objects) -> int:
    """How many of some items (n,), each once, the gallery has; counted once and kept."""
    if not len(ids):
        return 0
    wanted = item_keys(ids.tolist())

    def count() -> tuple[pa.Table, Counts]:
        return _by_chunk(snapshot, np.empty(0, np.int64), []), {"number": len(_find(context, snapshot, wanted).rows)}

    return _kept(context.files, _name(snapshot, "counted", sha256_hex(wanted.tobytes())), count)[1]["number"]


def _find(context: Context, snapshot: Snapshot, keys: U64) -> _Found:
    """The items of these keys (M, 2), with global row numbers."""
    find = partial(_find_these, files=context.files, keys=keys)
    groups, found, first = key_groups(ledger_parts(snapshot)), list[_Found](), 0
    for group, part in context.engine.run_tasks(find, groups, name="find what was taken", ordered=True):
        found.append(_Found(part.keys, part.rows + first))
        first += sum(each.rows for each in group)
    return _Found(np.concatenate([part.keys for part in found]), np.concatenate([part.rows for part in found]))


def _find_these(parts: Sequence[LedgerPart], *, files: Files, keys: U64) -> _Found:
    there = np.concatenate([read_keys(files, part) for part in parts])
    rows, _ = rows_of_keys(there, keys)
    return _Found(there[rows], rows)


def _find_smallest(context: Context, snapshot: Snapshot, count: int, seed: int) -> _Found:
    """The pairs, with global row numbers."""
    bound = hash_bound(snapshot.rows, count)
    found = _pass(context, snapshot, count, seed, bound)
    if len(found.rows) < count:  # next to impossible: hashes that are not spread evenly
        found = _pass(context, snapshot, count, seed, None)
    return found


def _pass(context: Context, snapshot: Snapshot, count: int, seed: int, bound: int | None) -> _Found:
    """No process holds the keys of more than one task and `count` candidates."""
    groups = key_groups(ledger_parts(snapshot))
    find = partial(_find_in, files=context.files, count=count, seed=seed, bound=bound)
    best = _Found(np.empty((0, 2), np.uint64), np.empty(0, np.int64))
    first = 0  # of the group
    for group, found in context.engine.run_tasks(find, groups, name="draw pairs", ordered=True):
        keys, rows = np.concatenate([best.keys, found.keys]), np.concatenate([best.rows, found.rows + first])
        best = _Found(keys, rows).take(smallest(keys, count, seed))
        first += sum(part.rows for part in group)
    return best


def _find_in(parts: Sequence[LedgerPart], *, files: Files, count: int, seed: int, bound: int | None) -> _Found:
    keys = np.concatenate([read_keys(files, part) for part in parts])
    return _Found(keys, np.arange(len(keys))).take(smallest(keys, count, seed, bound))


def _starts(snapshot: Snapshot) -> I64:
    """The global number of each chunk's first row."""
    file_starts = snapshot.file_starts()
    return np.array([file_starts[chunk.file] + chunk.start for chunk in snapshot.chunks])


def _by_chunk(snapshot: Snapshot, rows: I64, splits: list[str]) -> pa.Table:
    """Columns unit, offset and split of the pairs, in the order of the gallery.

    Args:
        rows: global row numbers (N,).
    """
    chunks, starts = snapshot.chunks, _starts(snapshot)
    order = np.argsort(rows)
    rows = rows[order]
    owner = np.searchsorted(starts, rows, side="right") - 1
    return pa.table(
        {
            "unit": [chunks[index].unit for index in owner.tolist()],
            "offset": pa.array(rows - starts[owner], pa.int64()),
            "split": [splits[place] for place in order.tolist()],
        }
    )
