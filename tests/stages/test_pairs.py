"""What the pairs and queries are called: a stage is done again if, and only if, something that shapes it changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.queries import pin_queries, plan_queries
from fastfill_ray.stages.sample import plan_pairs
from fastfill_ray.stages.snapshot import inspect_gallery
from fastfill_ray.types import fingerprint
from tests import synthetic


def config(root: Path, **gallery: Any) -> BackfillConfig:
    return load_config(synthetic.config(root, gallery=gallery, **synthetic.with_queries(root)))


def test_a_group_column_gives_the_pairs_another_name_and_none_leaves_the_one_they_had(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    plain, grouped = config(tmp_path), config(tmp_path, group_column="group")
    snapshot = inspect_gallery(InputStore(), InputStore().find(plain.gallery.path), plain.gallery, plain.resources)
    before = [
        snapshot.fingerprint,
        snapshot.cut,
        plain.pairs.model_dump(mode="json"),
        plain.seed,
        "space",
        [("x",), "label"],
    ]
    assert plan_pairs(plain.pairs, plain.gallery, snapshot, "space", plain.seed).fingerprint == fingerprint(before)
    assert plan_pairs(grouped.pairs, grouped.gallery, snapshot, "space", grouped.seed).fingerprint != fingerprint(
        before
    )


def test_without_a_group_column_the_embedded_queries_keep_their_name(tmp_path: Path) -> None:
    ids, x, classes = synthetic.write_gallery(tmp_path / "gallery")
    synthetic.write_queries(tmp_path / "queries", ids, x, classes)
    plain = config(tmp_path)
    assert plain.queries is not None
    inputs, judgements = pin_queries(InputStore(), plain.queries)
    assert judgements is not None
    keys = plain.queries.model_dump(mode="json")
    del keys["group_column"]
    seen = [inputs.model_dump(mode="json"), judgements.model_dump(mode="json")]
    assert plan_queries(plain.queries, inputs, judgements, {}, plain.seed).fingerprint == fingerprint(
        [seen, keys, {}, plain.seed]
    )
