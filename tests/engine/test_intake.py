"""What the pool may still begin when a run stops."""

from __future__ import annotations

import time

import pytest
import ray

from fastfill_ray.engine.intake import Intake, Journal, Withdrawn, admit, way_of
from fastfill_ray.errors import EmbedderError


def test_once_closed_nothing_begins_and_it_is_drained_when_all_that_had_begun_came_back(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, [1])
    assert admit(intake.handle, [2])
    intake.seen([1])
    assert not intake.drained
    intake.close()
    assert not intake.drained
    assert not admit(intake.handle, [3])
    intake.seen([3])
    assert not intake.drained
    intake.seen([2])
    assert intake.drained


def test_what_came_back_already_is_not_waited_for(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, [1])
    intake.seen([1])
    intake.close()
    assert intake.drained


def test_a_unit_that_ended_two_processes_goes_into_one_of_its_own_and_not_without_end() -> None:
    assert [way_of(attempt) for attempt in (1, 2, 3, 50, 51)] == ["plain", "plain", "isolated", "isolated", "hopeless"]


def test_the_intake_counts_the_attempts_at_a_unit_and_the_calls_that_never_ended(ray_session: None) -> None:
    intake = Intake()
    assert [admit(intake.handle, [1]), admit(intake.handle, [2]), admit(intake.handle, [1])] == [1, 1, 2]
    first, second = Journal(intake.handle), Journal(intake.handle)
    assert first.begin("a") == 0
    assert second.begin("a") == 1
    second.end("a")
    assert second.begin("a") == 0
    intake.close()
    with pytest.raises(Withdrawn):
        second.begin("b")


def test_units_begin_together_until_one_of_them_may_have_ended_a_process(ray_session: None) -> None:
    handle = Intake().handle
    assert admit(handle, [1, 2, 3]) == 1
    assert admit(handle, [1, 2, 3]) == 2, "none has begun: each is asked for alone"
    assert [admit(handle, [unit]) for unit in (1, 2, 2)] == [2, 2, 3]
    assert admit(handle, [3, 4]) == 2
    assert [admit(handle, [4]), admit(handle, [5, 6])] == [1, 1]


def test_an_intake_that_is_gone_is_told_as_an_error_of_ours(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, [1])
    ray.kill(intake.handle)
    with pytest.raises(EmbedderError, match=r"was ended: the driver's node is out of memory, or lost \(Actor"):
        ask_until(intake, time.monotonic() + 60)


def ask_until(intake: Intake, deadline: float) -> None:
    """What is killed ends when its node gets round to it."""
    while time.monotonic() < deadline:
        admit(intake.handle, [2])
