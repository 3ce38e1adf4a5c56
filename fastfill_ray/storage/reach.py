"""Whether a service answers at all, before anything is asked of it that is then asked again for a minute."""

from __future__ import annotations

import socket
import time
import urllib.request
from urllib.parse import urlsplit

from fastfill_ray.errors import StorageError

ENDPOINT_S = 10.0


def fault_of(host: str, port: int, patience_s: float) -> str | None:
    """Why nobody can be reached there, tried for `patience_s`; None once somebody listens."""
    end = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, end - time.monotonic())).close()
            return None
        except OSError as error:
            if time.monotonic() + 1 > end:
                return str(error.strerror or error)
        time.sleep(1)


def check_endpoint(endpoint: str | None) -> None:
    """Refuse an S3 endpoint at which nobody listens.

    Args:
        endpoint: URL of an S3 service, None for AWS. Behind a proxy nothing is known of it here.

    Raises:
        StorageError: no connection within ENDPOINT_S.
    """
    if endpoint is None or urllib.request.getproxies():
        return
    url = urlsplit(endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    if (fault := fault_of(url.hostname or "", port, ENDPOINT_S)) is not None:
        raise StorageError(
            f"storage.s3_endpoint: no S3 service answers at {endpoint} ({fault}). Mend the URL, or start the service. "
            "Then the same command goes on."
        )
