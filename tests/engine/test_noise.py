"""What of Ray's own lines reaches people: nothing that nobody can act on, and nothing of it on stdout."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import redirect_stdout

import pytest

from fastfill_ray.engine import noise

DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, "
    "check the logs for the dead worker. Lease ID: 0d Worker ID: 6c Worker IP address: 10.0.0.2 Worker port: 45195 "
    "Worker PID: 4992 Worker exit type: SYSTEM_ERROR"
)


@pytest.mark.parametrize("prefix", ["(raylet) ", "\x1b[33m(raylet)\x1b[0m ", "(raylet, ip=10.0.0.2) "])
def test_what_a_node_prints_on_stdout_becomes_a_line_of_ours(prefix: str) -> None:
    said, stdout = list[str](), io.StringIO()
    with redirect_stdout(stdout):
        with noise.filtered(said.append):
            print("a result")
            print(f"{prefix}{DIED}")
            print(f"{prefix}The node is low on disk.\nWrite less.")
            print(f"{prefix}Task submit failed. Error: The actor is dead because it was killed by `ray.kill`.")
            print("another")
        print("after")
    assert stdout.getvalue() == "a result\nanother\nafter\n"
    assert said == [
        "Ray: worker process 4992 has died (a crash, a kill, or no memory); what it had begun is done again.",
        "Ray: The node is low on disk. Write less.",
    ]


def test_lines_of_rays_loggers_that_say_nothing_are_left_out_and_others_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = list[str]()
    with noise.filtered(said.append), caplog.at_level(logging.WARNING):
        reads = logging.getLogger("ray.data._internal.logical.rules.set_read_parallelism")
        reads.warning("⚠️  The requested number of read blocks of 9000 is more than 4x the number of CPU slots")
        reads.warning("something else")
        tokens = logging.getLogger("ray._private.authentication.authentication_token_setup")
        tokens.warning("Token authentication is enabled for this Ray cluster. Set RAY_AUTH_MODE=disabled to opt out.")
        assert said == []
        tokens.warning("Token authentication is disabled for this Ray cluster. Anyone can ...")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert len(said) == 1
    assert said[0].startswith("Ray on this machine asks for no token")
    assert not reads.filters


def test_while_ray_starts_stderr_is_held_back_but_for_the_line_about_the_level(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    stderr = sys.stderr

    def start() -> None:
        with noise.quiet_start():
            assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "fatal"
            os.write(2, b"[I] logging.cc:303: Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\n")
            os.write(2, b"[C] a check failed\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert capfd.readouterr().err == "[C] a check failed\n"
    assert sys.stderr is stderr


def test_a_level_that_the_user_has_set_counts_and_nothing_is_held_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_BACKEND_LOG_LEVEL": "debug"})
    with noise.quiet_start():
        os.write(2, b"[D] at once\n")
        assert capfd.readouterr().err == "[D] at once\n"
    assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "debug"
