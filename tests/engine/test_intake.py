"""What the pool may still begin when a run stops."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
import ray

from fastfill_ray.engine.intake import (
    MAX_PREPARING_DEATHS,
    Intake,
    Journal,
    Preparing,
    Turn,
    Withdrawn,
    admit,
    begin_preparing,
    end_preparing,
    way_of,
)
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


def die(preparing: Preparing, blocks: Iterable[int], node: str = "n") -> list[Turn]:
    """What is answered to those that ask after a process has begun a block and ended, block after block."""
    return [preparing.begin(block, node) for block in blocks if preparing.begin(block, node).begins]


def prepare(preparing: Preparing, blocks: Iterable[int]) -> int:
    """How many of the blocks were prepared, one after the other."""
    count = 0
    for block in blocks:
        if preparing.begin(block, "n").begins:
            preparing.end(block)
            count += 1
    return count


def test_a_block_that_ended_its_process_is_not_begun_again_and_one_that_was_prepared_may_be() -> None:
    preparing = Preparing(lambda: {"n"})
    assert preparing.begin(1, "n") == Turn(True)
    assert preparing.begin(1, "n") == Turn(False, ended=1)
    assert preparing.begin(1, "n") == Turn(False)
    preparing.end(1)  # a process that was thought to be gone
    assert preparing.begin(1, "n") == Turn(False)
    assert prepare(preparing, [2, 2]) == 2


def test_preparing_is_given_up_at_the_third_process_that_ends_and_that_is_said_once() -> None:
    preparing = Preparing(lambda: {"n"})
    assert all(preparing.begin(block, "n").begins for block in range(5))
    assert [preparing.begin(block, "n") for block in range(5)] == [
        Turn(False, 1), Turn(False, 2), Turn(False, 3, True), Turn(False), Turn(False),
    ]  # fmt: skip
    assert prepare(preparing, range(5, 99)) == 0


def test_processes_that_end_seldom_are_lived_with() -> None:
    preparing = Preparing(lambda: {"n"})
    for death in range(20):
        assert prepare(preparing, range(1000 * death, 1000 * death + 10)) == 10
        assert [turn.gives_up for turn in die(preparing, [1000 * death + 999])] == [False]
    assert [turn.gives_up for turn in die(preparing, [1, 2, 3])] == [True]


def test_processes_that_ended_with_their_nodes_are_not_held_against_the_preparer() -> None:
    nodes = {"n", "spot"}
    preparing = Preparing(lambda: nodes)
    assert all(preparing.begin(block, "spot").begins for block in range(8))
    nodes.remove("spot")
    assert not any(preparing.begin(block, "n").gives_up for block in range(8))
    assert prepare(preparing, [8, 9]) == 2


def test_a_node_that_is_known_to_be_lost_only_later_is_forgiven_then() -> None:
    nodes = {"n", "spot"}
    preparing = Preparing(lambda: nodes)
    assert all(preparing.begin(block, "spot").begins for block in range(8))
    assert [preparing.begin(block, "n").gives_up for block in range(8)].count(True) == 1
    assert prepare(preparing, [8]) == 0
    nodes.remove("spot")
    assert prepare(preparing, [8]) == 1


def test_workers_ask_the_intake_what_to_prepare_until_it_is_closed(ray_session: None) -> None:
    intake = Intake()
    turns = []
    for block in range(MAX_PREPARING_DEATHS):
        assert begin_preparing(intake.handle, block) == Turn(True)
        turns.append(begin_preparing(intake.handle, block))
    assert [turn.gives_up for turn in turns] == [False] * (MAX_PREPARING_DEATHS - 1) + [True], "this node is there"
    other = Intake()
    assert begin_preparing(other.handle, 0).begins
    end_preparing(other.handle, 0)
    assert begin_preparing(other.handle, 0).begins
    other.close()
    assert begin_preparing(other.handle, 1) == Turn(False)


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
