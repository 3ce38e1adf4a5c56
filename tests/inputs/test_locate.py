"""The user's own files: found, pinned, and read again from what the pin says."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs import folder
from fastfill_ray.inputs.locate import InputFile, InputStore, Listing
from tests.inputs.conftest import Place, Write, parquet, write_local
from tests.s3_proxy import S3Proxy

NAMES = ["b.parquet", "a.parquet", "year=2020/c.parquet", "_SUCCESS", ".d.parquet", "_tmp/e.parquet"]
WANTED = ["a.parquet", "b.parquet", "year=2020/c.parquet"]
# What tools write: {name: whether it is read}. Each is a Parquet file.
WRITTEN = {
    "part-0.parquet": True,
    "part-1.pq": True,
    "part-2.PARQUET": True,
    "part-3.parquet.gzip": True,
    "part-4.parquet.snappy": True,
    "part-5": True,
    "part-6.txt": True,
    "_year=2023/part-7.parquet": True,
    "_year=2023/_month=1/part-8": True,
    "year=2024/_x=1.parquet": True,
    "year=2024/_temporary/0/part-9.parquet": False,
    ".ipynb_checkpoints/part-0.parquet": False,
    "._part=1.parquet": False,
    "_metadata": False,
    "_common_metadata": False,
    "part-10.parquet._COPYING_": False,
}
# And what is no Parquet: {name: (bytes, why it is skipped)}.
OTHERS = {
    "README.md": (b"# PAR1", "no Parquet"),
    "_SUCCESS": (b"", 'begins with "_"'),
    "._SUCCESS.crc": (b"crc", 'begins with "."'),
    "EMPTY": (b"", "no Parquet"),
    "year=2024/short": (b"PAR", "no Parquet"),
    "orc": (b"ORC" + bytes(20), "no Parquet"),
    "images/1.jpg": (b"PAR1 is not looked for", "no Parquet"),
}


@pytest.fixture
def place(write: Write) -> Place:
    """A folder with NAMES in it, each a Parquet file of one row, and the store that reads it."""
    return write({name: parquet(name) for name in NAMES})


def below(listing: Listing, folder: str) -> list[str]:
    return [file.path.removeprefix(f"{folder}/") for file in listing.files]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_is_its_parquet_files_sorted_without_hidden_ones(place: Place, slash: str) -> None:
    folder, store = place
    found = store.find(folder + slash)
    assert [file.path for file in found] == [f"{folder}/{name}" for name in WANTED]


def test_a_pinned_path_is_opened_and_pinned_again_the_same(place: Place) -> None:
    folder, store = place
    for file, name in zip(store.find(folder), WANTED, strict=True):
        assert store.find(file.path) == [file]
        with store.open(file.path) as handle:
            assert pq.read_table(handle)["name"].to_pylist() == [name]
        filesystem, path = store.filesystem(file.path)
        assert filesystem.info(path)["size"] == file.size


def test_a_file_that_changes_at_the_same_size_has_another_tag(place: Place) -> None:
    folder, store = place
    path = f"{folder}/a.parquet"
    before = store.find(path)[0]
    filesystem, inner = store.filesystem(path)
    filesystem.pipe_file(inner, filesystem.cat_file(inner)[::-1])
    if store.s3_endpoint is None:
        os.utime(inner, ns=(0, int(before.tag) + 1))
    after = store.find(path)[0]
    assert after.size == before.size
    assert after.tag != before.tag


def test_nothing_there_is_an_input_error_naming_the_path(place: Place, tmp_path: Path) -> None:
    folder, store = place
    with pytest.raises(InputError, match="gallery-2' does not exist"):
        store.find(f"{folder}-2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("none")
    with pytest.raises(InputError, match=r"empty.* no Parquet file \(0 files read, 1 skipped \(notes\.md: no Parq"):
        InputStore().find(str(tmp_path / "empty"))


def test_another_scheme_is_an_input_error() -> None:
    with pytest.raises(InputError, match="hdfs"):
        InputStore().open("hdfs://host/gallery")


def test_a_relative_path_becomes_absolute_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert InputStore().find("a.parquet")[0].path == InputStore().find(f"file://{tmp_path}/a.parquet")[0].path
    assert InputStore().find("a.parquet")[0].path == str(tmp_path / "a.parquet")


def test_a_store_travels_to_workers_with_its_endpoint_and_nothing_else() -> None:
    store = InputStore("http://127.0.0.1:9")
    store.filesystem("s3://bucket/gallery")  # connected or not: the copy is the same
    assert pickle.loads(pickle.dumps(store)) == store
    assert vars(pickle.loads(pickle.dumps(store))) == {"s3_endpoint": "http://127.0.0.1:9", "anonymous": False}
    anonymous = InputStore("http://127.0.0.1:9", anonymous=True)
    assert pickle.loads(pickle.dumps(anonymous)) == anonymous
    assert pickle.loads(pickle.dumps(anonymous.filesystem("s3://bucket/gallery")[0])).anon


def test_an_endpoint_with_credentials_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds credentials"):
        InputStore("http://user:canary@127.0.0.1:9").find("s3://bucket/gallery")


def test_a_folder_is_read_by_content_and_what_is_skipped_is_named(write: Write) -> None:
    where, store = write({name: parquet(name) for name in WRITTEN} | {name: data for name, (data, _) in OTHERS.items()})
    listing = store.listing(where)
    assert below(listing, where) == sorted(name for name, wanted in WRITTEN.items() if wanted)
    for file in listing.files:
        with store.open(file.path) as handle:
            assert pq.read_table(handle)["name"].to_pylist() == [file.path.removeprefix(f"{where}/")]
    assert dict(listing.skipped) == {name: why for name, (_, why) in OTHERS.items()} | {
        "year=2024/_temporary/": 'begins with "_"',
        ".ipynb_checkpoints/": 'begins with "."',
        "._part=1.parquet": 'begins with "."',
        "_metadata": 'begins with "_"',
        "_common_metadata": 'begins with "_"',
        "part-10.parquet._COPYING_": "is being copied",
    }


def test_a_parquet_name_is_input_whatever_is_in_it(write: Write) -> None:
    """Its footer is read next, and says what is wrong with it: it must not be left out in silence."""
    where, store = write({"a.parquet": b"", "b.parquet": b"text", "c": b"PAR1 truncated", "d": b"PARE encrypted"})
    assert below(store.listing(where), where) == ["a.parquet", "b.parquet", "c", "d"]


def test_what_was_skipped_is_said_in_one_line_of_at_most_five_names(write: Write) -> None:
    where, store = write({"a": parquet("a"), "README.md": b"text", "_SUCCESS": b""})
    assert str(store.listing(where)) == '1 file read, 2 skipped (README.md: no Parquet; _SUCCESS: begins with "_")'
    where, store = write({f"{i}.csv": b"text" for i in range(7)} | {"b": parquet("b")})
    assert str(store.listing(where)) == (
        "2 files read, 9 skipped (0.csv: no Parquet; 1.csv: no Parquet; 2.csv: no Parquet; 3.csv: no Parquet; "
        "4.csv: no Parquet; and 4 more)"
    )
    assert str(store.listing(f"{where}/a")) == "1 file read"


def test_a_file_that_is_given_is_taken_as_it_is(write: Write) -> None:
    where, store = write({"_hidden": b"text", "README.md": b"text"})
    for name in ("_hidden", "README.md"):
        listing = store.listing(f"{where}/{name}")
        assert (below(listing, where), listing.skipped, listing.folders) == ([name], (), ())


def test_a_list_is_the_files_and_folders_in_it_in_any_order(write: Write) -> None:
    where, store = write({name: parquet(name) for name in ("b/x", "b/_SUCCESS", "a.parquet", "c.parquet")})
    paths = [f"{where}/c.parquet", f"{where}/b", f"{where}/a.parquet"]
    listing = store.listing(paths)
    assert below(listing, where) == ["a.parquet", "b/x", "c.parquet"]
    assert listing.skipped == (("_SUCCESS", 'begins with "_"'),)
    assert store.listing(paths[::-1]) == listing
    assert store.find(tuple(paths)) == list(listing.files)
    with pytest.raises(InputError, match=r"gallery/b/x' is in the list twice"):
        store.listing([f"{where}/b", f"{where}/b/x"])
    with pytest.raises(InputError, match=r"gallery/d' does not exist"):
        store.listing([f"{where}/b", f"{where}/d"])


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A gallery with links to a folder outside of it, into that folder, to itself and to nothing."""
    gallery, outside = tmp_path / "gallery", tmp_path / "outside"
    write_local(gallery, {"a/x.parquet": parquet("x")})
    write_local(outside, {"y": parquet("y"), "deep/z.parquet": parquet("z"), "deep/notes.md": b"text"})
    targets = {"linked": outside, "again": outside / "deep", "loop": gallery, "nothing": tmp_path / "gone"}
    targets |= {"self": gallery / "self", "_tmp": outside, "file.parquet": outside / "y"}
    for name, target in targets.items():
        (gallery / name).symlink_to(target)
    return gallery


@pytest.mark.parametrize("backwards", [False, True])
def test_links_to_folders_are_followed_and_each_real_folder_is_read_once(
    linked: Path, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = folder._entries
    monkeypatch.setattr(folder, "_entries", lambda path: sorted(entries(path), reverse=backwards))
    listing = InputStore().listing(str(linked))
    assert below(listing, str(linked)) == ["a/x.parquet", "again/z.parquet", "file.parquet", "linked/y"]
    assert dict(listing.skipped) == {
        "_tmp/": 'begins with "_"',
        "again/notes.md": "no Parquet",
        "linked/deep/": "is a folder that is read already",
        "loop/": "is a folder that is read already",
        "nothing": "is a link to nothing",
        "self": "is a link to nothing",
    }
    assert listing.folders == (str(linked), str(linked.parent / "outside"), str(linked.parent / "outside" / "deep"))


def test_a_link_to_the_folder_above_ends(linked: Path) -> None:
    (linked / "a" / "up").symlink_to(linked.parent)
    assert below(InputStore().listing(str(linked)), str(linked)) == [
        "a/up/outside/deep/z.parquet", "a/up/outside/y", "a/x.parquet", "file.parquet",
    ]  # fmt: skip


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    write_local(tmp_path, {"a.parquet": parquet("a")})
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        listing = InputStore().listing(str(tmp_path))
    assert listing.skipped == (("pipe", "is a device, pipe or socket"), ("s", "is a device, pipe or socket"))


def test_a_file_whose_first_bytes_are_refused_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    where, store = write({"a.parquet": parquet("a"), "b": parquet("b")})

    def refuse(self: object, file: InputFile) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.LocalTree, "first_bytes", refuse)
    monkeypatch.setattr(folder.S3Tree, "first_bytes", refuse)
    with pytest.raises(InputError, match=r"gallery/b: its first bytes cannot be read .*Permission denied"):
        store.listing(where)
    assert below(store.listing(f"{where}/b"), where) == ["b"]


NAME = st.sampled_from(["a", "b=1", "_c", "_d=2", ".e", "f.parquet", "g.pq"])


@given(
    st.dictionaries(st.lists(NAME, min_size=1, max_size=3).map("/".join), st.sampled_from([b"PAR1..", b"text", b""]))
)
def test_a_tree_of_any_names_is_read_as_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    files = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)}
    top = tmp_path_factory.mktemp("tree")
    write_local(top, files)
    shown = {n for n in files if not any(p[0] == "." or (p[0] == "_" and "=" not in p) for p in n.split("/"))}
    wanted = {name for name in shown if name.endswith(".parquet") or files[name].startswith(b"PAR1")}
    if not wanted:
        with pytest.raises(InputError, match="no Parquet file"):
            InputStore().listing(str(top))
        return
    listing = InputStore().listing(str(top))
    assert below(listing, str(top)) == sorted(wanted)
    assert {name for name, why in listing.skipped if why == "no Parquet"} == shown - wanted


def test_a_public_bucket_is_read_without_credentials(
    bucket: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = boto3.client("s3", endpoint_url=moto_endpoint)
    for name in ("a.parquet", "b"):
        client.put_object(Bucket=bucket, Key=f"gallery/{name}", Body=parquet(name), ACL="public-read")
    client.put_object(Bucket=bucket, Key="private/c", Body=parquet("c"))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    with S3Proxy(moto_endpoint) as proxy:  # a client of its own, that has not seen the others' credentials
        with pytest.raises(InputError, match=r"NoCredentials.*environment.*set storage\.anonymous: true\."):
            InputStore(proxy.endpoint).find(f"s3://{bucket}/gallery")
        assert proxy.handled == []
        store = InputStore(proxy.endpoint, anonymous=True)
        files = store.find(f"s3://{bucket}/gallery")
        assert [pq.read_table(store.open(file.path))["name"].to_pylist() for file in files] == [["a.parquet"], ["b"]]
        with pytest.raises(InputError, match=r"private/c: its first bytes cannot be read \(PermissionError"):
            store.find(f"s3://{bucket}/private")
        assert len(proxy.handled) > 2
        assert not any(each.signed for each in proxy.handled)


def test_anonymous_sends_no_credentials_even_where_there_are_some(bucket: str, moto_endpoint: str) -> None:
    with S3Proxy(moto_endpoint) as proxy:
        for anonymous in (False, True):
            proxy.reset()
            with pytest.raises(InputError, match="does not exist"):
                InputStore(proxy.endpoint, anonymous=anonymous).find(f"s3://{bucket}/gallery")
            assert {each.signed for each in proxy.handled} == {not anonymous}


def test_a_refusal_says_with_which_credentials_it_was(bucket: str, moto_endpoint: str) -> None:
    with S3Proxy(moto_endpoint, rate=1.0, kinds=["denied"]) as proxy:
        with pytest.raises(InputError, match=r"gallery' cannot be read: PermissionError.*Check the credentials in the"):
            InputStore(proxy.endpoint).find(f"s3://{bucket}/gallery")
        with pytest.raises(InputError, match=r"without credentials \(storage\.anonymous: true\).* must be public"):
            InputStore(proxy.endpoint, anonymous=True).find(f"s3://{bucket}/gallery")


def test_a_pipe_that_is_given_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe' is a device, pipe or socket\. Give a file or a folder"):
        InputStore().find(str(tmp_path / "pipe"))


def test_a_name_that_is_not_utf8_is_refused_and_not_left_out(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.parquet", "wb") as file:
        file.write(parquet("a"))
    with pytest.raises(InputError, match=r"caf\\udce9\.parquet': the path is not UTF-8\. Rename the file"):
        InputStore().find(str(tmp_path))
