"""What the pairs and queries are called: a stage is done again if, and only if, something that shapes it changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.config import BackfillConfig, load_config
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.stages.draw import Drawn
from fastfill_ray.stages.ledger import _ledger_folder
from fastfill_ray.stages.pairs import plan_pairs
from fastfill_ray.stages.queries import pin_queries, plan_queries
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery, source_of
from fastfill_ray.types import fingerprint
from tests import synthetic


def config(root: Path, **gallery: Any) -> BackfillConfig:
    return load_config(synthetic.config(root, gallery=gallery, **synthetic.with_queries(root)))


def test_pairs_are_named_by_what_is_drawn_and_by_the_columns_that_they_are_read_from(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    plain = config(tmp_path)
    found = inspect_gallery(InputStore(), InputStore().find(plain.gallery.path), plain.gallery, plain.resources)
    snapshot = found.model_copy(update={"ledger": "ledger/of-these-columns"})
    units = [chunk.unit for chunk in snapshot.chunks[:2]]
    drawn = Drawn({units[0]: (1, 4), units[1]: (0,)}, {units[0]: ("train", "audit"), units[1]: ("train",)})

    def name(drawn: Drawn, snapshot: Snapshot, space: str = "space", **gallery: Any) -> str:
        return plan_pairs(drawn, config(tmp_path, **gallery).gallery, snapshot, space).fingerprint

    first = name(drawn, snapshot)
    others = {
        name(Drawn({**drawn.offsets, units[1]: (1,)}, drawn.split_of), snapshot),
        name(Drawn(drawn.offsets, {**drawn.split_of, units[1]: ("audit",)}), snapshot),
        name(drawn, snapshot, "another space"),
        name(drawn, snapshot, payload_columns=["x", "label"]),
        name(drawn, snapshot.model_copy(update={"ledger": "ledger/of-others"})),
        name(drawn, snapshot, priority_column="views"),
        name(drawn, snapshot, priority_column="clicks"),
    }
    assert len({first, *others}) == 8
    # The gallery around the drawn rows has no say, nor has the order of its files.
    assert name(drawn, snapshot.model_copy(update={"fingerprint": "another"})) == first
    assert name(Drawn(dict(reversed(drawn.offsets.items())), drawn.split_of), snapshot) == first


@pytest.mark.parametrize("column", ["label", "group", "weight", "side", "priority"])
def test_pairs_with_another_optional_column_are_others(tmp_path: Path, column: str) -> None:
    """Else stored pairs have, or lack, a column that the config does not have, or has."""
    synthetic.write_gallery(tmp_path / "gallery")

    def name(**gallery: Any) -> str:
        given = config(tmp_path, **{"label_column": None, **gallery})
        found = inspect_gallery(InputStore(), InputStore().find(given.gallery.path), given.gallery, given.resources)
        source = source_of(InputStore(), given, found)
        snapshot = found.model_copy(update={"ledger": _ledger_folder(source)})
        unit = snapshot.chunks[0].unit
        return plan_pairs(Drawn({unit: (1,)}, {unit: ("train",)}), given.gallery, snapshot, "space").fingerprint

    values = {"label": "label", "group": "label", "weight": "id", "side": "embedding", "priority": "id"}
    assert name() != name(**{f"{column}_column": values[column]})


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
