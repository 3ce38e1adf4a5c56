"""Every row of the gallery is checked before anything is embedded, and what the check leaves is kept per file.

The *ledger* holds the items' keys, part by part: a part is a run of consecutive chunks of one file. Its folder is named
by what the check of a row depends on beside the file, a part by its rows and the file's pin: of a gallery that has
changed, only the files that have changed are read again, and a check that was killed goes on where it was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from fastfill_ray.errors import CorruptFile, FileMissing, InputError
from fastfill_ray.inputs.gallery import (
    NO_VECTOR,
    Source,
    item_weights,
    mapped_columns,
    mapped_vectors,
    stored_beside,
)
from fastfill_ray.inputs.kinds import read_id_column
from fastfill_ray.inputs.parquet import PinnedFile, Span, in_one_pass, read_around, read_spans
from fastfill_ray.ordering.ids import combine_digests, item_keys, keys_digest
from fastfill_ray.ordering.partition import PART_ROWS
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.snapshot import Snapshot, unit_of
from fastfill_ray.storage.arrow import keys_column, keys_of, read_table, table_bytes
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import snapshot_path, stage_folder, unit_output, unit_receipt
from fastfill_ray.storage.receipts import (
    Quarantined,
    Receipt,
    find_done,
    find_receipts,
    put_receipt,
    read_receipt,
)
from fastfill_ray.storage.refs import get_verified, put_content
from fastfill_ray.storage.sealed import seal_file, unseal_file
from fastfill_ray.types import U64, Model, fingerprint

# Keys are compared partition by partition; one partition of this many is 64 MiB.
_PARTITION_ROWS = 1 << 22
_MOST_GROUPS = 1000  # tasks that check rows, beyond what small files ask for
_PARTS_PER_TASK = 64  # whose keys one task reads, two objects each
_SHOWN = 5  # unusable rows or repeated ids that a message names
_PLACES = 3  # rows that it names of one repeated id


class LedgerPart(Model):
    """Rows [start, start + rows) of a gallery file, all rows of some chunks.

    folder: where its keys and its receipt lie, called by `unit`. chunk_rows: rows of each chunk.
    """

    unit: str
    folder: str
    file: PinnedFile
    start: int
    rows: int
    chunk_rows: tuple[int, ...]

    @property
    def span(self) -> Span:
        return Span(self.file, self.start, self.rows)

    @property
    def chunk_spans(self) -> list[Span]:
        starts = itertools.accumulate(self.chunk_rows[:-1], initial=self.start)
        return [Span(self.file, start, rows) for start, rows in zip(starts, self.chunk_rows, strict=True)]


def ledger_parts(snapshot: Snapshot) -> list[LedgerPart]:
    """The parts in the order of the files; together they are all rows, once."""
    chunks, parts = iter(snapshot.chunk_rows), []
    for number, start, rows in snapshot.parts:
        file, sizes = snapshot.gallery.files[number], list[int]()
        while sum(sizes) < rows:
            sizes.append(next(chunks)[2])
        parts.append(
            LedgerPart(
                unit=unit_of(file, start, rows),
                folder=snapshot.ledger,
                file=file,
                start=start,
                rows=rows,
                chunk_rows=tuple(sizes),
            )
        )
    return parts


def read_keys(files: Files, part: LedgerPart) -> U64:
    """The keys (N, 2) of a part's items, in the order of its rows; see ``ordering.ids.item_keys``.

    Raises:
        FileMissing, CorruptFile: of what the same command makes again.
    """
    path = unit_receipt(part.folder, part.unit)
    receipt = read_receipt(files, path)
    if receipt is None:
        raise FileMissing(f"{files.root}/{path}: not found. The same command makes it again.", path)
    output = receipt.outputs[0]
    return keys_of(read_table(get_verified(files, output), name=output.path, columns=["key"]).column("key"))


def key_groups(parts: Iterable[LedgerPart]) -> list[list[LedgerPart]]:
    """Parts in their order, in groups whose keys one task reads: of one file or of many small ones."""
    groups: list[list[LedgerPart]] = []
    rows = 0
    for part in parts:
        if not groups or rows + part.rows > PART_ROWS or len(groups[-1]) == _PARTS_PER_TASK:
            groups.append([])
            rows = 0
        groups[-1].append(part)
        rows += part.rows
    return groups


class BesideKeys(Protocol):
    """What else is taken of rows as their ids are checked, so that they are read once (``stages.digests``)."""

    @property
    def columns(self) -> Sequence[str]: ...

    def of_chunk(self, span: Span, table: pa.Table) -> pa.Table: ...

    def put(self, files: Files, part: LedgerPart, chunks: Sequence[pa.Table], seconds: float) -> Receipt: ...


def take_snapshot(
    context: Context,
    inspected: Snapshot,
    source: Source,
    *,
    limit: int,
    cut: str | None = None,
    beside: BesideKeys | None = None,
) -> Snapshot:
    """The stored snapshot of the very files that were inspected, or this one, stored after every row was checked.

    Args:
        limit: most rows whose old or side vector may be unusable; rows without an old vector are none of them.
        cut: of the snapshot that the plan which goes on was made from; None if a new plan is to be made.
        beside: what else is taken of the rows that are read.

    Raises:
        InputError: null ids, ids that occur twice, more unusable vectors than `limit`, weights,
            labels or groups that cannot be read.
        CorruptFile: what is stored is damaged, or gone and cannot be had again.
    """
    files, path, ledger = context.files, snapshot_path(inspected.fingerprint), _ledger_folder(source)
    try:
        stored = unseal_file(path, files.get(path), Snapshot)
    except FileMissing:
        stored = None
        if cut is not None:
            _check_cut(inspected, cut)
            context.progress.say(f"gone, made again: {path}")
    snapshot = (stored or inspected).model_copy(update={"ledger": ledger})
    _check_parts(context, snapshot, source, beside)
    if stored is not None and stored.ledger == ledger:
        return stored
    parts = ledger_parts(snapshot)
    receipts = find_receipts(files, ledger, {part.unit for part in parts})
    _check_unusable([(part, receipts[part.unit]) for part in parts], source, limit)
    _check_unique(context, snapshot, source)
    digest = combine_digests(receipts[part.unit].ids_digest for part in parts)
    snapshot = snapshot.model_copy(update={"ids_digest": digest})
    # A stored one of another ledger stays as it is: it was checked for another metric, by a start that bound nothing.
    if stored is not None or files.put_new(path, seal_file(path, snapshot)):
        return snapshot
    return unseal_file(path, files.get(path), Snapshot)


def _ledger_folder(source: Source) -> str:
    """Named by everything that the check of a row depends on beside its file."""
    config = source.config
    columns = [
        config.id_column,
        config.old_vector_column,
        config.side_column,
        config.weight_column,
        config.label_column,
        config.group_column,
    ]
    kinds = [config.vector_dtype, source.metric, source.old_dim, source.side_dim, source.id_type, source.label_kind]
    return stage_folder("ledger", fingerprint([columns, kinds]))


def _check_cut(inspected: Snapshot, cut: str) -> None:
    if cut != inspected.cut:
        raise CorruptFile(
            f"{snapshot_path(inspected.fingerprint)}: was damaged or gone, and the gallery would be cut into other "
            "chunks than the plan was made from. Put resources.chunk_rows and chunk_bytes back to those of the first "
            "run (where it was `auto`: earlier releases took 2048 rows up to 33 million items), or restore the file."
        )


# One pass over the files that are new


def _check_parts(context: Context, snapshot: Snapshot, source: Source, beside: BesideKeys | None) -> None:
    """Check the rows of all parts that have no receipt yet."""
    done = find_done(context.files, snapshot.ledger)
    missing = [part for part in ledger_parts(snapshot) if part.unit not in done]
    if not missing:
        return
    groups = in_one_pass(missing, lambda part: part.span)
    step = -(-len(groups) // _MOST_GROUPS)
    groups = [list(itertools.chain(*groups[i : i + step])) for i in range(0, len(groups), step)]
    ready = snapshot.rows - sum(part.rows for part in missing)
    with context.progress.stage("snapshot", snapshot.rows, "items", done=ready) as bar:
        check = partial(check_parts, context.files, source, beside=beside)
        for receipt in context.engine.run_units(check, groups):
            bar.advance(receipt.rows)


def check_parts(
    files: Files, source: Source, parts: Sequence[LedgerPart], beside: BesideKeys | None = None
) -> Iterator[Receipt]:
    """Check parts of one ledger, write their keys, and give their receipts.

    Raises:
        InputError: null ids; weights, labels or groups that cannot be read.
    """
    todo = []
    for part in parts:  # a worker may have died over this group
        if (receipt := read_receipt(files, unit_receipt(part.folder, part.unit))) is not None:
            yield receipt
        else:
            todo.append(part)
    config = source.config
    checked = [name for name in (config.weight_column, config.label_column, config.group_column) if name is not None]
    columns = [config.id_column, *mapped_columns(config), *checked, *(() if beside is None else beside.columns)]
    spans = (span for part in todo for span in part.chunk_spans)
    tables = read_spans(source.store, spans, list(dict.fromkeys(columns)))
    for part in todo:
        yield _check_part(files, source, part, tables, beside)


def _check_part(
    files: Files, source: Source, part: LedgerPart, tables: Iterator[pa.Table], beside: BesideKeys | None
) -> Receipt:
    """tables: of its chunks, and of those behind them."""
    start = time.monotonic()
    keys, faults, taken = [], list[Quarantined](), list[pa.Table]()
    unusable = 0
    for span, table in zip(part.chunk_spans, itertools.islice(tables, len(part.chunk_rows)), strict=True):
        ids = read_id_column(table, source.config.id_column, source.id_type, path=span.file.path, start=span.start)
        keys.append(item_keys(ids))
        if beside is not None:
            taken.append(beside.of_chunk(span, table))
        _check_beside(table, span, source)
        _, _, reasons = mapped_vectors(table, source)
        bad = [(row, reason) for row, reason in reasons.items() if reason != NO_VECTOR]
        unusable += len(bad)
        for row, reason in bad[: _SHOWN - len(faults)]:
            faults.append(Quarantined(id=ids[row].as_py(), row=span.start + row, reason=reason))
    if beside is not None:
        beside.put(files, part, taken, time.monotonic() - start)
    whole = np.concatenate(keys)  # (N, 2)
    data = table_bytes(pa.table({"key": keys_column(whole)}))
    receipt = Receipt(
        unit=part.unit,
        outputs=(put_content(files, partial(unit_output, part.folder, part.unit), data),),
        rows=part.rows,
        ids_digest=keys_digest(whole),
        quarantined=tuple(faults),
        seconds=time.monotonic() - start,
        details={"unusable": unusable},
    )
    return put_receipt(files, unit_receipt(part.folder, part.unit), receipt)


def _check_beside(table: pa.Table, span: Span, source: Source) -> None:
    """Raises InputError for a weight, label or group that cannot be read."""
    item_weights(table, source, span)
    stored_beside(table, source, span)


# What only all parts together tell


def _check_unusable(parts: Sequence[tuple[LedgerPart, Receipt]], source: Source, limit: int) -> None:
    """Raises InputError if more rows than `limit` have an unusable vector; names the first ones."""
    count = sum(int(receipt.details["unusable"]) for _, receipt in parts)
    if count <= limit:
        return
    config, rows = source.config, sum(part.rows for part, _ in parts)
    faults = ((part.file.path, fault) for part, receipt in parts for fault in receipt.quarantined)
    shown = "; ".join(
        f"{path} row {fault.row} (id {fault.id!r}): {fault.reason}" for path, fault in itertools.islice(faults, _SHOWN)
    )
    side = "" if config.side_column is None else f" and gallery.side_column {config.side_column!r}"
    raise InputError(
        f"gallery.old_vector_column {config.old_vector_column!r}{side}: {count} of {rows} rows cannot be used, at most "
        f"{limit} are allowed: {shown}. Mend them, or raise quarantine.max_rows."
    )


def _check_unique(context: Context, snapshot: Snapshot, source: Source) -> None:
    """Tasks exchange keys by partition: no process ever holds all of them.

    Raises:
        InputError: ids that occur more than once; names files and rows.
    """
    groups = key_groups(ledger_parts(snapshot))
    partitions = max(2, -(-snapshot.rows // _PARTITION_ROWS))
    cut = partial(_cut_keys, context.files, partitions)
    with context.progress.stage("unique ids", snapshot.rows, "items") as bar:
        repeated = context.engine.exchange(
            cut, _some_repeated, groups, partitions, lambda group: bar.advance(sum(part.rows for part in group))
        )
    count = sum(number for number, _ in repeated)
    if count == 0:
        return
    # Rare path: look some of them up, so that the message names files and rows.
    places: dict[int | str, list[str]] = {}
    find = partial(_find_ids, files=context.files, source=source, wanted=np.concatenate([keys for _, keys in repeated]))
    for part, rows in context.engine.run_tasks(find, ledger_parts(snapshot), name="find duplicate ids", ordered=True):
        for row, value in rows:
            places.setdefault(value, []).append(f"{part.file.path} row {row}")
    shown = "; ".join(
        f"{value!r} at {' and '.join(found[:_PLACES])}" for value, found in itertools.islice(places.items(), _SHOWN)
    )
    raise InputError(
        f"gallery.id_column {source.config.id_column!r}: {count} ids occur more than once: {shown}. "
        "Ids must be unique over all files: remove the duplicates."
    )


def _cut_keys(files: Files, partitions: int, parts: Sequence[LedgerPart]) -> list[U64]:
    """The keys of some parts, cut into partitions by value."""
    keys = np.concatenate([read_keys(files, part) for part in parts])
    place = (keys[:, 0] % np.uint64(partitions)).astype(np.int64)
    return [keys[place == i] for i in range(partitions)]


def repeated_keys(*pieces: U64) -> U64:
    """The keys (R, 2) that occur more than once in the pieces (N, 2), each once."""
    keys = np.concatenate(pieces)
    # Few share even the first half: the whole is sorted by that, and only those by both.
    high = np.sort(keys[:, 0])
    keys = keys[np.isin(keys[:, 0], high[1:][high[1:] == high[:-1]])]
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    same = (keys[1:] == keys[:-1]).all(axis=1)
    return np.unique(keys[1:][same], axis=0)


def _some_repeated(*pieces: U64) -> tuple[int, U64]:
    """How many keys occur more than once, and some of them."""
    repeated = repeated_keys(*pieces)
    return len(repeated), repeated[:_SHOWN]


def _find_ids(part: LedgerPart, *, files: Files, source: Source, wanted: U64) -> list[tuple[int, int | str]]:
    """(Row in the file, id) of the first items of a part that have the keys `wanted` (R, 2)."""
    keys, column = read_keys(files, part), source.config.id_column
    rows = sorted(row for key in wanted for row in np.flatnonzero((keys == key).all(axis=1))[:_PLACES].tolist())
    found: list[tuple[int, int | str]] = []
    chosen = np.array(rows, np.int64) + part.start
    for start, table, places in read_around(source.store, part.file, chosen, [column]):
        ids = read_id_column(table, column, source.id_type, path=part.file.path, start=start).take(pa.array(places))
        found += zip((start + places).tolist(), ids.to_pylist(), strict=True)
    return found
