"""One behaviour suite, three stores: `files` runs a test on memory, on a local folder and on a real S3 protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfill_ray.storage.files import Files, open_files
from tests.faults import MemoryFiles


@pytest.fixture(params=["memory", "local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "memory":
        return MemoryFiles()
    if request.param == "local":
        return open_files(str(tmp_path / "root"))
    bucket = request.getfixturevalue("bucket")
    return open_files(f"s3://{bucket}/run", s3_endpoint=request.getfixturevalue("moto_endpoint"))
