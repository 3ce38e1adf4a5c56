"""What the whole suite shares: dummy credentials for the S3 server that tests start, and one Ray per session."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

from fastfill_ray import sanitize

# No test may depend on how busy the machine is.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# Before any Ray worker starts: workers inherit them. Never real ones; servers under test listen on loopback only.
os.environ.update(
    AWS_ACCESS_KEY_ID="test-key",
    AWS_SECRET_ACCESS_KEY="test-secret",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
)
# As in engine/session.py: otherwise each wave of each test starts its workers anew.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
# How long a finished training may go unnoticed; Ray's default is 2.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


@pytest.fixture(autouse=True)
def _nothing_is_hidden_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's config makes secret in this process is none in the next test."""
    monkeypatch.setattr(sanitize, "_hidden", {})


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of our own with two CPUs, whatever else runs on the machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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


@pytest.fixture(scope="session", autouse=True)
def _no_syncs() -> Iterator[None]:
    """Processes die here, machines do not: the next start sees what was written. Syncs are a fifth of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
