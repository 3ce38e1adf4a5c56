"""Canaries: whatever an embedder does with its secrets, they are in nothing that a run prints, logs or stores.

What the embedder itself prints goes into Ray's worker logs as it is; that is the user's own code.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import yaml

import fastfill_ray as ff
from fastfill_ray.cli import main
from fastfill_ray.config import load_config
from fastfill_ray.engine.in_process import InProcessEngine
from fastfill_ray.errors import EmbedderError, QuarantineExceeded
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.embed import Models, make_job, pool_work
from fastfill_ray.storage.files import open_files
from tests import synthetic
from tests.integration.conftest import PAIRS, Workshop, in_process
from tests.leaky import PASSWORD, TOKEN, USER, VARIABLE
from tests.synthetic import marker

KWARGS = {"token": TOKEN, "login": {"user": USER, "password": PASSWORD}}
CANARY = re.compile(rb"Canary(Token|Password|User|Variable|Query)")


def config_of(workshop: Workshop, root: Path, **kwargs: Any) -> dict[str, Any]:
    control = str(workshop.folder / "control.json")
    return workshop.config(
        root, new_model={"embedder": "tests.leaky:Leaky", "kwargs": {"control": control, **KWARGS, **kwargs}}
    )


def hits(folder: Path) -> list[str]:
    """Files below a folder that hold a canary in any form."""
    secrets = [base64.b64encode(value.encode()).rstrip(b"=")[:-1] for value in (TOKEN, PASSWORD)]
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [str(p) for p in files if CANARY.search(data := p.read_bytes()) or any(value in data for value in secrets)]


def test_a_run_whose_embedder_tells_everything_stores_and_says_nothing_of_it(
    workshop: Workshop,
    ray_session: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG, "fastfill_ray")
    root, stream = tmp_path / "root", io.StringIO()
    bad = [marker(value) for value in workshop.x[PAIRS[:3], 0].tolist()]
    workshop.control(bad=dict.fromkeys(bad, "raise"))
    try:
        result = ff.run_backfill(config_of(workshop, root), until="plan", stream=stream)
        assert main(["status", str(root)]) == 0
        reasons = [fault for path in (root / "pairs").rglob("c*.receipt.json") for fault in _reasons(path)]
        assert len(reasons) == 3
        assert all(
            reason.startswith(r"embedder raised RuntimeError: \x1b[2Jno \u202eaccess: <kwargs.token>")
            for reason in reasons
        )
        faults: list[pytest.ExceptionInfo[BaseException]] = []
        for rows, error in ((PAIRS[::2], QuarantineExceeded), (np.arange(600), EmbedderError)):
            workshop.control(bad={marker(value): "raise" for value in workshop.x[rows, 0].tolist()})
            with pytest.raises(error, match=r"<kwargs\.token>") as caught:
                ff.run_backfill(config_of(workshop, tmp_path / error.__name__), stream=stream)
            faults.append(caught)
    finally:
        workshop.control()
    printed = capfd.readouterr()
    trace = "".join(line for caught in faults for line in traceback.format_exception(caught.value))
    ours = [str(result), result.table(), result.closing_words(), stream.getvalue()]
    said = "".join([*ours, printed.out, printed.err, caplog.text, trace])
    assert not CANARY.search(said.encode())
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert hits(tmp_path) == []
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert hits(session / "logs") == []


def _reasons(path: Path) -> list[str]:
    return [fault["reason"] for fault in json.loads(path.read_bytes())["quarantined"]]


@pytest.mark.parametrize("kwargs", [{"builds": False}, {"unknown": USER}, {"control": None}], ids=str)
def test_an_embedder_that_cannot_be_built_tells_nothing_in_its_error_or_traceback(
    workshop: Workshop, tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(EmbedderError, match=r"its constructor, called with kwargs \['") as caught:
        in_process(config_of(workshop, tmp_path / "root", **kwargs))
    assert not CANARY.search("".join(traceback.format_exception(caught.value)).encode())
    assert not (tmp_path / "root" / "log").exists()


def test_what_travels_to_workers_is_the_actors_kwargs_and_no_other_secret(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", VARIABLE)
    config = load_config(config_of(workshop, tmp_path / "root"))
    store, files = InputStore("http://127.0.0.1:9"), open_files("s3://bucket/run", s3_endpoint="http://127.0.0.1:9")
    store.filesystem("s3://bucket/a")  # what is connected lazily is connected now
    source = _source(config, store)
    job = make_job(source, files, config.queries, Models(config.new_model, config.old_model))
    work = pool_work(job)
    for value in (store, files, work.read, source):
        assert not CANARY.search(pickle.dumps(value))
    # A model, and its preparer, is built with its kwargs where it runs.
    for builds in (work.worker, work.prepare):
        assert set(CANARY.findall(pickle.dumps(builds))) == {b"Token", b"User", b"Password"}
    for value in (config, config.new_model, job, work, job.spaces["new"]):
        assert not CANARY.search(f"{value!r} {value}".encode())


def _source(config: ff.BackfillConfig, store: InputStore) -> Any:
    from fastfill_ray.inputs.gallery import Source

    return Source(store, config.gallery, "int64", synthetic.OLD_DIM, config.new_model.metric, None)


# Of the command line: what is printed, whatever is wrong.
WRONG = {
    "kwargs are text": ["--set", f"new_model.kwargs=token:{TOKEN}"],
    "kwargs are a list": ["--set", f"new_model.kwargs=[{TOKEN}, true]"],
    "the model is text": ["--set", f"new_model={TOKEN}"],
    "the model is a list": ["--set", f"new_model=[token={TOKEN}]"],
    "a key below a value": ["--set", f"new_model.kwargs.token={TOKEN}", "--set", "new_model.kwargs.token.x=1"],
    "no equals sign": ["--set", f"new_model.kwargs.token:{TOKEN}"],
    "only a value": ["--set", TOKEN],
    "not YAML": ["--set", f"new_model.kwargs.token=[{TOKEN}"],
    "a YAML alias": ["--set", f"new_model.kwargs.token=*{TOKEN}"],
    "another key is wrong": ["--set", f"new_model.kwargs.token={TOKEN}", "--set", "new_model.dim=0"],
    "no JSON": ["--set", f"new_model.kwargs={{token: {TOKEN}, x: .nan}}"],
    "an endpoint with a user": ["--set", f"storage.s3_endpoint=http://{USER.replace('/', '')}:{PASSWORD}@host"],
    "an endpoint with a query": ["--set", f"storage.s3_endpoint=http://host/?token={TOKEN}"],
    "an endpoint that is none": ["--set", f"storage.s3_endpoint={TOKEN}"],
    "an output with a user": ["--set", f"output=s3://user:{PASSWORD.replace('/', '')}@bucket/run"],
    "an input with a query": ["--set", f"gallery.path=https://host/items?token={TOKEN}"],
    "an unknown option": [f"--token={TOKEN}"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_command_line_that_is_refused_repeats_no_secret(
    wrong: str, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_of(workshop, tmp_path / "root")))
    try:
        code = main(["run", "--config", str(path), *WRONG[wrong]])
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    assert code in (1, 2)
    assert printed.err
    assert not CANARY.search((printed.out + printed.err).encode()), printed.err
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "line", ["token: *{}", "token: !{} x", "token: '{}", "token: {}: x", "token: @{}", "token: [{}"]
)
def test_a_config_that_is_not_yaml_is_not_quoted(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"new_model:\n  kwargs:\n    {line.format(TOKEN)}\n")
    assert main(["run", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert re.search(r"config\.yaml: not YAML: line \d, column \d+: \w+", err)
    assert not CANARY.search(err.encode()), err


def test_the_traceback_of_a_bug_is_redacted_too(tmp_path: Path) -> None:
    """A real process: what Python itself prints at the end."""
    code = (
        "import sys, fastfill_ray.simulation as s, fastfill_ray.cli as cli\n"
        "def broken(*a, **k): raise ZeroDivisionError(f'\\x1b[2J https://u:{sys.argv[1]}@host and {sys.argv[2]}')\n"
        "s.simulate = broken\n"
        "cli.main(['simulate', '--pairs', 'p', '--out', 'o'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, PASSWORD, VARIABLE],
        capture_output=True, text=True, timeout=120, env={**os.environ, "DB_PASSWORD": VARIABLE},
    )  # fmt: skip
    assert ended.returncode == 1
    assert r"ZeroDivisionError: \x1b[2J https://***@host and <$DB_PASSWORD>" in ended.stderr
    assert not CANARY.search((ended.stdout + ended.stderr).encode())


def test_labels_and_ids_that_act_on_a_terminal_reach_it_as_escapes(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e\n"
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for path in sorted((workshop.folder / "gallery").iterdir()):
        table = pq.read_table(path)
        for name in ("id", "group"):
            values = [f"{evil}{value}" for value in table.column(name).to_pylist()]
            table = table.set_column(table.schema.get_field_index(name), name, [values])
        pq.write_table(table, gallery / path.name)
    root = tmp_path / "root"
    config = synthetic.config(tmp_path, output=str(root), gallery={"group_column": "group"})
    stream = io.StringIO()
    ff.backfill._run(load_config(config), InProcessEngine(), until="version0", stream=stream)
    np.save(tmp_path / "q.npy", synthetic.new_vectors(workshop.x[:1]))
    for command in (["search", str(root), "--vectors", str(tmp_path / "q.npy")], ["status", str(root)]):
        assert main(command) == 0
        printed = capsys.readouterr()
        said = printed.out + printed.err + stream.getvalue()
        assert not set(said) & set("\x1b\x07\x9b\u202e")
    for path in (root / "reports").iterdir():
        assert not set(path.read_text()) & set("\x1b\x07\x9b\u202e"), path
