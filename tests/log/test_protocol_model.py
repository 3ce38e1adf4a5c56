"""What the commit protocol promises, in every order of steps; and that it needs each of its safeguards.

The promises: no record is overwritten; a deletion that was reported is in the log, once; a record's file is there; a
deletion alone fences no driver; only who holds the newest epoch appends PLAN, VERSION and PUBLISH; the real fold takes
every log that can come about.
"""

from __future__ import annotations

import pytest

from tests.log.protocol_model import SAFEGUARDS, Bounds, explore

ONE = Bounds(("start", "take over", "DELETE"), faults=1)
TWO = Bounds(("start", "DELETE", "DELETE"), faults=1)


@pytest.mark.parametrize(
    ("bounds", "worlds"),
    [
        (ONE, 66_745),
        (Bounds(("start", "DELETE", "UNDELETE"), faults=1), 4_998),
        (Bounds(("start", "take over", "DELETE", "UNDELETE"), faults=0), 15_022),
        pytest.param(Bounds(("start", "take over", "DELETE"), faults=2), 778_793, marks=pytest.mark.slow),
        pytest.param(
            Bounds(("start", "take over", "DELETE", "UNDELETE"), faults=1, begun=True), 285_881, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_no_order_of_steps_breaks_a_promise(bounds: Bounds, worlds: int) -> None:
    explored = explore(bounds)
    assert explored.violation is None
    assert explored.worlds == worlds, "another protocol than the one that the documentation's figures are of"


@pytest.mark.parametrize(
    ("safeguard", "bounds", "steps", "violation"),
    [
        ("a number is created, never overwritten", ONE, 4, "a record is overwritten"),
        ("a lost answer is resolved by reading back", ONE, 5, "a driver does not know its own record"),
        ("an error is never taken for success", ONE, 4, "a deletion that was reported is not in the log"),
        ("a deletion is sealed anew for each number", ONE, 7, "written under epoch 0, the claimed one is 1"),
        ("a deletion takes over the salt of the first", TWO, 7, "has another salt"),
        ("a deletion's file is durable before its record", ONE, 4, "a record names a file that is not there"),
        ("a deletion needs an INIT", ONE, 2, "the first record, and only it, is INIT"),
        ("a deletion claims nothing", ONE, 5, "a driver is fenced by a deletion alone"),
        ("a deletion does not fence a driver", ONE, 5, "a driver is fenced by a deletion alone"),
        ("a driver checks its epoch when it has read on", ONE, 9, "a driver appends although another has claimed"),
        ("a claim is of the next epoch of what is read", ONE, 8, "claims epoch 1, 1 is already claimed"),
    ],
)
def test_without_a_safeguard_a_promise_is_broken(safeguard: str, bounds: Bounds, steps: int, violation: str) -> None:
    explored = explore(bounds, without=safeguard)
    assert explored.violation is not None
    assert violation in explored.violation
    assert explored.steps == steps, "the fewest that show it"


def test_every_safeguard_is_taken_away_once() -> None:
    (mark,) = test_without_a_safeguard_a_promise_is_broken.pytestmark
    assert [case[0] for case in mark.args[1]] == list(SAFEGUARDS)
