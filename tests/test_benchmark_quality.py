"""The quality benchmark on a handful of digits: every promised row is there, and the tables render."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import measure as measuring
from benchmarks.quality.acceptance import acceptance
from benchmarks.quality.autos import MODES, auto_rows
from benchmarks.quality.curves import audit_curves
from benchmarks.quality.maps import kept_maps
from benchmarks.quality.material import MAP, Limits, Material, prepare_set
from benchmarks.quality.orders import FIXED_VIEW, TRACKS, average_precision_gain, bad_hubs
from benchmarks.quality.studies import gallery_size, groups, refit
from benchmarks.quality.tables import render
from benchmarks.sets import load_set
from fastfill_ray.experiment.candidate import Candidate, MapView
from fastfill_ray.experiment.experiment import Question, run_experiment
from fastfill_ray.experiment.shadow import Shadow
from fastfill_ray.ordering.policies import LABELLED
from fastfill_ray.retrieval.metrics import measure
from fastfill_ray.retrieval.relevance import RelevantItems

LIMITS = Limits(train=120, calibration=70, audit=80, queries=40, methods=("ridge", "fastfill", "fct"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def result(cache: Path) -> dict[str, Any]:
    """Through JSON, as the command keeps it. Two shares of the old score instead of eight: it saves time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(MODES, "fused or aligned", (1.0, 0.5))
        made = measuring.measure("digits", 0, cache=cache, limits=LIMITS, stream=StringIO())
    back: dict[str, Any] = json.loads(json.dumps(made, allow_nan=False))
    return back


@pytest.fixture(scope="module")
def grouped(cache: Path) -> Material:
    """Digits with two groups, enough items for all queries to ask, and the maps that the studies need."""
    built = load_set("digits", cache)
    parity = np.array(["even", "odd"], object)[built.labels % 2]
    limits = dataclasses.replace(LIMITS, queries=1000, methods=("kernel", "fastfill"))
    return prepare_set(dataclasses.replace(built, groups=parity), "digits", 0, limits, stream=StringIO())


@pytest.mark.slow
def test_every_order_stands_in_the_table_once_per_objective_with_its_track(result: dict[str, Any]) -> None:
    for objective in ("label/map", "new_model/recall@10"):
        rows = [row for row in result["rows"] if row["objective"] == objective]
        assert {row["name"]: row["track"] for row in rows} == TRACKS
        assert all(set(row["values"]) == set(result["arms"]["new/new"]) for row in rows)
    assert [row["name"] for row in result["rows"][:2]] == ["FCT + random", "FastFill + uncertainty"]


@pytest.mark.slow
def test_auto_is_reported_for_every_objective_and_track_with_fused_vectors_and_without(result: dict[str, Any]) -> None:
    modes = ("fused or aligned", "aligned only")
    expected = {
        (objective, track, mode)
        for objective in result["objectives"]
        for track in (("label-free", "labelled") if objective.startswith("label") else ("label-free",))
        for mode in modes
    }
    assert {(row["objective"], row["track"], row["modes"]) for row in result["auto"]} == expected
    for row in result["auto"]:
        assert row["minus_best"]["value"] <= 0
        assert len(row["minus_old"]) == 22
        assert row["track"] == "labelled" or row["policy"] not in LABELLED
        assert row["modes"] == modes[0] or row["weight"] == 1


@pytest.mark.slow
def test_forms_raw_vectors_and_side_information_are_compared(result: dict[str, Any]) -> None:
    assert {row["name"] for row in result["forms"]} == {
        *("raw", "norm only", "offset", "offset_by_wave", "scale_offset", "scale_offset_by_wave")
    }
    assert len({row["name"] for row in result["side"]}) == 2


@pytest.mark.slow
def test_the_tables_render_with_a_verdict_per_promise(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        (tmp_path / f"digits-seed{seed}.json").write_text(json.dumps(result | {"seed": seed}))
    command.main(["--out", str(tmp_path), "--tables"])
    printed = capsys.readouterr().out
    for heading in ("## Summary", "## digits", "### mAP as the objective", "### What auto chose", "## Acceptance"):
        assert heading in printed
    assert "± 0.0" in printed
    assert printed.rstrip().endswith(acceptance([result]).splitlines()[-1])
    widths = {len(line.split(" | ")) for line in acceptance([result]).splitlines()[2:]}
    assert widths == {4}


def test_a_result_that_exists_is_not_measured_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def instead(name: str, seed: int, *_: object, **__: object) -> dict[str, Any]:
        measured.append(seed)
        return {"set": name, "seed": seed}

    monkeypatch.setattr(command, "measure", instead)
    for seeds in (["0"], ["0", "1"]):
        command.main(["--cache", str(cache), "--out", str(tmp_path), "--sets", "digits", "--seeds", *seeds])
    assert measured == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-seed0.json", "digits-seed1.json"]


@pytest.mark.slow
def test_the_choice_is_the_one_of_simulate_and_the_run(grouped: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.autos.MODES", {"aligned only": (1.0,)})
    rows = auto_rows(grouped, audit_curves(grouped, MAP))
    for row, policies in zip(rows, grouped.tracks(MAP).values(), strict=True):
        findings = run_experiment(grouped.evidence, Question(MAP, (1.0,), policies))
        assert row["winner"] == str(findings.choice.winner)
        area = findings.curve(findings.choice.winner).area(MAP).value
        assert row["values"]["label/map"]["area"] == pytest.approx(area, abs=1e-6)


def test_a_map_that_is_kept_is_read_instead_of_trained(grouped: Material, tmp_path: Path) -> None:
    pairs, stream = grouped.evidence.pairs, StringIO()
    trained, read = (kept_maps(pairs, ["fct"], None, seed=0, folder=tmp_path, stream=stream)["fct"] for _ in range(2))
    assert stream.getvalue().count("trained fct") == 1
    for first, second in zip(trained(pairs.old), read(pairs.old), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.slow
def test_the_studies_compare_carried_against_own_and_static_against_refitted(
    grouped: Material, result: dict[str, Any]
) -> None:
    sizes = gallery_size(grouped, Candidate(FIXED_VIEW, 1.0, "uncertainty", "offset"), (60, 100))
    assert {row["items"] for row in sizes} == {60, 100}
    assert all(0 < row[key] <= 1 for row in sizes for key in ("carried", "own"))
    refitted = refit(grouped, (0.25,))
    for row in refitted:
        assert row["difference"] == pytest.approx(row["refitted"] - row["static"])
    printed = render([result | {"gallery_size": sizes, "refit": refitted}])
    assert "fitted on 70 items" in printed
    assert "area, map of the start" in printed


@pytest.mark.slow
def test_groups_end_with_all_of_the_gap_closed(grouped: Material, result: dict[str, Any]) -> None:
    winners = {"label-free": Candidate(MapView("kernel"), 1.0, "random", "offset")}
    study = groups(grouped, winners, most_items=120, most_queries=40)
    assert sorted(study["groups"]) == ["even", "odd"]
    assert [row["name"] for row in study["rows"]] == ["random", "uncertainty", "auto, label-free"]
    for row in study["rows"]:
        assert row["gaps"][-1] == pytest.approx(study["new"])
        assert row["closed"][-1]["value"] == pytest.approx(1)
    printed = render([result | {"groups": study}])
    assert "closed at 10 %" in printed
    assert "(e) three quarters" in printed


def test_the_one_shot_gain_is_what_reembedding_one_item_changes() -> None:
    rng = np.random.default_rng(5)
    stale, new = (rng.normal(size=(6, 12)).astype(np.float32) for _ in range(2))
    stale[2, 7] = new[2, 7] = -np.inf
    relevant = RelevantItems.of((rng.random((6, 12)) < 0.3) & np.isfinite(stale))
    shadow = Shadow(new, None, {"label": relevant})

    def value(scores: np.ndarray) -> float:
        return float(np.nanmean(measure(scores, {"label": relevant})["label"]["map"]))

    expected = []
    for item in range(12):
        mixed = stale.copy()
        mixed[:, item] = new[:, item]
        expected.append(value(mixed) - value(stale))
    np.testing.assert_allclose(average_precision_gain(shadow, stale, relevant), expected, atol=1e-6)


def test_a_hub_of_other_classes_counts_as_bad_and_one_of_its_own_as_good() -> None:
    near = np.array([[9, 8, 7, 6, 5, 0], [9, 8, 7, 6, 5, 0]], np.float32)
    labels = np.array(["a", "b", "a", "b", "a", "b"], object)
    np.testing.assert_array_equal(bad_hubs(near, np.array(["a", "a"], object), labels), [-2, 2, -2, 2, -2, 0])
