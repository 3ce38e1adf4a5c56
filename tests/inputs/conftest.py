"""Folders of input files, on a local disk and on S3."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.inputs.locate import InputStore

Place = tuple[str, InputStore]
Write = Callable[[dict[str, bytes]], Place]


def parquet(*values: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"name": list(values)}), sink)
    return sink.getvalue()


@pytest.fixture(params=["local", "s3"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes {name: bytes} below a folder; returns it, and the store that reads it."""
    if request.param == "local":
        return lambda files: (write_local(tmp_path / "gallery", files), InputStore())
    endpoint, bucket = request.getfixturevalue("moto_endpoint"), request.getfixturevalue("bucket")

    def write(files: dict[str, bytes]) -> Place:
        client = boto3.client("s3", endpoint_url=endpoint)
        for name, data in files.items():
            client.put_object(Bucket=bucket, Key=f"gallery/{name}", Body=data)
        return f"s3://{bucket}/gallery", InputStore(endpoint)

    return write


def write_local(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)
