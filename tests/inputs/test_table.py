"""The user's tables: what is refused by the footers, and what files of several tools have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs import parquet
from fastfill_ray.inputs.labels import labels_of
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.parquet import read_rows
from fastfill_ray.inputs.table import Column, TableInput, dim_of, pin
from tests.inputs.test_parquet import COLUMNS, STORE, decoded, folder, pinned, table, vectors

__all__ = ["decoded", "folder"]  # the fixtures

LABEL = Column("gallery.label_column", "label", "label")
MAY_LACK = Column("gallery.old_vector_column", "embedding", "vector", may_lack=True)
BYTES = Column("gallery.old_vector_column", "embedding", "vector", "float32")


# Footers


def test_a_pin_holds_what_the_footers_say(folder: Path) -> None:
    pq.write_table(table(other=["unread" * 50] * 4), folder / "b.parquet", row_group_size=3)
    pq.write_table(table(other=[""] * 4), folder / "a.parquet")
    found = pinned(folder)
    assert [Path(file.path).name for file in found.files] == ["a.parquet", "b.parquet"]
    assert [file.row_groups for file in found.files] == [(4,), (3, 1)]
    assert [file.size for file in found.files] == [Path(file.path).stat().st_size for file in found.files]
    assert (found.rows, found.files[1].rows) == (8, 4)
    assert found.kinds == {"gallery.id_column": "int64", "gallery.old_vector_column": "float32 (list)"}
    assert found == pinned(folder)
    # What chunks are sized by: only the columns that are read, as they are in memory.
    narrow = pinned(folder, COLUMNS[:1]).files
    assert (
        32
        <= narrow[0].read_bytes
        < found.files[0].read_bytes
        < pinned(folder, (*COLUMNS, Column("x", "other"))).files[1].read_bytes
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,embedding\n1,2\n", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused_by_name(folder: Path, content: bytes) -> None:
    pq.write_table(table(), folder / "a.parquet")
    (folder / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.parquet: .*(not a readable Parquet file|cannot be read)"):
        pinned(folder)


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01])
def test_a_truncated_file_is_refused_by_name(folder: Path, kept: float) -> None:
    pq.write_table(table(), folder / "a.parquet")
    data = (folder / "a.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"b\.parquet: not a readable Parquet file of \d+ bytes.*truncated"):
        pinned(folder)


def test_a_file_of_another_format_is_refused_wherever_it_is_named(folder: Path) -> None:
    (folder / "a.csv").write_text("id,text\n1,lamp\n")
    with pytest.raises(InputError, match="Write it again as Parquet, or leave it out of the input") as caught:
        pin(STORE, STORE.find(str(folder / "a.csv")), COLUMNS)
    assert "folder." not in str(caught.value), "it lies in none that is named"


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (table(ids=list("abcd")), r"'id' \(gallery\.id_column\) is string, so string, but int64"),
        (table(label=[1] * 4), r"'label' \(gallery\.label_column\) is int64, so integer, but text"),
        (table(label=[["x"]] * 4), r"is list<element: string>, so list of text, but text"),
    ],
)
def test_a_kind_that_differs_names_both_files_and_the_column(folder: Path, second: pa.Table, what: str) -> None:
    if "label" not in second.column_names:
        second = second.append_column("label", pa.array(["x"] * 4))
    pq.write_table(table(label=["x"] * 4), folder / "a.parquet")
    pq.write_table(second, folder / "b.parquet")
    with pytest.raises(
        InputError,
        match=rf"b\.parquet: column {what} in .*a\.parquet\. All files must hold one kind"
        if what.startswith("'")
        else rf"b\.parquet: .*{what} in .*a\.parquet",
    ):
        pinned(folder, (*COLUMNS, LABEL))


def test_a_file_that_lacks_a_column_is_named_unless_it_may(folder: Path) -> None:
    pq.write_table(pa.table({"id": [9]}), folder / "a.parquet")
    pq.write_table(table(), folder / "b.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'embedding' \(gallery\.old_vector_column\) is missing"):
        pinned(folder)
    found = pinned(folder, (COLUMNS[0], MAY_LACK))
    assert dim_of(STORE, found, MAY_LACK) == 3
    rows = [read_rows(STORE, file, ["embedding", "id"]) for file in found.files]
    assert rows[0].to_pydict() == {"embedding": [None], "id": [9]}
    assert rows[1].column("embedding").to_pylist() == [[1.0, 2.0, 3.0]] * 4


@pytest.mark.parametrize("name", ["a.parquet", "c.parquet"], ids=["the first file", "the last file"])
def test_a_file_of_no_rows_says_nothing(folder: Path, name: str) -> None:
    pq.write_table(table(label=["x"] * 4), folder / "b.parquet")
    pq.write_table(
        pa.table({"id": pa.nulls(0), "embedding": pa.nulls(0), "label": pa.array([], pa.float64())}), folder / name
    )
    found = pinned(folder, (*COLUMNS, LABEL))
    assert (found.rows, found.kinds[LABEL.key]) == (4, "text")
    assert dim_of(STORE, found, COLUMNS[1]) == 3


@pytest.mark.parametrize(
    "column", [Column("gallery.weight_column", "text", "weight"), Column("gallery.label_column", "struct", "label")]
)
def test_a_column_that_cannot_be_what_the_config_says_is_refused(folder: Path, column: Column) -> None:
    pq.write_table(table(text=["x"] * 4, struct=[{"a": 1}] * 4), folder / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*(cannot be a label|numbers are expected)"):
        pinned(folder, (*COLUMNS, column))


def test_a_dot_in_a_payloads_name_is_a_part_of_the_name(folder: Path) -> None:
    image = [{"bytes": b"x" * 100, "path": ""}] * 4
    pq.write_table(table(image=image, **{"image.bytes": ["plain"] * 4}), folder / "a.parquet")
    found = pinned(folder, (*COLUMNS, Column("gallery.payload_columns[0]", "image.bytes")))
    assert read_rows(STORE, found.files[0], ["image.bytes"]).to_pydict() == {"image.bytes": ["plain"] * 4}
    whole = pinned(folder, (*COLUMNS, Column("gallery.payload_columns[0]", "image")))
    assert whole.files[0].read_bytes > found.files[0].read_bytes
    assert read_rows(STORE, whole.files[0], ["image"]).column("image").to_pylist() == image


def test_a_part_of_a_struct_is_refused_with_the_column_to_give(folder: Path) -> None:
    pq.write_table(table(image=[{"bytes": b"x"}] * 4), folder / "a.parquet")
    with pytest.raises(ConfigError, match=r"column 'image\.bytes' is not in .*'bytes' is a part of the column 'image'"):
        pinned(folder, (*COLUMNS, Column("gallery.payload_columns[0]", "image.bytes")))


# Partitions


def partitioned(folder: Path, names: Sequence[str]) -> TableInput:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        pq.write_table(table(ids=[number], embedding=vectors([[1.0]])), folder / name / "part-0.parquet")
    return pinned(folder, (*COLUMNS, LABEL))


@pytest.mark.parametrize(
    ("names", "kind", "values"),
    [
        (["label=3", "label=-10"], "integer", [-10, 3]),
        (["label=07", "label=8"], "text", ["07", "8"]),
        (["label=a%2Fb", "label=x%20y", "label=__HIVE_DEFAULT_PARTITION__"], "text", [None, "a/b", "x y"]),
        (["day=1/label=a", "day=2/label=b"], "text", ["a", "b"]),
    ],
)
def test_a_column_of_the_folders_names_is_read(folder: Path, names: list[str], kind: str, values: list[Any]) -> None:
    found = partitioned(folder, names)
    assert found.kinds[LABEL.key] == kind
    labels = [labels_of(read_rows(STORE, file, ["id", "label"]).column("label")).tolist() for file in found.files]
    assert sorted((value for label in labels for value in label), key=str) == sorted(values, key=str)


def test_a_column_of_the_file_comes_before_the_folders_name(folder: Path) -> None:
    (folder / "label=other").mkdir()
    pq.write_table(table(label=["own"] * 4), folder / "label=other" / "a.parquet")
    found = pinned(folder, (*COLUMNS, LABEL))
    assert read_rows(STORE, found.files[0], ["label"]).column("label").to_pylist() == ["own"] * 4


def test_ids_cannot_be_in_a_folders_name(folder: Path) -> None:
    (folder / "key=1").mkdir()
    pq.write_table(table(), folder / "key=1" / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'key' \(gallery\.id_column\) is only in the folder"):
        pinned(folder, (Column("gallery.id_column", "key", "id"), COLUMNS[1]))


def test_columns_that_are_not_read_may_differ(folder: Path) -> None:
    pq.write_table(table(extra=[1] * 4), folder / "a.parquet")
    pq.write_table(table(extra=["x"] * 4, more=[0] * 4), folder / "b.parquet")
    assert pinned(folder).rows == 8


def test_a_missing_column_names_the_config_key_and_what_is_there(folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet")
    with pytest.raises(ConfigError, match=r"gallery\.label_column: column 'label' is not in .*found id, embedding"):
        pinned(folder, (*COLUMNS, LABEL))


def test_a_missing_id_or_vector_column_names_those_that_could_be_it_and_the_line_to_write(folder: Path) -> None:
    columns = {"price": [1.5], "section": ["a"], "package_id": ["b"], "text": ["c"], "old": vectors([[1.0]])}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    told = "These could hold ids: package_id, section, text. Write, in the section gallery, id_column: package_id"
    with pytest.raises(ConfigError, match=rf"found price, section, package_id, text, old. {told}"):
        pinned(folder, (Column("gallery.id_column", "id", "id"),))
    with pytest.raises(ConfigError, match=r"These could hold vectors: old. .* gallery, old_vector_column: old"):
        pinned(folder, (MAY_LACK,))
    with pytest.raises(
        ConfigError, match=r"These could hold ids: package_id, section, text. Call the right one 'item_id'"
    ):
        pinned(folder, (Column("item_id", "item_id", "id"),))
    with pytest.raises(ConfigError, match=r"column 'txt' is not in .* Did you mean text?"):
        pinned(folder, (Column("gallery.payload_columns[0]", "txt"),))
    pq.write_table(pa.table({"price": [1.5]}), folder / "a.parquet")
    with pytest.raises(ConfigError, match=r"found price. None of them can hold ids"):
        pinned(folder, (Column("gallery.id_column", "id", "id"),))


def test_an_empty_folder_and_a_path_to_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        pinned(folder)
    with pytest.raises(InputError, match="does not exist"):
        pinned(folder / "missing")


# Vectors


@pytest.mark.parametrize(
    "embedding",
    [
        vectors(),
        vectors(kind=pa.list_(pa.float16(), 3)),
        vectors(kind=pa.large_list(pa.float64())),
        pa.array([np.ones(3, "<f4").tobytes()] * 4, pa.binary(12)),
        vectors([None, [1.0, 2.0, 3.0], [1.0], [1.0, 2.0, 3.0]]),
    ],
    ids=lambda embedding: str(embedding.type),
)
def test_the_dimension_is_read_from_the_type_or_the_first_rows(folder: Path, embedding: pa.Array) -> None:
    pq.write_table(table(embedding=embedding), folder / "a.parquet")
    pq.write_table(table(embedding=embedding[:0]), folder / "empty.parquet")
    assert dim_of(STORE, pinned(folder, (COLUMNS[0], BYTES)), BYTES) == 3


def test_the_dimension_is_that_of_the_first_vectors_wherever_they_are(folder: Path) -> None:
    pq.write_table(table(embedding=vectors([None] * 600)), folder / "a.parquet", row_group_size=200)
    late = [*([None] * 700), [1.0, 2.0, 3.0]]
    pq.write_table(table(embedding=vectors(late)), folder / "b.parquet", row_group_size=300)
    assert dim_of(STORE, pinned(folder), COLUMNS[1]) == 3


@given(
    nulls=st.integers(0, 6000),
    length=st.integers(1, 4),
    group_rows=st.integers(50, 7000),
    statistics=st.booleans(),
    absent=st.sampled_from([None, []]),
)
@settings(max_examples=40, deadline=None)
def test_the_dimension_is_found_behind_any_number_of_rows_without_vectors(
    tmp_path_factory: pytest.TempPathFactory,
    nulls: int,
    length: int,
    group_rows: int,
    statistics: bool,
    absent: list[float] | None,
) -> None:
    rows = [*([absent] * nulls), [1.0] * length, *([absent] * 10)]
    path = tmp_path_factory.getbasetemp() / "late.parquet"
    plain = table(embedding=vectors(rows))
    pq.write_table(plain, path, row_group_size=group_rows, write_statistics=statistics)
    assert dim_of(STORE, pinned(path), COLUMNS[1]) == length


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file of every check of a pin: a request each on S3."""
    paths: list[str] = []
    check = parquet.check_pin

    def spy(store: InputStore, file: parquet.PinnedFile) -> None:
        paths.append(file.path)
        check(store, file)

    monkeypatch.setattr(parquet, "check_pin", spy)
    return paths


@pytest.mark.parametrize("value", [[1.0, 2.0, 3.0], None], ids=["vectors", "nulls"])
def test_a_dimension_that_the_type_fixes_is_read_from_the_footer_alone(
    folder: Path, value: list[float] | None, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(table(embedding=vectors([value] * 4, kind=pa.list_(pa.float32(), 3))), folder / "a.parquet")
    found = pinned(folder)
    monkeypatch.setattr(InputStore, "open", lambda store, path: pytest.fail(f"{path} is opened"))
    assert dim_of(STORE, found, COLUMNS[1]) == 3
    assert checks == []


def test_row_groups_that_the_statistics_call_null_are_not_read(
    folder: Path, checks: list[str], decoded: list[int]
) -> None:
    pq.write_table(table(embedding=vectors([None] * 5000)), folder / "a.parquet", row_group_size=1000)
    late = [*([None] * 5000), [1.0, 2.0]]
    pq.write_table(table(embedding=vectors(late)), folder / "b.parquet", row_group_size=1000)
    assert dim_of(STORE, pinned(folder), COLUMNS[1]) == 2
    assert set(checks) == {str(folder / "b.parquet")}
    assert decoded == [1]


def test_a_long_file_of_nulls_without_statistics_costs_few_requests(
    folder: Path, checks: list[str], decoded: list[int]
) -> None:
    nulls = pa.nulls(300_000, pa.list_(pa.float32()))
    pq.write_table(table(embedding=nulls), folder / "a.parquet", write_statistics=False)
    with pytest.raises(InputError, match="holds no vector in any row"):
        dim_of(STORE, pinned(folder), COLUMNS[1])
    assert len(checks) <= 16  # one for every 256 rows would be 1,172
    assert len(decoded) <= 16


def test_lists_of_another_length_in_one_file_name_both_files(folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet")
    pq.write_table(table(embedding=vectors([[1.0, 2.0]])), folder / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: .*vectors of 2 dims, expected 3 as in .*a\.parquet"):
        dim_of(STORE, pinned(folder, (COLUMNS[0], BYTES)), BYTES)


@pytest.mark.parametrize(
    ("embedding", "why"),
    [
        (vectors([None, None]), r"column 'embedding' \(.*\) holds no vector in any row of 1 files"),
        (pa.nulls(2), "holds no vector in any row"),
        (pa.array([1.0, 2.0]), "expected vectors"),
        (pa.array([["a"], ["b"]]), "expected vectors"),
        (pa.array([b"12345"] * 2, pa.binary(5)), "5 bytes are not a whole number of float32 elements"),
    ],
)
def test_a_column_without_usable_vectors_is_refused_by_name(folder: Path, embedding: pa.Array, why: str) -> None:
    pq.write_table(table(embedding=embedding), folder / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet: .*{why}"):
        dim_of(STORE, pinned(folder, (COLUMNS[0], BYTES)), BYTES)


def test_a_gallery_without_rows_is_refused(folder: Path) -> None:
    pq.write_table(table(embedding=vectors([])), folder / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: there are no rows"):
        dim_of(STORE, pinned(folder, (COLUMNS[0], BYTES)), BYTES)


class Unreadable(pa.ExtensionType):
    """A library's type that refuses what the file says of it, as Ray's does with pickled shapes."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.unreadable")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Unreadable:
        raise ValueError("its metadata is of an older release")


def test_a_registered_type_that_cannot_be_read_is_refused_by_file(folder: Path) -> None:
    kind = Unreadable()
    column = pa.ExtensionArray.from_storage(kind, pa.array([1, 2, 3, 4]))
    pa.register_extension_type(kind)
    try:
        pq.write_table(table(other=column), folder / "a.parquet")
        with pytest.raises(
            InputError, match=r"a\.parquet: its columns' types cannot be read \(its metadata is of an old"
        ):
            pinned(folder)
    finally:
        pa.unregister_extension_type("tests.unreadable")
    assert pinned(folder).rows == 4, "where nothing is registered, the storage is read"


def test_lists_of_nothing_say_nothing_of_the_dimension(folder: Path) -> None:
    """Some tools write an empty list where there is no vector; the first rows may all be so."""
    vectors = pa.array([[]] * 300 + [[1.0, 2.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"old": vectors}), folder / "z.parquet")
    column = Column("gallery.old_vector_column", "old", "vector")
    path = str(folder / "z.parquet")
    assert dim_of(InputStore(), pin(InputStore(), InputStore().find(path), [column]), column) == 2
