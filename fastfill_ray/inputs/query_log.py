"""A log of what users asked: distinct queries with their traffic, and what was taken, cut into fit and held-out.

A row is an event, or several of one kind: its traffic is `count` times `weight`, 1 where there is neither. Queries are
equal where their payload columns are, or their given vectors where there are no payload columns.

Logs have more rows than fit into memory: batches are aggregated by Arrow as they are read, and where the distinct
queries become too many, the log is read again for each part of them. What comes out depends neither on the files' order
nor on how often it is read.

Legend: N rows of a batch, Q distinct queries that are kept, T pairs of such a query and an item that was taken for it,
M items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfill_ray.config import shown_paths
from fastfill_ray.errors import InputError
from fastfill_ray.inputs.changes import payload_digests
from fastfill_ray.inputs.encodings import chunks_of, is_bytes, is_text, nulls_of, plain_type
from fastfill_ray.inputs.kinds import id_kind, naming, read_ids, weight_kind
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.log_times import CutTime, find_cut, time_keys
from fastfill_ray.inputs.parquet import PinnedFile, Span, read_spans
from fastfill_ray.inputs.table import Column, TableInput, pin
from fastfill_ray.ordering.ids import seeded_hash
from fastfill_ray.types import F64, I64, U64, Bools, IdType, Objects

COUNT, TIME, ITEM, WEIGHT = "count", "time", "item_id", "weight"
# Share of the traffic that is held out: the last of it by time; where there is no time, of the queries by hash.
HELD_OUT_SHARE = 0.3
# Of one row: sums of them keep far from the ends of float32.
MAX_TRAFFIC = 1e24
# Pairs of a query and an item that are aggregated at a time; some 60 bytes each.
MAX_PAIRS = 4_000_000
_BATCH_ROWS = 1 << 16
_ROW_BITS = 40  # of a place: the file's number above, the row below
# Beyond so many halvings one query has too many items, and halving helps no more.
_MAX_BITS = 16
_KEYS = ["high", "low", "held_out", "item"]


@dataclass(frozen=True, eq=False)
class LogPart:
    """The most frequent queries of one side of the cut, the most frequent first.

    Attributes:
        traffic: (Q,) of each query.
        places: (Q, 2) number of a file of the log, and a row in it that holds the query.
        hashes: (Q,) of the queries: the same for the same query in both parts.
        taken_by: (T,) ascending, the row of the query, of each pair of a query and an item that was taken for it.
        taken: (T,) the items, int64 or str.
        taken_traffic: (T,) traffic of the pair.
        all_traffic: of the whole part, the queries beyond the limit among it.
        all_queries: distinct ones.
    """

    traffic: F64
    places: I64
    hashes: U64
    taken_by: I64
    taken: Objects
    taken_traffic: F64
    all_traffic: float
    all_queries: int

    @property
    def covered(self) -> float:
        """The share of the part's traffic that its queries are."""
        return float(self.traffic.sum() / self.all_traffic) if self.all_traffic else 0.0


@dataclass(frozen=True, eq=False)
class QueryLog:
    """A log cut in two: what choices are fitted on, and what they are judged by.

    Attributes:
        cut: whether by time or by hash of the query.
        items: (M,) what was taken in the fit part, also for queries beyond the limit; the most traffic first.
        item_traffic: (M,).
    """

    fit: LogPart
    held_out: LogPart
    cut: Literal["time", "hash"]
    items: Objects
    item_traffic: F64


def pin_query_log(
    store: InputStore,
    path: str | Sequence[str],
    columns: Sequence[Column],
    id_type: IdType | None = None,
    *,
    key: str = "queries.log_path",
    reads_time: bool = True,
) -> TableInput:
    """The files of a log, pinned: `columns`, and those of count, time, item_id and weight that are there.

    Args:
        columns: what queries are: their payload columns and given vectors.
        id_type: of the gallery; None where it is not known yet.
        key: what names the log, for messages.
        reads_time: False where the log is not cut: a column of that name then is not looked at, whatever it holds.

    Raises:
        ConfigError, InputError: a missing column, one of another kind than it must be, or no rows; names the file.
    """
    own = [Column(ITEM, ITEM, "id", optional=True)]
    own += [Column(TIME, TIME, "version", optional=True)] * reads_time
    own += [Column(name, name, "weight", optional=True) for name in (COUNT, WEIGHT)]
    pinned = pin(store, store.find(path), [*columns, *own])
    if not reads_time:
        pinned = pinned.model_copy(update={"absent": (*pinned.absent, TIME)})
    if pinned.rows == 0:
        raise InputError(f"{key} {shown_paths(path)}: there are no rows. Name files that hold queries.")
    if id_type is not None and pinned.kinds.get(ITEM, id_type) != id_type:
        raise InputError(
            f"{key} {shown_paths(path)}: column {ITEM!r} is {pinned.kinds[ITEM]}, but the gallery's ids are "
            f"{id_type}. Cast it: an integer never equals a text."
        )
    return pinned


def read_query_log(
    store: InputStore,
    pinned: TableInput,
    columns: Sequence[Column],
    *,
    limit: int,
    seed: int,
    held_out_share: float = HELD_OUT_SHARE,
    max_pairs: int = MAX_PAIRS,
) -> QueryLog:
    """Aggregate a log.

    Args:
        columns: as they were pinned.
        limit: of distinct queries, per part.
        held_out_share: of the traffic; 0 where other queries are held out, and all of the log is fitted on.
        max_pairs: what is held in memory at a time.

    Raises:
        InputError: a time, count or weight that is null or cannot be used, or an item id that cannot be read (names
            file and row); or no traffic at all.
    """
    reader = _Reader(store, pinned, columns, seed, held_out_share)
    has_time = TIME not in pinned.absent and held_out_share > 0
    cut = find_cut(reader.times(), held_out_share) if has_time else None
    parts = [_Top(limit), _Top(limit)]
    items = pa.table({"item": pa.array([], reader.item_type), "traffic": pa.array([], pa.float64())})
    # (bits, value): the queries whose hash begins with these bits. Where they are too many, each half in turn.
    todo = [(0, 0)]
    while todo:
        bits, value = todo.pop()
        pairs: pa.Table | None = None
        pending: list[pa.Table] = []
        for batch in reader.batches(cut):
            pending.append(_aggregated(_with_prefix(batch, bits, value)))
            if sum(part.num_rows for part in pending) > max(max_pairs, 0 if pairs is None else pairs.num_rows):
                pairs = _aggregated(pa.concat_tables([*([] if pairs is None else [pairs]), *pending]))
                pending = []
                while pairs.num_rows > max_pairs and bits < _MAX_BITS:
                    bits, value = bits + 1, 2 * value
                    todo.append((bits, value + 1))
                    pairs = _with_prefix(pairs, bits, value)
        pairs = _aggregated(pa.concat_tables([*([] if pairs is None else [pairs]), *pending]))
        for held_out, part in enumerate(parts):
            part.add(pairs.filter(pc.equal(pairs["held_out"], bool(held_out))))
        items = _item_traffic([items, pairs.filter(pc.invert(pairs["held_out"]))], max_pairs)
    if not parts[0].traffic + parts[1].traffic:
        raise InputError(
            f"{pinned.files[0].path}: every count or weight is 0, so nothing is asked. Leave these columns out: then "
            "each row counts once"
        )
    return QueryLog(
        fit=parts[0].part(),
        held_out=parts[1].part(),
        cut="hash" if cut is None else "time",
        items=_objects(items["item"]),
        item_traffic=items["traffic"].to_numpy(),
    )


@dataclass(frozen=True)
class _Reader:
    """The rows of a log as batches of numbers."""

    store: InputStore
    pinned: TableInput
    columns: Sequence[Column]
    seed: int
    held_out_share: float

    @property
    def item_type(self) -> pa.DataType:
        return pa.int64() if self.pinned.id_type(ITEM) == "int64" else pa.large_string()

    def times(self) -> Iterator[tuple[I64, F64]]:
        """Keys of the times (N,) and the traffic (N,) at them."""
        first: tuple[bool, str] | None = None
        for file, start, table in self._tables([]):
            kind = plain_type(table.schema.field(TIME).type)
            is_moment = pa.types.is_temporal(kind)
            first = first or (is_moment, file.path)
            if is_moment != first[0] and not pa.types.is_null(kind):
                raise InputError(
                    f"{file.path}: column {TIME!r} is {kind}, but {'a number' if is_moment else 'a moment'} in "
                    f"{first[1]}. All files must hold one kind: cast the column in one of them."
                )
            yield time_keys(table, TIME, path=file.path, start=start), self._traffic(table, file.path, start)

    def batches(self, cut: CutTime | None) -> Iterator[pa.Table]:
        """high, low: (N,) uint64 of the query's digest; held_out; item; traffic; place."""
        # What is equal does not depend on vectors that stand beside the payload.
        payload = [column.name for column in self.columns if column.role == "payload"]
        names = payload or [column.name for column in self.columns]
        numbers = {file.path: number for number, file in enumerate(self.pinned.files)}
        for file, start, table in self._tables(names):
            high, low = _digests(table, names)
            if cut is None:
                held_out: Bools = seeded_hash(high, self.seed) < np.uint64(int(self.held_out_share * (1 << 64)))
            else:
                held_out = cut.is_after(time_keys(table, TIME, path=file.path, start=start))
            place = (numbers[file.path] << _ROW_BITS) + start + np.arange(table.num_rows, dtype=np.int64)
            yield pa.table(
                {
                    "high": high,
                    "low": low,
                    "held_out": held_out,
                    "item": self._items(table, file.path, start),
                    "traffic": self._traffic(table, file.path, start),
                    "place": place,
                }
            )

    def _tables(self, names: Sequence[str]) -> Iterator[tuple[PinnedFile, int, pa.Table]]:
        own = [name for name in (COUNT, TIME, ITEM, WEIGHT) if name not in self.pinned.absent]
        spans = [
            Span(file, start, min(_BATCH_ROWS, file.rows - start))
            for file in self.pinned.files
            for start in range(0, file.rows, _BATCH_ROWS)
        ]
        for span, table in zip(spans, read_spans(self.store, spans, [*names, *own]), strict=True):
            yield span.file, span.start, table

    def _traffic(self, table: pa.Table, path: str, start: int) -> F64:
        traffic = np.ones(table.num_rows)
        for name in (COUNT, WEIGHT):
            if name not in self.pinned.absent:
                with np.errstate(over="ignore"):  # is refused below
                    traffic = traffic * _amounts(table, name, path, start)
        if len(above := np.flatnonzero(traffic > MAX_TRAFFIC)):
            row = int(above[0])
            raise InputError(
                f"{path} row {start + row}: count and weight come to {traffic[row]:.3g}, at most {MAX_TRAFFIC:g} is "
                "expected. Divide them all by one number."
            )
        return traffic

    def _items(self, table: pa.Table, path: str, start: int) -> pa.Array:
        """The items (N,) that were taken, null where none was."""
        if ITEM in self.pinned.absent:
            return pa.nulls(table.num_rows, self.item_type)
        field = table.schema.field(ITEM)
        with naming(path):
            id_kind(field)
        if pa.types.is_null(plain_type(field.type)):
            return pa.nulls(table.num_rows, self.item_type)
        chunks = chunks_of(table.column(ITEM))
        missing = np.concatenate([nulls_of(chunk) for chunk in chunks])
        filled = pa.chunked_array([_filled(chunk) for chunk in chunks])
        ids = read_ids(pa.table({ITEM: filled}), ITEM, self.pinned.id_type(ITEM), path=path, start=start)
        return pa.array(ids, self.item_type, mask=missing)


def _filled(chunk: pa.Array) -> pa.Array:
    """Ids without nulls: anything that can be read stands in for them."""
    if is_text(chunk.type):
        return chunk.cast(pa.large_string()).fill_null("")
    if is_bytes(chunk.type):
        return chunk.cast(pa.large_binary()).fill_null(b"")
    if pa.types.is_fixed_size_binary(chunk.type):
        return chunk.fill_null(bytes(chunk.type.byte_width)) if chunk.null_count else chunk
    return chunk.fill_null(0)


def _amounts(table: pa.Table, name: str, path: str, start: int) -> F64:
    """A column (N,) of finite numbers of at least 0; in float64, so that a count of any size is kept."""
    with naming(path):
        weight_kind(table.schema.field(name))
    parts = [chunk.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for chunk in chunks_of(table[name])]
    amounts = np.concatenate([np.empty(0), *parts])
    bad = np.flatnonzero(~(np.isfinite(amounts) & (amounts >= 0)))
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{path} row {start + row}: {name!r} is {table[name][row].as_py()!r}; a finite number of at least 0 is "
            "expected. Fill it in, or drop the row."
        )
    return amounts


def _digests(table: pa.Table, names: Sequence[str]) -> tuple[U64, U64]:
    """The two halves (N,) of the digests of the queries."""
    for place, name in enumerate(table.column_names):
        # One digest per distinct text of the batch, not per row.
        if name in names and is_text(table.schema.field(name).type):
            text = table.column(name).cast(pa.large_string()).dictionary_encode()
            table = table.set_column(place, table.schema.field(name).with_type(text.type), text)
    digests = payload_digests(table, names)
    halves = np.frombuffer(digests.buffers()[1], dtype=">u8").reshape(-1, 2)[: len(digests)].astype(np.uint64)
    return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])


def _with_prefix(table: pa.Table, bits: int, value: int) -> pa.Table:
    """The rows whose query's hash begins with `value` in its first `bits` bits."""
    if bits == 0:
        return table
    return table.filter(pa.array(table["high"].to_numpy() >> np.uint64(64 - bits) == np.uint64(value)))


def _aggregated(table: pa.Table) -> pa.Table:
    """One row per query, side of the cut and item."""
    sums = table.group_by(_KEYS, use_threads=False).aggregate([("traffic", "sum"), ("place", "min")])
    return sums.rename_columns({"traffic_sum": "traffic", "place_min": "place"}).select([*_KEYS, "traffic", "place"])


def _item_traffic(tables: Sequence[pa.Table], most: int) -> pa.Table:
    """Traffic per item, the most first, of equal ones by id; at most so many."""
    table = pa.concat_tables([each.select(["item", "traffic"]) for each in tables])
    table = table.filter(pc.is_valid(table["item"]))
    sums = table.group_by("item", use_threads=False).aggregate([("traffic", "sum")])
    sums = sums.rename_columns({"traffic_sum": "traffic"}).select(["item", "traffic"])
    return sums.sort_by([("traffic", "descending"), ("item", "ascending")]).slice(0, most)


class _Top:
    """One side of the cut: its most frequent queries so far, with the items that were taken for them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queries: list[pa.Table] = []
        self._pairs: list[pa.Table] = []
        self.traffic, self._count = 0.0, 0

    def add(self, pairs: pa.Table) -> None:
        """Further pairs, of queries that have not been added before."""
        grouped = pairs.group_by(["high", "low"], use_threads=False).aggregate([("traffic", "sum"), ("place", "min")])
        queries = grouped.rename_columns({"traffic_sum": "traffic", "place_min": "place"})
        queries = queries.filter(pc.greater(queries["traffic"], 0))
        self.traffic += float(np.sum(queries["traffic"].to_numpy()))
        self._count += queries.num_rows
        order = [("traffic", "descending"), ("high", "ascending"), ("low", "ascending")]
        best = pa.concat_tables([*self._queries, queries]).sort_by(order).slice(0, self._limit)
        taken = pairs.filter(pc.and_(pc.is_valid(pairs["item"]), pc.greater(pairs["traffic"], 0)))
        joined = pa.concat_tables([*self._pairs, taken.select(["high", "low", "item", "traffic"])])
        rank = best.select(["high", "low"]).append_column("query", pa.array(np.arange(best.num_rows)))
        joined = joined.join(rank, ["high", "low"], join_type="inner", use_threads=False)
        self._queries, self._pairs = [best], [joined.select(["high", "low", "item", "traffic"])]
        self._taken = joined.sort_by([("query", "ascending"), ("traffic", "descending"), ("item", "ascending")])

    def part(self) -> LogPart:
        queries, taken = self._queries[0], self._taken
        place = queries["place"].to_numpy()
        return LogPart(
            traffic=queries["traffic"].to_numpy(),
            places=np.column_stack([place >> _ROW_BITS, place & ((1 << _ROW_BITS) - 1)]),
            hashes=queries["high"].to_numpy(),
            taken_by=taken["query"].to_numpy(),
            taken=_objects(taken["item"]),
            taken_traffic=taken["traffic"].to_numpy(),
            all_traffic=self.traffic,
            all_queries=self._count,
        )


def _objects(items: pa.ChunkedArray) -> Objects:
    values: Objects = np.empty(len(items), object)
    values[:] = items.to_pylist()
    return values
