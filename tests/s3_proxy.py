"""An HTTP proxy on loopback in front of a real S3 server, which mistreats requests on purpose."""

from __future__ import annotations

import http.client
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

Fault = Literal[
    "pass",
    "silence_before",  # the request is taken (no 100 Continue, its body is not read) and never answered
    "silence_after",  # the server does it, and the answer never comes
    "silence_middle",  # half of the answer's body comes, then nothing
    "drop_before",  # the connection is closed without an answer; the server saw nothing
    "drop_after",  # the same, after the server did it
    "reset_before",  # the connection is reset in the middle of the request; the server saw nothing
    "reset_middle",  # the connection is reset in the middle of the answer's body
    "error_before",  # 500, the server saw nothing
    "error_after",  # 500, although the server did it
    "busy",  # 503 SlowDown, the server saw nothing
    "conflict",  # 409 ConditionalRequestConflict to a conditional PUT, which the server does not see
    "delay",  # everything as it should be, but late
    "denied",  # 403 AccessDenied, the server saw nothing
]
FAULTS: tuple[Fault, ...] = tuple(fault for fault in get_args(Fault) if fault not in ("pass", "denied"))
_UNSEEN = ("silence_before", "drop_before", "reset_before", "error_before", "busy", "conflict", "denied")
_ANSWERS = {
    "error_before": (500, "InternalError"),
    "error_after": (500, "InternalError"),
    "busy": (503, "SlowDown"),
    "conflict": (409, "ConditionalRequestConflict"),
    "denied": (403, "AccessDenied"),
}


@dataclass(frozen=True)
class Handled:
    """One request, what was done to it, and how long the client was there for it."""

    method: str
    path: str
    fault: Fault
    seconds: float
    started: float  # on time.monotonic
    signed: bool = False  # with credentials


class S3Proxy:
    """The proxy. ``faults`` are the fates of the next requests with the method ``method``, one each, in order.

    Args:
        rate: the share of the requests that meet one of `kinds`, drawn with `seed`; ``faults`` go first.
        delay_s: how long a `delay` takes.

    ``where``: only requests whose "METHOD /path" it matches are drawn from, a regular expression.
    """

    def __init__(
        self, endpoint: str, *, rate: float = 0.0, kinds: Sequence[Fault] = FAULTS, seed: int = 0, delay_s: float = 0.2
    ) -> None:
        self.delay_s = delay_s
        self.reset(rate, kinds)
        self.closing = threading.Event()
        self.target = urlsplit(endpoint)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def reset(self, rate: float = 0.0, kinds: Sequence[Fault] = FAULTS) -> None:
        """Forget what was, and mistreat from here on as told."""
        self.faults: list[Fault] = []
        self.method = "PUT"
        self.rate, self.kinds, self.where = rate, kinds, ""
        self.handled: list[Handled] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def puts(self) -> int:
        return self.count("PUT")

    @property
    def deletes(self) -> int:
        return self.count("DELETE")

    def count(self, method: str) -> int:
        return sum(each.method == method for each in self.handled)

    @property
    def open(self) -> int:
        """Requests whose client is still there."""
        return sum(not each.seconds for each in self.handled)

    def injected(self) -> Counter[str]:
        """How often each fault was met."""
        return Counter(each.fault for each in self.handled if each.fault != "pass")

    def draw(self, method: str, path: str, conditional: bool) -> Fault:
        with self._lock:
            if method == self.method and self.faults:
                return self.faults.pop(0)
            if not re.search(self.where, f"{method} {path}"):
                return "pass"
            fault = self._random.choice(self.kinds) if self._random.random() < self.rate else "pass"
        return "pass" if fault == "conflict" and not conditional else fault

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def handle_expect_100(self) -> bool:
        return True  # `_forward` says it, unless the request's fate is another

    def _forward(self) -> None:
        started = time.monotonic()
        fault = self.proxy.draw(self.command, self.path, "If-None-Match" in self.headers)
        handled = self.proxy.handled
        index = len(handled)
        signed = "Authorization" in self.headers
        handled.append(Handled(self.command, self.path, fault, 0.0, started, signed))
        try:
            self._treat(fault)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client is gone
        finally:
            seconds = time.monotonic() - started
            handled[index] = Handled(self.command, self.path, fault, seconds, started, signed)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

    def _treat(self, fault: Fault) -> None:
        if fault == "silence_before":
            return self._silence()
        if fault == "reset_before":
            return self._reset()
        if "Expect" in self.headers:
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, answer = (500, [], b"") if fault in _UNSEEN else self._ask(body)
        if fault == "delay":
            self.proxy.closing.wait(self.proxy.delay_s)
        if fault in ("drop_before", "drop_after"):
            self.close_connection = True
            return None
        if fault == "silence_after":
            return self._silence()
        if fault in _ANSWERS:
            status, headers = _ANSWERS[fault][0], [("Content-Type", "application/xml")]
            answer = f"<?xml version='1.0'?><Error><Code>{_ANSWERS[fault][1]}</Code><Message>injected</Message></Error>"
            answer = answer.encode()
        return self._answer(fault, status, headers, answer)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.target.hostname or "", self.proxy.target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        answer = response.read()
        upstream.close()
        return response.status, response.getheaders(), answer

    def _answer(self, fault: Fault, status: int, headers: list[tuple[str, str]], answer: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        self.send_header("Content-Length", dict(headers).get("Content-Length", "0") if head else str(len(answer)))
        cut = fault in ("reset_middle", "silence_middle")
        if not cut or answer:  # an answer without a body is cut in its headers
            self.end_headers()
        self.wfile.write(b"" if head else answer[: len(answer) // 2] if cut else answer)
        if fault == "reset_middle":
            self._reset()
        elif fault == "silence_middle":
            self._silence()

    def _silence(self) -> None:
        """Say nothing until the client gives up."""
        self.close_connection = True
        while not self.proxy.closing.is_set():
            if select.select([self.connection], [], [], 0.05)[0] and not self.connection.recv(1 << 16):
                return

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""
