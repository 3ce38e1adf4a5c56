"""`fastfill-ray search` over a real root: the hits with what the gallery says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from fastfill_ray.cli import main
from tests import synthetic
from tests.living import small_gallery


def test_hits_are_shown_with_their_payload_while_the_gallery_is_the_one_that_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    living = small_gallery(tmp_path / "here")
    living.run(until="version0")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(living.config(gallery={"payload_columns": ["label"]})))
    key, item = next(iter(living.items.items()))
    np.save(tmp_path / "queries.npy", synthetic.new_vectors(item.x[None]))
    asked = [
        "search",
        living.root,
        "--vectors",
        str(tmp_path / "queries.npy"),
        "--config",
        str(tmp_path / "config.yaml"),
    ]
    monkeypatch.setenv("COLUMNS", "60")
    capsys.readouterr()

    assert main(asked) == 0
    printed = capsys.readouterr()
    heading, *rows = (line.split() for line in printed.out.splitlines())
    assert (heading, printed.err) == (["rank", "score", "id", "label"], "")
    assert [int(row[0]) for row in rows] == list(range(1, 11))
    assert {int(row[2]): row[3] for row in rows} == {int(row[2]): living.items[int(row[2])].label for row in rows}

    path = tmp_path / "here" / "gallery" / next(name for name, file in living.files.items() if key in file)
    pq.write_table(pq.read_table(path).slice(1), path)
    assert main([*asked, "-k", "249"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()[1:]]
    assert sorted(row[3] == "-" for row in rows) == [False] * 166 + [True] * 83
    assert printed.err == "payload not shown: 83 of 249 hits are in files that have changed since, or are gone\n"
