"""An embedder in a process of its own: whatever it does to that process costs its own rows and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastfill_ray.embedders import isolated
from fastfill_ray.embedders.isolated import CallJournal, IsolatedEmbedder
from fastfill_ray.embedders.protocol import embed_rows
from fastfill_ray.embedders.watchdog import build_limit_s
from fastfill_ray.errors import EmbedderError
from tests.deadly import DIM, notes, vector_of, wait_until_gone

REPOSITORY = Path(__file__).parent.parent.parent
SPEC = "tests.deadly:Deadly"
LONG_S = 120.0


class Calls:
    """A journal of this process."""

    def __init__(self) -> None:
        self.open = Counter[str]()

    def begin(self, call: str) -> int:
        self.open[call] += 1
        return self.open[call] - 1

    def end(self, call: str) -> None:
        del self.open[call]


def embed(
    rows: list[str],
    *,
    call_timeout_s: float = LONG_S,
    journal: CallJournal | None = None,
    folder: Path | None = None,
    build: str = "",
) -> tuple[np.ndarray, dict[int, str]]:
    kwargs = {"build": build, "folder": str(folder) if folder else ""}
    with IsolatedEmbedder("pairs/c0", SPEC, kwargs, call_timeout_s, journal or Calls()) as embedder:
        return embed_rows(embedder, {"x": rows}, "item", DIM, metric="ip")


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("exit", "killed the process: exit code 3"),
        ("segfault", "killed the process: signal 11 SIGSEGV"),
        ("kill", "killed the process: signal 9 SIGKILL (out of memory?)"),
        ("fork", "killed the process: exit code 5"),
    ],
)
def test_the_row_that_kills_the_process_stands_alone(deed: str, reason: str, tmp_path: Path) -> None:
    rows = ["0", "1", deed, "3"]
    vectors, unusable = embed(rows, folder=tmp_path)
    assert unusable == {2: reason}
    expected = [0 if row == deed else vector_of(row) for row in rows]
    np.testing.assert_array_equal(vectors[:, 0], expected)
    assert len(notes(tmp_path, "built")) == 1 + 3, "a process lives as long as it can: one more for each death"


def test_the_row_that_never_answers_stands_alone() -> None:
    vectors, unusable = embed(["0", "backtrack"], call_timeout_s=2)
    assert unusable == {1: "no answer within 2 s (resources.call_timeout_s)"}
    assert vectors[0, 0] == 1


def test_what_is_raised_there_is_told_as_if_it_were_raised_here(tmp_path: Path) -> None:
    _, unusable = embed(["0", "raise", "SystemExit", "KeyboardInterrupt", "GeneratorExit"], folder=tmp_path)
    assert unusable == {
        1: "embedder raised ValueError: cannot be read",
        2: "embedder raised SystemExit: 0",
        3: "embedder raised KeyboardInterrupt:",
        4: "embedder raised GeneratorExit:",
    }
    assert len(notes(tmp_path, "built")) == 1
    with pytest.raises(EmbedderError, match=r"^the key has expired$"):
        embed(["0", "refuse"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("exit", r"'tests\.deadly:Deadly' cannot be built: killed the process: exit code 3\..*workers' logs"),
        ("segfault", r"cannot be built: killed the process: signal 11 SIGSEGV"),
        ("sleep", r"cannot be built: no answer within 1\.2 s \(a multiple of resources\.call_timeout_s\)"),
        ("SystemExit", r"its constructor, called with kwargs \['build', 'folder'\], raised "),
    ],
)
def test_an_embedder_that_cannot_be_built_ends_the_run(build: str, message: str) -> None:
    with pytest.raises(EmbedderError, match=message):
        embed(["0"], build=build, call_timeout_s=0.2 if build == "sleep" else LONG_S)


def test_building_may_take_longer_than_a_call(tmp_path: Path) -> None:
    assert build_limit_s(3) == 18
    assert embed(["0"], build="slow", call_timeout_s=1.5)[1] == {}


def test_an_embedder_that_kills_process_after_process_ends_the_run_after_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isolated._MAX_DEATHS_IN_A_ROW > 1 + 10, "one bad row of a batch of 1024 must not look like it"
    monkeypatch.setattr(isolated, "_MAX_DEATHS_IN_A_ROW", 4)
    with pytest.raises(EmbedderError, match=r"pairs/c0: .* ended 4 processes, no answer in between; .*exit code 3"):
        embed(["exit"] * 64, folder=tmp_path)
    assert len(notes(tmp_path, "built")) == 4


def test_rows_that_took_everything_down_are_not_called_again() -> None:
    """A batch that its caller did not outlive is halved at once; a row alone gets one more chance."""

    class Fallen(Calls):
        """Each call has been begun `before` times already."""

        before = 1

        def begin(self, call: str) -> int:
            return self.before

    assert embed(["0", "1"], journal=Fallen())[1] == {}
    Fallen.before = 2
    assert embed(["0"], journal=Fallen())[1] == {0: "killed the process, and the one that watched it (out of memory?)"}


def test_a_call_that_hangs_does_not_outlive_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                from tests.embedders.test_isolated import embed
                from pathlib import Path
                embed(["backtrack"], folder=Path({str(tmp_path)!r}))
            """),
        ],
        cwd=REPOSITORY,
    )
    deadline = time.monotonic() + 60
    while not notes(tmp_path, "called"):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    (child,) = notes(tmp_path, "called")
    assert child not in (parent.pid, os.getpid())
    wait_until_gone(child)
