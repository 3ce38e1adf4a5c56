"""The commands that need no cluster: what they print, where, and what they exit with."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from fastfill_ray import errors
from fastfill_ray.cli import job, main
from fastfill_ray.errors import EmbedderError, FastfillError, Fenced
from fastfill_ray.index.segment_list import segments_of
from fastfill_ray.log.records import Publish
from fastfill_ray.log.state import State
from fastfill_ray.report.result import BackfillResult
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.heartbeat import Heartbeat, find_drivers
from tests.index.test_reader import DIM, Root
from tests.index.test_segment import vectors
from tests.index.test_verify import segment

IDS = ["kettle", "lamp", "mug", "nail", "oar"]


class FirstItem:
    """A new model for which every text is item 0 of the gallery below; it prints, as some libraries do."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> NDArray[np.float32]:
        assert role == "query"
        print("hello")
        return np.repeat(vectors(len(IDS))[:1], len(batch["text"]), axis=0)


class ColumnName:
    """A new model that says which column it was given."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> NDArray[np.float32]:
        raise EmbedderError(" and ".join(batch))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Version 1 is served; version 0 holds the same items."""
    root = Root(tmp_path / "root", id_type="string")
    root.commit(segment(root, IDS))
    root.count = 0  # the same vectors again
    root.commit(segment(root, IDS))
    return root


@pytest.fixture
def run(root: Root, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on `root`: exit code, stdout, stderr."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        code = main([command, str(root.path), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Run = Callable[..., tuple[int, str, str]]


def save(path: Path, array: Any) -> str:
    np.save(path, array, allow_pickle=True)
    return str(path)


# status


def test_status_shows_a_row_per_version_and_which_one_is_served(run: Run) -> None:
    code, out, err = run("status")
    rows = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [row[0] for row in rows[-2:]] == ["0", "1"]
    assert "not compared, served" in out.splitlines()[-1]


def test_status_as_json_says_what_the_log_says(run: Run) -> None:
    code, out, err = run("status", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["serving"], found["finished"], len(found["versions"])) == (1, False, 2)


def test_status_of_a_place_without_a_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "data").mkdir()
    assert main(["status", str(tmp_path / "data")]) == 2
    assert "an empty folder; no run has begun here" in capsys.readouterr().err
    (tmp_path / "data" / "part.parquet").write_bytes(b"x")
    assert main(["status", str(tmp_path / "data")]) == 2
    assert "nothing of a run lies here, but part.parquet. Give the folder" in capsys.readouterr().err


def test_results_whose_reader_has_left_are_no_error(root: Root) -> None:
    command = [sys.executable, "-m", "fastfill_ray.cli", "status", str(root.path)]
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writes)
    assert (ended.returncode, ended.stderr) == (0, "")


# search


def test_search_prints_query_rank_score_and_id_best_first(run: Run, tmp_path: Path) -> None:
    items = vectors(len(IDS))
    queries = save(tmp_path / "queries.npy", items[[2, 0]])
    code, out, err = run("search", "--vectors", queries, "-k", "3")
    assert (code, err) == (0, "")
    heading, *rows = [line.split() for line in out.splitlines()]
    assert heading == ["query", "rank", "score", "id"]
    scores = items[[2, 0]] @ items.T
    best = np.argsort(-scores, axis=1)[:, :3]
    assert [row[:2] for row in rows] == [[str(q), str(rank)] for q in range(2) for rank in (1, 2, 3)]
    assert [row[3] for row in rows] == [IDS[i] for i in best.reshape(-1)]
    assert [float(row[2]) for row in rows] == pytest.approx(
        np.take_along_axis(scores, best, axis=1).reshape(-1), abs=1e-4
    )


def test_search_of_one_query_numbers_no_query(run: Run, tmp_path: Path) -> None:
    out = run("search", "--vectors", save(tmp_path / "queries.npy", vectors(1)), "-k", "1")[1]
    assert [line.split()[:2] for line in out.splitlines()] == [["rank", "score"], ["1", out.split()[4]]]


def test_search_as_json_holds_the_version_and_as_many_hits_as_there_are(run: Run, tmp_path: Path) -> None:
    queries = save(tmp_path / "queries.npy", vectors(1).astype(np.float64))
    for arguments, version in (([], 1), (["--version", "0"], 0)):
        code, out, _ = run("search", "--vectors", queries, "-k", "50", "--json", *arguments)
        found = json.loads(out)
        assert (code, found["version"]) == (0, version)
        assert sorted(hit["id"] for hit in found["hits"][0]) == IDS
        assert all(isinstance(hit["score"], float) for hit in found["hits"][0])


def test_search_embeds_a_text_with_the_new_model_of_the_config(run: Run, tmp_path: Path) -> None:
    config = {
        "gallery": {"path": "g", "payload_columns": ["text"], "label_column": "l"},
        "new_model": {"embedder": "tests.test_cli:FirstItem", "dim": DIM, "metric": "ip"},
        "output": "out",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    code, out, _ = run("search", "--text", "something to boil water", "--config", str(path), "-k", "5", "--json")
    hits = json.loads(out)["hits"][0]
    scores = vectors(len(IDS)) @ vectors(len(IDS))[0]
    assert code == 0
    assert [hit["id"] for hit in hits] == [IDS[i] for i in np.argsort(-scores)]


@pytest.mark.parametrize(
    ("sections", "arguments", "column"),
    [
        ({"gallery": {"payload_columns": ["body"]}}, [], "body"),
        ({"gallery": {"payload_columns": ["title", "text"]}}, [], "text"),
        ({"gallery": {"payload_columns": ["title", "body"]}}, ["--column", "body"], "body"),
        ({"queries": {"path": "q", "payload_columns": ["question"]}}, [], "question"),
        ({"gallery": {"payload_columns": ["title", "body"]}}, [], "--text: the payload columns are title, body; say"),
        ({}, ["--column", "txt"], "--column txt: the payload columns are text; name one of them"),
    ],
)
def test_a_text_stands_for_the_only_payload_column_or_the_one_that_is_named(
    run: Run, tmp_path: Path, sections: dict[str, Any], arguments: list[str], column: str
) -> None:
    config: dict[str, Any] = {
        "gallery": {"path": "g", "payload_columns": ["text"], **sections.get("gallery", {})},
        "new_model": {"embedder": "tests.test_cli:ColumnName", "dim": DIM, "metric": "ip"},
        "output": "out",
    }
    if "queries" in sections:
        config["queries"] = sections["queries"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("search", "--text", "x", "--config", str(tmp_path / "config.yaml"), "--json", *arguments)
    assert (code, column in err) == (2 if " " in column else 1, True)
    assert " " in column or err.startswith("loading the new model, tests.test_cli:ColumnName ...\n")


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (vectors(2)[:, :-1], "SpaceMismatch: queries have dim 7"),
        (vectors(2)[0], "ConfigError: {path}: queries are float32 (8,), expected numbers of shape (Q, 8)"),
        (np.full((1, DIM), np.nan), "ConfigError: {path}: vector 0 holds values that are not finite"),
        (np.array([["a"] * DIM]), "ConfigError: {path}: queries are <U1"),
        (np.array([{"a": 1}], object), "ConfigError: --vectors {path}: a .npy array (Q, 8) is expected"),
    ],
    ids=["dim", "shape", "nan", "text", "pickled"],
)
def test_queries_that_cannot_be_searched_are_refused(run: Run, tmp_path: Path, array: Any, told: str) -> None:
    path = save(tmp_path / "queries.npy", array)
    code, out, err = run("search", "--vectors", path)
    assert (code, out) == (2, "")
    assert err.startswith(told.format(path=path))


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", None])
def test_a_file_that_holds_no_queries_is_refused_by_name(run: Run, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "queries.npy"
    if content is not None:
        path.write_bytes(content)
    code, _, err = run("search", "--vectors", str(path))
    assert code == 2
    assert err.startswith(f"ConfigError: --vectors {path}: a .npy array (Q, 8) is expected")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--text", "x"], "ConfigError: --text needs --config"),
        (["--text", "x", "-k", "0"], "ConfigError: -k 0: at least 1 is expected"),
        (["--vectors", "missing.npy", "--version", "9"], "NotPublished: "),
        (["--text", "x", "--config", "missing.yaml"], "ConfigError: missing.yaml: cannot be read"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(run: Run, arguments: list[str], told: str) -> None:
    code, out, err = run("search", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(told)


# verify


def test_verify_counts_what_is_whole(run: Run) -> None:
    code, out, err = run("verify")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"version {version}: 1 segments, 5 ids, each exactly once" for version in (0, 1)]
    code, out, _ = run("verify", "--version", "1", "--json")
    assert (code, json.loads(out)) == (0, [{"version": 1, "segments": 1, "rows": 5, "deleted": 0}])


def test_verify_names_what_is_damaged_and_exits_1(run: Run, root: Root) -> None:
    path = segments_of(root.files, read_state(root.files).versions[0])[0].ids.path
    root.files.put_data(path, b"something else")
    code, out, err = run("verify")
    assert (code, out) == (1, "")
    assert err.startswith("CorruptFile: ")
    assert path in err


def test_verify_of_what_is_not_there_is_refused(run: Run, root: Root) -> None:
    assert run("verify", "--version", "5")[0] == 2
    for path in root.files.list("log"):
        root.files.delete(path)
    code, out, err = run("verify")
    assert (code, out) == (2, "")
    assert "there is no log here" in err


# rollback


def test_rollback_publishes_the_earlier_version_and_says_which_was_before(run: Run, root: Root) -> None:
    code, out, err = run("rollback", "--to", "0")
    assert (code, out, err) == (0, "version 0 is published (before: 1)\n", "")
    assert read_state(root.files).serving == 0
    code, out, _ = run("rollback", "--to", "1", "--json")
    assert (code, json.loads(out)) == (0, {"published": 1, "before": 0})
    assert read_state(root.files).serving == 1


def test_rollback_fences_a_driver_that_is_running(run: Run, root: Root) -> None:
    run("rollback", "--to", "0")
    root.log.read()
    with pytest.raises(Fenced, match="another one has claimed"):
        root.log.append(Publish(version=1))
    assert read_state(root.files).serving == 0


def test_a_version_that_is_damaged_or_unknown_is_not_put_in_front_of_users(run: Run, root: Root) -> None:
    records = root.files.list("log")
    assert run("rollback", "--to", "7")[0] == 2
    root.files.delete(segments_of(root.files, read_state(root.files).versions[0])[0].index.path)
    code, out, err = run("rollback", "--to", "0")
    assert (code, out) == (1, "")
    assert err.startswith("FileMissing: ")
    assert root.files.list("log") == records


# delete and undelete


def test_delete_and_undelete_say_how_many_ids_which_record_and_when_it_is_seen(
    run: Run, root: Root, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("lamp\nno such thing\n\nlamp\n")
    first = root.log.state.next_seq
    code, out, err = run("delete", "--ids", str(ids))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"Record {first}: DELETE of 2 ids, whether or not a version holds them.",
        "Readers leave them out from their next refresh() on. Their bytes stay under the root.",
    ]
    code, out, err = run("undelete", "--ids", str(ids))
    assert (code, err) == (0, "")
    assert out.startswith(f"Record {first + 1}: UNDELETE of 2 ids")
    code, out, _ = run("delete", "--ids", str(ids), "--json")
    assert (code, json.loads(out)) == (0, {"kind": "DELETE", "ids": 2, "record": first + 2})
    assert [d.kind for d in read_state(root.files).deletions] == ["DELETE", "UNDELETE", "DELETE"]


def test_status_and_search_follow_a_delete_and_an_undelete(run: Run, root: Root, tmp_path: Path) -> None:
    ids, queries = tmp_path / "ids.txt", save(tmp_path / "queries.npy", vectors(1))
    ids.write_text("lamp\nno such thing\n")

    def found() -> set[str]:
        return {hit["id"] for hit in json.loads(run("search", "--vectors", queries, "--json")[1])["hits"][0]}

    assert json.loads(run("status", "--json")[1])["deleted"] == {"ids": 0, "in_served": 0}
    run("delete", "--ids", str(ids))
    assert run("status")[1].splitlines()[-1] == (
        "2 ids are deleted: searches leave them out, whatever version is opened."
    )
    assert json.loads(run("status", "--json")[1])["deleted"] == {"ids": 2, "in_served": None}
    assert found() == set(IDS) - {"lamp"}
    run("rollback", "--to", "0")
    assert found() == set(IDS) - {"lamp"}
    run("undelete", "--ids", str(ids))
    assert "deleted" not in run("status")[1]
    assert found() == set(IDS)


def test_delete_reads_standard_input_and_records_nothing_where_it_is_empty(
    run: Run, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = root.log.state.next_seq
    for text, ids, record in ((b"mug\noar", 2, before), (b"\n", 0, None)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        code, out, _ = run("delete", "--ids", "-", "--json")
        assert (code, json.loads(out)) == (0, {"kind": "DELETE", "ids": ids, "record": record})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run("delete", "--ids", "-") == (0, "No id in -: nothing was recorded.\n", "")


def test_delete_leaves_a_driver_that_is_running_alone(run: Run, root: Root, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("mug\n")
    with Heartbeat(root.files):
        assert run("delete", "--ids", str(tmp_path / "ids"))[0] == 0
        assert len(find_drivers(root.files)) == 1
    assert root.log.append(Publish(version=0)).serving == 0


def test_a_delete_that_cannot_be_done_says_why_and_leaves_no_record(root: Root, run: Run, tmp_path: Path) -> None:
    records = root.files.list("")
    code, out, err = run("delete", "--ids", str(tmp_path / "none"))
    assert (code, out) == (1, "")
    assert err.startswith(f"InputError: ids {tmp_path}/none: a file with one id per line is expected")
    (tmp_path / "ids").write_text("mug\n")
    code, out, err = run("undelete", "--ids", str(tmp_path / "ids"))
    assert (code, out) == (2, "")
    assert "nothing was ever deleted here" in err
    assert root.files.list("") == records
    assert main(["delete", str(tmp_path / "nothing"), "--ids", str(tmp_path / "ids")]) == 2
    assert not (tmp_path / "nothing").exists()


# Help


@pytest.mark.parametrize(
    ("command", "told"),
    [("search", "hits per query (default: 10)"), ("simulate", "of every sample and of training (default: 0)")],
)
def test_help_says_the_defaults_that_say_something(command: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert told in out
    assert "(default: None)" not in out
    assert "(default: False)" not in out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastfill-ray {metadata.version('fastfill_ray')}\n"


# All


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("FastfillError", 1),
        ("InputError", 1),
        ("InputChanged", 1),
        ("CorruptFile", 1),
        ("QuarantineExceeded", 1),
        ("ConfigError", 2),
        ("SpaceMismatch", 2),
        ("StoreUnsupported", 2),
        ("NotPublished", 2),
        ("CommitStateUnknown", 74),
        ("Fenced", 75),
    ],
)
def test_every_error_has_its_exit_code_and_one_line_on_stderr(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    error: type[FastfillError] = getattr(errors, name)

    def fail(files: object) -> None:
        raise error("what was found, what was expected")

    monkeypatch.setattr("fastfill_ray.report.status.read_state", fail)
    assert run("status") == (code, "", f"{name}: what was found, what was expected\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["status"],
        ["search", "root"],
        ["search", "root", "--vectors", "a", "--text", "b"],
        ["rollback", "root"],
        ["delete", "root"],
        ["verify", "root", "--version", "one"],
        ["run"],
    ],
)
def test_a_command_line_that_makes_no_sense_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: fastfill-ray" in capsys.readouterr().err


@pytest.mark.parametrize("command", [lambda *a: main(["run", *a]), lambda *a: job(a)], ids=["fastfill-ray", "job"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "waves=[2]"], "waves is [2.0]"),
        (["--set", "new_model.size=2"], "new_model.size: unknown key"),
        (["--until", "wave:9"], "--until wave:9: plan, version0 or wave:K with K from 1 to 5 is expected"),
        (["--set", "gallery.path=/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing_behind(
    command: Callable[..., int],
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {
        "gallery": {"path": str(tmp_path / "gallery"), "payload_columns": ["text"], "label_column": "l"},
        "new_model": {"embedder": "tests.test_cli:FirstItem", "dim": DIM},
        "output": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert command("--config", str(path), *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [lambda *a: main(["run", *a]), lambda *a: job(a)], ids=["fastfill-ray", "job"])
def test_a_run_puts_nothing_but_its_results_on_stdout_and_says_what_goes_on(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "gallery": {"path": str(tmp_path / "gallery"), "payload_columns": ["text"]},
        "new_model": {"embedder": "tests.test_cli:FirstItem", "dim": DIM},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "my config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)

    def run_backfill(*_: object, **__: object) -> BackfillResult:
        print("a library says hello")
        return BackfillResult("out", State(), finished=False, item_s=0.5)

    monkeypatch.setattr("fastfill_ray.backfill.run_backfill", run_backfill)
    arguments = ["--config", "my config.yaml", "--set", "seed=1", "--until", "plan"]
    assert command(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "a library says hello\n"
    assert re.search(r"\nGo on: .* --config 'my config.yaml' --set seed=1\n$", printed.out)
    assert "hello" not in printed.out
    assert command(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["item_s"] == 0.5
