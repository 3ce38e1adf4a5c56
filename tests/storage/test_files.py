"""What every store must do, and what the choice of a store refuses."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError, FileMissing, StorageError, StoreUnsupported
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.storage.files import Files, open_files, probe, remove_leftovers
from fastfill_ray.storage.paths import probe_path
from tests.faults import Fault, FaultyFiles, Injected, MemoryFiles


def test_an_object_put_is_the_object_got(files: Files) -> None:
    assert files.put_new("log/0.json", b"first")
    files.put_data("index/p/a.faiss", b"\x00" * 100_000)
    assert files.get("log/0.json") == b"first"
    assert files.get("index/p/a.faiss") == b"\x00" * 100_000
    sizes = [found.size for path in ("log/0.json", "index/p/a.faiss") if (found := files.stat(path)) is not None]
    assert sizes == [5, 100_000]


def test_put_new_refuses_a_second_writer_and_keeps_the_first_bytes(files: Files) -> None:
    assert files.put_new("log/0.json", b"first")
    assert not files.put_new("log/0.json", b"second")
    assert files.get("log/0.json") == b"first"


def test_put_new_of_the_same_bytes_again_is_the_same_write(files: Files) -> None:
    assert files.put_new("log/0.json", b"first")
    assert files.put_new("log/0.json", b"first")


def test_put_new_of_nothing_is_refused_and_leaves_what_is_there(files: Files) -> None:
    files.put_new("log/0.json", b"first")
    with pytest.raises(ValueError, match=r"log/0\.json"):
        files.put_new("log/0.json", b"")
    assert files.get("log/0.json") == b"first"


def test_of_many_threads_putting_one_name_one_wins(files: Files) -> None:
    def put(writer: int) -> bool:
        return files.put_new("log/0.json", f"writer {writer}".encode())

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(put, range(4)))
    assert sum(answers) == 1
    assert files.get("log/0.json") == f"writer {answers.index(True)}".encode()


def test_put_data_replaces_the_whole_object(files: Files) -> None:
    files.put_data("reports/report.html", b"a long first report")
    files.put_data("reports/report.html", b"short")
    assert files.get("reports/report.html") == b"short"


def test_an_object_that_is_written_again_has_another_tag_and_a_second_look_the_same(files: Files) -> None:
    files.put_data("a/b", b"first")
    first = files.stat("a/b")
    assert files.stat("a/b") == first
    files.put_data("a/b", b"other")
    assert files.stat("a/b") != first


def test_absent_objects_are_missing_by_name_and_have_no_size(files: Files) -> None:
    files.put_data("a/b/c", b"x")
    for path in ("nothing", "a", "a/b", "a/b/c/d", "a/b/cc"):
        with pytest.raises(FileMissing, match=path):
            files.get(path)
        assert files.stat(path) is None
        files.delete(path)
    assert files.get("a/b/c") == b"x"


def test_a_deleted_object_is_absent_and_its_name_can_be_put(files: Files) -> None:
    files.put_data("a/b", b"x")
    files.delete("a/b")
    files.delete("a/b")
    assert files.stat("a/b") is None
    assert files.put_new("a/b", b"y")


def test_list_gives_every_object_below_a_folder_sorted(files: Files) -> None:
    for path in ("b/2", "b/1/x", "bb/3", "a"):
        files.put_data(path, b"x")
    assert files.list("") == ["a", "b/1/x", "b/2", "bb/3"]
    assert files.list("b") == ["b/1/x", "b/2"]
    assert files.list("nothing") == []


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../b", "a//b", "", "a/", ".hidden", "a\\b", "a\x00", "a\n"])
def test_a_path_that_could_leave_the_root_is_refused_by_every_verb(files: Files, path: str) -> None:
    for call in (
        lambda: files.get(path),
        lambda: files.stat(path),
        lambda: files.put_new(path, b"x"),
        lambda: files.put_data(path, b"x"),
        lambda: files.delete(path),
        lambda: files.list(path or "/"),
    ):
        with pytest.raises(ValueError, match="not a plain relative path"):
            call()


@given(st.text(max_size=30) | st.text("./\\%~:@ab2e\x00\n", max_size=12))
def test_no_text_names_a_file_outside_the_root(path: str) -> None:
    files = MemoryFiles()
    try:
        files.put_data(path, b"x")
    except ValueError:
        return
    root = Path("/srv/root")
    inside = (root / path).resolve()
    assert inside.is_relative_to(root)
    assert inside != root


def test_a_store_that_creates_exclusively_passes_the_probe_and_keeps_nothing(files: Files) -> None:
    probe(files)
    assert files.list("") == []


def test_a_store_that_ignores_the_condition_is_refused_by_the_probe() -> None:
    class Overwriting(MemoryFiles):
        def put_new(self, path: str, data: bytes) -> bool:
            self.put_data(path, data)
            return True

    with pytest.raises(StoreUnsupported, match="exclusively"):
        probe(Overwriting())


@pytest.mark.parametrize("fault", ["before", "lost_answer", "torn"])
def test_a_probe_that_fails_leaves_nothing_and_its_error_is_the_one_told(files: Files, fault: Fault) -> None:
    with pytest.raises(Injected):
        probe(FaultyFiles(files, faults=[fault]))
    assert files.list("") == []

    class Dead(FaultyFiles):
        def delete(self, path: str) -> None:
            raise StorageError("deleting: no connection")

    with pytest.raises(Injected):
        probe(Dead(files, faults=[fault]))


def test_probes_of_killed_starts_are_removed_after_a_day_and_nothing_else(files: Files) -> None:
    old, young = probe_path(1_700_000_000, "0" * 32), probe_path(1_700_090_000, "1" * 32)
    for path in (old, young, "probe/notes", "log/0.json"):
        files.put_data(path, b"x")
    assert remove_leftovers(files, now_s=1_700_000_000 + 86_400) == 0
    assert remove_leftovers(files, now_s=1_700_000_000 + 86_401) == 1
    assert files.list("") == sorted([young, "probe/notes", "log/0.json"])


def test_a_pickled_store_is_the_same_store_without_its_secrets(tmp_path: Path, bucket: str, moto_endpoint: str) -> None:
    for files in (open_files(str(tmp_path)), open_files(f"s3://{bucket}/run", s3_endpoint=moto_endpoint)):
        files.put_data("a", b"x")  # whatever is connected lazily is connected now
        data = pickle.dumps(files)
        copy: Files = pickle.loads(data)
        assert copy.root == files.root
        assert copy.get("a") == b"x"
        for text in (data, repr(files).encode(), repr(vars(copy)).encode()):
            assert b"canary" not in text


def test_a_file_url_and_a_relative_path_name_the_same_absolute_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_files("out").root == open_files(f"file://{tmp_path}/out").root == str(tmp_path / "out")


@pytest.mark.parametrize("root", ["gs://bucket/run", "https://host/run", "memory://x"])
def test_other_schemes_are_refused_by_name(root: str) -> None:
    with pytest.raises(StoreUnsupported, match=root):
        open_files(root)


def test_an_s3_root_without_a_bucket_is_refused() -> None:
    with pytest.raises(ConfigError, match="bucket"):
        open_files("s3://")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://user:canary@127.0.0.1:9",
        "https://h/?token=canary",
        "https://h/#canary",
        "http://h/a@canary",
        "//canary@h",
    ],
)
def test_credentials_in_the_endpoint_are_refused_without_repeating_them(endpoint: str) -> None:
    for act in (lambda: open_files("s3://bucket/run", s3_endpoint=endpoint), lambda: InputStore(endpoint)):
        with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID") as caught:
            act()
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["canary:9000", "ftp://canary", "http://", "http://[canary", ""])
def test_an_endpoint_that_is_no_url_is_refused_without_repeating_it(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="http:// or https:// URL is expected") as caught:
        open_files("s3://bucket/run", s3_endpoint=endpoint)
    assert "canary" not in str(caught.value)


def test_credentials_in_the_root_are_refused_without_repeating_them() -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        open_files("s3://user:canary@bucket/run")
    assert "canary" not in str(caught.value)
