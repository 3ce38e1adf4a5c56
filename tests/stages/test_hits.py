"""Hits that are kept are the hits of the search; a version searches only what is new in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfill_ray.retrieval import ranking
from fastfill_ray.retrieval.relevance import RelevantItems
from fastfill_ray.stages import evaluate, old_index
from fastfill_ray.stages.hits import SegmentHits, kept_hits
from tests import synthetic
from tests.faults import MemoryFiles
from tests.integration.conftest import in_process
from tests.segments import segments_in

FOLDER, UNIT = "evaluation/0123456789abcdef", "s0123456789abcdef"


def some_hits(*, labels: bool, judged: bool, grades: bool) -> SegmentHits:
    rng = np.random.default_rng(0)
    items = RelevantItems(np.array([4, 1, 2]), np.array([0, 1, 1, 3]), np.array([2.0, 1.0, 0.5]) if grades else None)
    return SegmentHits(
        scores=np.where(rng.random((3, 5)) < 0.2, -np.inf, rng.standard_normal((3, 5))).astype(np.float32),
        rows=rng.integers(-1, 9, (3, 5)),
        own_rows=np.array([-1, 3, 0]),
        same_label=rng.integers(0, 2, (3, 5)).astype(np.int8),
        num_same_label=np.array([0, 7, 2]) if labels else None,
        judged=items if judged else None,
    )


def never() -> SegmentHits:
    raise AssertionError("it was searched before")


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(("judged", "grades"), [(False, False), (True, False), (True, True)])
def test_kept_hits_come_back_as_they_were(labels: bool, judged: bool, grades: bool) -> None:
    files, hits = MemoryFiles(), some_hits(labels=labels, judged=judged, grades=grades)
    assert kept_hits(files, FOLDER, UNIT, lambda: hits) is hits
    back = kept_hits(files, FOLDER, UNIT, never)
    for name in ("scores", "rows", "own_rows", "same_label", "num_same_label"):
        expected, found = getattr(hits, name), getattr(back, name)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
    assert (back.judged is None) == (not judged)
    if back.judged is not None and hits.judged is not None:
        np.testing.assert_array_equal(back.judged.items, hits.judged.items)
        np.testing.assert_array_equal(back.judged.starts, hits.judged.starts)
        assert (back.judged.grades is None) == (not grades)
        if grades:
            np.testing.assert_array_equal(back.judged.grades, hits.judged.grades)


def test_complete_rankings_of_a_small_gallery_are_not_kept(tmp_path: Path) -> None:
    ids, x, classes = synthetic.write_gallery(tmp_path / "gallery")
    synthetic.write_queries(tmp_path / "queries", ids, x, classes)
    in_process(synthetic.config(tmp_path, **synthetic.with_queries(tmp_path)), until="wave:1")
    assert not list((tmp_path / "out").glob("evaluation/*/s*"))


def test_each_segment_is_searched_once_and_the_old_vectors_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, x, classes = synthetic.write_gallery(tmp_path / "gallery")
    synthetic.write_queries(tmp_path / "queries", ids, x, classes)
    config = synthetic.config(tmp_path, **synthetic.with_queries(tmp_path), index={"segment_rows": 200})
    monkeypatch.setattr(ranking, "_COMPLETE_SCORES", 0)  # as a large gallery is measured
    monkeypatch.setattr(ranking, "_DEPTH", 50)
    searched: list[Any] = []
    search, search_old = evaluate._search_segment, old_index._search_old_bucket
    monkeypatch.setattr(evaluate, "_search_segment", lambda *given: searched.append(given[2]) or search(*given))
    monkeypatch.setattr(old_index, "_search_old_bucket", lambda *given: searched.append("old") or search_old(*given))
    result = in_process(config)
    every = (segment for version in result.state.versions for segment in segments_in(tmp_path / "out", version))
    segments = {segment.index.sha256 for segment in every}
    assert len(result.state.versions) == 4
    assert searched.count("old") == 3, "one per bucket"
    assert sorted(s.index.sha256 for s in searched if s != "old") == sorted(segments)
    searched.clear()
    again = in_process({**config, "waves": [0.5, 1.0]}, until="plan")
    assert len(again.state.plans) == 2
    assert not searched, "the same old vectors and queries"
