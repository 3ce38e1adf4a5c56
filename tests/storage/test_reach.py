"""Whether somebody listens at an endpoint is known before requests are sent again for a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fastfill_ray.errors import StorageError
from fastfill_ray.storage import reach
from fastfill_ray.storage.reach import check_endpoint


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that nobody listens at yet."""
    monkeypatch.setattr(reach, "ENDPOINT_S", 0.0)
    monkeypatch.setattr(reach.urllib.request, "getproxies", dict)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_an_endpoint_that_nobody_listens_at_is_named(bound: socket.socket) -> None:
    endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(
        StorageError, match=rf"storage\.s3_endpoint: no S3 service answers at {endpoint} \(Connection ref"
    ):
        check_endpoint(endpoint)
    bound.listen()
    check_endpoint(endpoint)
    check_endpoint(None)


def test_behind_a_proxy_nothing_is_known_of_an_endpoint(bound: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach.urllib.request, "getproxies", lambda: {"http": "http://proxy"})
    check_endpoint(f"http://127.0.0.1:{bound.getsockname()[1]}")
