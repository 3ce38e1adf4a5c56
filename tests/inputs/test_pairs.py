"""The pairs file, its queries and judgements: what is read, what is left out with a reason, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import ConfigError, FastfillError, InputError
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.pairs import read_pairs, read_queries
from fastfill_ray.ordering.ids import hash_ids
from fastfill_ray.types import SPLITS

N, OLD, NEW = 40, 3, 5


def columns(rows: int = N, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    plain = {
        "id": np.arange(rows) * 7,
        "old": list(rng.normal(size=(rows, OLD)).astype(np.float32)),
        "new": list(rng.normal(size=(rows, NEW)).astype(np.float32)),
    }
    return {name: values for name, values in {**plain, **more}.items() if values is not None}


def write(path: Path, values: dict[str, Any]) -> str:
    pq.write_table(pa.table(values), path, row_group_size=16)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pairs.parquet"


# Pairs


def test_every_column_is_read_row_by_row(path: Path) -> None:
    values = columns(
        label=[f"class-{i % 3}" for i in range(N)],
        group=["a" if i % 2 else None for i in range(N)],
        weight=np.arange(N),
        side=pa.array([[float(i), 1.0] for i in range(N)], pa.list_(pa.float64())),
        split=[SPLITS[i % 3] for i in range(N)],
    )
    result, left_out = read_pairs(InputStore(), write(path, values), metric="cosine", seed=0)
    np.testing.assert_array_equal(result.ids.tolist(), values["id"])
    np.testing.assert_array_equal(result.id_hash, hash_ids(values["id"]))
    np.testing.assert_array_equal(result.old, np.stack(values["old"]))
    np.testing.assert_array_equal(result.new, np.stack(values["new"]))
    assert result.labels is not None
    assert result.groups is not None
    assert result.weights is not None
    assert result.side is not None
    assert result.labels.tolist() == values["label"]
    assert result.groups.tolist() == values["group"]
    assert result.weights.tolist() == list(range(N))
    assert result.side.tolist() == [[i, 1] for i in range(N)]
    assert result.split.tolist() == values["split"]
    assert {result.old.dtype, result.new.dtype, result.side.dtype, result.weights.dtype} == {np.dtype(np.float32)}
    assert left_out == ()


def test_what_the_file_does_not_hold_is_none(path: Path) -> None:
    result, _ = read_pairs(InputStore(), write(path, columns()), metric="cosine", seed=0)
    assert (result.labels, result.groups, result.weights, result.side) == (None, None, None, None)


def test_string_ids_and_a_folder_of_files_are_read_alike(tmp_path: Path) -> None:
    names = [f"doc/{i}" for i in range(N)]
    values = columns(id=names)
    for part, rows in enumerate((slice(0, 15), slice(15, N))):
        write(tmp_path / f"{part}.parquet", {name: column[rows] for name, column in values.items()})
    result, _ = read_pairs(InputStore(), str(tmp_path), metric="cosine", seed=0)
    assert result.ids.tolist() == names
    np.testing.assert_array_equal(result.id_hash, hash_ids(names))
    np.testing.assert_array_equal(result.new, np.stack(values["new"]))


def test_of_a_runs_folder_the_pairs_are_read_and_not_what_lies_beside_them(tmp_path: Path) -> None:
    folder, unit = tmp_path / "pairs" / ("0" * 16), "c" + "1" * 16
    folder.mkdir(parents=True)
    table, digest = pa.table(columns()), "2" * 16
    pq.write_table(table, folder / f"pairs.{digest}.parquet")
    pq.write_table(table.select(["id"]), folder / f"{unit}.{digest}.parquet")
    pq.write_table(table.select(["old"]), folder / f"items.{unit}.{digest}.parquet")
    (folder / "receipt.json").write_text("{}")
    result, _ = read_pairs(InputStore(), str(folder), metric="cosine", seed=0)
    assert result.ids.tolist() == table.column("id").to_pylist()


def test_a_part_holds_the_rows_of_its_split_in_every_column(path: Path) -> None:
    values = columns(
        label=[str(i) for i in range(N)],
        group=[str(i) for i in range(N)],
        weight=np.arange(N),
        side=[[float(i)] for i in range(N)],
        split=[SPLITS[i % 3] for i in range(N)],
    )
    whole, _ = read_pairs(InputStore(), write(path, values), metric="ip", seed=0)
    for number, split in enumerate(SPLITS):
        part, rows = whole.part(split), np.arange(number, N, 3)
        assert set(part.split.tolist()) == {split}
        for name in ("ids", "id_hash", "old", "new", "labels", "groups", "weights", "side"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)


def test_without_a_split_items_are_drawn_70_15_15_by_id_and_seed_alone(path: Path) -> None:
    rows = 6000
    values = columns(rows)
    first, _ = read_pairs(InputStore(), write(path, values), metric="cosine", seed=0)
    shares = [(first.split == split).mean() for split in SPLITS]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)
    order = np.random.default_rng(1).permutation(rows)
    shuffled = {name: [column[i] for i in order] for name, column in values.items()}
    again, _ = read_pairs(InputStore(), write(path, shuffled), metric="cosine", seed=0)
    assert dict(zip(again.ids, again.split, strict=True)) == dict(zip(first.ids, first.split, strict=True))
    other, _ = read_pairs(InputStore(), str(path), metric="cosine", seed=1)
    assert (other.split != again.split).mean() > 0.3


def test_rows_with_an_unusable_vector_are_left_out_with_the_reason(path: Path) -> None:
    values = columns(
        label=[f"label-{i}" for i in range(N)],
        weight=[float(i) for i in range(N)],
        side=[[1.0, float(i)] for i in range(N)],
    )
    values["old"][3] = None
    values["new"][5] = values["new"][5][:2]
    values["new"][6] = np.full(NEW, np.nan, np.float32)
    values["old"][7] = np.zeros(OLD, np.float32)
    values["side"][9] = [np.inf, 0.0]
    values["old"] = pa.array(values["old"], pa.list_(pa.float32()))
    values["new"] = pa.array(values["new"], pa.list_(pa.float32()))
    result, left_out = read_pairs(InputStore(), write(path, values), metric="cosine", seed=0)
    assert dict(left_out) == {
        3: "old: null_vector",
        5: f"new: wrong_dim: found 2, expected {NEW}",
        6: "new: non_finite",
        7: "old: zero_norm",
        9: "side: non_finite",
    }
    kept = [i for i in range(N) if i not in (3, 5, 6, 7, 9)]
    assert result.ids.tolist() == [7 * i for i in kept]
    assert result.labels is not None
    assert result.labels.tolist() == [f"label-{i}" for i in kept]
    for column in (result.id_hash, result.old, result.new, result.split, result.weights, result.side):
        assert column is not None
        assert len(column) == len(kept)
    # A zero vector has no direction, but it has a place.
    _, left_out = read_pairs(InputStore(), str(path), metric="l2", seed=0)
    assert 7 not in dict(left_out)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"id": None}, ConfigError, "column 'id' is not in"),
        ({"old": None}, ConfigError, "column 'old' is not in"),
        ({"new": None}, ConfigError, "column 'new' is not in"),
        ({"id": [1, 2, 2, *range(3, N)]}, InputError, "id 2 occurs 2 times; ids must be unique"),
        ({"id": ["a", "b", "b"] + [str(i) for i in range(3, N)]}, InputError, "id 'b' occurs 2 times"),
        ({"id": [None, *range(1, N)]}, InputError, r"pairs\.parquet row 0: id column 'id' is null"),
        ({"id": [0.5] * N}, InputError, "id column 'id' is double"),
        ({"split": ["test"] * N}, InputError, "column 'split' holds 'test'; train, calibration, audit are expected"),
        ({"split": [None] + ["train"] * (N - 1)}, InputError, "column 'split' holds None"),
        ({"old": ["text"] * N}, InputError, "column 'old'"),
        ({"new": [np.zeros(NEW, np.float32)] * N}, InputError, "none of the first 40 rows|none of 40 rows"),
        (
            {"weight": ["heavy"] * N},
            InputError,
            r"pairs\.parquet: column 'weight' is string; numbers are expected",
        ),
        ({"weight": [1.0, None] + [1.0] * (N - 2)}, InputError, r"pairs\.parquet row 1: column 'weight' is None"),
        ({"weight": [1.0] * (N - 1) + [-1.0]}, InputError, rf"row {N - 1}: column 'weight' is -1\.0 .* of at least 0"),
        ({"group": [{"a": 1}] * N}, InputError, r"pairs\.parquet: column 'group' is struct"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(
    path: Path, change: dict[str, Any], error: type[FastfillError], message: str
) -> None:
    write(path, columns(**change))
    with pytest.raises(error, match=message):
        read_pairs(InputStore(), str(path), metric="cosine", seed=0)


def test_of_several_files_the_one_with_the_bad_value_is_named_and_the_row_in_it(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", columns(weight=[1.0] * N))
    write(tmp_path / "b.parquet", columns(id=np.arange(N) * 7 + 1, weight=[1.0] * 3 + [None] + [1.0] * (N - 4)))
    with pytest.raises(InputError, match=r"/b\.parquet row 3: column 'weight' is None"):
        read_pairs(InputStore(), str(tmp_path), metric="cosine", seed=0)


def test_groups_are_text_as_those_of_the_gallery(path: Path) -> None:
    for values, expected in (([1, 2.5, None], ["1", "2.5", None]), ([b"a", b"b", None], ["a", "b", None])):
        result, _ = read_pairs(
            InputStore(), write(path, columns(group=[*values, *values[:1] * (N - 3)])), metric="cosine", seed=0
        )
        assert result.groups is not None
        assert result.groups[:3].tolist() == expected


def test_no_rows_and_no_file_are_refused(path: Path) -> None:
    pq.write_table(pa.table(columns()).slice(0, 0), path)
    with pytest.raises(InputError, match="there are no rows"):
        read_pairs(InputStore(), str(path), metric="cosine", seed=0)
    with pytest.raises(InputError, match="does not exist"):
        read_pairs(InputStore(), str(path) + "x", metric="cosine", seed=0)


# Queries


PAIRS = PairedItems(
    ids=np.array([3], object),
    old=np.ones((1, OLD), np.float32),
    new=np.ones((1, NEW), np.float32),
    split=np.array(["audit"], object),
)


def queries(path: Path, values: dict[str, Any], qrels: dict[str, Any] | None = None) -> Queries:
    judged = None if qrels is None else write(path.with_name("qrels.parquet"), qrels)
    return read_queries(InputStore(), write(path, values), judged, PAIRS, metric="cosine")


def test_queries_need_their_new_vectors_alone(path: Path) -> None:
    values = columns(8)
    result = queries(path, {"new": values["new"]})
    np.testing.assert_array_equal(result.new, np.stack(values["new"]))
    assert (result.old, result.labels, result.groups, result.judged) == (None, None, None, None)
    assert not result.are_items


def test_queries_are_called_by_their_id_and_without_one_by_their_row(path: Path) -> None:
    values = columns(4)
    assert queries(path, values).ids.tolist() == ["0", "7", "14", "21"]
    assert queries(path, values, {"query_id": [0], "item_id": [0]}).ids.tolist() == ["0", "7", "14", "21"]
    bare = columns(4, id=None)
    bare["new"][1] = np.full(NEW, np.nan, np.float32)
    assert queries(path, bare).ids.tolist() == ["0", "2", "3"]


def test_old_vectors_labels_groups_and_judgements_of_queries_are_read(path: Path) -> None:
    values = columns(4, id=["q0", "q1", "q2", "q3"], label=list("abca"), group=["x", None, "y", "x"])
    qrels = {"query_id": ["q2", "q0", "q2", "q9", "q2"], "item_id": [14, 7, 21, 7, 14]}
    result = queries(path, values, qrels)
    assert result.old is not None
    assert result.labels is not None
    assert result.groups is not None
    np.testing.assert_array_equal(result.old, np.stack(values["old"]))
    assert result.labels.tolist() == list("abca")
    assert result.groups.tolist() == ["x", None, "y", "x"]
    assert result.judged == ((2, 14, 1), (0, 7, 1), (2, 21, 1))  # each once; of unknown queries none


def test_query_ids_that_are_numbers_meet_judgements_in_either_type(path: Path) -> None:
    for names in ([0, 7, 7], ["0", "7", "7"]):
        qrels = {"query_id": names, "item_id": [1, 2, 3]}
        assert queries(path, columns(3), qrels).judged == ((0, 1, 1), (1, 2, 1), (1, 3, 1))


def test_queries_without_usable_vectors_are_left_out_and_judgements_follow(path: Path) -> None:
    values = columns(4, label=list("abcd"))
    values["new"][0] = np.full(NEW, np.nan, np.float32)
    values["old"][2] = np.zeros(OLD, np.float32)
    result = queries(path, values, {"query_id": [0, 7, 14, 21], "item_id": [1, 2, 3, 4]})
    assert result.labels is not None
    assert result.labels.tolist() == ["b", "d"]
    assert result.judged == ((0, 2, 1), (1, 4, 1))
    assert result.old is not None
    assert len(result.new) == len(result.old) == 2


@pytest.mark.parametrize(
    ("values", "qrels", "error", "message"),
    [
        ({"old": [[1.0] * OLD]}, None, ConfigError, "column 'new' is not in"),
        ({"new": [[1.0] * (NEW + 1)]}, None, InputError, "column 'new' has 6 dims, the pairs' 'new' has 5"),
        (
            {"new": [[1.0] * NEW], "old": [[1.0] * 9]},
            None,
            InputError,
            "column 'old' has 9 dims, the pairs' 'old' has 3",
        ),
        ({"new": [[1.0] * NEW]}, {"query_id": [0], "item_id": [0]}, ConfigError, "column 'id' is not in"),
        ({"new": [[1.0] * NEW], "id": [0]}, {"query": [0], "item_id": [0]}, ConfigError, "column 'query_id' is not in"),
        (
            {"new": [[1.0] * NEW], "id": [0]},
            {"query_id": [0, 0], "item_id": [None, 3]},
            InputError,
            r"qrels\.parquet row 0: id column 'item_id' is null",
        ),
    ],
)
def test_queries_that_cannot_be_used_are_refused(
    path: Path, values: dict[str, Any], qrels: dict[str, Any] | None, error: type[FastfillError], message: str
) -> None:
    with pytest.raises(error, match=message):
        queries(path, values, qrels)
