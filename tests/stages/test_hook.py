"""The user's command: once per change that readers see, again where it failed, never in a version's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.cli import main
from fastfill_ray.log.records import Publish
from fastfill_ray.stages import hook
from fastfill_ray.stages.hook import tell
from tests.index.test_reader import Root
from tests.index.test_segment import vectors
from tests.living import small_gallery

WRITES = "import os, sys; open(sys.argv[1], 'a').write(' '.join(os.environ['FASTFILL_' + n] for n in " \
         "('VERSION', 'SEQUENCE')) + '\\n')"  # fmt: skip


def told(path: Path) -> list[tuple[int, int]]:
    """(version, sequence) of each call of the command that got so far."""
    return [(int(line.split()[0]), int(line.split()[1])) for line in path.read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path / "root")
    made.commit(made.segment(vectors(20, seed=1), range(20)))
    return made


def test_each_change_that_readers_see_is_told_once_with_its_sequence(root: Root, tmp_path: Path) -> None:
    command, said = (sys.executable, "-c", WRITES, str(tmp_path / "told")), []
    assert tell(root.files, root.log.read(), command, said.append)
    assert tell(root.files, root.log.read(), command, said.append)
    root.commit(root.segment(vectors(20, seed=2), range(20)))
    assert tell(root.files, root.log.read(), command, said.append)
    root.delete([3])
    root.log.claim()  # readers see nothing of it
    assert tell(root.files, root.log.read(), command, said.append)
    root.log.append(Publish(version=0, reason="rollback"))
    assert tell(root.files, root.log.read(), command, said.append)
    calls = told(tmp_path / "told")
    assert [version for version, _ in calls] == [0, 1, 1, 0]
    assert sorted({sequence for _, sequence in calls}) == [sequence for _, sequence in calls]
    assert not said


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ((sys.executable, "-c", "import sys; sys.exit('no connection')"), "ended with code 1: no connection"),
        (("/no/such/program",), "cannot be started: No such file or directory"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "took longer than 1 s and was ended"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), "was ended by signal 9"),
        ((sys.executable, "-c", "import sys; sys.exit(3)", "--password=hunter2-secret"), "--password=*** ended with"),
    ],
)
def test_a_failure_is_said_and_told_again(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(hook, "TIMEOUT_S", 1.0)
    said: list[str] = []
    assert not tell(root.files, root.log.read(), command, said.append)
    assert expected in said[0]
    assert "Version 0 stays published" in said[0]
    monkeypatch.setattr(hook, "TIMEOUT_S", 60.0)
    assert tell(root.files, root.log.read(), (sys.executable, "-c", WRITES, str(tmp_path / "told")), said.append)
    assert [version for version, _ in told(tmp_path / "told")] == [0]


def test_of_what_a_command_prints_only_the_end_is_kept(root: Root) -> None:
    """It prints 3 MB, waits until less is there, and prints on."""
    code = (
        "import os, sys, time\nfor _ in range(3): os.write(1, b'x' * 1_000_000 + b'\\n')\n"
        "while os.fstat(1).st_size > 1_000_000: time.sleep(0.05)\nsys.exit('no space in the store')"
    )
    said: list[str] = []
    assert not tell(root.files, root.log.read(), (sys.executable, "-c", code), said.append)
    assert "ended with code 1: no space in the store. Version 0 stays published" in said[0]


def test_a_machine_without_room_for_its_output_is_said(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    said: list[str] = []
    assert not tell(root.files, root.log.read(), (sys.executable, "-c", ""), said.append)
    assert "cannot be started: No such file or directory. Version 0 stays published" in said[0]


def test_nothing_is_told_where_nothing_is_published(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    assert tell(root.files, root.log.read(), ("/no/such/program",), pytest.fail)


def test_a_process_that_is_killed_in_the_command_tells_again_at_the_next_start(root: Root, tmp_path: Path) -> None:
    slow = f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(60)"
    code = (
        "import sys; from fastfill_ray.storage.files import open_files; from fastfill_ray.stages.hook import tell; "
        "from fastfill_ray.storage.commit_log import read_state; files = open_files(sys.argv[1]); "
        f"tell(files, read_state(files), [sys.executable, '-c', {slow!r}], print)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root.files.root])
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tell(root.files, root.log.read(), (sys.executable, "-c", WRITES, str(tmp_path / "told")), pytest.fail)
    assert len(told(tmp_path / "told")) == 1


def config_of(root: Root, folder: Path) -> dict[str, Any]:
    return {
        "gallery": {"path": "gallery", "payload_columns": ["x"]},
        "new_model": {"embedder": "m:E", "dim": 8},
        "serving": {"on_publish": [sys.executable, "-c", WRITES, str(folder / "told")]},
        "output": root.files.root,
    }


def test_rollback_and_delete_tell_the_hook_of_the_config_that_they_are_given(root: Root, tmp_path: Path) -> None:
    root.commit(root.segment(vectors(20, seed=2), range(20)))
    (tmp_path / "config.yaml").write_text(json.dumps(config_of(root, tmp_path)))
    (tmp_path / "ids.txt").write_text("3\n")
    assert main(["delete", root.files.root, "--ids", str(tmp_path / "ids.txt")]) == 0
    assert not (tmp_path / "told").exists()
    assert main(["rollback", root.files.root, "--to", "0", "--config", str(tmp_path / "config.yaml")]) == 0
    assert [version for version, _ in told(tmp_path / "told")] == [0]


def test_a_run_tells_a_command_that_fails_once_per_change(tmp_path: Path) -> None:
    fails = [sys.executable, "-c", f"{WRITES}\nsys.exit(3)", str(tmp_path / "told")]
    living = small_gallery(tmp_path / "here", serving={"on_publish": fails})
    living.run()
    of_run = [sequence for _, sequence in told(tmp_path / "told")]
    assert len(of_run) == len(set(of_run)) == 4  # one per published version
    living.run()  # the next start tells the last change again
    assert [sequence for _, sequence in told(tmp_path / "told")] == [*of_run, of_run[-1]]


@pytest.mark.parametrize("command", ["rollback", "delete"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [({"output": "elsewhere"}, "give the root's config"), ({"serving": {"on_publish": [""]}}, "a program is expected")],
)
def test_a_config_that_is_wrong_or_anothers_is_refused_before_anything_is_recorded(
    root: Root, tmp_path: Path, command: str, changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root.commit(root.segment(vectors(20, seed=2), range(20)))
    (tmp_path / "ids.txt").write_text("3\n")
    (tmp_path / "config.yaml").write_text(json.dumps({**config_of(root, tmp_path), **changes}))
    what = ["--to", "0"] if command == "rollback" else ["--ids", str(tmp_path / "ids.txt")]
    before = root.log.read()
    assert main([command, root.files.root, *what, "--config", str(tmp_path / "config.yaml")]) == 2
    assert told in capsys.readouterr().err
    assert root.log.read() == before
    assert not (tmp_path / "told").exists()


def test_the_roots_config_is_its_own_also_through_a_link(root: Root, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root.files.root)
    (tmp_path / "config.yaml").write_text(json.dumps(config_of(root, tmp_path)))
    command = ["rollback", str(tmp_path / "link"), "--to", "0", "--config", str(tmp_path / "config.yaml")]
    assert main(command) == 0
    assert [version for version, _ in told(tmp_path / "told")] == [0]
