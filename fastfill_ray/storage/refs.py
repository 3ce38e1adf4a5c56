"""Objects named with size and sha256: written under a name of their own, verified when read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fastfill_ray.errors import CorruptFile, FileMissing
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


def get_verified(files: Files, ref: FileRef, repair: str = _RESTORE) -> bytes:
    """The bytes that `ref` names.

    Args:
        repair: what to do about damaged ones, for messages.

    Raises:
        FileMissing: the object is absent.
        CorruptFile: its size or sha256 differs from the recorded one, at two readings: one may be torn on its way.
    """
    try:
        data = files.get(ref.path)
        if sha256_hex(data) != ref.sha256:
            data = files.get(ref.path)
    except FileMissing as error:
        raise FileMissing(str(error), ref.path) from error
    name = f"{files.root}/{ref.path}"
    if len(data) != ref.size:
        raise CorruptFile(f"{name}: found {len(data):,} bytes, expected {ref.size:,}. {repair}", ref.path)
    if (found := sha256_hex(data)) != ref.sha256:
        raise CorruptFile(f"{name}: sha256 is {found}, expected {ref.sha256}. {repair}", ref.path)
    return data


def tagged(files: Files, ref: FileRef) -> FileRef:
    """`ref`, verified, with what the store says of the object now: from here on ``is_unchanged`` can tell."""
    before = files.stat(ref.path)
    get_verified(files, ref)
    return ref.model_copy(update={"tag": "" if before is None else before.tag})


def is_unchanged(files: Files, ref: FileRef) -> bool:
    """Whether size and tag are those that were recorded when `ref` was verified; nothing is read."""
    now = files.stat(ref.path)
    return now is not None and bool(ref.tag) and now == (ref.size, ref.tag)
