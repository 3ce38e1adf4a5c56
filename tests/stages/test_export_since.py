"""Stores that follow a gallery that changes: they take in what differs, and serve what a full export serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fastfill_ray.stages.export_manifest import Manifest
from tests.living import Living, small_gallery, without


class Follower:
    """A store that takes in what changed, beside full exports of the same versions."""

    def __init__(self, living: Living, folder: Path) -> None:
        self._living, self._folder, self._count = living, folder, 0
        self.manifest, self.held = living.exported(folder / "first")

    def follow(self) -> tuple[Manifest, int]:
        """What was taken in, and how many rows differ in a full export; both then hold the same."""
        self._count += 1
        since, rows = self._living.exported(self._folder / f"since {self._count}", self.manifest)
        for file in since.deleted:
            for key in pq.read_table(self._folder / f"since {self._count}" / file.path).column("id").to_pylist():
                del self.held[key]
        before, self.manifest = dict(self.held), since
        self.held |= rows
        whole, expected = self._living.exported(self._folder / f"whole {self._count}")
        assert {key: state for key, (state, _) in self.held.items()} == {k: s for k, (s, _) in expected.items()}
        for key, (_, vector) in expected.items():
            np.testing.assert_allclose(self.held[key][1], vector, rtol=1e-5, atol=1e-6)
        assert whole.baking == since.baking or not any(state == "stale" for state, _ in expected.values())
        differ = [k for k, (s, v) in expected.items()
                  if k not in before or before[k][0] != s or not np.allclose(before[k][1], v, atol=1e-6)]  # fmt: skip
        return since, len(differ)


def test_a_store_that_follows_takes_in_what_differs_and_no_item_more(tmp_path: Path) -> None:
    """Without a scale, so that it is a full export's in every number. Waves, changes, a rollback."""
    serving = {"calibration": "no_scale", "stale_mode": "aligned", "max_regression": 1.0}
    living = small_gallery(tmp_path / "here", serving=serving)
    living.run(until="version0")
    plan = living.state().plan
    assert plan is not None
    assert plan.form in ("identity", "offset", "offset_by_wave")
    store = Follower(living, tmp_path)
    names = sorted(living.files)

    def expect(rows: int | None = None, deleted: int = 0) -> None:
        since, differ = store.follow()
        assert (since.rows, since.deleted_rows) == (differ if rows is None else rows, deleted)
        assert since.rows == differ

    living.run(until="wave:1")
    expect()
    dropped = list(living.files[names[1]])[:10]
    living.edit(names[1], lambda items: {**without(items, dropped), **living.new_items(50_000, 5)})
    living.run(until="wave:1")  # the stale segments of its bucket are rebuilt
    expect(rows=5, deleted=10)
    living.write("part-009.parquet", living.new_items(60_000, 20))
    living.run(until="wave:1")
    expect(rows=20)
    living.rename(names[2], "renamed.parquet")
    living.run(until="wave:1")
    expect(rows=0)
    living.run(until="wave:2")
    expect()
    living.rollback(living.state().published[-2])
    expect()
    living.run()
    expect()
