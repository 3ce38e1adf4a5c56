"""metrics.json holds what the log says, under keys that do not depend on how far the run got."""

from __future__ import annotations

import json

import pytest

from fastfill_ray.log.state import State
from fastfill_ray.report.metrics_json import report_json
from tests.report.logs import FRACTIONS, finished, grouped, plan


def test_the_json_survives_json_and_holds_curves_areas_and_the_share_of_the_gain() -> None:
    report = json.loads(json.dumps(report_json(finished()), allow_nan=False))
    assert report["serving"] == 4
    assert report["finished"] is True
    assert report["objective"]["gain_share"] == pytest.approx(1.0)
    assert report["objective"]["serving_value"] == report["objective"]["value"]
    back = report_json(finished().model_copy(update={"published": (0, 2, 3, 4, 2)}))["objective"]
    assert back["serving_value"] < back["value"], "of the version that was rolled back to"
    assert [f"{c['relevance']}/{c['metric']}" for c in report["curves"]] == [
        *("label/map", "label/cmc@1", "qrels/recall@1", "qrels/recall@10", "new_model/recall@10")
    ]
    first = report["curves"][0]
    assert first["area"] > first["area_uncalibrated"] > first["old/old"]["value"]
    assert [p["fraction"] for p in first["points"]] == list(FRACTIONS)
    assert report["curves"][1]["area_uncalibrated"] is None
    assert report["versions"][0]["index_bytes"] == 2000


def test_the_keys_of_the_json_do_not_depend_on_how_far_the_run_got() -> None:
    assert report_json(State()).keys() == report_json(finished()).keys()
    assert report_json(State(plans=(plan(),)))["objective"].keys() == report_json(finished())["objective"].keys()


def test_the_json_says_what_to_do_now() -> None:
    made = report_json(finished())["decision"]
    assert (made["action"], made["version"], made["rest"]) == ("done", None, "")
    assert made["words"].startswith("Done: ")
    assert made["gained"].startswith("Version 4, which is served, has mAP 0.630")
    assert report_json(State())["decision"]["action"] == "unknown"


def test_the_gap_between_the_groups_stands_beside_the_overall_value() -> None:
    assert report_json(grouped({}))["group_gap"] == []
    [gaps] = report_json(grouped({"big": 0.05, "small": -0.1}))["group_gap"]
    assert (gaps["scope"], gaps["relevance"], gaps["metric"]) == ("gallery", "label", "map")
    last = gaps["versions"][-1]
    assert last["gap"] == pytest.approx(0.15)
    assert last["overall"] == pytest.approx(0.63)
    assert (last["version"], last["best"], last["worst"]) == (1, "big", "small")
