"""What a run says while it works: counted exactly, no more than a line in five seconds, estimates that hold."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from fastfill_ray.stages import progress
from fastfill_ray.stages.choose import reason_lines
from fastfill_ray.stages.pace import Pace
from fastfill_ray.stages.progress import Progress, WavesWork
from fastfill_ray.wording import duration


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that progress looks at."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_the_time_in_which_models_load_says_nothing_about_the_items() -> None:
    pace = Pace(1000)
    pace.add(10, now_s=60.0)  # a minute of loading
    assert (pace.item_s, pace.left_s) == (None, None)
    pace.add(10, now_s=61.0)
    pace.add(10, now_s=62.0)
    assert (pace.item_s, pace.left_s) == (0.1, 97.0)


def test_an_estimate_begins_with_what_was_measured_before_and_gives_it_up_for_what_is_measured_now() -> None:
    pace = Pace(1000, before_s=0.04)
    assert pace.left_s == 40.0
    pace.add(100, now_s=500.0)
    assert pace.left_s == pytest.approx(36.0)
    for step in range(1, 9):
        pace.add(100, now_s=500.0 + 10 * step)
    assert pace.left_s == pytest.approx(9.3, abs=0.2)  # 0.1 s each by now


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_an_estimate_is_never_absurd_while_units_come_in_bursts(at_once: int) -> None:
    """4,000 items in units of 50, 0.01 s each: 40 s. Each actor's units come together."""
    pace, now_s = Pace(4000, before_s=0.01), 30.0
    for _ in range(4000 // 50 // at_once):
        now_s += 0.5 * at_once
        for _ in range(at_once):
            pace.add(50, now_s)
            left_s = 40.0 - (now_s - 30.0)
            assert pace.left_s is not None
            assert left_s / 1.4 - 1 < pace.left_s < left_s * 1.4 + 4


def test_times_are_said_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.4, 8, 99, 100, 3600, 5999, 6000, 86400, 3 * 86400)]
    assert said == ["0 s", "8 s", "99 s", "2 min", "60 min", "100 min", "1 h 40 min", "24 h 0 min", "3.0 days"]


def test_what_is_waited_for_is_said_at_once_and_the_rate_once_items_come(wait: Callable[[float], None]) -> None:
    said = io.StringIO()
    shown = Progress(said)
    with shown.stage("pairs", 800, "items", waits_for="loading m:Embedder in 2 actors ...") as bar:
        assert said.getvalue() == "pairs: 0 of 800 items, loading m:Embedder in 2 actors ...\n"
        wait(60)
        bar.advance(100)
        wait(10)
        bar.advance(100)
        wait(10)
        bar.advance(100)
        assert shown.now == "pairs: 300 of 800 items, 10 items/s, 50 s left"
        wait(1)
        bar.advance(500)
    lines = said.getvalue().splitlines()[1:]
    assert lines == [
        "pairs: 100 of 800 items",
        "pairs: 200 of 800 items",
        "pairs: 300 of 800 items, 10 items/s, 50 s left",
        "pairs: 800 of 800 items, 81 s",
    ]
    assert (shown.seconds, shown.now) == ({"pairs": 81.0}, "")


def test_a_stage_says_no_more_than_a_line_in_five_seconds(wait: Callable[[float], None]) -> None:
    said = io.StringIO()
    with Progress(said).stage("score", 1000, "items") as bar:
        for _ in range(1000):
            wait(0.02)
            bar.advance(1)
    assert len(said.getvalue().splitlines()) == 4  # at 5, 10 and 15 s, and the end


def test_the_waves_have_one_line_that_stays_while_versions_are_built(wait: Callable[[float], None]) -> None:
    said = io.StringIO()
    shown = Progress(said)
    work = WavesWork("waves", 800, "items", waits_for="loading m:E in 1 actor ...", before_s=0.01, items=1000, new=200)
    with shown.shown(work) as bar:
        bar.rename("wave 1 of 2")
        assert shown.now == "wave 1 of 2: 20 % of the items embedded, loading m:E in 1 actor ..."
        bar.advance(400)
        assert shown.now == "wave 1 of 2: 60 % of the items embedded, 100 items/s, 4 s left"
        with shown.stage("build 1", 1000, "rows") as build:
            build.advance(500)
            assert (
                shown.now
                == "wave 1 of 2: 60 % of the items embedded, 100 items/s, 4 s left; build 1: 500 of 1,000 rows"
            )
            wait(2)
            build.advance(500)
        bar.rename("wave 2 of 2")
        wait(4)
        bar.advance(400)
    assert said.getvalue().splitlines() == [
        "waves: 20 % of the items embedded, loading m:E in 1 actor ...",
        "wave 2 of 2: 100 % of the items embedded, 6 s",
    ]
    assert shown.seconds == {"build 1": 2.0}, "work that goes on beside others is not counted twice"


def test_what_is_cut_into_parts_says_the_part_and_in_the_end_how_many_there_were() -> None:
    said = io.StringIO()
    shown = Progress(said)
    with shown.stage("choose", 0, "candidates") as bar:
        for part, total in (("map", 3), ("final", 2)):
            bar.begin(part, total)
            bar.advance()
            assert shown.now == f"choose ({part}): 1 of {total} candidates"
            bar.advance(total - 1)
    assert said.getvalue() == "choose: 5 candidates, 0 s\n"
    shown.say("starting Ray ...")
    assert (shown.now, shown.doing) == ("", "starting Ray ...")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_is_drawn_again_and_names_cannot_steer_it() -> None:
    said = Terminal()
    with Progress(said).stage("pairs", 4, "items", waits_for="loading \x1b[2Jm:E in 1 actor ...") as bar:
        assert "\\x1b[2Jm:E" in said.getvalue()
        bar.advance(4)
    assert "pairs: 4 of 4 items, 0 s" in said.getvalue()
    assert "\x1b[2J" not in said.getvalue()


def test_what_was_chosen_for_one_reason_is_one_line() -> None:
    why = "best label/map on the calibration pairs"
    reasons = {"alignment.method": f"ridge: {why}", "policy.name": f"random: {why}", "runner-up": "kernel; ahead"}
    assert reason_lines(reasons) == [f"alignment.method ridge, policy.name random: {why}", "runner-up: kernel; ahead"]
