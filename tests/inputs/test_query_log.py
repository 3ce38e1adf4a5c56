"""Query logs: sums are kept, the cut is a partition, and neither files nor memory decide what comes out."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.query_log import LogPart, QueryLog, pin_query_log, read_query_log
from fastfill_ray.inputs.table import Column
from fastfill_ray.types import IdType

TEXT = Column("queries.payload_columns[0]", "text")
STORE = InputStore()


def write(folder: Path, *tables: dict[str, Any] | pa.Table) -> str:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"{number}.parquet", row_group_size=3)
    return str(folder)


def read(
    path: str, *, columns: tuple[Column, ...] = (TEXT,), id_type: IdType | None = None, **settings: Any
) -> QueryLog:
    pinned = pin_query_log(STORE, path, columns, id_type)
    return read_query_log(STORE, pinned, columns, **{"limit": 1000, "seed": 0} | settings)


def texts(path: str, part: LogPart) -> list[str]:
    files = sorted(Path(path).iterdir())
    return [pq.read_table(files[file])["text"][row].as_py() for file, row in part.places.tolist()]


def by_query(path: str, part: LogPart) -> dict[str, float]:
    return dict(zip(texts(path, part), part.traffic.tolist(), strict=True))


def test_equal_queries_are_one_and_the_most_frequent_comes_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log",
        {"text": ["a", "b", "a", "c"], "count": [1, 5, 2, 1], "time": [1, 2, 3, 4]},
        {"text": pa.array(["b", "z"]).dictionary_encode(), "count": pa.array([2, 6], pa.uint8()), "time": [2, 9]},
    )
    log = read(path)
    assert log.cut == "time"
    assert list(by_query(path, log.fit).items()) == [("b", 7), ("a", 3), ("c", 1)]
    assert by_query(path, log.held_out) == {"z": 6}


def test_a_limit_says_what_share_of_the_traffic_is_covered(tmp_path: Path) -> None:
    path = write(tmp_path / "log", {"text": ["a", "b", "c", "z"], "count": [6, 3, 1, 1], "time": [0, 0, 0, 1]})
    fit = read(path, limit=1).fit
    assert (texts(path, fit), fit.covered, fit.all_traffic, fit.all_queries) == (["a"], 0.6, 10, 3)


def test_items_that_were_taken_are_counted_per_query_and_in_all(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log",
        {
            "text": ["a", "a", "b", "b", "a", "z"],
            "item_id": [3, 4, 3, None, 4, 9],
            "weight": [1.0, 0.5, 4, 8, 1, 6],
            "time": [0, 1, 0, 1, 0, 5],
        },
    )
    log = read(path, limit=1, id_type="int64")
    assert by_query(path, log.fit) == {"b": 12}
    assert (log.fit.taken_by.tolist(), log.fit.taken.tolist(), log.fit.taken_traffic.tolist()) == ([0], [3], [4])
    assert dict(zip(log.items.tolist(), log.item_traffic.tolist(), strict=True)) == {3: 5, 4: 1.5}


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 9)],
        pa.array([1, 2, 9], pa.date32()),
        pa.array([1, 2, 9], pa.timestamp("ms")),
        [-2.5, -1.0, 0.25],
    ],
)
def test_the_last_of_the_traffic_by_time_is_held_out(tmp_path: Path, times: Any) -> None:
    path = write(tmp_path / "log", {"text": ["a", "b", "a"], "time": times})
    log = read(path)
    assert (by_query(path, log.fit), by_query(path, log.held_out)) == ({"a": 1, "b": 1}, {"a": 1})


def test_without_time_or_with_one_moment_whole_queries_are_held_out(tmp_path: Path) -> None:
    names = [f"query {number}" for number in range(400)] * 2
    for number, extra in enumerate(({}, {"time": [7] * 800})):
        log = read(write(tmp_path / str(number), {"text": names, **extra}))
        assert log.cut == "hash"
        assert not set(log.fit.hashes.tolist()) & set(log.held_out.hashes.tolist())
        assert log.held_out.all_queries == pytest.approx(0.3 * 400, rel=0.3)


def test_vectors_alone_are_queries_too(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], pa.list_(pa.float32()))
    column = Column("queries.new_vector_column", "vector", "vector")
    log = read(write(tmp_path / "log", {"vector": vectors, "time": [1, 2, 3]}), columns=(column,))
    assert sorted(log.fit.hashes.tolist()) != log.held_out.hashes.tolist()
    assert log.held_out.hashes[0] in log.fit.hashes


EVENTS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5), st.sampled_from([None, "x", "y"]), st.integers(-3, 3)),
    min_size=1,
    max_size=40,
)


@given(EVENTS, EVENTS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_sums_are_kept_and_the_cut_is_a_partition(
    tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any, timed: bool
) -> None:
    events = first + second
    if not any(count for _, count, _, _ in events):
        return
    names = ("text", "count", "item_id", "time")[: 4 if timed else 3]

    def table(rows: Any) -> pa.Table:
        types = [pa.string(), pa.int64(), pa.string(), pa.int64()]
        return pa.table([pa.array([row[i] for row in rows], types[i]) for i in range(len(names))], names=list(names))

    folder = tmp_path_factory.mktemp("logs")
    one = write(folder / "one", table(first), table(second))
    other = write(folder / "other", table(second), table(first))
    logs = [read(one, max_pairs=1_000), read(other, max_pairs=1_000), read(one, max_pairs=2)]
    parts = [
        (by_query(path, log.fit), by_query(path, log.held_out))
        for path, log in zip((one, other, one), logs, strict=True)
    ]
    assert parts[0] == parts[1] == parts[2]
    for log in logs[1:]:
        for part, expected in ((log.fit, logs[0].fit), (log.held_out, logs[0].held_out)):
            assert part.hashes.tolist() == expected.hashes.tolist()
            pairs = [(p.taken_by.tolist(), p.taken.tolist(), p.taken_traffic.tolist()) for p in (part, expected)]
            assert pairs[0] == pairs[1]

    traffic: Counter[str] = Counter()
    taken: dict[str, float] = defaultdict(float)
    for text, count, item, _ in events:
        traffic[text] += count
        taken[item] += count * (item is not None)
    fit, held_out = parts[0]
    assert {text: fit.get(text, 0) + held_out.get(text, 0) for text in {*fit, *held_out}} == +traffic
    assert logs[0].fit.all_traffic + logs[0].held_out.all_traffic == sum(traffic.values())
    assert logs[0].fit.taken_traffic.sum() + logs[0].held_out.taken_traffic.sum() == sum(taken.values())
    if logs[0].cut == "hash":
        assert not set(fit) & set(held_out)
    else:
        late = [time for text, count, _, time in events if count and text in held_out and text not in fit]
        early = [time for text, count, _, time in events if count and text in fit and text not in held_out]
        assert not late or not early or min(late) > max(early)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"count": [1, None]}, r"0\.parquet row 1: 'count' is None; a finite number of at least 0"),
        ({"count": [1, -2]}, r"0\.parquet row 1: 'count' is -2"),
        ({"weight": [float("inf"), 1]}, r"0\.parquet row 0: 'weight' is inf"),
        ({"count": ["one", "two"]}, r"0\.parquet: column 'count' is string; numbers are expected"),
        ({"time": [1, None]}, r"0\.parquet row 1: 'time' is None, expected a time"),
        ({"time": ["monday", "friday"]}, r"0\.parquet: column 'time' is string; a moment, a date or a number"),
        ({"count": [0, 0]}, "every count or weight is 0"),
        ({"item_id": [1.5, None]}, r"0\.parquet: id column 'item_id' is double"),
    ],
)
def test_what_cannot_be_used_is_named_with_file_column_and_row(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "log", {"text": ["a", "b"], **columns}))


def test_a_log_of_no_rows_other_ids_or_other_columns_is_refused(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", {"text": pa.array([], pa.string())})
    with pytest.raises(InputError, match="there are no rows"):
        read(empty)
    path = write(tmp_path / "log", {"text": ["a"], "item_id": [1]})
    with pytest.raises(InputError, match="is int64, but the gallery's ids are string"):
        read(path, id_type="string")
    with pytest.raises(ConfigError, match=r"queries\.payload_columns\[0\]: column 'words' is not in"):
        read(path, columns=(Column("queries.payload_columns[0]", "words"),))


@pytest.mark.parametrize(
    "ids", [pa.array(["x", None, "y"], pa.string_view()), pa.array(["x", None, "y"]).dictionary_encode(), None]
)
def test_items_of_any_type_may_be_missing(tmp_path: Path, ids: pa.Array | None) -> None:
    ids = pa.nulls(3) if ids is None else ids
    log = read(write(tmp_path / "log", {"text": ["a", "b", "c"], "item_id": ids, "time": [1, 1, 2]}))
    assert log.items.tolist() in (["x"], [])
    assert np.isclose(log.fit.all_traffic, 2)


def test_moments_in_one_file_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log",
        {"text": ["a"], "time": pa.array([1], pa.timestamp("s"))},
        {"text": ["b"], "time": [2]},
    )
    with pytest.raises(InputError, match=r"1\.parquet: column 'time' is int64, but a moment in .*0\.parquet"):
        read(path)
