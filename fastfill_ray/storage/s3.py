"""Files in an S3 bucket, through s3fs; a commit is one conditional PUT whose outcome is read back when in doubt."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import s3fs
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore has no annotations
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from fastfill_ray.errors import CommitStateUnknown, ConfigError, FileMissing, StorageError, StoreUnsupported
from fastfill_ray.storage.stat import Stat
from fastfill_ray.types import check_path

logger = logging.getLogger(__name__)

COMMIT_DEADLINE_S = 60.0
# Answers and faults after which a request certainly had no effect.
_REFUSED = (PermissionError, FileNotFoundError, NoCredentialsError, PartialCredentialsError, ParamValidationError)


def s3_filesystem(endpoint: str | None, *, retries: bool = True) -> s3fs.S3FileSystem:
    """An s3fs file system without caches; credentials come from the environment or the instance role only.

    Args:
        endpoint: URL of an S3 service other than AWS, or None.
        retries: False leaves repeating a request to the caller. (The HTTP client underneath still repeats one whose
            connection closed without an answer, so a conditional PUT can find its own first try.)

    Raises:
        ConfigError: the endpoint carries a user name or a password.
    """
    _refuse_credentials(endpoint)
    return _connect(endpoint, retries, os.getpid())


@functools.cache
def _connect(endpoint: str | None, retries: bool, process: int) -> s3fs.S3FileSystem:
    """One client per process and setting (0.1 s each). Outside fsspec's own cache, which others may have filled."""
    filesystem = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 4 if retries else 1}},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    if not retries:
        filesystem.retries = 1
    return filesystem


def _refuse_credentials(endpoint: str | None) -> None:
    if endpoint is not None and "@" in urlsplit(endpoint).netloc:
        raise ConfigError(
            "storage.s3_endpoint holds credentials, which would be written into logs and records. Put them into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )


class S3Files:
    """See ``storage.files.Files``. Holds names and settings only; each process connects when it needs to."""

    def __init__(
        self,
        bucket_and_prefix: str,
        s3_endpoint: str | None = None,
        *,
        deadline_s: float = COMMIT_DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        _refuse_credentials(s3_endpoint)
        self._base = bucket_and_prefix.strip("/")
        if not self._base:
            raise ConfigError("output root 's3://' names no bucket. Write s3://bucket/prefix.")
        self.root = f"s3://{self._base}"
        self._settings = (s3_endpoint, deadline_s, clock, sleep)

    def __repr__(self) -> str:
        return f"S3Files({self.root!r}, s3_endpoint={self._settings[0]!r})"

    def get(self, path: str) -> bytes:
        key = self._key(path)
        try:
            return self._filesystem().cat_file(key)
        except FileNotFoundError as error:
            raise FileMissing(f"s3://{key} does not exist.") from error
        except Exception as error:
            raise _failed("reading", key, error) from error

    def stat(self, path: str) -> Stat | None:
        key = self._key(path)
        try:
            info = self._filesystem().info(key)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _failed("looking up", key, error) from error
        return Stat(int(info["size"]), str(info["ETag"])) if info["type"] == "file" else None

    def list(self, prefix: str) -> list[str]:
        top = self._key(prefix) if prefix else self._base
        try:
            keys = self._filesystem().find(top)
        except Exception as error:
            raise _failed("listing", top, error) from error
        found = []
        for key in keys:
            if key.startswith(f"{top}/"):
                with contextlib.suppress(ValueError):  # not a name of ours
                    found.append(check_path(key.removeprefix(f"{self._base}/")))
        return sorted(found)

    def put_new(self, path: str, data: bytes) -> bool:
        if not data:
            raise ValueError(
                f"put_new({path!r}): s3fs overwrites the object when the data of an exclusive write is empty"
            )
        key = self._key(path)
        _, deadline_s, clock, sleep = self._settings
        start, attempt, in_doubt = clock(), 0, False
        while True:
            try:
                self._filesystem(once=True).pipe_file(key, data, mode="create")
                return True
            except Exception as raised:
                error = raised
            # 412 and 409 can be the echo of our own write, a time-out or 5xx can have landed: only the object tells.
            # The bytes carry a transaction id, so equal bytes are ours.
            try:
                return self.get(path) == data
            except FileMissing:
                refused = isinstance(error, _REFUSED)
            except StorageError:
                refused = isinstance(error, _REFUSED)
            if isinstance(error, OSError) and error.errno == errno.ENOSYS:
                raise StoreUnsupported(
                    f"{self.root}: the store does not implement conditional writes (If-None-Match). Use one that does."
                ) from error
            if refused and not in_doubt:
                raise _failed("writing", key, error) from error
            in_doubt = True
            pause = min(8.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)
            if clock() - start + pause > deadline_s:
                raise CommitStateUnknown(
                    f"s3://{key}: not known after {deadline_s:.0f} s whether it was written (last: "
                    f"{type(error).__name__}: {error}). Nothing was deleted; run the same command again."
                ) from error
            logger.info("s3://%s: not known whether it was written (%s), again in %.1f s", key, error, pause)
            sleep(pause)
            attempt += 1

    def put_data(self, path: str, data: bytes) -> None:
        key = self._key(path)
        try:
            self._filesystem().pipe_file(key, data)
        except Exception as error:
            raise _failed("writing", key, error) from error

    def delete(self, path: str) -> None:
        key = self._key(path)
        try:
            self._filesystem().rm_file(key)
        except FileNotFoundError:
            return
        except Exception as error:
            raise _failed("deleting", key, error) from error

    def _key(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}"

    def _filesystem(self, *, once: bool = False) -> s3fs.S3FileSystem:
        # Never an attribute: an s3fs object holds sockets, and its pickle the credentials it was given.
        return s3_filesystem(self._settings[0], retries=not once)


def _failed(doing: str, key: str, error: Exception) -> StorageError:
    return StorageError(
        f"{doing} s3://{key}: {type(error).__name__}: {error}. Check the bucket, the credentials in the environment, "
        "storage.s3_endpoint and the network."
    )
