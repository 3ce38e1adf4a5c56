"""Faults on purpose: short wrappers on real stores, and the in-memory twin of the store for tests that need no disk."""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit

from fastfill_ray.errors import FileMissing, StorageError
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.stat import Stat
from fastfill_ray.types import check_path

T = TypeVar("T")
Fault = Literal["before", "lost_answer", "torn", "slow"]


class MemoryFiles:
    """`storage.files.Files` in a dict; passes the same behaviour suite as the real stores."""

    def __init__(self) -> None:
        self.root = "memory://"
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes:
        try:
            return self.objects[check_path(path)]
        except KeyError:
            raise FileMissing(f"{self.root}{path} does not exist.") from None

    def stat(self, path: str) -> Stat | None:
        data = self.objects.get(check_path(path))
        return None if data is None else Stat(len(data), hashlib.md5(data).hexdigest())

    def list(self, prefix: str) -> list[str]:
        folder = f"{check_path(prefix)}/" if prefix else ""
        return sorted(path for path in self.objects if path.startswith(folder))

    def put_new(self, path: str, data: bytes) -> bool:
        if not data:
            raise ValueError(f"put_new({path!r}): empty data")
        with self._lock:
            return self.objects.setdefault(check_path(path), data) == data

    def put_data(self, path: str, data: bytes) -> None:
        self.objects[check_path(path)] = data

    def delete(self, path: str) -> None:
        self.objects.pop(check_path(path), None)


class Injected(StorageError):
    """A fault that a test asked for."""


@dataclass
class FaultyFiles:
    """A real store whose next writes to paths that contain `part` fail as asked, one fault per write.

    before: nothing happens, the call raises. lost_answer: the write lands, the call raises. torn: half of the bytes
    land (as on a store without atomic writes), the call raises. slow: `meanwhile` runs first, then the write.
    """

    files: Files
    part: str = ""
    faults: list[Fault] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    deleted: list[str] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.files.root

    def get(self, path: str) -> bytes:
        return self.files.get(path)

    def stat(self, path: str) -> Stat | None:
        return self.files.stat(path)

    def list(self, prefix: str) -> list[str]:
        return self.files.list(prefix)

    def put_new(self, path: str, data: bytes) -> bool:
        return self._write(path, data, self.files.put_new)

    def put_data(self, path: str, data: bytes) -> None:
        self._write(path, data, self.files.put_data)

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        self.files.delete(path)

    def _write(self, path: str, data: bytes, write: Callable[[str, bytes], T]) -> T:
        fault = self.faults.pop(0) if self.faults and self.part in path else None
        if fault == "before":
            raise Injected(f"{path}: injected before the write")
        if fault == "torn":
            self.files.put_data(path, data[: len(data) // 2])
            raise Injected(f"{path}: injected in the middle of the write")
        if fault == "slow":
            self.meanwhile()
        answer = write(path, data)
        if fault == "lost_answer":
            raise Injected(f"{path}: injected after the write")
        return answer


ProxyFault = Literal["pass", "drop_before", "drop_answer", "error_before", "error_after", "conflict"]


class S3Proxy:
    """An HTTP proxy in front of a real S3 server that mistreats the next PUT requests, one fault each.

    drop_*: the connection is closed without an answer, before or after the server saw the request; error_*: the answer
    is a 500; conflict: the answer is a 409 and the server sees nothing.
    """

    def __init__(self, endpoint: str) -> None:
        self.faults: list[ProxyFault] = []
        self.puts = 0
        self.deletes = 0
        proxy, target = self, urlsplit(endpoint)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                fault: ProxyFault = "pass"
                if self.command == "PUT":
                    proxy.puts += 1
                    fault = proxy.faults.pop(0) if proxy.faults else "pass"
                proxy.deletes += self.command == "DELETE"
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, answer = 500, [("Content-Type", "application/xml")], _error("InternalError")
                if fault not in ("drop_before", "error_before", "conflict"):
                    upstream = http.client.HTTPConnection(target.hostname or "", target.port, timeout=20)
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    response = upstream.getresponse()
                    passed = response.read()
                    upstream.close()
                    if fault == "pass":
                        status, headers, answer = response.status, response.getheaders(), passed
                if fault == "conflict":
                    status, answer = 409, _error("ConditionalRequestConflict")
                if fault in ("drop_before", "drop_answer"):
                    self.close_connection = True
                    return
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

            def log_message(self, format: str, *args: object) -> None:
                """Keep the tests' output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()


def flip_bit(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
