"""Files in an S3 bucket, through s3fs; a commit is one conditional PUT whose outcome is read back when in doubt."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator

import s3fs

from fastfill_ray.config import endpoint_fault
from fastfill_ray.errors import CommitStateUnknown, ConfigError, FileMissing, StorageError, StoreUnsupported
from fastfill_ray.sanitize import one_line
from fastfill_ray.storage import s3_client
from fastfill_ray.storage.s3_client import Limits
from fastfill_ray.storage.stat import Stat
from fastfill_ray.types import check_path

logger = logging.getLogger(__name__)


def s3_filesystem(endpoint: str | None, limits: Limits | None = None, anonymous: bool = False) -> S3FileSystem:
    """The file system of this process for an endpoint; credentials come from the environment or the instance role only.

    It repeats what is safe to repeat, see ``s3_client.patient_session``. (The HTTP client underneath also repeats a
    request whose connection closed without an answer, so a conditional PUT can find its own first try.)

    Args:
        endpoint: URL of an S3 service other than AWS, or None.
        limits: how long requests may take; ``s3_client.LIMITS`` if None.
        anonymous: send no credentials, as public buckets allow.

    Raises:
        ConfigError: the endpoint carries a user name, a password or a query, or is no http(s) URL.
    """
    _refuse_credentials(endpoint)
    return _connect(endpoint, limits or s3_client.LIMITS, anonymous, os.getpid())


@functools.cache
def _connect(endpoint: str | None, limits: Limits, anonymous: bool, process: int) -> S3FileSystem:
    """One client per process and setting (0.1 s each). Outside fsspec's own cache, which others may have filled."""
    filesystem = S3FileSystem(
        anon=anonymous,
        endpoint_url=endpoint,
        session=s3_client.patient_session(limits),
        config_kwargs=s3_client.client_config(limits),
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    filesystem.retries = 1  # the client has tried again already
    filesystem.limits = limits
    return filesystem


class S3FileSystem(s3fs.S3FileSystem):
    """s3fs's, without caches. It travels to workers as its endpoint and limits, without any credential."""

    limits: Limits

    def __reduce__(self) -> tuple[Callable[..., S3FileSystem], tuple[str | None, Limits, bool]]:
        return s3_filesystem, (self.endpoint_url, self.limits, self.anon)


def _refuse_credentials(endpoint: str | None) -> None:
    if endpoint is not None and (fault := endpoint_fault(endpoint)) is not None:
        raise ConfigError(f"storage.s3_endpoint: {fault}")


class S3Files:
    """See ``storage.files.Files``. Holds names and settings only; each process connects when it needs to.

    Args:
        limits: how long requests may take, and a ``put_new`` with all that it asks; ``s3_client.LIMITS`` if None.
    """

    def __init__(
        self,
        bucket_and_prefix: str,
        s3_endpoint: str | None = None,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        _refuse_credentials(s3_endpoint)
        self._base = bucket_and_prefix.strip("/")
        if not self._base:
            raise ConfigError("output root 's3://' names no bucket. Write s3://bucket/prefix.")
        if "@" in self._base.partition("/")[0]:
            raise ConfigError("the output root's URL holds credentials. Put them into the environment.")
        self.root = f"s3://{self._base}"
        self._endpoint, self._limits, self._clock, self._sleep = s3_endpoint, limits, clock, sleep

    def __repr__(self) -> str:
        return f"S3Files({self.root!r}, s3_endpoint={self._endpoint!r})"

    def get(self, path: str) -> bytes:
        return self._get(path)

    def _get(self, path: str, timeout_s: float | None = None) -> bytes:
        key = self._key(path)
        with _named("reading", key):
            try:
                return self._filesystem().cat_file(key, timeout=timeout_s)
            except FileNotFoundError as error:
                raise FileMissing(f"s3://{key} does not exist.") from error

    def stat(self, path: str) -> Stat | None:
        key = self._key(path)
        with _named("looking up", key):
            try:
                info = self._filesystem().info(key)
            except FileNotFoundError:
                return None
        return Stat(int(info["size"]), str(info["ETag"])) if info["type"] == "file" else None

    def list(self, prefix: str) -> list[str]:
        top = self._key(prefix) if prefix else self._base
        with _named("listing", top):
            keys = self._filesystem().find(top)
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
        key, limit_s = self._key(path), (self._limits or s3_client.LIMITS).call_s
        deadline, tries, in_doubt = self._clock() + limit_s, 0, False
        while True:
            try:
                # fsspec takes no time-out for "at once", but for "none".
                left_s = max(deadline - self._clock(), 0.001)
                self._filesystem().pipe_file(key, data, mode="create", timeout=left_s)
                return True
            except Exception as raised:
                error = raised
            # 412 and 409 can be the echo of our own write, a time-out or 5xx can have landed: only the object tells.
            # The bytes carry a transaction id, so equal bytes are ours.
            refused = s3_client.is_refused(error)
            with contextlib.suppress(StorageError):
                return self._get(path, max(deadline - self._clock(), 0.001)) == data
            if isinstance(error, OSError) and error.errno == errno.ENOSYS:
                raise StoreUnsupported(
                    f"{self.root}: the store does not implement conditional writes (If-None-Match). Use one that does."
                ) from error
            if refused and not in_doubt:
                raise _failed("writing", key, error) from error
            in_doubt, tries = True, tries + 1
            pause = s3_client.pause_s(tries)
            fault = f"{type(error).__name__}: {error}" if str(error) else "no answer in time"
            if self._clock() + pause >= deadline:
                raise CommitStateUnknown(
                    f"s3://{key}: not known after {limit_s:.0f} s ({tries} tries) whether it was written (last fault: "
                    f"{fault}). Nothing was deleted; run the same command again."
                ) from error
            logger.info("s3://%s: not known whether it was written (%s), again in %.1f s", key, one_line(fault), pause)
            self._sleep(pause)

    def put_data(self, path: str, data: bytes) -> None:
        key = self._key(path)
        with _named("writing", key):
            try:
                self._filesystem().pipe_file(key, data)
            except FileNotFoundError:
                # The end of an upload in parts whose answer was lost: sent again, S3 does not know the upload any more.
                if self._filesystem().info(key)["size"] != len(data):
                    raise

    def delete(self, path: str) -> None:
        key = self._key(path)
        with _named("deleting", key), contextlib.suppress(FileNotFoundError):
            self._filesystem().rm_file(key)

    def _key(self, path: str) -> str:
        return f"{self._base}/{check_path(path)}"

    def _filesystem(self) -> S3FileSystem:
        # Never an attribute: it holds sockets.
        return s3_filesystem(self._endpoint, self._limits)


@contextlib.contextmanager
def _named(doing: str, key: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise _failed(doing, key, error) from error


def _failed(doing: str, key: str, error: Exception) -> StorageError:
    return StorageError(
        f"{doing} s3://{key}: {type(error).__name__}: {error}. Check the bucket, the credentials in the environment, "
        "storage.s3_endpoint and the network."
    )
