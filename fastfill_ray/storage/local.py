"""Files in a local folder: atomic through hard links and renames, durable through fsync."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastfill_ray.errors import CommitStateUnknown, FileMissing, StorageError, StoreUnsupported
from fastfill_ray.storage.stat import Stat
from fastfill_ray.types import check_path

_TEMP_PREFIX = ".tmp-"
# A file system that has no hard links says so with one of these.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV}
# A network file system may have applied the link although it answered with one of these.
_UNKNOWN = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


def local_path(path: str) -> str:
    """`path` (what follows ``file://``, or a plain path) as an absolute path."""
    return str(Path(path).expanduser().absolute())


@dataclass
class LocalFiles:
    """See ``storage.files.Files``. Needs a POSIX file system with hard links."""

    root: str
    # Folders whose entries are known to be on disk, up to the root.
    _durable: set[str] = field(default_factory=set, repr=False, compare=False)

    def get(self, path: str) -> bytes:
        full = self._full(path)
        try:
            return full.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileMissing(f"{full} does not exist.") from error
        except OSError as error:
            raise _failed("reading", full, error) from error

    def stat(self, path: str) -> Stat | None:
        full = self._full(path)
        try:
            found = full.stat()
            # The clock of mtime is coarse; what is written under a name of ours is always a file of its own.
            return Stat(found.st_size, f"{found.st_mtime_ns}-{found.st_ino}") if stat.S_ISREG(found.st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed("looking up", full, error) from error

    def list(self, prefix: str) -> list[str]:
        top = self._full(prefix) if prefix else Path(self.root)

        def fail(error: OSError) -> None:
            # A folder may vanish between its listing and its visit; anything else must not look like "no objects".
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise _failed("listing", Path(error.filename or top), error) from error

        found = []
        for folder, _, names in os.walk(top, onerror=fail):
            relative = Path(folder).relative_to(self.root).as_posix()
            for name in names:
                path = name if relative == "." else f"{relative}/{name}"
                with contextlib.suppress(ValueError):  # not a name of ours: a temporary file, or somebody else's
                    found.append(check_path(path))
        return sorted(found)

    def put_new(self, path: str, data: bytes) -> bool:
        if not data:
            raise ValueError(f"put_new({path!r}): empty data cannot be told from a torn write")
        full = self._full(path)
        with self._temporary(full, data) as temporary:
            try:
                os.link(temporary, full)
                ours = True
            except OSError as error:
                ours = self._linked_before(full, data, error)
            # Also where somebody else won: what is built on their object must not outlive it after a power cut.
            try:
                _sync_folder(full.parent)
            except OSError as error:
                raise CommitStateUnknown(
                    f"{full} was written, but its folder could not be synced ({error.strerror}). Nothing was deleted; "
                    "check the disk, then run the same command again."
                ) from error
        return ours

    def put_data(self, path: str, data: bytes) -> None:
        full = self._full(path)
        with self._temporary(full, data) as temporary:
            try:
                os.replace(temporary, full)
                _sync_folder(full.parent)
            except OSError as error:
                raise _failed("writing", full, error) from error

    def delete(self, path: str) -> None:
        full = self._full(path)
        try:
            full.unlink(missing_ok=True)
        except (NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            raise _failed("deleting", full, error) from error

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[str]]:
        return LocalFiles, (self.root,)

    def _full(self, path: str) -> Path:
        return Path(self.root, check_path(path))

    @contextlib.contextmanager
    def _temporary(self, full: Path, data: bytes) -> Iterator[Path]:
        """A durable temporary file beside `full` that holds `data`; gone afterwards."""
        temporary = full.parent / f"{_TEMP_PREFIX}{uuid.uuid4().hex}"
        try:
            try:
                self._make_folder(full.parent)
                descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _failed("writing", full, error) from error
            yield temporary
        finally:
            # After put_data's rename it is gone already; a temporary file that stays is ignored by list().
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _make_folder(self, folder: Path) -> None:
        """Create `folder`; the entry of every folder from the root down to it is synced, whoever made it."""
        root = Path(self.root)
        unsure = []
        for each in (folder, *folder.parents):
            if str(each) in self._durable or ((each == root or each in root.parents) and each.is_dir()):
                break
            unsure.append(each)
        for each in reversed(unsure):
            with contextlib.suppress(FileExistsError):
                each.mkdir()
            _sync_folder(each.parent)
            self._durable.add(str(each))

    def _linked_before(self, full: Path, data: bytes, error: OSError) -> bool:
        """Whether the object that made ``os.link`` fail is our own (a network file system may repeat a request)."""
        try:
            return full.read_bytes() == data
        except OSError:
            if error.errno in _NO_LINKS:
                raise StoreUnsupported(
                    f"{self.root}: no hard links here ({error.strerror}). Use another file system or s3://."
                ) from error
            if error.errno in _UNKNOWN:
                raise CommitStateUnknown(
                    f"{full}: {error.strerror} while linking. Nothing was deleted; run the same command again."
                ) from error
            raise _failed("writing", full, error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(doing: str, full: Path, error: OSError) -> StorageError:
    return StorageError(f"{doing} {full}: {error.strerror}. Check the disk's free space and the folder's permissions.")
