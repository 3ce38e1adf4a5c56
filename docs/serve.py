"""A search service over one output root, standard library only: an example to copy, no part of the package.

    OMP_NUM_THREADS=1 python docs/serve.py s3://bucket/run --port 8000 --refresh-s 30

    curl localhost:8000/search -d '{"queries": [[0.1, 0.2, 0.3]], "k": 10}'
    {"scores": [[0.93, 0.91]], "ids": [[17, 4]]}
    curl localhost:8000/version
    {"version": 3, "rows": 120000, "needs_old_queries": false}

One thread per connection, one more that follows the root. There is no limit on connections and no TLS: put it behind a
proxy that has both.
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

import fastfill_ray as ff

MOST_BYTES = 64 << 20  # of a request
MOST_HITS = 10_000  # of a query
LEAST_REFRESH_S = 0.1
logger = logging.getLogger("serve")


class Handler(BaseHTTPRequestHandler):
    """Answers for the index of its server."""

    protocol_version = "HTTP/1.1"  # connections stay open
    server: Server

    def do_GET(self) -> None:
        """What is served: also for a health check."""
        if self.path != "/version":
            return self.answer(404, {"error": f"{self.path}: /version and /search are here"})
        index = self.server.index
        self.answer(200, {"version": index.version, "rows": index.rows, "needs_old_queries": index.needs_old_queries})

    def do_POST(self) -> None:
        """The best items of each query."""
        given = self.headers.get("Content-Length", "0")
        length = int(given) if given.isdecimal() and len(given) < 12 else 0
        if self.path != "/search" or not 0 < length <= MOST_BYTES:
            self.close_connection = True  # its body is not read
            return self.answer(400, {"error": f"POST at most {MOST_BYTES:,} bytes to /search"})
        try:
            request = json.loads(self.rfile.read(length))
            queries = np.array(request["queries"], np.float32)
            old = request.get("old_queries")
            # Always give the old queries where there are some: a version that needs none does not read them.
            index = self.server.index
            k = min(int(request.get("k", 10)), index.rows, MOST_HITS)
            scores, ids = index.search(queries, k=k, old_queries=None if old is None else np.array(old, np.float32))
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            ff.FastfillError,
        ) as error:
            return self.answer(400, {"error": f"{type(error).__name__}: {error}"})
        there = np.isfinite(scores)  # a version may hold fewer items than k
        self.answer(
            200,
            {
                "scores": [row[mask].tolist() for row, mask in zip(scores, there, strict=True)],
                "ids": [row[mask].tolist() for row, mask in zip(ids, there, strict=True)],
            },
        )

    def answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


class Server(ThreadingHTTPServer):
    """Holds one index, which all its threads search."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], index: ff.Index) -> None:
        super().__init__(address, Handler)
        self.index = index


def follow(index: ff.Index, seconds: float, stop: threading.Event) -> None:
    """Adopt what is published, every so often. Searches go on meanwhile, each on one whole version."""
    while not stop.wait(seconds):
        try:
            if index.refresh():
                logger.info("version %d, %s items", index.version, f"{index.rows:,}")
        except ff.FastfillError as error:  # the index stays as it was, and users are served
            logger.warning("refresh: %s", error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="output root of the backfill")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--refresh-s", type=float, default=30.0, help="seconds between two looks at the root")
    parser.add_argument("--s3-endpoint", help="URL of an S3-compatible store")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    index = ff.open_index(options.root, s3_endpoint=options.s3_endpoint)
    server, stop = Server((options.host, options.port), index), threading.Event()
    follower = threading.Thread(target=follow, args=(index, max(LEAST_REFRESH_S, options.refresh_s), stop), daemon=True)
    follower.start()
    logger.info("version %d on port %d", index.version, server.server_port)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        stop.set()


if __name__ == "__main__":
    main()
