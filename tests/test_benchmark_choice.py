"""The choice benchmark on a handful of digits: what it compares, its intervals, and its tables."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from benchmarks import choice as command
from benchmarks.choice import independent_difference, measure, pooled
from benchmarks.quality.material import Limits
from fastfill_ray.retrieval.intervals import Interval

LIMITS = Limits(train=120, calibration=70, audit=70, queries=70, equal=True, methods=("ridge", "fastfill"))


@pytest.mark.slow
def test_every_choice_is_compared_and_the_tables_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measure("digits", 0, cache=tmp_path, limits=LIMITS, folder=tmp_path / "maps", stream=StringIO())
    assert result["items"] == {"calibration": 70, "audit": 70}
    assert [(case["objective"], case["track"]) for case in result["cases"]] == [
        *(("label/map", "label-free"), ("label/map", "labelled")),
        *(("label/cmc@1", "label-free"), ("label/cmc@1", "labelled")),
        ("new_model/recall@10", "label-free"),
    ]
    for case in result["cases"]:
        assert case["minus_best"]["value"] <= 0
        assert case["minus_published"]["value"] == pytest.approx(case["area"]["value"] - case["published"]["value"])
        assert case["optimism"]["low"] <= case["optimism"]["value"] <= case["optimism"]["high"]
        assert ("minus_runner_up" in case) == (case["runner_up"] is not None)
        assert 0 < case["new_new"]["calibration"] <= 1
    for seed in (0, 1):
        (tmp_path / f"digits-seed{seed}.json").write_text(json.dumps(result, allow_nan=False))
    command.main(["--out", str(tmp_path), "--tables"])
    printed = capsys.readouterr().out
    assert printed.count("| digits (2) |") == 5
    assert "of 10 cases" in printed


def test_the_difference_of_two_samples_is_as_wide_as_their_errors_together() -> None:
    assert independent_difference(Interval(0.5, 0.2, 0.8, 9), Interval(0.4, 0.0, 0.8, 7)) == (
        pytest.approx(0.1), pytest.approx(-0.4), pytest.approx(0.6), 7
    )  # fmt: skip


def test_pooling_seeds_narrows_the_interval() -> None:
    one = {"value": 0.01, "low": -0.01, "high": 0.03}
    assert pooled([one]) == "+1.0 [-1.0, +3.0]"
    assert pooled([one, None, one, one, one]) == "+1.0 [+0.0, +2.0]"
    assert pooled([None]) == "-"
