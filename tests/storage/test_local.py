"""Faults of a local disk, and a race between processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from fastfill_ray.errors import CommitStateUnknown, FileMissing, StorageError, StoreUnsupported
from fastfill_ray.storage.local import LocalFiles

RACERS, KEYS = 4, 50


def _race(root: str, writer: int, barrier: Barrier, answers: multiprocessing.Queue[tuple[int, int, bool]]) -> None:
    files = LocalFiles(root)
    for key in range(KEYS):
        barrier.wait()
        answers.put((key, writer, files.put_new(f"log/{key}", f"writer {writer}".encode())))


def test_of_four_processes_putting_fifty_names_each_name_has_one_winner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), w, barrier, answers)) for w in range(RACERS)]
    for racer in racers:
        racer.start()
    told = [answers.get(timeout=60) for _ in range(RACERS * KEYS)]
    for racer in racers:
        racer.join()
    winners = [(key, writer) for key, writer, won in told if won]
    assert sorted(key for key, _ in winners) == list(range(KEYS))
    for key, writer in winners:
        assert (tmp_path / "log" / str(key)).read_bytes() == f"writer {writer}".encode()


@pytest.mark.parametrize("verb", ["put_new", "put_data"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    files, write = LocalFiles(str(tmp_path)), os.write
    calls: list[int] = []

    def torn(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", torn)
    with pytest.raises(StorageError, match=r"log/0\.json.*No space left"):
        getattr(files, verb)("log/0.json", b"0123456789")
    assert calls == [10, 5]
    with pytest.raises(FileMissing):
        files.get("log/0.json")
    assert os.listdir(tmp_path / "log") == []


def test_a_failed_fsync_of_the_data_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(str(tmp_path))
    files.put_data("log/a", b"x")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="log/0"):
        files.put_new("log/0", b"x")
    assert files.list("log") == ["log/a"]


def test_a_record_whose_folder_cannot_be_synced_is_unknown_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, fsync = LocalFiles(str(tmp_path)), os.fsync
    files.put_data("log/a", b"x")

    def fail_on_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(CommitStateUnknown, match="log/0"):
        files.put_new("log/0", b"x")
    assert files.get("log/0") == b"x"


def test_a_link_that_landed_although_it_reported_exists_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, link = LocalFiles(str(tmp_path)), os.link

    def repeated(source: str, target: str, **folders: int) -> None:
        link(source, target, **folders)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", repeated)
    assert files.put_new("log/0", b"ours")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.EPERM, StoreUnsupported), (errno.ESTALE, CommitStateUnknown), (errno.EDQUOT, StorageError)],
)
def test_a_failed_link_is_unsupported_unknown_or_refused_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def fail(source: str, target: str, **folders: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(expected) as caught:
        LocalFiles(str(tmp_path)).put_new("log/0", b"x")
    assert caught.type is expected
    assert os.listdir(tmp_path / "log") == []


def test_a_root_that_is_a_file_is_a_storage_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(StorageError, match="root"):
        LocalFiles(str(tmp_path / "root")).put_new("log/0", b"x")


def test_every_new_folder_and_name_is_synced_before_the_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    root = tmp_path / "new" / "root"
    LocalFiles(str(root)).put_new("a/b/0", b"x")
    folders = [str(tmp_path), str(tmp_path / "new"), str(root), str(root / "a")]
    assert synced[:4] == folders
    assert synced[4].startswith(f"{root}/a/b/.tmp-")
    assert synced[5:] == [str(root / "a" / "b")]


@pytest.mark.parametrize("link", ["log", "log/deep"])
def test_nothing_is_written_or_deleted_through_a_linked_folder(tmp_path: Path, link: str) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    elsewhere.mkdir()
    (elsewhere / "0").write_bytes(b"theirs")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(elsewhere)
    files = LocalFiles(str(root))
    for act in (
        lambda: files.put_new(f"{link}/1", b"x"),
        lambda: files.put_data(f"{link}/0", b"x"),
        lambda: files.put_data(f"{link}/inner/0", b"x"),
        lambda: files.delete(f"{link}/0"),
    ):
        with pytest.raises(StorageError, match=rf"{link} is a symbolic link.*root itself may be a link"):
            act()
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"0": b"theirs"}
    assert files.get(f"{link}/0") == b"theirs"  # reading is harmless


def test_a_linked_file_is_replaced_or_kept_and_its_target_stays(tmp_path: Path) -> None:
    target, root = tmp_path / "theirs", tmp_path / "root"
    target.write_bytes(b"theirs")
    files = LocalFiles(str(root))
    files.put_data("a/other", b"x")
    for name in ("data", "new", "gone"):
        (root / "a" / name).symlink_to(target)
    files.put_data("a/data", b"ours")
    assert not files.put_new("a/new", b"ours")
    files.delete("a/gone")
    assert target.read_bytes() == b"theirs"
    assert files.get("a/data") == b"ours"
    assert not (root / "a" / "data").is_symlink()
    assert files.stat("a/gone") is None


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    files = LocalFiles(str(tmp_path / "root"))
    assert files.put_new("log/0", b"x")
    assert files.list("") == ["log/0"]
    assert (tmp_path / "disk" / "log" / "0").read_bytes() == b"x"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_what_the_users_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files = LocalFiles(str(tmp_path / "new" / "root"))
        files.put_new("log/0", b"x")
        files.put_data("a/b", b"x")
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_a_write_leaves_no_open_file(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    files.put_new("a/b/0", b"x")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        files.put_new(f"a/b/c{number}/d", b"x")
        files.put_new("a/b/0", b"y")
        files.put_data("a/b/1", b"x")
        files.delete("a/b/1")
        with pytest.raises(StorageError):
            files.put_data("link/0", b"x")
        with pytest.raises(StorageError):
            files.put_data("a/b/0/below-a-file", b"x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_writer_killed_in_the_middle_leaves_no_object(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from fastfill_ray.storage.local import LocalFiles\n"
        "os.fsync = lambda descriptor: os._exit(9) if not os.path.isdir(f'/proc/self/fd/{descriptor}') else None\n"
        "LocalFiles(sys.argv[1]).put_new('log/0', b'x' * 1000)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert [name[:5] for name in os.listdir(tmp_path / "log")] == [".tmp-"]
    files = LocalFiles(str(tmp_path))
    assert files.list("") == []
    assert files.put_new("log/0", b"next writer")
    assert files.remove_temporary(time.time() - 3600) == 0, "it may be of a driver that lives"
    assert files.remove_temporary(time.time() + 1) == 1
    assert os.listdir(tmp_path / "log") == ["0"]
