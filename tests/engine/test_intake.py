"""What the pool may still begin when a run stops."""

from __future__ import annotations

from fastfill_ray.engine.intake import Intake, admit


def test_once_closed_nothing_begins_and_it_is_drained_when_all_that_had_begun_came_back(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, 1)
    assert admit(intake.handle, 2)
    intake.seen(1)
    assert not intake.drained
    intake.close()
    assert not intake.drained
    assert not admit(intake.handle, 3)
    intake.seen(3)
    assert not intake.drained
    intake.seen(2)
    assert intake.drained


def test_what_came_back_already_is_not_waited_for(ray_session: None) -> None:
    intake = Intake()
    assert admit(intake.handle, 1)
    intake.seen(1)
    intake.close()
    assert intake.drained
