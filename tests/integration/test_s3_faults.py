"""Whole runs from S3 to S3 through a proxy that mistreats every tenth request.

`pytest -m slow -s tests/integration/test_s3_faults.py` prints, per kind of fault, what was met, starts and the longest
call.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

import fastfill_ray as ff
from fastfill_ray.errors import StorageError
from fastfill_ray.index.verify import verify
from fastfill_ray.storage import s3_client
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.s3 import S3Files
from fastfill_ray.storage.s3_client import Limits, PatientClient
from tests import synthetic
from tests.integration.cluster import REPOSITORY
from tests.integration.conftest import Run, Workshop, in_process
from tests.s3_proxy import FAULTS, Fault, S3Proxy

STARTS = 2
# A silence costs the first figure; the second leaves room for ten more faults in a row.
HASTY = Limits(request_s=0.3, call_s=30.0)
TRAINING_WORKER = True  # Ray Train's checkpoints go through the faults, too


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every call to S3 of this process, and of every commit with all that it asks."""
    seconds: list[float] = []
    call, commit = PatientClient._make_api_call, S3Files.put_new

    async def timed_call(self: PatientClient, operation_name: str, api_params: dict[str, Any]) -> Any:
        start = time.monotonic()
        try:
            return await call(self, operation_name, api_params)
        finally:
            seconds.append(time.monotonic() - start)

    def timed_commit(self: S3Files, path: str, data: bytes) -> bool:
        start = time.monotonic()
        try:
            return commit(self, path, data)
        finally:
            seconds.append(time.monotonic() - start)

    monkeypatch.setattr(PatientClient, "_make_api_call", timed_call)
    monkeypatch.setattr(S3Files, "put_new", timed_commit)
    return seconds


@pytest.fixture
def on_s3(workshop: Workshop, bucket: str, moto_endpoint: str) -> dict[str, Any]:
    """A config whose inputs are on S3, without output and endpoint."""
    client = boto3.client("s3", endpoint_url=moto_endpoint)
    for folder in ("gallery", "queries"):
        for file in (workshop.folder / folder).iterdir():
            client.upload_file(str(file), bucket, f"{folder}/{file.name}")
    config = synthetic.config(workshop.folder, **synthetic.with_queries(Path("s3:") / bucket))
    for section, key in (("queries", "path"), ("queries", "qrels_path")):
        config[section][key] = config[section][key].replace("s3:/", "s3://")
    config["gallery"]["path"] = f"s3://{bucket}/gallery"
    return {**config, "waves": [1.0], "resources": {"embed_actors": [1, 1], "chunk_rows": 200}}


def finish(run: Run, config: dict[str, Any], bucket: str, proxy: S3Proxy) -> int:
    """Starts until a run is through; what it leaves is whole."""
    root = f"s3://{bucket}/{uuid.uuid4().hex}"
    for start in range(1, STARTS + 1):
        try:
            result = run({**config, "output": root, "storage": {"s3_endpoint": proxy.endpoint}})
        except StorageError as error:
            print(f"start {start}: {error}")
            continue
        assert result.finished
        proxy.rate = 0.0
        assert len(verify(open_files(root, s3_endpoint=proxy.endpoint))) == len(config["waves"]) + 1
        return start
    pytest.fail(f"not through after {STARTS} starts")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "LIMITS", HASTY)


@pytest.mark.slow
def test_a_run_through_every_kind_of_fault_ends_in_two_starts(
    on_s3: dict[str, Any], bucket: str, moto_endpoint: str, hasty: None
) -> None:
    with S3Proxy(moto_endpoint, rate=0.1) as proxy:
        finish(in_process, on_s3, bucket, proxy)
        assert sum(proxy.injected().values()) > 10


KINDS: dict[str, list[Fault]] = {
    "silence": ["silence_before", "silence_after", "silence_middle"],
    "lost answers": ["drop_after", "error_after"],
    "dropped": ["drop_before", "error_before"],
    "busy": ["busy"],
    "resets": ["reset_before", "reset_middle"],
    "conflict": ["conflict"],
    "delay": ["delay"],
    "all": list(FAULTS),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_through_one_kind_of_fault_ends_in_two_starts_and_no_call_is_late(
    on_s3: dict[str, Any], bucket: str, moto_endpoint: str, calls: list[float], hasty: None, kind: str, seed: int
) -> None:
    with S3Proxy(moto_endpoint, rate=0.1, kinds=KINDS[kind], seed=seed) as proxy:
        starts = finish(in_process, on_s3, bucket, proxy)
    met = dict(proxy.injected())
    print(
        f"\n{kind}, seed {seed}: {len(proxy.handled)} requests, {met}; {starts} starts; "
        f"{len(calls)} calls, the longest {max(calls):.1f} s, limit {HASTY.call_s:.0f} s; "
        f"the longest connection {max(each.seconds for each in proxy.handled):.1f} s"
    )
    assert met
    assert max(calls) < HASTY.call_s


@pytest.mark.slow
def test_a_run_on_ray_with_the_limits_of_the_product_ends_in_two_starts(
    on_s3: dict[str, Any], bucket: str, moto_endpoint: str, calls: list[float], ray_session: None
) -> None:
    with S3Proxy(moto_endpoint, rate=0.1) as proxy:
        starts = finish(ff.run_backfill, {**on_s3, "alignment": {"method": "fct"}}, bucket, proxy)
    longest, met = max(proxy.handled, key=lambda each: each.seconds), dict(proxy.injected())
    print(f"\nRay: {len(proxy.handled)} requests, {met}; {starts} starts; the longest request: {longest}")
    print(f"{len(calls)} calls of the driver, the longest {max(calls):.1f} s, limit {s3_client.LIMITS.call_s:.0f} s")
    assert max(calls) < s3_client.LIMITS.call_s


@pytest.mark.slow  # a minute of silence
def test_a_commit_that_is_never_answered_ends_the_process_with_74_and_the_same_command_goes_on(
    on_s3: dict[str, Any], bucket: str, moto_endpoint: str, tmp_path: Path
) -> None:
    with S3Proxy(moto_endpoint, rate=1.0, kinds=["silence_before"]) as proxy:
        proxy.where = "^PUT .*/log/"
        config = tmp_path / "config.yaml"
        config.write_text(
            yaml.safe_dump({**on_s3, "output": f"s3://{bucket}/run", "storage": {"s3_endpoint": proxy.endpoint}})
        )
        command = [sys.executable, "jobs/backfill.py", "--config", str(config)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = str(REPOSITORY)

        def start() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False
            )

        ended = start()
        seconds = time.monotonic() - min(each.started for each in proxy.handled if each.fault != "pass")
        assert ended.returncode == 74, ended.stderr
        last = ended.stderr.strip().splitlines()[-1]
        assert "CommitStateUnknown" in last
        assert "Nothing was deleted; run the same command again" in last
        print(f"\nexit code 74, {seconds:.0f} s after the commit was sent: {last}")
        proxy.rate = 0.0
        again = start()
        assert again.returncode == 0, again.stderr
