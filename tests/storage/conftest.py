"""One behaviour suite, four stores: `files` is memory, an overlay, a local folder, and a real S3 protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.overlay import Overlay
from tests.faults import MemoryFiles


@pytest.fixture(params=["memory", "overlay", "local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "memory":
        return MemoryFiles()
    if request.param == "overlay":
        return Overlay(MemoryFiles(), MemoryFiles())
    if request.param == "local":
        return open_files(str(tmp_path / "root"))
    bucket = request.getfixturevalue("bucket")
    return open_files(f"s3://{bucket}/run", s3_endpoint=request.getfixturevalue("moto_endpoint"))
