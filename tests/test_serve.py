"""The service in docs/serve.py, run as a script: it answers as the index does, and follows what is published."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fastfill_ray as ff
from tests.index.test_reader import OLD_DIM
from tests.index.test_segment import vectors
from tests.stages.test_export import mixed

REPOSITORY = Path(__file__).parents[1]


@contextmanager
def served(root: Path) -> Iterator[int]:
    """The port."""
    command = [sys.executable, str(REPOSITORY / "docs" / "serve.py"), str(root), "--port", "0", "--refresh-s", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    try:
        assert process.stderr is not None
        port = re.search(r"version 0 on port (\d+)", process.stderr.readline())
        assert port is not None
        yield int(port[1])
    finally:
        process.kill()
        process.wait()


def ask(port: int, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_the_service_answers_as_the_index_does_and_follows_what_is_published(tmp_path: Path) -> None:
    made = mixed(tmp_path, "ip", 0.4)
    made.root.commit(made.new, *made.stale.values())
    queries, old = vectors(8, seed=7), vectors(8, OLD_DIM, seed=8)
    scores, ids = ff.open_index(str(tmp_path)).search(queries, 5, old_queries=old)

    def search(query: int) -> tuple[int, dict[str, Any]]:
        body = {"queries": queries[[query]].tolist(), "old_queries": old[[query]].tolist(), "k": 5}
        return ask(port, "/search", body)

    with served(tmp_path) as port:
        with ThreadPoolExecutor(4) as pool:  # several at a time
            answers = list(pool.map(search, range(8)))
        assert [answer["ids"][0] for _, answer in answers] == ids.tolist()
        np.testing.assert_allclose([answer["scores"][0] for _, answer in answers], scores, rtol=1e-5)
        assert ask(port, "/version") == (200, {"version": 0, "rows": 120, "needs_old_queries": True})
        status, answer = ask(port, "/search", {"queries": queries.tolist()})
        assert (status, "old_queries" in answer["error"]) == (400, True)
        assert ask(port, "/search", {"queries": [[1.0]]})[0] == 400
        assert ask(port, "/search", ["no object"])[0] == 400
        assert ask(port, "/other")[0] == 404
        status, answer = ask(
            port, "/search", {"queries": queries[:1].tolist(), "old_queries": old[:1].tolist(), "k": 500}
        )
        assert (status, len(answer["ids"][0])) == (200, 120)

        made.root.commit(made.new, made.root.segment(vectors(90, seed=5), made.names[30:]))
        while ask(port, "/version")[1]["version"] == 0:
            time.sleep(0.05)
        assert ask(port, "/version")[1] == {"version": 1, "rows": 120, "needs_old_queries": False}


def test_what_is_asked_is_bounded(tmp_path: Path) -> None:
    made = mixed(tmp_path, "ip", None)
    made.root.commit(made.new, *made.stale.values())
    query = vectors(1, seed=7).tolist()
    with served(tmp_path) as port:
        for k, expected in ((10**9, 120), (0, None), (-1, None), ("many", None), (1e400, None), (float("nan"), None)):
            status, answer = ask(port, "/search", {"queries": query, "k": k})
            assert (status, len(answer["ids"][0]) if expected else None) == (200 if expected else 400, expected)
        for body in (
            {"queries": "abc"},
            {"queries": [[float("nan")] * 8]},
            {"queries": {}},
            {},
            3,
            "[" * 9,
        ):
            assert ask(port, "/search", body)[0] == 400
        for headers, body in (
            ({"Content-Length": str(1 << 40)}, b""),  # nothing of it is read
            ({"Content-Length": "-1"}, b""),
            ({"Content-Length": "9" * 40}, b""),
            ({"Content-Length": "100000"}, b"[" * 100_000),
            ({"Content-Length": "2"}, b"{]"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.putrequest("POST", "/search")
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answered = connection.getresponse()
            assert (answered.status, "error" in json.loads(answered.read())) == (400, True)
        assert ask(port, "/version")[0] == 200
