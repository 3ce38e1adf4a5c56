"""Folders of Delta, Iceberg, Lance and Hudi tables are refused with the command that makes plain files of them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.errors import InputError
from fastfill_ray.inputs import folder
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.table_formats import _newest
from tests.inputs.conftest import Write, parquet
from tests.s3_proxy import S3Proxy

DATA = parquet("dead", "alive")
# {format: what lies in the folder of its table, where its files lie}.
TABLES: dict[str, tuple[list[str], str]] = {
    "Delta": (["_delta_log/00000000000000000000.json"], "date=2024-01-01"),
    "Hudi": ([".hoodie/hoodie.properties", ".hoodie/20240101.commit"], "region=eu/date=1"),
    "Iceberg": (
        [
            "metadata/snap-1-0-9deb5c86.avro",
            "metadata/00002-c4db9b4b.metadata.json",
            "metadata/00010-1a2b3c4d.metadata.json",
            "metadata/version-hint.text",
        ],
        "data/date=1",
    ),
    "Lance": (["_versions/1.manifest", "_transactions/0-f8.txn", "data/0001.lance"], "data"),
}
COMMANDS = {
    "Delta": 't = DeltaTable("{table}")',
    "Hudi": 'spark.read.format("hudi").load("{table}")',
    "Iceberg": 'StaticTable.from_metadata("{table}/metadata/00010-1a2b3c4d.metadata.json").scan()',
    "Lance": 'lance.dataset("{table}").scanner()',
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_refused_at_its_folder_above_it_and_inside_it(kind: str, write: Write) -> None:
    marks, inner = TABLES[kind]
    names = [*marks, f"{inner}/part-0.parquet"]
    where, store = write({f"tables/t/{name}": DATA for name in names} | {"tables/plain/a.parquet": DATA})
    table = f"{where}/tables/t"
    for given_path in (table, f"{table}/", f"{table}/{inner}", f"{where}/tables", [f"{where}/tables/plain", table]):
        with pytest.raises(InputError) as caught:
            store.listing(given_path)
        said = str(caught.value)
        article = "an" if kind == "Iceberg" else "a"
        assert f" {article} {kind} table: rows that were deleted or replaced still lie in its files" in said
        assert COMMANDS[kind].format(table=table) in said
        if isinstance(given_path, str) and given_path.rstrip("/") != table:
            assert f"holds or belongs to {table}, {article} {kind} table" in said
    assert [file.path for file in store.find(f"{where}/tables/plain")] == [f"{where}/tables/plain/a.parquet"]


def test_files_that_are_given_are_not_asked_where_they_lie(write: Write) -> None:
    where, store = write({"_delta_log/0.json": b"{}", "a.parquet": DATA, "b.parquet": DATA})
    assert [file.path for file in store.find(f"{where}/b.parquet")] == [f"{where}/b.parquet"]
    assert len(store.find([f"{where}/a.parquet", f"{where}/b.parquet"])) == 2


def test_folders_that_only_look_a_little_like_a_table_are_read(write: Write) -> None:
    names = ["metadata/a.parquet", "metadata/notes.json", "data/b.parquet", "_versions/1.txt", "delta_log/c.parquet"]
    where, store = write({name: DATA if name.endswith(".parquet") else b"text" for name in names})
    assert [file.path.removeprefix(where) for file in store.find(where)] == [
        "/data/b.parquet", "/delta_log/c.parquet", "/metadata/a.parquet",
    ]  # fmt: skip
    assert len(store.find(f"{where}/data")) == 1


def test_a_link_into_a_table_is_refused(tmp_path: Path) -> None:
    for name in ("t/_delta_log/0.json", "t/date=1/a.parquet", "gallery/b.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DATA)
    (tmp_path / "gallery" / "old").symlink_to(tmp_path / "t" / "date=1")
    with pytest.raises(InputError, match=f"belongs to {tmp_path}/t, a Delta table"):
        InputStore().find(str(tmp_path / "gallery"))


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        # Files of snapshots begin with a digit more often than not, and so come first.
        ([f"{i:04x}-m0.avro" for i in range(6)] + ["v3.metadata.json"], "v3.metadata.json"),
        ([f"v{i}.metadata.json" for i in range(1, 13)], "v12.metadata.json"),
        ([f"{i:05}-ab.metadata.json" for i in range(12)] + ["snap-1.avro"], "00011-ab.metadata.json"),
    ],
    ids=["behind others", "numbers without zeros", "behind the first page"],
)
def test_the_newest_metadata_of_an_iceberg_table_is_named_on_whatever_page_it_is(
    write: Write, monkeypatch: pytest.MonkeyPatch, names: list[str], newest: str
) -> None:
    """S3 lists in order of names, 1,000 at a time."""
    monkeypatch.setattr(folder, "_PAGE_KEYS", 3)
    where, store = write({f"t/metadata/{name}": b"x" for name in names} | {"t/data/a.parquet": DATA})
    with pytest.raises(InputError) as caught:
        store.find(f"{where}/t/data")
    assert f'StaticTable.from_metadata("{where}/t/metadata/{newest}")' in str(caught.value)


def test_a_large_folder_called_metadata_costs_one_page(
    bucket: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_PAGE_KEYS", 5)
    names = [*(f"metadata/{i}.txt" for i in range(30)), "data/a.parquet"]
    InputStore(moto_endpoint).filesystem(f"s3://{bucket}")[0].pipe({f"{bucket}/{name}": DATA for name in names})
    with S3Proxy(moto_endpoint, rate=0.0) as proxy:
        assert len(InputStore(proxy.endpoint).find(f"s3://{bucket}/data")) == 1
        listings = [each for each in proxy.handled if "list-type=2" in each.path]
        assert len(listings) <= 3 + 5 * 2


def test_folders_above_that_may_not_be_seen_count_as_no_table(write: Write, moto_endpoint: str, bucket: str) -> None:
    names = ("a/b/c/x.parquet", "a/_delta_log/0.json")
    InputStore(moto_endpoint).filesystem(f"s3://{bucket}")[0].pipe({f"{bucket}/{name}": DATA for name in names})
    with S3Proxy(moto_endpoint, rate=1.0, kinds=["denied"]) as proxy:
        proxy.where = r"prefix=(?!a%2Fb%2Fc)"
        store = InputStore(proxy.endpoint)
        assert len(store.find(f"s3://{bucket}/a/b/c")) == 1
        proxy.reset()
        with pytest.raises(InputError, match="Delta"):
            store.find(f"s3://{bucket}/a/b/c")
        listings = [each for each in proxy.handled if "list-type=2" in each.path]
        assert len(listings) <= 3 + 5 * 4  # the folder; and five for it and each of the three above


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command of a message as a user would paste it into a shell."""
    assert command.startswith("python -c ")
    words = [sys.executable, *shlex.split(command)[1:]]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def commands(table: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        InputStore().find(table)
    parts = str(caught.value).split("python -c ")[1:]
    return [f"python -c '{part.split(chr(39))[1]}'" for part in parts]


def test_the_commands_for_a_delta_table_give_the_rows_that_are_alive(tmp_path: Path) -> None:
    table = str(tmp_path / 'it\'s "t"')
    for name in (table, str(tmp_path / "t")):
        write_deltalake(name, pa.table({"id": range(600)}))
        DeltaTable(name).delete("id < 100")
    table = str(tmp_path / "t")
    assert len(list(Path(table).glob("*.parquet"))) == 2
    files, copy = commands(table)
    printed = run(files, tmp_path)
    (live,) = InputStore().find(printed.stdout.splitlines())
    assert sorted(pq.read_table(live.path)["id"].to_pylist()) == list(range(100, 600))
    assert run(copy, tmp_path).returncode == 0
    (live,) = InputStore().find(str(tmp_path / "live"))
    assert sorted(pq.read_table(live.path)["id"].to_pylist()) == list(range(100, 600))


def test_the_list_of_a_delta_table_with_deletion_vectors_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t"
    write_deltalake(str(table), pa.table({"id": range(6)}))
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    protocol = {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}
    (table / "_delta_log" / f"{1:020}.json").write_text(json.dumps(protocol))
    printed = run(commands(str(table))[0], tmp_path)
    assert printed.returncode != 0
    assert "deletion vectors: copy the rows" in printed.stderr
    assert printed.stdout == ""


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True), st.booleans())
def test_the_newest_metadata_is_the_one_of_the_highest_number(numbers: list[int], hadoop: bool) -> None:
    names = [f"metadata/v{n}.metadata.json" if hadoop else f"metadata/{n:05}-ab.metadata.json" for n in numbers]
    assert _newest(names) == names[numbers.index(max(numbers))]
