"""``fastfill-ray search`` of a fused version: where the queries' old vectors come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from fastfill_ray.cli import main
from tests.index.test_fused import fused_root
from tests.index.test_reader import DIM, OLD_DIM
from tests.index.test_segment import vectors
from tests.test_cli import IDS, save


class OldModel:
    """An old model for which every text is the first of the old vectors below."""

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> NDArray[np.float32]:
        assert role == "query"
        return np.repeat(vectors(1, OLD_DIM, seed=98), len(batch["text"]), axis=0)


def text_config(path: Path, **sections: Any) -> str:
    config = {
        "gallery": {"path": "g", "payload_columns": ["text"], "label_column": "l"},
        "new_model": {"embedder": "tests.test_cli:FirstItem", "dim": DIM, "metric": "cosine"},
        "output": "out",
        **sections,
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_a_fused_version_is_searched_with_old_vectors_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, truth = fused_root(tmp_path / "root", "cosine", "Flat", 0.5)
    queries, old_queries = vectors(2, seed=99), vectors(2, OLD_DIM, seed=98)
    given = ["--vectors", save(tmp_path / "new.npy", queries), "--old-vectors", save(tmp_path / "old.npy", old_queries)]
    assert main(["search", str(root.path), "--version", "0", "-k", "75", "--json", *given]) == 0
    found = json.loads(capsys.readouterr().out)["hits"]
    scores = truth(queries, old_queries)
    assert [[hit["id"] for hit in hits] for hits in found] == np.argsort(-scores, axis=1).tolist()
    # Version 1 is new as a whole: the old vectors are not even read.
    assert main(["search", str(root.path), *given[:2], "--old-vectors", "missing.npy"]) == 0


def test_a_text_is_embedded_with_the_old_model_too_where_the_version_is_fused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, truth = fused_root(tmp_path / "root", "cosine", "Flat", 0.5)
    config = text_config(tmp_path / "config.yaml", old_model={"embedder": "tests.test_cli_fused:OldModel"})
    asked = ["--text", "something to boil water", "--config", config, "-k", "75", "--json"]
    assert main(["search", str(root.path), "--version", "0", *asked]) == 0
    found = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"][0]]
    assert found == np.argsort(-truth(vectors(len(IDS))[:1], vectors(1, OLD_DIM, seed=98)))[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vectors", "{new}"], "ConfigError: version 0 is fused: .*give them with --old-vectors FILE.npy, a (Q, 4)"),
        (
            ["--vectors", "{new}", "--old-vectors", "{missing}"],
            "ConfigError: --old-vectors {missing}: a .npy array (Q, 4) is expected",
        ),
        (["--vectors", "{new}", "--old-vectors", "{new}"], "SpaceMismatch: old queries have dim 8, the index has 4"),
        (["--vectors", "{new}", "--old-vectors", "{one}"], "ConfigError: {new}: there are 1 old queries for 2 queries"),
        (
            ["--text", "x", "--config", "{config}"],
            "ConfigError: version 0 is fused: .*set old_model.embedder in {config}",
        ),
    ],
)
def test_a_search_without_the_old_vectors_that_it_needs_is_refused(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = fused_root(tmp_path / "root", "cosine", "Flat", 0.5)
    places = {
        "new": save(tmp_path / "new.npy", vectors(2)),
        "one": save(tmp_path / "one.npy", vectors(1, OLD_DIM)),
        "missing": str(tmp_path / "missing.npy"),
        "config": text_config(tmp_path / "config.yaml"),
    }
    filled = [argument.format(**places) for argument in arguments]
    assert main(["search", str(root.path), "--version", "0", *filled]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in told.format(**places).split(".*"):
        assert part in printed.err
