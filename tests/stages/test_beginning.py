"""With what a plan begins, and what of it its prediction is asked."""

from __future__ import annotations

import pytest

from fastfill_ray.log.records import Plan
from fastfill_ray.stages.beginning import Beginning
from tests.report.logs import plan, predicted

WAVES = (0.05, 0.3, 0.52, 1.0)


def test_where_nothing_is_carried_versions_are_as_of_the_pairs() -> None:
    begins = Beginning.of_pairs(1000, 100, 0)
    assert not begins.is_carried
    # Of the drawn pairs one could not be embedded: the prediction is made from the others.
    assert begins.fractions(WAVES, 99) == (99 / 1000, *WAVES)
    # Pairs that an earlier plan has drawn as well are pairs.
    again = Beginning(1000, 100, 100, 100, 1)
    assert not again.is_carried
    assert again.fractions(WAVES, 99) == (99 / 1000, *WAVES)


def test_what_is_carried_is_new_from_version_0_on_and_waves_within_it_add_nothing() -> None:
    begins = Beginning(1000, 100, 500, 450, 2)
    assert begins.is_carried
    assert begins.fractions(WAVES, 99) == (0.5, 0.5, 0.5, 0.52, 1.0)
    assert Beginning(1000, 100, 1000, 1000, 2).fractions(WAVES, 100) == (1.0,) * 5


def planned(first: float, carried: float, fraction: float, num_sampled: int | None = 100) -> Plan:
    state = predicted(waves=(0.5, 1.0), version_waves=(0, 1, 2), wave_rows=(100, 400, 500, 0), rows=1000)
    assert state.plan is not None
    prediction = tuple(
        each.model_copy(update={"fraction": at})
        for each, at in zip(state.plan.prediction, (fraction, 0.5, 1.0), strict=False)
    )
    return state.plan.model_copy(
        update={
            "rows": 1000,
            "first_share": first,
            "carried_share": carried,
            "prediction": prediction,
            "num_sampled": num_sampled,
        }
    )


def test_a_plan_that_goes_on_begins_with_what_it_was_predicted_by() -> None:
    assert Beginning.of_plan(planned(0.35, 0.3, 0.35), 3) == Beginning(1000, 100, 350, 300, 3)
    assert not Beginning.of_plan(planned(0.099, 0.0, 0.099), 0).is_carried, "one pair could not be embedded"


@pytest.mark.parametrize("num_sampled", [100, None])
def test_plans_of_earlier_releases_took_the_pairs_alone_for_new(num_sampled: int | None) -> None:
    begins = Beginning.of_plan(planned(0.35, 0.3, 0.1, num_sampled), 3)
    assert not begins.is_carried
    assert begins.fractions(WAVES, 100) == (0.1, *WAVES)
    assert not Beginning.of_plan(plan(), 0).is_carried
