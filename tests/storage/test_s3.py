"""Lost answers and other faults of a real S3 protocol; and a race on a server that keeps its word."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from pathlib import Path

import pytest
from aiobotocore.client import AioBaseClient
from pyarrow.fs import FSSpecHandler

from fastfill_ray.errors import CommitStateUnknown, StorageError
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.s3 import S3Files, S3FileSystem, s3_filesystem
from fastfill_ray.storage.s3_client import Limits
from tests.s3_proxy import FAULTS, Fault, S3Proxy
from tests.seaweed import seaweed as serving


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def one_proxy(moto_endpoint: str) -> Iterator[S3Proxy]:
    with S3Proxy(moto_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(one_proxy: S3Proxy) -> S3Proxy:
    """The module's proxy, so that clients can be used again, without a memory of other tests."""
    one_proxy.reset()
    return one_proxy


# What a silence costs a test. Where none is to come, a slow machine must not make one.
HASTY = Limits(request_s=0.3)


@pytest.fixture
def through(proxy: S3Proxy, bucket: str, request: pytest.FixtureRequest) -> S3Files:
    clock = Clock()
    silence = request.node.get_closest_marker("parametrize") and "silence" in request.node.callspec.params["fault"]
    limits = HASTY if silence else None
    return S3Files(f"{bucket}/run", proxy.endpoint, limits=limits, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("fault", ["drop_after", "error_after", "silence_after", "reset_middle", "silence_middle"])
def test_a_put_that_landed_but_lost_its_answer_is_ours(through: S3Files, proxy: S3Proxy, fault: Fault) -> None:
    proxy.faults = [fault]
    assert through.put_new("log/0", b"ours")
    assert through.get("log/0") == b"ours"


UNSEEN: list[Fault] = ["drop_before", "error_before", "conflict", "silence_before", "reset_before", "busy"]


@pytest.mark.parametrize("fault", UNSEEN)
def test_a_put_that_did_not_land_is_sent_again(through: S3Files, proxy: S3Proxy, fault: Fault) -> None:
    proxy.faults = [fault, fault]
    assert through.put_new("log/0", b"ours")
    assert through.get("log/0") == b"ours"
    assert proxy.puts == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_makes_a_second_writer_believe_that_it_won(through: S3Files, proxy: S3Proxy, fault: Fault) -> None:
    assert through.put_new("log/0", b"first")
    proxy.faults = [fault]
    assert not through.put_new("log/0", b"second")
    assert through.get("log/0") == b"first"


def test_at_the_deadline_the_outcome_is_unknown_and_nothing_is_deleted(through: S3Files, proxy: S3Proxy) -> None:
    proxy.faults = ["error_before"] * 100
    with pytest.raises(CommitStateUnknown, match=r"run/log/0.*same command again"):
        through.put_new("log/0", b"ours")
    assert 5 < proxy.puts < 100
    assert proxy.deletes == 0


@pytest.mark.parametrize("kind", ["silence_before", "silence_after", "busy"])
def test_a_store_that_never_recovers_ends_every_verb_at_its_deadline(
    proxy: S3Proxy, bucket: str, moto_endpoint: str, kind: Fault
) -> None:
    files = S3Files(f"{bucket}/run", proxy.endpoint, limits=Limits(request_s=0.2, call_s=1.0))
    S3Files(f"{bucket}/run", moto_endpoint).put_data("there", b"x")
    proxy.rate, proxy.kinds = 1.0, [kind]
    *repeated, commit = ends(
        lambda: files.get("there"),
        lambda: files.list("there"),
        lambda: files.put_data("there", b"x"),
        lambda: files.delete("there"),
        lambda: files.put_new("log/0", b"ours"),
    )
    for error in repeated:
        assert type(error) is StorageError
        assert re.search(r"s3://\S*run/there\S*: \w+ did not succeed in \d+ s \(\d+ tries\)", str(error))
        assert "same command again" in str(error)
    assert type(commit) is CommitStateUnknown
    assert commit.exit_code == 74


def ends(*calls: Callable[[], object]) -> list[BaseException | None]:
    """What calls raise that run side by side; they must end by themselves."""
    pool = ThreadPoolExecutor(len(calls))
    try:
        return [future.exception(timeout=60) for future in [pool.submit(call) for call in calls]]
    finally:
        pool.shutdown(wait=False)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "conflict"])
def test_what_may_be_repeated_is_repeated_until_it_succeeds(through: S3Files, proxy: S3Proxy, fault: Fault) -> None:
    def faulty(method: str) -> None:
        proxy.method, proxy.faults = method, [fault]

    faulty("PUT")
    through.put_data("a/b", b"x" * 1000)
    faulty("HEAD")
    assert through.get("a/b") == b"x" * 1000
    faulty("GET")
    assert through.get("a/b") == b"x" * 1000
    faulty("GET")
    assert through.list("") == ["a/b"]
    faulty("DELETE")
    through.delete("a/b")
    assert through.list("") == []
    assert proxy.faults == []


def test_a_connection_that_went_silent_is_closed_at_once(
    proxy: S3Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, kept = AioBaseClient._make_api_call, []

    async def keep(self: AioBaseClient, *args: object) -> object:
        answer = await call(self, *args)
        kept.append(answer)  # as a traceback may
        return dict(answer)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", keep)
    files = S3Files(f"{bucket}/run", proxy.endpoint, limits=HASTY)
    files.put_data("a", b"x" * 1000)
    proxy.method, proxy.faults = "GET", ["silence_middle"]
    assert files.get("a") == b"x" * 1000
    deadline = time.monotonic() + 30
    while proxy.open and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kept
    assert not proxy.open


def test_a_refusal_is_an_error_at_once_and_is_not_repeated(proxy: S3Proxy, bucket: str) -> None:
    files = S3Files(f"{bucket}/run", proxy.endpoint)
    proxy.rate, proxy.kinds = 1.0, ["denied"]
    for call in (
        lambda: files.get("a"),
        lambda: files.list(""),
        lambda: files.put_data("a", b"x"),
        lambda: files.delete("a"),
        lambda: files.put_new("a", b"x"),
    ):
        before = len(proxy.handled)
        with pytest.raises(StorageError, match="credentials") as caught:
            call()
        assert caught.type is StorageError
        assert len(proxy.handled) - before <= 2  # put_new looks what is there


def test_a_file_system_travels_as_its_endpoint_and_limits(proxy: S3Proxy, aws_env: None) -> None:
    filesystem = s3_filesystem(proxy.endpoint, HASTY)
    data = pickle.dumps(FSSpecHandler(filesystem))
    assert b"canary-secret" not in data
    assert pickle.loads(data).fs is filesystem


def test_a_missing_bucket_is_an_error_at_once(proxy: S3Proxy, aws_env: None) -> None:
    with pytest.raises(StorageError, match="no-such-bucket") as caught:
        S3Files("no-such-bucket/run", proxy.endpoint).put_new("log/0", b"x")
    assert caught.type is StorageError
    assert proxy.puts == 1


def test_missing_credentials_are_an_error_at_once(
    bucket: str, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageError, match="credentials") as caught:
        # Limits of its own: a client of its own, that has not seen the others' credentials.
        S3Files(f"{bucket}/run", proxy.endpoint, limits=Limits(call_s=59.0)).put_new("log/0", b"x")
    assert caught.type is StorageError


def test_a_server_error_is_retried_by_the_other_verbs(through: S3Files, proxy: S3Proxy) -> None:
    proxy.faults = ["error_before"]
    through.put_data("a", b"x")
    assert through.get("a") == b"x"


def test_an_object_of_several_parts_comes_back_whole(bucket: str, moto_endpoint: str) -> None:
    files = S3Files(bucket, moto_endpoint)
    data = os.urandom(1 << 20) * 101  # s3fs sends 100 MiB and more in parts
    files.put_data("index/big.faiss", data)
    found = files.stat("index/big.faiss")
    assert found is not None
    assert found.size == len(data)
    assert files.get("index/big.faiss") == data
    assert files.list("") == ["index/big.faiss"]


def test_an_upload_in_parts_whose_last_answer_is_lost_is_whole(
    through: S3Files, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3FileSystem, "pipe_file", partialmethod(S3FileSystem.pipe_file, chunksize=5 << 20))
    data = os.urandom(11 << 20)
    proxy.method, proxy.faults = "POST", ["drop_after", "drop_after"]  # begin the upload; end it
    through.put_data("index/big.faiss", data)
    assert through.get("index/big.faiss") == data


@pytest.fixture
def seaweed(tmp_path: Path, aws_env: None) -> Iterator[str]:
    """Endpoint of a real server with the bucket ``race``."""
    with serving(tmp_path, "race") as endpoint:
        yield endpoint


def _race(endpoint: str, writer: int, barrier: object, answers: object, keys: int) -> None:
    files = open_files("s3://race/run", s3_endpoint=endpoint)
    for key in range(keys):
        barrier.wait()  # type: ignore[attr-defined]
        answers.put((key, writer, files.put_new(f"log/{key}", f"writer {writer}".encode())))  # type: ignore[attr-defined]


@pytest.mark.slow  # the server now and then does not come up, and this suite is what a commit is judged by
def test_on_a_real_server_each_contended_name_has_one_winner(seaweed: str) -> None:
    keys, racers = 6, 3
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(racers), context.Queue()
    processes = [context.Process(target=_race, args=(seaweed, w, barrier, answers, keys)) for w in range(racers)]
    for process in processes:
        process.start()
    told = [answers.get(timeout=120) for _ in range(racers * keys)]
    for process in processes:
        process.join()
    winners = {key: writer for key, writer, won in told if won}
    assert sum(won for *_, won in told) == keys
    files = open_files("s3://race/run", s3_endpoint=seaweed)
    for key in range(keys):
        assert files.get(f"log/{key}") == f"writer {winners[key]}".encode()
