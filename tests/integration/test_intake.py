"""What the pool may still begin when a run stops."""

from __future__ import annotations

from fastfill_ray.stages.intake import Intake, admit


def test_once_closed_nothing_begins_and_it_is_drained_when_all_that_had_begun_came_back(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, "a")
    assert admit(intake.handle, "b")
    intake.seen("a")
    assert not intake.drained
    intake.close()
    assert not intake.drained
    assert not admit(intake.handle, "c")
    intake.seen("c")
    assert not intake.drained
    intake.seen("b")
    assert intake.drained


def test_what_came_back_already_is_not_waited_for(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, "a")
    intake.seen("a")
    intake.close()
    assert intake.drained
