"""Events of held-out traffic: a systematic sample in proportion to it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.experiment.events import draw_events


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_each_row_comes_up_as_often_as_its_share_says_give_or_take_one(
    traffic: list[int], most: int, seed: int
) -> None:
    counts = np.array(traffic, np.float64)
    hashes = np.random.default_rng(seed).integers(0, 2**63, len(counts)).astype(np.uint64)
    rows = draw_events(counts, hashes, most)
    expected = min(most, max(len(counts), counts.sum()))
    assert len(rows) == int(expected)
    assert (np.diff(rows) >= 0).all()
    drawn = np.bincount(rows, minlength=len(counts))
    shares = len(rows) * counts / counts.sum()
    assert (np.abs(drawn - shares) < 1 + 1e-9).all()
    if counts.min() == 1:  # the same log as shares gives as many events
        assert len(draw_events(counts / counts.sum(), hashes, most)) == len(rows)


def test_nothing_that_was_asked_is_no_event() -> None:
    assert len(draw_events(np.empty(0), np.empty(0, np.uint64), 10)) == 0
