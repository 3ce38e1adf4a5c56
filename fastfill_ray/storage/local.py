"""Files in a local folder: atomic through hard links and renames, durable through fsync.

Nothing is written or deleted through a symbolic link below the root: every folder on the way is opened from the one
above it, without following. The root itself may be a link. Modes are what the user's umask leaves.
"""

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
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
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
    # Folders below the root whose entries are known to be on disk.
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
        with self._temporary(full, data) as (folder, temporary):
            try:
                os.link(temporary, full.name, src_dir_fd=folder, dst_dir_fd=folder)
                ours = True
            except OSError as error:
                ours = self._linked_before(full, data, error)
            # Also where somebody else won: what is built on their object must not outlive it after a power cut.
            try:
                os.fsync(folder)
            except OSError as error:
                raise CommitStateUnknown(
                    f"{full} was written, but its folder could not be synced ({error.strerror}). Nothing was deleted; "
                    "check the disk, then run the same command again."
                ) from error
        return ours

    def put_data(self, path: str, data: bytes) -> None:
        full = self._full(path)
        with self._temporary(full, data) as (folder, temporary):
            try:
                os.replace(temporary, full.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            except OSError as error:
                raise _failed("writing", full, error) from error

    def delete(self, path: str) -> None:
        full = self._full(path)
        try:
            folder = self._open_folder(full.parent, create=False)
            try:
                os.unlink(full.name, dir_fd=folder)
            finally:
                os.close(folder)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            raise _failed("deleting", full, error) from error

    def remove_temporary(self, before: float) -> int:
        """Delete the temporary files that were last written before `before` (seconds since 1970); how many there were.

        A process that is killed while it writes leaves one. Nobody names or reads it.
        """
        removed = 0
        for _, _, names, folder in os.fwalk(self.root):
            for name in names:
                if name.startswith(_TEMP_PREFIX):
                    with contextlib.suppress(OSError):  # somebody was quicker, or it is another user's: it may stay
                        if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < before:
                            os.unlink(name, dir_fd=folder)
                            removed += 1
        return removed

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[str]]:
        return LocalFiles, (self.root,)

    def _full(self, path: str) -> Path:
        return Path(self.root, check_path(path))

    @contextlib.contextmanager
    def _temporary(self, full: Path, data: bytes) -> Iterator[tuple[int, str]]:
        """The open folder of `full` and the name of a durable temporary file in it that holds `data`; gone after."""
        temporary = f"{_TEMP_PREFIX}{uuid.uuid4().hex}"
        try:
            folder = self._open_folder(full.parent, create=True)
        except OSError as error:
            raise _failed("writing", full, error) from error
        try:
            try:
                descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=folder)
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise _failed("writing", full, error) from error
            yield folder, temporary
        finally:
            # After put_data's rename it is gone already; a temporary file that stays is ignored by list().
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            os.close(folder)

    def _open_folder(self, folder: Path, *, create: bool) -> int:
        """A descriptor of `folder`, reached from the root without following a link.

        With `create` it exists afterwards, and the entry of every folder down to it is synced, whoever made it.

        Raises:
            StorageError: a symbolic link is on the way.
        """
        place = Path(self.root)
        if create:
            _make_root(place)
        here = os.open(place, _FOLDER)
        for name in folder.relative_to(place).parts:
            place /= name
            try:
                inside = self._enter(here, place, create=create)
            finally:
                os.close(here)
            here = inside
        return here

    def _enter(self, above: int, place: Path, *, create: bool) -> int:
        if create and str(place) not in self._durable:
            with contextlib.suppress(FileExistsError):
                os.mkdir(place.name, dir_fd=above)
            os.fsync(above)
        try:
            inside = os.open(place.name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and place.is_symlink():
                raise StorageError(
                    f"{place} is a symbolic link, and nothing below the output root is written or deleted through one. "
                    "Put a folder in its place; the root itself may be a link."
                ) from None
            raise
        if create:
            self._durable.add(str(place))
        return inside

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


def _make_root(root: Path) -> None:
    """Create the root and what is missing above it, durably."""
    missing = []
    for each in (root, *root.parents):
        if each.is_dir():
            break
        missing.append(each)
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
        above = os.open(each.parent, _FOLDER)
        try:
            os.fsync(above)
        finally:
            os.close(above)


def _failed(doing: str, full: Path, error: OSError) -> StorageError:
    return StorageError(f"{doing} {full}: {error.strerror}. Check the disk's free space and the folder's permissions.")
