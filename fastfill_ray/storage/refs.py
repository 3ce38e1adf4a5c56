"""Objects named with size and sha256: written under a name of their own, verified when read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fastfill_ray.errors import CorruptFile
from fastfill_ray.log.records import FileRef
from fastfill_ray.storage.arrow import _RESTORE
from fastfill_ray.storage.files import Files


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def put_file(files: Files, path: str, data: bytes) -> FileRef:
    """Store `data` under a name of its own; durable when this returns."""
    files.put_data(path, data)
    return FileRef(path=path, size=len(data), sha256=sha256_hex(data))


def put_content(files: Files, path_of: Callable[[str], str], data: bytes) -> FileRef:
    """Store `data` under a name that follows from its content; durable when this returns.

    Args:
        path_of: the path of bytes with this sha256 (64 hex digits), see ``storage.paths``.
    """
    digest = sha256_hex(data)
    reference = FileRef(path=path_of(digest), size=len(data), sha256=digest)
    files.put_data(reference.path, data)
    return reference


def get_verified(files: Files, ref: FileRef) -> bytes:
    """The bytes that `ref` names.

    Raises:
        FileMissing: the object is absent.
        CorruptFile: its size or sha256 differs from the recorded one.
    """
    data = files.get(ref.path)
    if len(data) != ref.size:
        raise CorruptFile(f"{files.root}/{ref.path}: found {len(data):,} bytes, expected {ref.size:,}. {_RESTORE}")
    if (found := sha256_hex(data)) != ref.sha256:
        raise CorruptFile(f"{files.root}/{ref.path}: sha256 is {found}, expected {ref.sha256}. {_RESTORE}")
    return data
