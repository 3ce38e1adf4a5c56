"""The one S3 client: every request has a deadline, and what is safe to send again is sent again until another one.

botocore's own retries would not do: they do not cover an answer's body, count no time, and share a quota that an
outage uses up. Its timeouts do not cover sending: aiohttp waits without limit for a `100 Continue` or for a
server that reads.
"""

from __future__ import annotations

import asyncio
import io
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiobotocore.client import AioBaseClient  # type: ignore[import-untyped]  # as botocore: no annotations
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected
from botocore.handlers import add_expect_header  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from fastfill_ray.errors import StorageError
from fastfill_ray.sanitize import one_line

logger = logging.getLogger(__name__)

# Reads and writes of a run come from up to 16 threads, and s3fs sends parts of large objects side by side. A request
# that waits for a free connection loses time of its deadline.
_CONNECTIONS = 64
_LONGEST_PAUSE_S = 8.0
_QUIET_TRIES = 2
_TRANSIENT_CODES = {
    "BadDigest",  # damaged on the way
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_ERRORS = (
    TimeoutError,
    ConnectionError,
    aiohttp.ClientError,
    NotConnected,
    HTTPClientError,
    IncompleteReadError,
    FlexibleChecksumError,
    ResponseParserError,  # a throttled answer can be torn XML
)


@dataclass(frozen=True)
class Limits:
    """How long requests may take.

    Attributes:
        request_s: one try of a request without data; and a longer silence within an answer ends the try as well.
        call_s: all tries of a request without data, with the pauses between them.
        bytes_per_s: each byte that a request or its answer carries adds 1 / `bytes_per_s` to both.
    """

    request_s: float = 10.0
    call_s: float = 60.0
    bytes_per_s: float = 128 * 1024


LIMITS = Limits()


def patient_session(limits: Limits) -> AioSession:
    """A session whose S3 clients keep `limits`.

    A conditional PUT (``IfNoneMatch``) is tried once: what its fault means is for the caller to find out. Any other
    request that does not succeed in time raises StorageError, which names the object, the last fault and the tries.
    """
    session = AioSession()
    session.register("creating-client-class.s3", _Extend(limits))
    # Nothing may be waited for before the body is sent: a silent server would be noticed only by the long deadline of
    # a large body. All it saves is the bytes that a refusing server reads in vain.
    session.unregister("before-call.s3", add_expect_header)
    return session


def client_config(limits: Limits) -> dict[str, Any]:
    """Arguments of ``botocore.config.Config`` that go with it."""
    return {
        "connect_timeout": limits.request_s,
        "read_timeout": limits.request_s,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed when it is sent again."""
    if isinstance(error, ClientError):
        status = _status(error)
        return status in (408, 429) or (status >= 500 and status != 501) or _code(error) in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT_ERRORS) and "CERTIFICATE_VERIFY_FAILED" not in str(error)


def is_refused(error: BaseException) -> bool:
    """Whether a conditional PUT that ended with this error of s3fs certainly had no effect, and never will have."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, ClientError):
        return 400 <= _status(cause) < 500 and _status(cause) not in (409, 412) and not is_transient(cause)
    # Before anything is sent: no credentials, or parameters that no request can have.
    return isinstance(cause, BotoCoreError) and not is_transient(cause)


def lacks_credentials(error: BaseException) -> bool:
    """Whether a request was not sent because the environment has no, or half of the, credentials for it."""
    return isinstance(error, NoCredentialsError | PartialCredentialsError)


def pause_s(attempt: int) -> float:
    """How long to wait after the try number `attempt`, from 1: doubling, with jitter."""
    return min(_LONGEST_PAUSE_S, 0.1 * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


class _Extend:
    """Makes botocore's S3 client class a patient one, by its event for that."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def __call__(self, class_attributes: dict[str, Any], base_classes: list[type], **_: object) -> None:
        class_attributes["_limits"] = self._limits
        base_classes.insert(0, PatientClient)


class PatientClient(AioBaseClient):
    """Every call of an S3 client goes through `_make_api_call`."""

    _limits: Limits

    async def _make_api_call(self, operation_name: str, api_params: dict[str, Any]) -> Any:
        call = _Call(operation_name, api_params, self._limits)
        while True:
            try:
                async with asyncio.timeout(call.time_for_a_try()) as timer:
                    # A copy: botocore puts a stream in the place of the body, and another try would find it read.
                    answer = await super()._make_api_call(operation_name, dict(api_params))
                    if operation_name == "GetObject":
                        call.carries(answer.get("ContentLength", 0))
                        timer.reschedule(asyncio.get_running_loop().time() + call.time_for_a_try())
                        # Closed in any case: a connection that went silent would be held until it is collected.
                        async with answer["Body"] as body:
                            answer["Body"] = _Body(await body.read())
                return answer
            except Exception as error:
                if not is_transient(error) or "IfNoneMatch" in api_params:
                    raise
                pause = call.pause_after(error)
            await asyncio.sleep(pause)


class _Body(io.BytesIO):
    """An answer's body that is here already, as s3fs reads it."""

    async def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        return super().read(size)


class _Call:
    """The time and the tries of one call."""

    def __init__(self, operation: str, params: Mapping[str, Any], limits: Limits) -> None:
        self._limits = limits
        self._name = f"s3://{params.get('Bucket', '')}/{params.get('Key', params.get('Prefix', ''))}: {operation}"
        self._tries = 0
        self._start = time.monotonic()
        self._extra_s = 0.0
        body = params.get("Body")
        self.carries(len(body) if isinstance(body, Sequence | memoryview) else 0)

    def carries(self, size: int) -> None:
        """The request or its answer holds `size` bytes."""
        self._extra_s = max(self._extra_s, size / self._limits.bytes_per_s)

    def time_for_a_try(self) -> float:
        return min(self._limits.request_s + self._extra_s, self._left_s())

    def pause_after(self, error: Exception) -> float:
        """How long to wait before the next try. Raises StorageError if there is no time for one."""
        self._tries += 1
        pause = pause_s(self._tries)
        fault = "no answer in time" if not str(error) else f"{type(error).__name__}: {error}"
        if pause >= self._left_s():
            seconds = time.monotonic() - self._start
            raise StorageError(
                f"{self._name} did not succeed in {seconds:.0f} s ({self._tries} tries). The last fault: {fault}. "
                "Check the network, storage.s3_endpoint and the S3 service, then run the same command again."
            ) from error
        level = logging.INFO if self._tries <= _QUIET_TRIES else logging.WARNING
        logger.log(level, "%s: %s; try %d follows in %.1f s", self._name, one_line(str(fault)), self._tries + 1, pause)
        return pause

    def _left_s(self) -> float:
        return self._start + self._limits.call_s + self._extra_s - time.monotonic()


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
