"""What a choice is asked, and under which name it is kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from fastfill_ray.config import AlignmentConfig, ObjectiveConfig, PolicyConfig, ServingConfig
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.stages.choose import ChoiceRequest, _name
from fastfill_ray.types import fingerprint


def request(**serving: Any) -> ChoiceRequest:
    return ChoiceRequest(
        AlignmentConfig(), PolicyConfig(), ServingConfig(**serving), ObjectiveConfig(), True, (0.1, 1.0), ""
    )


def test_without_a_scale_every_other_form_may_be_chosen() -> None:
    assert request().question.forms == FORMS
    assert request(calibration="no_scale").question.forms == ("identity", "offset", "offset_by_wave")
    assert request(calibration="no_scale").question.fractions == (0.1, 1.0)


def test_a_choice_of_an_earlier_release_is_known_by_its_name() -> None:
    evidence: Any = SimpleNamespace(
        queries=None, pairs=SimpleNamespace(fingerprint="p"), seed=0, metric="ip", logged=None
    )
    objective = {"relevance": "label", "metric": "map"}
    before = ["p", "", ["a"], "", ["auto", "auto", "auto", True], [objective, [0.1, 1.0], 0, "ip"]]
    assert _name(evidence, ["a"], request()) == fingerprint(before)
    assert _name(evidence, ["a"], request(calibration="no_scale")) != fingerprint(before)


def test_a_choice_for_a_plan_that_carries_more_than_its_pairs_is_its_own() -> None:
    """As much may be carried by the next plan, and other items."""
    evidence: Any = SimpleNamespace(
        queries=None, pairs=SimpleNamespace(fingerprint="p"), seed=0, metric="ip", logged=None
    )
    requests = [replace(request(), carried_by=number) for number in (None, 0, 1, 2)]
    assert len({_name(evidence, ["a"], each) for each in requests}) == 4
