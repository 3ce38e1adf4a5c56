"""What ranking higher what users took would bring, in words that say what to do."""

from __future__ import annotations

from fastfill_ray.log.records import MetricValue
from fastfill_ray.log.state import State
from fastfill_ray.report.rest import prior_words
from tests.report.logs import metric, plan, running


def with_arms(**values: float) -> State:
    arms: dict[str, tuple[MetricValue, ...]] = {
        name.replace("_", "/").replace("+", " + "): (metric("label", "map", value, scope="audit"),)
        for name, value in values.items()
    }
    return running(0, plan(baselines=arms))


def test_a_prior_is_named_only_where_it_brings_something() -> None:
    both = {"old_old": 0.5, "old_old+prior": 0.6, "new_new": 0.7, "new_new+prior": 0.65}
    assert prior_words(with_arms(**both)) == (
        "Ranking higher what users took often, and nothing else, can be tried before a backfill: it brings mAP of the "
        "old system from 0.500 to 0.600. These figures are of the audit items, a smaller gallery: compare them with "
        "each other alone."
    )
    better = prior_words(with_arms(**{**both, "new_new+prior": 0.75}))
    assert "of the old system from 0.500 to 0.600 and of the full new model from 0.700 to 0.750." in better
    assert prior_words(with_arms(**{**both, "old_old+prior": 0.5})) == ""
    assert prior_words(with_arms(old_old=0.5, new_new=0.7)) == ""
