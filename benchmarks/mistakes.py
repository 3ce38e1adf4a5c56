"""The mistakes that are easily made in the first hour: what is said of each, and after how many seconds.

    python -m benchmarks.mistakes [--only dim ...] [--keep FOLDER]

Each mistake is a process of its own, as a user would start it, on 2,000 docstrings of the standard library with
string ids, written by pandas. The new model is MiniLM. None may end in a traceback, hang, or be found after every id of
the gallery was read; the exit code is 1 where one does. Printed is a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.results import markdown
from fastfill_ray.embedders.text import WordLlamaEmbedder
from jobs.demo_data import DemoSpec, find_sources, read_docstrings, select_items, select_queries

ITEMS, PAIRS, OLD_DIM = 2000, 400, 64
JOB = Path(__file__).parents[1] / "jobs" / "backfill.py"
PATIENCE_S = 180.0
# As the commands print an error: "ConfigError: ...", or argparse's "error: ...".
_MESSAGE = re.compile(r"^(?:\w+ )?[\w./-]*: error: |^[A-Z]\w+: ")

EMBEDDERS = """
import numpy as np

def embed(batch, role):
    return np.ones((len(batch["text"]), 384), np.float32)

class Short:
    def __call__(self, batch, role):
        return embed(batch, role)[:-1]

class Raises:
    def __call__(self, batch, role):
        return embed({"text": batch["body"]}, role)
"""


@dataclass(frozen=True)
class Mistake:
    """settings: {key with dots: value} of the config; more: arguments of the job. command: another command than the
    job, as arguments of ``fastfill-ray``.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def mistakes() -> list[Mistake]:
    """All of them; `{0}` stands for the folder."""
    no_keys = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_CONFIG_FILE": "/none"}
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    s3 = {"output": "s3://bucket/run", "storage.s3_endpoint": "http://127.0.0.1:9"}
    judged = {"objective": {"relevance": "qrels", "metric": "recall@10"}, "queries.qrels_path": "{0}/int-qrels.parquet"}
    return [
        Mistake("wrong path", {"gallery.path": "{0}/galery"}),
        Mistake("path is an empty folder", {"gallery.path": "{0}/empty"}),
        Mistake("wrong id column", {"gallery.id_column": "uid"}),
        Mistake("wrong old vector column", {"gallery.old_vector_column": "vector"}),
        Mistake("old vector column holds text", {"gallery.old_vector_column": "text"}),
        Mistake("wrong payload column", {"gallery.payload_columns": ["body"]}),
        Mistake("wrong dim", {"new_model.dim": 768}),
        Mistake("dim of another type", {"new_model.dim": "large"}),
        Mistake("unknown key", {"gallery.format": "parquet"}),
        Mistake("misspelt key", {"gallery.payload_column": ["text"]}),
        Mistake("waves descending", {"waves": [0.5, 0.3, 1.0]}),
        Mistake("waves end below the pairs", {"waves": [0.05, 0.1]}),
        Mistake("pairs more than items", {"pairs.count": 20_000}),
        Mistake("qrels with int ids", judged),
        Mistake("label column missing", {"gallery.label_column": "lable", "queries.label_column": "label"}),
        Mistake("embedder module typo", {"new_model.embedder": "fastfill_ray.embedders.txt:MiniLM"}),
        Mistake("embedder class typo", {"new_model.embedder": "fastfill_ray.embedders.text:MinLM"}),
        Mistake("embedder that raises ImportError", {"new_model.embedder": "lacks_a_package:Embedder"}),
        Mistake("function instead of a class", {"new_model.embedder": "mistaken:embed"}),
        Mistake("wrong number of rows", {"new_model.embedder": "mistaken:Short"}),
        Mistake("embedder that raises on every row", {"new_model.embedder": "mistaken:Raises"}),
        Mistake("wrong kwargs", {"new_model.kwargs": {"max_token": 64}}),
        Mistake("query payload column missing", {"queries.payload_columns": ["query"]}),
        Mistake("old model of another dim", {"old_model.embedder": "fastfill_ray.embedders.text:MiniLM"}),
        Mistake("GPU that does not exist", {"resources.gpus_per_actor": 1}),
        Mistake("more CPUs than exist", {"resources.cpus_per_actor": 999}),
        Mistake("unreachable Ray", environment={"RAY_ADDRESS": "127.0.0.1:9"}),
        Mistake("output not writable", {"output": "/proc/fastfill/run"}),
        Mistake("output is a file", {"output": "{0}/queries.parquet"}),
        Mistake("output inside the gallery", {"output": "{0}/gallery/run"}),
        Mistake("S3 without credentials", {**s3, "storage.s3_endpoint": None}, environment=no_keys),
        Mistake("S3 endpoint does not answer", s3, environment=keys),
        Mistake("search before anything is published", command=("search", "{0}/none", "--vectors", "{0}/query.npy")),
        Mistake(
            "text query for another column",
            command=("search", "{0}/published", "--config", "{0}/published.yaml", "--text", "x", "--column", "title"),
        ),
        Mistake("--until wave:9", more=("--until", "wave:9")),
    ]


@dataclass(frozen=True)
class Outcome:
    """What came of a mistake. seconds: until its message was there. faults: what may not be."""

    mistake: str
    seconds: float
    code: int | None
    message: str
    faults: tuple[str, ...]


def write_input(folder: Path) -> None:
    """Gallery, queries, qrels, embedders, and a root with a published version."""
    items = select_items(read_docstrings(find_sources(DemoSpec(packages=()))), DemoSpec(max_items=ITEMS))
    texts = [item.text for item in items]
    old = WordLlamaEmbedder(dim=OLD_DIM)({"text": texts}, "item")
    ids = [item.id for item in items]
    frame = {"id": ids, "text": texts, "label": [item.label for item in items], "embedding": list(old)}
    for name in ("gallery", "empty"):
        (folder / name).mkdir()
    pd.DataFrame(frame).to_parquet(folder / "gallery" / "items.parquet")
    queries = select_queries(items, 200)
    asked = {name: [getattr(each, name) for each in queries] for name in ("id", "label")}
    pd.DataFrame({**asked, "text": [each.sentence for each in queries]}).to_parquet(folder / "queries.parquet")
    judged = {"query_id": asked["id"], "item_id": [ids.index(item) for item in asked["id"]]}
    pd.DataFrame(judged).to_parquet(folder / "int-qrels.parquet")
    (folder / "mistaken.py").write_text(EMBEDDERS)
    (folder / "lacks_a_package.py").write_text("import a_package_that_nobody_has\n")
    np.save(folder / "query.npy", np.ones((1, 384), np.float32))
    small = {
        "new_model": {"embedder": "fastfill_ray.embedders.text:WordLlamaEmbedder", "kwargs": {"dim": 256}, "dim": 256},
        "alignment.method": "procrustes",
        "output": f"{folder}/published",
    }
    write_config(folder / "published.yaml", folder, small)


def write_config(path: Path, folder: Path, settings: Mapping[str, Any]) -> None:
    """The config that works, but for `settings`."""
    values: dict[str, Any] = {
        "gallery": {"path": "{0}/gallery", "payload_columns": ["text"], "label_column": "label"},
        "queries": {"path": "{0}/queries.parquet", "payload_columns": ["text"], "label_column": "label"},
        "new_model": {"embedder": "fastfill_ray.embedders.text:MiniLM", "dim": 384},
        "pairs": {"count": PAIRS},
        "waves": [0.5, 1.0],
        "resources": {"embed_actors": [1, 1]},
        "output": "{0}/run",
    }
    for key, value in settings.items():
        *above, last = key.split(".")
        part = values
        for name in above:
            part = part.setdefault(name, {})
        part[last] = value
    path.write_text(yaml.safe_dump(values).replace("{0}", str(folder)))


def make(mistake: Mistake, folder: Path) -> Outcome:
    """Make a mistake, on a root of its own."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    write_config(folder / "backfill.yaml", folder, mistake.settings)
    command = [sys.executable, str(JOB), "--config", str(folder / "backfill.yaml"), *mistake.more]
    if mistake.command:
        arguments = [argument.replace("{0}", str(folder)) for argument in mistake.command]
        command = [sys.executable, "-m", "fastfill_ray.cli", *arguments]
    code, lines = run(command, folder, mistake.environment)
    seconds, message = next((line for line in reversed(lines) if _MESSAGE.match(line[1])), (0.0, ""))
    faults = {
        "no message": not message,
        "a traceback": any(line.startswith("Traceback") for _, line in lines),
        "a hang": code is None,
        "no error": code == 0,
        "every id was read": any(folder.glob("run/snapshots/*")),
    }
    return Outcome(mistake.name, seconds, code, message, tuple(name for name, is_so in faults.items() if is_so))


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int | None, list[tuple[float, str]]]:
    """The exit code of a command, None if it hangs, and (seconds, line) of its stderr; it may import from `folder`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    start, lines = time.monotonic(), list[tuple[float, str]]()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": os.pathsep.join([str(JOB.parents[1]), str(folder)]), **environment},
        start_new_session=True,
    )

    def listen() -> None:
        for line in process.stderr or ():
            lines.append((time.monotonic() - start, line.rstrip()))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        code: int | None = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        code = None
    listener.join(5)
    return code, lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="mistakes whose names contain one of these words")
    parser.add_argument("--keep", type=Path, help="where the input is kept; a temporary folder if left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "published.yaml").exists():
            write_input(folder)
        chosen = [mistake for mistake in mistakes() if any(word in mistake.name for word in given.only)]
        if any("published" in " ".join(mistake.command) for mistake in chosen):
            run([sys.executable, str(JOB), "--config", f"{folder}/published.yaml", "--until", "version0"], folder, {})
        outcomes = []
        for mistake in chosen:
            outcomes.append(make(mistake, folder))
            print(outcomes[-1], file=sys.stderr, flush=True)
    rows = [
        [each.mistake, f"{each.seconds:.1f}", str(each.code), each.message.replace("|", "\\|"), "; ".join(each.faults)]
        for each in outcomes
    ]
    print(markdown(["mistake", "seconds", "exit code", "message", "faults"], rows))
    return int(any(each.faults for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
