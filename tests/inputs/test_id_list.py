"""Ids that are named one by one, as text and as Parquet."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import InputError
from fastfill_ray.inputs.id_list import read_id_list
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.types import IdType


def ids_of(path: Path | str, id_type: IdType = "string") -> list[object]:
    array = read_id_list(InputStore(), str(path), id_type, "item")
    assert array.type == (pa.int64() if id_type == "int64" else pa.string())
    return list(array.to_pylist())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ids"


def test_a_text_holds_one_id_per_line_and_each_counts_once(path: Path) -> None:
    path.write_bytes("\ufeffa\r\n\n  \nb c\nü\u2028x \na\n".encode())
    assert ids_of(path) == ["a", "b c", "ü\u2028x "]
    path.write_bytes(b" 7\n-3\r\n+7\n9223372036854775807")
    assert ids_of(path, "int64") == [7, -3, (1 << 63) - 1]
    path.write_bytes(b"PAR1\n")
    assert ids_of(path) == ["PAR1"]
    path.write_bytes(b"\n")
    assert ids_of(path, "int64") == []


def test_standard_input_is_read_for_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert ids_of("-") == ["a", "b"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1\nb\n")))
    with pytest.raises(InputError, match="ids standard input, line 2: found 'b', expected an int64"):
        ids_of("-", "int64")


@pytest.mark.parametrize("line", [b"x", b"1.0", b"1_0", b"9223372036854775808", "\u0661".encode(), b"1" * 5000, b"1 2"])
def test_what_is_no_int64_is_refused_with_file_and_line(path: Path, line: bytes) -> None:
    path.write_bytes(b"1\n\n" + line + b"\n")
    with pytest.raises(InputError, match=f"ids {path}, line 3: found .*, expected an int64"):
        ids_of(path, "int64")


def test_what_is_not_utf_8_is_refused_with_file_and_line(path: Path) -> None:
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=f"ids {path}, line 2: not UTF-8"):
        ids_of(path)


def test_a_file_that_is_not_there_is_an_error_by_name(path: Path) -> None:
    with pytest.raises(InputError, match=f"ids {path}: a file with one id per line is expected"):
        ids_of(path)


def test_parquet_has_one_column_or_one_with_the_name_of_the_gallerys(path: Path) -> None:
    pq.write_table(pa.table({"whatever": ["a", "b", "a"]}), path)
    assert ids_of(path) == ["a", "b"]
    pq.write_table(pa.table({"x": [0.5, 1.5], "item": pa.array([3, 4], pa.int16())}), path)
    assert ids_of(path, "int64") == [3, 4]
    with pytest.raises(InputError, match="the other ids are string"):
        ids_of(path)
    pq.write_table(pa.table({"x": [1], "y": [2]}), path)
    with pytest.raises(InputError, match=r"found the columns \['x', 'y'\], expected 'item' or one column alone"):
        ids_of(path)
    pq.write_table(pa.table({"x": ["a", None]}), path)
    with pytest.raises(InputError, match=f"{path} row 1: id column 'x' is null"):
        ids_of(path)
    path.write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(InputError, match="cannot be read as such"):
        ids_of(path)
