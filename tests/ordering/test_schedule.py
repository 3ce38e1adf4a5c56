"""Pairs and waves by the number of rows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.errors import ConfigError
from fastfill_ray.ordering.partition import split_sizes
from fastfill_ray.ordering.schedule import LADDER, Schedule, auto_pairs, auto_waves, make_schedule

SPLIT = (0.7, 0.15, 0.15)
SPLITS = [SPLIT, (0.4, 0.3, 0.3), (0.34, 0.33, 0.33), (0.1, 0.1, 0.8)]


@pytest.mark.parametrize(
    ("rows", "pairs", "waves"),
    [
        (107, 107, (1.0,)),
        (400, 134, (0.5, 1.0)),
        (2_000, 500, (0.5, 1.0)),
        (8_000, 1_000, (0.25, 0.5, 1.0)),
        (20_000, 1_000, (0.1, 0.25, 0.5, 1.0)),
        (60_000, 3_000, (0.1, 0.25, 0.5, 1.0)),
        (1_000_000, 20_000, LADDER),
        (3_000_000_000, 20_000, LADDER),
    ],
)
def test_auto_is_told_by_the_number_of_rows(rows: int, pairs: int, waves: tuple[float, ...]) -> None:
    assert make_schedule(rows, "auto", SPLIT, "auto") == Schedule(pairs, waves, rows)


@given(st.integers(107, 10**10), st.sampled_from(SPLITS))
def test_auto_can_be_split_grows_with_the_gallery_and_has_no_wave_that_adds_next_to_nothing(
    rows: int, split: tuple[float, float, float]
) -> None:
    rows += 214  # the least of the last split is 320
    schedule = make_schedule(rows, "auto", split, "auto")
    assert sum(split_sizes(rows, schedule.num_pairs, split).values()) == schedule.num_pairs
    assert auto_pairs(rows + 1, split) >= schedule.num_pairs
    assert schedule.num_pairs <= max(20_000, 400)
    share = schedule.num_pairs / rows
    assert schedule.waves[-1] == 1
    assert all(wave >= 1.25 * share for wave in schedule.waves[:-1])
    assert all(later > earlier for earlier, later in itertools.pairwise(schedule.waves))
    assert set(schedule.waves) <= set(LADDER)


def test_given_numbers_stay_and_the_other_one_follows_them() -> None:
    assert make_schedule(8_000, 2_000, SPLIT, "auto").waves == auto_waves(0.25) == (0.5, 1.0)
    assert make_schedule(8_000, "auto", SPLIT, (0.2, 0.3)) == Schedule(1_000, (0.2, 0.3), 8_000)


def test_given_waves_that_the_pairs_alone_reach_are_left_out() -> None:
    schedule = make_schedule(8_000, 2_000, SPLIT, (0.05, 0.25, 0.26, 0.28, 1.0))
    assert (schedule.waves, schedule.left_out) == ((0.28, 1.0), (0.05, 0.25, 0.26))
    assert make_schedule(8_000, 2_000, SPLIT, (0.25,)).waves == (0.25,)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (
            make_schedule(8_000, "auto", SPLIT, "auto"),
            "pairs: 1,000 of 8,000 items (auto); waves: 0.25, 0.5, 1.0 (auto)",
        ),
        (
            make_schedule(8_000, 2_000, SPLIT, (0.1, 0.25, 1.0)),
            "pairs: 2,000 of 8,000 items; waves: 1.0 (0.1, 0.25 left out: the pairs alone reach that)",
        ),
        (Schedule(1_000, (0.5, 1.0)), "pairs: 1,000; waves: 0.5, 1.0 (both as planned before)"),
    ],
)
def test_a_schedule_is_said_with_where_it_is_from(schedule: Schedule, told: str) -> None:
    auto = "left out" not in told
    assert schedule.describe("auto" if auto else 2_000, "auto" if auto else (0.1, 0.25, 1.0)) == told


def test_waves_that_end_below_the_pairs_share_are_refused_naming_both() -> None:
    told = r"the last is 0\.19 = 190 items, but the pairs alone are 191 of 1000.*0\.1910"
    with pytest.raises(ConfigError, match=told):
        make_schedule(1_000, 191, SPLIT, (0.01, 0.19))


@pytest.mark.parametrize(("count", "told"), [(1_001, "found 1001, the gallery has 1000 rows"), (40, "28 train pairs")])
def test_a_given_number_of_pairs_is_refused_where_it_cannot_be_drawn_or_decides_nothing(count: int, told: str) -> None:
    for waves in ("auto", (0.01, 0.02)):
        with pytest.raises(ConfigError, match=told):
            make_schedule(1_000, count, SPLIT, waves)  # type: ignore[arg-type]


def test_a_gallery_too_small_for_pairs_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"gallery\.path: found 106 rows; .* at least 107 pairs are needed"):
        make_schedule(106, "auto", SPLIT, "auto")
