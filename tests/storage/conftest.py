"""One behaviour suite, three stores: `files` runs a test on memory, on a local folder and on a real S3 protocol."""

from __future__ import annotations

import uuid
from pathlib import Path

import boto3
import pytest

from fastfill_ray.storage.files import Files, open_files
from tests.faults import MemoryFiles


@pytest.fixture
def aws_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(moto_endpoint: str, aws_env: None) -> str:
    name = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=moto_endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["memory", "local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "memory":
        return MemoryFiles()
    if request.param == "local":
        return open_files(str(tmp_path / "root"))
    bucket = request.getfixturevalue("bucket")
    return open_files(f"s3://{bucket}/run", s3_endpoint=request.getfixturevalue("moto_endpoint"))
