"""Items that were taken are looked for in the gallery, and it is counted what can be measured by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastfill_ray.stages.draw import draw_taken
from tests import synthetic
from tests.stages.test_ledger import config, context, snapshot_of


def test_of_what_was_taken_the_items_and_the_events_that_the_gallery_has_are_counted_once_and_kept(
    tmp_path: Path,
) -> None:
    names, _, _ = synthetic.write_gallery(tmp_path / "gallery")
    snapshot = snapshot_of(tmp_path, config(tmp_path))
    # Two items of the gallery, one of them in three events; and one that it lacks, in two events.
    taken = np.array([names[0], names[0], names[0], names[5], "lacking", "lacking"], object)
    for _ in range(2):
        drawn, items, events = draw_taken(context(tmp_path), snapshot, taken, {}, 10, 0)
        assert (items, events) == (2, 4)
        assert sum(map(len, drawn.offsets.values())) == 2
    others = draw_taken(context(tmp_path), snapshot, np.append(taken, names[5]), {}, 10, 0)
    assert others[1:] == (2, 5)
