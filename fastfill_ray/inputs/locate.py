"""The store of the user's own files, which lie outside the output root and are never written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from fsspec.implementations.local import LocalFileSystem

from fastfill_ray.config import endpoint_fault
from fastfill_ray.errors import ConfigError, InputError, StorageError
from fastfill_ray.inputs.folder import InputFile, LocalTree, S3Tree, Tree, begins_as_parquet, parquet_by_name
from fastfill_ray.inputs.table_formats import refuse_tables
from fastfill_ray.storage.files import split_scheme
from fastfill_ray.storage.local import local_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["InputFile", "InputStore", "Listing"]

_THREADS = 16
_SHOWN = 5


@dataclass(frozen=True)
class Listing:
    """What a path, or a list of them, stands for.

    Attributes:
        files: what is read, sorted by path.
        skipped: (path below its folder, why it is not read), sorted; a folder ends with a slash and counts as one.
        folders: every folder that was looked through, by its real name.
    """

    files: tuple[InputFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``3 files read, 2 skipped (README.md: no Parquet; _SUCCESS: begins with "_")``, with at most 5 names."""
        shown = [f"{name}: {why}" for name, why in self.skipped[:_SHOWN]]
        if more := len(self.skipped) - len(shown):
            shown.append(f"and {more:,} more")
        read = f"{len(self.files):,} file{'' if len(self.files) == 1 else 's'} read"
        return f"{read}, {len(self.skipped):,} skipped ({'; '.join(shown)})" if shown else read


@dataclass(frozen=True)
class InputStore:
    """How the user's files are read. It holds no credential and no connection, so it travels to workers as it is.

    Attributes:
        s3_endpoint: URL of an S3 service other than AWS; ``s3://`` paths are read through it.
        anonymous: read from S3 without credentials, as public buckets allow.

    Raises:
        ConfigError: the endpoint holds credentials or a query, or is no http(s) URL.
    """

    s3_endpoint: str | None = None
    anonymous: bool = False

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

            return s3_filesystem(self.s3_endpoint, anonymous=self.anonymous), rest.rstrip("/")
        raise InputError(f"input {path!r}: scheme {scheme!r} is not supported. Use a local path or s3://.")

    def open(self, path: str) -> IO[bytes]:
        """The file at `path`, for reading. Raises what the file system raises, as OSError or StorageError."""
        filesystem, place = self.filesystem(path)
        # Readers ask for what they need, in parts as large as they need: read-ahead would fetch the same bytes again.
        handle: IO[bytes] = filesystem.open(place, "rb", cache_type="none")
        return handle

    def find(self, path: str | Sequence[str]) -> list[InputFile]:
        """The files of ``listing``."""
        return list(self.listing(path).files)

    def listing(self, path: str | Sequence[str]) -> Listing:
        """The file at `path`, or all Parquet files below the folder `path`; for a list, those of each of its paths.

        A file that is given is taken as it is. In a folder a ``*.parquet`` file is input, and any other file if it
        begins as Parquet does. Names that begin with "_" or "." (and what lies below such folders) are left out as
        Spark does, except partitions such as ``_year=2023``. Links to folders are followed.

        Raises:
            InputError: nothing is there, a file is there twice, a path is not UTF-8, the store refuses to show it, or
                a folder is, holds or belongs to a Delta, Iceberg, Lance or Hudi table.
            StorageError: the store does not answer.
        """
        listings = [self._listing(each) for each in ([path] if isinstance(path, str) else path)]
        files = sorted((file for each in listings for file in each.files), key=lambda file: file.path)
        for place, times in Counter(file.path for file in files).items():
            if not place.isascii() and place.encode(errors="replace").decode() != place:
                raise InputError(
                    f"input {place!r}: the path is not UTF-8. Rename the file, or move it out of the folder."
                )
            if times > 1:
                raise InputError(f"input {place!r} is in the list twice, by itself or in its folder. Give it once.")
        skipped = sorted(pair for each in listings for pair in each.skipped)
        folders = sorted(place for each in listings for place in each.folders)
        return Listing(tuple(files), tuple(skipped), tuple(folders))

    def _listing(self, path: str) -> Listing:
        filesystem, place = self.filesystem(path)
        tree: Tree = S3Tree(filesystem) if split_scheme(path)[0] == "s3" else LocalTree()
        with self._reading(path):
            if (file := tree.file(place)) is not None:
                return Listing((file,))
            folder = tree.folder(place)
            with ThreadPoolExecutor(_THREADS) as pool:
                refuse_tables(path, tree, folder, pool)
                decided = list(pool.map(partial(_is_parquet, tree), folder.files.values()))
        is_parquet = dict(zip(folder.files, decided, strict=True))
        skipped = folder.skipped | {below: "no Parquet" for below, wanted in is_parquet.items() if not wanted}
        files = tuple(file for below, file in folder.files.items() if is_parquet[below])
        listing = Listing(files, tuple(sorted(skipped.items())), tuple(map(tree.url, folder.places)))
        if not files:
            raise InputError(f"input {path!r}: the folder holds no Parquet file ({listing}). Check the path.")
        return listing

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """What the store raises inside becomes an InputError that names the path and what to do."""
        try:
            yield
        except (InputError, StorageError):
            raise
        except FileNotFoundError as error:
            raise InputError(f"input {path!r} does not exist. Check the path.") from error
        except Exception as error:
            raise InputError(
                f"input {path!r} cannot be read: {type(error).__name__}: {error}.{self._remedy(path, error)}"
            ) from error

    def _remedy(self, path: str, error: Exception) -> str:
        if split_scheme(path)[0] != "s3":
            return ""
        from fastfill_ray.storage.s3_client import lacks_credentials

        if lacks_credentials(error):
            return (
                " Credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or the instance "
                "role. For a public bucket set storage.anonymous: true."
            )
        if not isinstance(error, PermissionError):
            return ""
        return (
            " It was read without credentials (storage.anonymous: true), so the bucket must be public."
            if self.anonymous
            else " Check the credentials in the environment."
        )


def _is_parquet(tree: Tree, file: InputFile) -> bool:
    if (known := parquet_by_name(file)) is not None:
        return known
    try:
        return begins_as_parquet(tree.first_bytes(file))
    except OSError as error:
        raise InputError(
            f"{file.path}: its first bytes cannot be read ({type(error).__name__}: {error}), so nobody knows "
            "whether it is Parquet. Allow reading it, or move it out of the folder."
        ) from error
