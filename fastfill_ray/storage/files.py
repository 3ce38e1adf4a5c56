"""The few verbs that everything durable goes through, and the choice of the store behind them.

The commit protocol needs two writes only: ``put_new`` (create if absent; decides races) and ``put_data`` (whole bytes
under a name that nobody else uses). Both are durable when they return. ``LocalFiles`` and ``S3Files`` implement them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from typing import Protocol

from fastfill_ray.errors import StorageError, StoreUnsupported
from fastfill_ray.storage.local import LocalFiles, local_path
from fastfill_ray.storage.paths import PROBE, parse_probe, probe_path
from fastfill_ray.storage.stat import Stat

logger = logging.getLogger(__name__)

_LEFTOVER_S = 24 * 3600


class Files(Protocol):
    """Objects under one root, named by plain relative paths (``types.check_path``; ValueError otherwise).

    Implementations are safe to use from several threads and processes, and pickle without any credential. Faults of the
    store surface as ``StorageError`` naming the object.
    """

    @property
    def root(self) -> str:
        """What ``open_files`` takes again: an absolute local path or an ``s3://`` URL."""
        ...

    def get(self, path: str) -> bytes:
        """The object's bytes. Raises FileMissing if it is absent."""
        ...

    def stat(self, path: str) -> Stat | None:
        """Size and tag, None if absent; reads no data."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Every object under the folder `prefix` ("" for all), recursive, as sorted relative paths.

        Only a hint, decisions need ``get`` or ``stat``. Names that this package cannot have written are left out.
        """
        ...

    def put_new(self, path: str, data: bytes) -> bool:
        """Create `path` with `data` if it is absent: atomic and durable.

        Returns:
            True if the object holds these bytes (now, or since an earlier attempt whose answer was lost); False if
            other bytes were there first.

        Raises:
            ValueError: `data` is empty (s3fs overwrites on an exclusive write of nothing).
            CommitStateUnknown: it could not be learnt whether the write landed; nothing was deleted.
            StorageError: the write certainly did not land.
        """
        ...

    def put_data(self, path: str, data: bytes) -> None:
        """Store the whole of `data`, durable on return. Only for names that no other writer uses with other bytes."""
        ...

    def delete(self, path: str) -> None:
        """Remove the object; an absent one is fine."""
        ...


def split_scheme(path: str) -> tuple[str, str]:
    """("s3", "bucket/key") for an S3 URL, ("file", path) for a local path or ``file://``, else (scheme, rest)."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return "file", path
    return scheme.lower(), rest


def open_files(root: str, *, s3_endpoint: str | None = None) -> Files:
    """The store at `root`: a local folder (created on the first write), ``file://`` or ``s3://bucket/prefix``.

    Args:
        s3_endpoint: URL of an S3 service other than AWS. Credentials come from the environment or the instance role.

    Raises:
        StoreUnsupported: another scheme.
        ConfigError: an S3 root without a bucket, or an endpoint with credentials in it.
    """
    scheme, rest = split_scheme(root)
    if scheme == "file":
        return LocalFiles(local_path(rest))
    if scheme == "s3":
        # s3fs takes most of a second to import; local runs do not pay for it.
        from fastfill_ray.storage.s3 import S3Files

        return S3Files(rest, s3_endpoint)
    raise StoreUnsupported(f"output root {root!r}: scheme {scheme!r} is not supported. Use a local path or s3://.")


def place_of(root: str) -> str:
    """One name for each place: of a local root, which has many paths, the one without symbolic links."""
    return root if split_scheme(root)[0] != "file" else os.path.realpath(split_scheme(root)[1])


def probe(files: Files) -> None:
    """Refuse a store on which two writers could both create the same object.

    Raises:
        StoreUnsupported: ``put_new`` did not refuse a second writer.
    """
    path = probe_path(int(time.time()), uuid.uuid4().hex)
    first, second = b"first " + path.encode(), b"second " + path.encode()
    try:
        answers = (files.put_new(path, first), files.put_new(path, second))
        kept = files.get(path)
    except BaseException:
        with contextlib.suppress(StorageError):  # what is wrong with the store is told by the first error
            files.delete(path)
        raise
    files.delete(path)
    if answers != (True, False) or kept != first:
        raise StoreUnsupported(
            f"{files.root} does not create objects exclusively: two writers of one name were told {answers}, expected "
            "(True, False). Use a store with conditional writes (If-None-Match) or a POSIX file system with hard links."
        )


def remove_leftovers(files: Files, *, now_s: float | None = None) -> int:
    """Delete what killed processes left behind: temporary files on a local disk, and objects of ``probe``.

    Only what is older than a day: a younger one may be of a driver that lives. Returns how many there were.
    """
    before = (time.time() if now_s is None else now_s) - _LEFTOVER_S
    removed = files.remove_temporary(before) if isinstance(files, LocalFiles) else 0
    for path in files.list(PROBE):
        if (made := parse_probe(path)) is not None and made < before:
            files.delete(path)
            removed += 1
    if removed:
        logger.info("%s: removed %d files that killed runs left behind", files.root, removed)
    return removed
