"""The store of the user's own files, which lie outside the output root and are never written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from fastfill_ray.config import endpoint_fault
from fastfill_ray.errors import ConfigError, InputError, StorageError
from fastfill_ray.storage.files import split_scheme
from fastfill_ray.storage.local import local_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@dataclass(frozen=True)
class InputFile:
    """One file as it was when it was looked up; pinned by size and tag.

    Attributes:
        path: absolute local path or ``s3://`` URL; ``InputStore.open`` takes it.
        size: bytes.
        tag: ETag on S3, modification time in ns on a local disk; changes when the content does.
    """

    path: str
    size: int
    tag: str


@dataclass(frozen=True)
class InputStore:
    """How the user's files are read. It holds no credential and no connection, so it travels to workers as it is.

    Attributes:
        s3_endpoint: URL of an S3 service other than AWS; ``s3://`` paths are read through it.

    Raises:
        ConfigError: the endpoint holds credentials or a query, or is no http(s) URL.
    """

    s3_endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.s3_endpoint is not None and (fault := endpoint_fault(self.s3_endpoint)) is not None:
            raise ConfigError(f"storage.s3_endpoint: {fault}")

    def filesystem(self, path: str) -> tuple[AbstractFileSystem, str]:
        """The file system of a path, and the path as that file system takes it.

        Raises:
            InputError: neither a local path nor ``s3://``.

        On S3 each of its requests has a deadline; what does not succeed until then raises StorageError.
        """
        scheme, rest = split_scheme(path)
        if scheme == "file":
            return LocalFileSystem(skip_instance_cache=True), local_path(rest)
        if scheme == "s3":
            from fastfill_ray.storage.s3 import s3_filesystem

            return s3_filesystem(self.s3_endpoint), rest.rstrip("/")
        raise InputError(f"input {path!r}: scheme {scheme!r} is not supported. Use a local path or s3://.")

    def open(self, path: str) -> IO[bytes]:
        """The file at `path`, for reading. Raises what the file system raises, as OSError or StorageError."""
        filesystem, place = self.filesystem(path)
        # Readers ask for what they need, in parts as large as they need: read-ahead would fetch the same bytes again.
        handle: IO[bytes] = filesystem.open(place, "rb", cache_type="none")
        return handle

    def find(self, path: str) -> list[InputFile]:
        """The file at `path`, or every ``*.parquet`` file below the folder `path`, sorted by path.

        In a folder, names that start with "_" or "." (and what lies below such folders) are left out, as Spark and
        Hive do.

        Raises:
            InputError: nothing is there, or the store refuses to show it.
            StorageError: the store does not answer.
        """
        filesystem, top = self.filesystem(path)
        try:
            info = filesystem.info(top)
            entries = [info] if info["type"] == "file" else list(filesystem.find(top, detail=True).values())
        except FileNotFoundError as error:
            raise InputError(f"input {path!r} does not exist. Check the path.") from error
        except StorageError:
            raise
        except Exception as error:
            raise InputError(f"input {path!r} cannot be read: {type(error).__name__}: {error}.") from error
        if info["type"] != "file":
            entries = [entry for entry in entries if _is_data(entry["name"][len(top) :])]
        if not entries:
            raise InputError(f"input {path!r}: the folder holds no *.parquet file. Check the path.")
        return sorted((_pin(entry, split_scheme(path)[0]) for entry in entries), key=lambda file: file.path)


def _is_data(below: str) -> bool:
    names = below.strip("/").split("/")
    return names[-1].endswith(".parquet") and not any(name.startswith(("_", ".")) for name in names)


def _pin(entry: dict[str, Any], scheme: str) -> InputFile:
    if scheme == "s3":
        return InputFile(f"s3://{entry['name']}", int(entry["size"]), entry["ETag"].strip('"'))
    # fsspec gives the time as a float, which loses the last digits of the nanoseconds.
    return InputFile(entry["name"], int(entry["size"]), str(os.stat(entry["name"]).st_mtime_ns))
