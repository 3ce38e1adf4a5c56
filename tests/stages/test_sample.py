"""For how many answers each item stands that was added to the pairs, as far as it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastfill_ray.stages.sample import IN_GALLERY, _answers_per_added
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import Receipt, put_receipt
from tests.experiment.evidence import COUNTS, objects, pairs_of
from tests.experiment.test_added import ADDED, added_items, with_added

PAIRS = [str(value) for value in pairs_of().ids.tolist()]


@pytest.mark.parametrize(
    ("answers", "in_gallery", "added", "expected"),
    [
        ([], None, False, None),
        (PAIRS[:10], None, False, 1.0),
        ([*PAIRS[:10], "elsewhere"], None, False, None),  # in the gallery or not: nothing was added that says so
        ([*PAIRS[:10], "taken-0"], 11, False, None),  # it was to be added, and could not be embedded
        ([*PAIRS[:10], "taken-0"], 10 + ADDED, True, 1.0),
        ([*PAIRS[:10], *PAIRS[:10], "taken-0"], 10 + 3 * ADDED, True, 3.0),
        ([*PAIRS[:10], "taken-0"], "earlier release", True, None),
    ],
)
def test_an_added_item_stands_for_the_answers_that_are_no_pairs(
    answers: list[str], in_gallery: int | str | None, added: bool, expected: float | None, tmp_path: Path
) -> None:
    assert len(PAIRS) == sum(COUNTS.values())
    files = open_files(str(tmp_path))
    if in_gallery is not None:
        details = {IN_GALLERY: in_gallery} if isinstance(in_gallery, int) else {}
        put_receipt(files, stage_receipt("pairs", "name"), Receipt(unit="pairs", outputs=(), rows=0, details=details))
    pairs = with_added(pairs_of(), added_items()) if added else pairs_of()
    given = objects(answers) if answers else np.empty(0, object)
    assert _answers_per_added(files, "name", given, pairs) == expected
