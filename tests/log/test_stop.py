"""The run ends when the rule says so: every rule against arithmetic written out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfill_ray.config import StopConfig
from fastfill_ray.log.records import MetricValue, Plan, Verdict, Version
from fastfill_ray.log.stop import decide_stop
from tests.log.test_records import plan, version

WAVES = (0.2, 0.4, 0.7, 1.0)
ROWS = (100, 100, 200, 300, 300, 0)


def metric(value: float, **changes: Any) -> MetricValue:
    fields = {
        "scope": "audit", "relevance": "label", "metric": "map", "value": value, "low": value, "high": value,
        "queries": 50, "depth": 10, **changes,
    }  # fmt: skip
    return MetricValue.model_validate(fields)


def a_plan(old: float | None, new: float | None) -> Plan:
    arms = {"old/old": old, "new/new": new}
    baselines = {arm: (metric(value),) for arm, value in arms.items() if value is not None}
    waves = {"waves": WAVES, "wave_rows": ROWS, "version_waves": tuple(range(len(WAVES) + 1))}
    return plan("p").model_copy(update={**waves, "baselines": baselines})


def versions(
    *values: float,
    held: bool = False,
    seconds: float = 1.0,
    embedding: float = 0.0,
    others: tuple[MetricValue, ...] = (),
) -> list[Version]:
    """One version per value of the objective on the audit items; `held` is the newest one's verdict."""
    made = []
    for wave, value in enumerate(values):
        publish = not (held and wave == len(values) - 1)
        changes = {
            "metrics": (*others, metric(value)),
            "new_rows": sum(ROWS[: wave + 1]),
            "quarantined": 0,
            "seconds": seconds,
            "embed_seconds": embedding,
            "verdict": Verdict(publish=publish, reason=""),
        }
        made.append(version(wave, "p", wave, final=wave == len(WAVES)).model_copy(update=changes))
    return made


def gain(target: float) -> StopConfig:
    return StopConfig(target_gain=target)


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0.01, 1))
@settings(max_examples=300)
def test_the_gain_is_the_share_of_the_way_from_old_old_to_new_new(
    old: float, new: float, values: list[float], target: float
) -> None:
    decision = decide_stop(a_plan(old, new), versions(*values), gain(target))
    assert decision.stop == (new > old and (values[-1] - old) / (new - old) >= target)
    assert decision.why


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0.01, 1))
@settings(max_examples=200)
def test_without_old_old_the_way_starts_at_version_0(new: float, values: list[float], target: float) -> None:
    decision = decide_stop(a_plan(None, new), versions(*values), gain(target))
    start = values[0]
    assert decision.stop == (new > start and (values[-1] - start) / (new - start) >= target)
    assert new <= start or "from version 0 to new/new" in decision.why


def test_the_share_is_said_and_only_the_audit_items_as_served_over_all_queries_count() -> None:
    others = (
        metric(0.9, scope="gallery"),
        metric(0.9, relevance="new_model"),
        metric(0.9, metric="cmc@1"),
        metric(0.9, calibrated=False),
        metric(0.9, group="a"),
    )
    found = decide_stop(a_plan(0.2, 0.6), versions(0.3, 0.5, others=others), gain(0.8))
    assert found == (False, "75.0% of the gain from old/old to new/new is reached, stop.target_gain is 80.0%")
    assert decide_stop(a_plan(0.2, 0.6), versions(0.3, 0.5, others=others), gain(0.7)).stop


def test_where_there_is_no_gain_to_reach_the_run_goes_on_and_says_so() -> None:
    for new in (0.2, 0.1):
        found = decide_stop(a_plan(0.2, new), versions(0.9), gain(0.1))
        assert not found.stop
        assert found.why == f"there is no gain to reach: label/map is {new:.3f} on new/new, 0.200 on old/old"


def test_where_the_audit_items_have_no_value_the_run_goes_on_and_says_so() -> None:
    for arms, made in (((0.2, None), versions(0.9)), ((0.2, 0.6), [version(0, "p", 0)])):
        found = decide_stop(a_plan(*arms), made, gain(0.1))
        assert not found.stop
        assert "cannot be applied: label/map was not measured on the audit items" in found.why


def test_a_held_version_has_reached_nothing() -> None:
    found = decide_stop(a_plan(0.2, 0.6), versions(0.3, 0.6, held=True), gain(0.5))
    assert found == (False, "version 1 is held and counts for no gain")


def test_nothing_is_decided_without_a_rule_before_version_0_and_after_the_last_wave() -> None:
    everything = StopConfig(target_gain=0.01, budget_hours=1e-9)
    some = a_plan(0.2, 0.6)
    assert decide_stop(some, versions(0.6), StopConfig()) == (False, "")
    assert decide_stop(some, [], everything) == (False, "")
    assert decide_stop(some, versions(*[0.6] * 5), everything) == (False, "")
    assert decide_stop(some, versions(*[0.6] * 4), everything).stop


@given(
    st.integers(1, 4),
    st.floats(0, 1e5),
    st.floats(0, 1),
    st.floats(1e-3, 100),
)
@settings(max_examples=300)
def test_the_budget_ends_a_run_once_it_is_used_up_or_the_next_wave_would_exceed_it(
    count: int, seconds: float, share: float, hours: float
) -> None:
    embedding = seconds * share
    made = versions(*[0.3] * count, seconds=seconds, embedding=embedding)
    decision = decide_stop(a_plan(0.2, 0.6), made, StopConfig(budget_hours=hours))
    spent = sum(v.seconds for v in made)
    per_row = sum(v.embed_seconds for v in made) / sum(ROWS[:count])
    next_wave = ROWS[count] * per_row + (seconds - embedding if count > 1 else 0)
    assert decision.stop == (spent >= hours * 3600 or spent + next_wave > hours * 3600)
    assert "stop.budget_hours is" in decision.why


def test_a_change_of_the_gallery_never_ends_a_run_and_what_was_spent_before_counts() -> None:
    [change] = versions(0.6, seconds=3600)
    rule = StopConfig(target_gain=0.1, budget_hours=0.5)
    assert not decide_stop(a_plan(0.2, 0.6), [change.model_copy(update={"cause": "change"})], rule).stop
    budget = StopConfig(budget_hours=1.5)
    assert not decide_stop(a_plan(0.2, 0.6), [change], budget).stop
    assert decide_stop(a_plan(0.2, 0.6), [change], budget, spent_before_s=3600).stop


def test_building_the_first_version_is_not_taken_for_the_price_of_a_wave() -> None:
    # An hour for the whole gallery's index, and a second for the pairs.
    made = versions(0.3, seconds=3601, embedding=1)
    assert not decide_stop(a_plan(0.2, 0.6), made, StopConfig(budget_hours=1.1)).stop


def test_the_rule_that_is_met_is_the_one_that_is_named() -> None:
    made = versions(0.3, 0.5, seconds=3600)
    both = StopConfig(target_gain=0.7, budget_hours=1.5)
    assert "stop.target_gain" in decide_stop(a_plan(0.2, 0.6), made, both).why
    second = decide_stop(a_plan(0.2, 0.6), made, both.model_copy(update={"target_gain": 0.9}))
    assert second == (True, "2 hours are spent, stop.budget_hours is 1.5")
    neither = decide_stop(a_plan(0.2, 0.6), made, StopConfig(target_gain=0.9, budget_hours=9))
    assert not neither.stop
    assert "75.0% of the gain" in neither.why
    assert "wave 2 would bring 2 hours to" in neither.why


@pytest.mark.parametrize("wrong", [{"target_gain": 0}, {"target_gain": 1.1}, {"budget_hours": 0}, {"budget_hours": -1}])
def test_a_rule_that_can_never_or_always_be_met_is_no_rule(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StopConfig.model_validate(wrong)
