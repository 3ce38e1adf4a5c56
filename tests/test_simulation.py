"""`simulate` end to end on synthetic pairs: what it reports, that it repeats itself, and what it refuses."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray
from fastfill_ray.alignment.maps import Method
from fastfill_ray.cli import main
from fastfill_ray.errors import AlignmentFailed, ConfigError
from fastfill_ray.inputs.pairs import PairsTable, QueriesTable, read_pairs
from fastfill_ray.ordering.policies import Policy
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.simulation import Simulation, class_numbers, simulate
from fastfill_ray.types import SPLITS
from tests import synthetic

N = 400
COUNTS = {"train": 280, "calibration": 60, "audit": 60}
CHEAP: tuple[Method, ...] = ("ridge", "procrustes")
TWO: tuple[Policy, ...] = ("random", "uncertainty")


def vectors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Old and new vectors of latent factors; the new ones bend, so that no map is perfect."""
    return synthetic.old_vectors(x), np.tanh(synthetic.new_vectors(x) / 4).astype(np.float32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pairs file with every column but weights and side vectors; one row has no usable old vector."""
    x, classes = synthetic.latent(N + 1)
    old, new = vectors(x)
    old[N] = np.nan
    split = [split for split, count in COUNTS.items() for _ in range(count)] + ["audit"]
    table = {
        "id": [f"item-{i}" for i in range(N + 1)],
        "old": list(old),
        "new": list(new),
        "label": [f"class-{c}" for c in classes],
        "group": [f"group-{c % 3}" for c in classes],
        "split": split,
    }
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.table(table), path)
    return str(path)


@pytest.fixture(scope="module")
def table(pairs: str) -> PairsTable:
    return read_pairs(pairs, metric="cosine", seed=0)


def quiet(pairs: str | PairsTable, **options: Any) -> Simulation:
    return simulate(pairs, **{"methods": CHEAP, "policies": TWO, "stream": io.StringIO(), **options})


@pytest.fixture(scope="module")
def asked() -> QueriesTable:
    """Few queries, labelled, without old vectors: nothing is fused, which makes a simulation short."""
    x, classes = synthetic.latent(30, seed=4)
    return QueriesTable(vectors(x)[1], None, np.array([f"class-{c}" for c in classes], object), None, None)


@pytest.fixture(scope="module")
def found(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, Path, str]:
    out, stream = tmp_path_factory.mktemp("out") / "new" / "folder", io.StringIO()
    return quiet(pairs, policies=None, methods=["kernel"], out=out, stream=stream), out, stream.getvalue()


# The report


def test_simulation_json_is_valid_and_holds_what_is_returned(found: tuple[Simulation, Path, str]) -> None:
    simulation, out, _ = found

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads((out / "simulation.json").read_text(), parse_constant=no_constant)
    assert read == json.loads(json.dumps(simulation.data))
    assert [path.name for path in out.iterdir()] == ["simulation.json"]


def test_the_report_says_what_was_simulated_on_what(found: tuple[Simulation, Path, str]) -> None:
    data = found[0].data
    assert set(data) == {
        "protocol", "objective", "arms", "curves", "choice", "seed", "metric", "seconds", "preset", "items", "dropped",
    }  # fmt: skip
    assert (data["protocol"], data["objective"], data["metric"], data["preset"]) == (
        None, "label/map", "cosine", "default",
    )  # fmt: skip
    assert (data["items"], data["dropped"], data["seed"]) == (COUNTS, 1, 0)
    names = {f"{relevance}/{metric}" for relevance in ("label", "new_model") for metric in METRICS}
    assert set(data["arms"]) == {"old/old", "new/new"}
    for arm in data["arms"].values():
        assert set(arm) == names
        assert all(set(interval) == {"value", "low", "high", "queries"} for interval in arm.values())
    assert data["arms"]["new/new"]["new_model/recall@10"]["value"] == 1


def test_every_curve_has_22_points_of_every_relevance_and_metric_overall_and_per_group(
    found: tuple[Simulation, Path, str],
) -> None:
    data = found[0].data
    names = {f"{relevance}/{metric}" for relevance in ("label", "new_model") for metric in METRICS}
    for curve in data["curves"]:
        assert set(curve) == {
            "method", "stale_mode", "weight", "policy", "calibration", "fractions", "values", "groups",
        }  # fmt: skip
        assert curve["fractions"] == pytest.approx([60 * i // 21 / 60 for i in range(22)], abs=1e-6)
        assert set(curve["values"]) == names
        for name, values in curve["values"].items():
            assert set(values) == {"curve", "area", "low", "high", "at_0", "to_95", "to_99"}
            assert values["curve"][-1] == data["arms"]["new/new"][name]["value"]
            assert values["area"] == pytest.approx(np.mean(values["curve"]), abs=1e-5)
            assert values["low"] <= values["area"] <= values["high"]
        for by_group in curve["groups"].values():
            assert set(by_group) == {"group-0", "group-1", "group-2"}
            assert all(len(values) == 22 for values in by_group.values())


def test_every_order_and_calibration_is_among_the_curves(found: tuple[Simulation, Path, str]) -> None:
    curves = found[0].data["curves"]
    orders = {"random", "uncertainty", "entropy", "expected_gain", "class_margin", "class_loss"}
    assert {c["policy"] for c in curves if (c["stale_mode"], c["calibration"]) == ("aligned", "offset")} == orders
    assert {c["stale_mode"] for c in curves} == {"aligned"}, "no user's query is known to have an old vector"
    assert {c["calibration"] for c in curves} == set(FORMS)
    keys = [tuple(c[k] for k in ("method", "weight", "policy", "calibration")) for c in curves]
    assert len(set(keys)) == len(keys)


def test_the_choice_has_a_runner_up_a_margin_and_all_that_was_tried(found: tuple[Simulation, Path, str]) -> None:
    data = found[0].data
    choice = data["choice"]
    assert set(choice) == {"winner", "runner_up", "margin", "trials"}
    assert choice["runner_up"] != choice["winner"]
    curves = [next(c for c in data["curves"] if choice[who].items() <= c.items()) for who in ("winner", "runner_up")]
    areas = [curve["values"]["label/map"]["area"] for curve in curves]
    margin = choice["margin"]
    assert margin["value"] == pytest.approx(areas[0] - areas[1], abs=1e-5)
    assert margin["low"] <= margin["value"] <= margin["high"]
    assert margin["queries"] == 60
    for last in (True, False):
        tried = [trial["area"] for trial in choice["trials"] if (trial["stage"] == "calibration") == last]
        assert tried == sorted(tried, reverse=True)
    assert any(choice["winner"].items() <= trial.items() for trial in choice["trials"])


def test_the_table_shows_arms_the_best_curves_and_the_choice(found: tuple[Simulation, Path, str]) -> None:
    simulation = found[0]
    lines = simulation.table().splitlines()
    assert lines[0].startswith("Arms, and areas under the curves")
    assert lines[1].split() == ["label/map", "label/cmc@1", "new_model/recall@10", "at", "0", "%", "to", "95", "%"]
    assert {lines[2].split()[0], lines[3].split()[0]} == {"new/new", "old/old"}
    best = max(simulation.data["curves"], key=lambda c: c["values"]["label/map"]["area"])
    assert f"{100 * best['values']['label/map']['area']:.1f}" in lines[4]
    assert lines[4].startswith(f"{best['method']}, ")
    assert lines[-2].startswith("Chosen on the calibration split: kernel, ")
    assert lines[-1].startswith("Runner-up: kernel, ")
    assert len(lines) == 4 + 12 + 2
    assert max(map(len, lines[:-2])) <= 120


def test_progress_tells_what_is_left_out_trained_and_compared(found: tuple[Simulation, Path, str]) -> None:
    told = found[2].splitlines()
    assert told[0] == "1 pairs are left out; the first: row 400, old: non_finite"
    assert told[1].startswith("trained kernel on 280 pairs in ")
    assert told[2] == "choosing among 1 maps and 6 orders"


def uncalibrated(curves: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    """The points of raw curves, by what they are of and their number: a fitted calibration may jump."""
    return {
        (curve["method"], curve["policy"], curve["stale_mode"], name, str(number)): value
        for curve in curves
        if curve["calibration"] == "identity"
        for name, values in curve["values"].items()
        for number, value in enumerate(values["curve"])
    }


def test_two_runs_with_one_seed_report_the_same_and_another_seed_another(
    table: PairsTable, asked: QueriesTable
) -> None:
    told = [quiet(table, queries=asked, seed=seed).data for seed in (3, 3, 4)]
    # Roundings of two trainings may exchange neighbours in a ranking, here and there.
    for arm, values in told[0]["arms"].items():
        for name, interval in values.items():
            assert interval == pytest.approx(told[1]["arms"][arm][name], abs=0.02)
    assert uncalibrated(told[0]["curves"]) == pytest.approx(uncalibrated(told[1]["curves"]), abs=0.02)
    assert uncalibrated(told[0]["curves"]) != pytest.approx(uncalibrated(told[2]["curves"]), abs=0.02)


def test_the_public_names_are_these() -> None:
    assert (fastfill_ray.simulate, fastfill_ray.Simulation) == (simulate, Simulation)


# Variants of the input


def test_without_labels_the_new_models_own_neighbours_are_the_objective(table: PairsTable, asked: QueriesTable) -> None:
    data = quiet(replace(table, labels=None, groups=None), queries=asked, policies=None, methods=["ridge"]).data
    assert data["objective"] == "new_model/recall@10"
    assert {curve["policy"] for curve in data["curves"]} == {"random", "uncertainty", "expected_gain"}
    assert all(name.startswith("new_model/") for name in data["arms"]["new/new"])
    assert all("groups" not in curve for curve in data["curves"])


def test_labels_that_name_single_items_leave_entropy_out(table: PairsTable, asked: QueriesTable) -> None:
    single = replace(table, labels=table.ids)
    data = quiet(single, queries=asked, policies=None, methods=["ridge"], objective="new_model/recall@10").data
    assert "entropy" not in {curve["policy"] for curve in data["curves"]}


def test_one_map_and_one_order_without_old_queries_have_no_runner_up(table: PairsTable, asked: QueriesTable) -> None:
    simulation = quiet(table, queries=asked, methods=["ridge"], policies=["random"])
    choice = simulation.data["choice"]
    assert (choice["runner_up"], choice["margin"]) == (None, None)
    assert set(simulation.data["arms"]) == {"new/new"}
    assert {curve["stale_mode"] for curve in simulation.data["curves"]} == {"aligned"}
    assert simulation.data["arms"]["new/new"]["label/map"]["queries"] == 30
    assert simulation.table().splitlines()[-1].startswith("Chosen on the calibration split: ridge, aligned, random")


def test_queries_and_judgements_from_files_are_an_objective_too(pairs: str, tmp_path: Path, table: PairsTable) -> None:
    rows = np.concatenate([np.flatnonzero(table.split == split)[:20] for split in ("calibration", "audit")])
    old, new = vectors(synthetic.latent(N + 1)[0])
    names = [f"q{i}" for i in range(len(rows))]
    noise = np.random.default_rng(0).normal(size=(len(rows), synthetic.NEW_DIM)).astype("f4") * 0.02
    asked, qrels = tmp_path / "queries.parquet", tmp_path / "qrels.parquet"
    pq.write_table(pa.table({"id": names, "new": list(new[rows] + noise), "old": list(old[rows])}), asked)
    pq.write_table(pa.table({"query_id": names, "item_id": table.ids[rows].tolist()}), qrels)
    options: dict[str, Any] = {"queries": str(asked), "qrels": str(qrels), "methods": ["ridge"], "policies": ["random"]}
    data = quiet(pairs, objective="qrels/mrr", **options).data
    assert data["objective"] == "qrels/mrr"
    assert data["arms"]["new/new"]["qrels/mrr"] == pytest.approx({"value": 1, "low": 1, "high": 1, "queries": 20})
    assert data["arms"]["old/old"]["qrels/mrr"]["value"] == 1
    assert {curve["stale_mode"] for curve in data["curves"]} == {"aligned", "fused"}, "these queries have old vectors"
    assert not any(name.startswith("label/") for name in data["arms"]["new/new"])

    pq.write_table(pa.table({"query_id": names, "item_id": ["nothing"] * len(rows)}), qrels)
    with pytest.raises(ConfigError, match="objective qrels/mrr: no query has a relevant item in split 'calibration'"):
        quiet(pairs, objective="qrels/mrr", **options)


def test_equal_weights_change_nothing_and_others_the_order(table: PairsTable, asked: QueriesTable) -> None:
    told = [
        quiet(replace(table, weights=weights), queries=asked, methods=["ridge"], policies=["uncertainty"]).data[
            "curves"
        ]
        for weights in (None, np.full(N, 2, np.float32), np.arange(N, dtype=np.float32) % 2)
    ]
    assert uncalibrated(told[0]) == pytest.approx(uncalibrated(told[1]), abs=0.02)
    assert uncalibrated(told[0]) != pytest.approx(uncalibrated(told[2]), abs=0.02)


def test_a_map_that_cannot_be_fitted_is_told_and_the_others_go_on(table: PairsTable) -> None:
    flat = replace(table, old=np.repeat(table.old[:1], N, axis=0))
    with pytest.raises(AlignmentFailed, match=r"ridge: .* are the same.*; procrustes: "):
        quiet(flat)


# Refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "label"}, "objective label/: relevance label, qrels or new_model, a slash, and one of"),
        ({"objective": "label/f1"}, "objective label/f1: "),
        ({"objective": "clicks/map"}, "objective clicks/map: "),
        ({"objective": "qrels/map"}, "objective qrels/map: queries with qrels are needed"),
        ({"qrels": "qrels.parquet"}, "qrels are given without queries"),
        ({"methods": ["spline"]}, "method spline is unknown; kernel, fastfill, fct, ridge, procrustes are expected"),
        ({"policies": ["newest"]}, "policy newest is unknown; random, uncertainty"),
        ({"classifier": "nothing.npz"}, "nothing.npz"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_trained(
    table: PairsTable, options: dict[str, Any], told: str
) -> None:
    stream = io.StringIO()
    with pytest.raises(ConfigError, match=told):
        quiet(table, stream=stream, **options)
    assert stream.getvalue() == ""


def test_what_needs_labels_is_refused_without(table: PairsTable) -> None:
    bare = replace(table, labels=None)
    with pytest.raises(ConfigError, match="objective label/map: a column 'label' in pairs and queries are needed"):
        quiet(bare, objective="label/map")
    with pytest.raises(ConfigError, match="policy class_margin: pairs need a column 'label'"):
        quiet(bare, policies=["class_margin"])
    with pytest.raises(ConfigError, match="policy entropy: it needs the new model's classifier"):
        quiet(bare, policies=["entropy"])
    with pytest.raises(ConfigError, match="protocol authors: relevance is the class"):
        quiet(bare, policies=None, protocol="authors")


def test_labels_beside_a_classifier_must_be_its_class_numbers(table: PairsTable) -> None:
    classifier = np.ones((synthetic.CLASSES, synthetic.NEW_DIM), np.float32), np.zeros(synthetic.CLASSES, np.float32)
    with pytest.raises(ConfigError, match=r"label 'class-.' is no class number"):
        quiet(table, classifier=classifier, methods=["fastfill"])


@pytest.mark.parametrize("split", SPLITS)
def test_splits_that_are_too_small_are_refused(table: PairsTable, split: str) -> None:
    kept = np.flatnonzero(table.split == split)[:31]
    marks = table.split.copy()
    marks[table.split == split] = next(other for other in SPLITS if other != split)
    marks[kept] = split
    with pytest.raises(ConfigError, match=f"31 items in split '{split}', at least 32 are needed"):
        quiet(replace(table, split=marks))


def test_labels_become_numbers_or_nothing_where_one_is_unknown() -> None:
    def numbers(values: list[Any], *, given: bool = False) -> list[int] | None:
        found = class_numbers(np.array(values, object), given=given)
        return None if found is None else found.tolist()

    assert numbers(["b", "a", "b"]) == [1, 0, 1]
    assert numbers([7, 3, 7], given=True) == [7, 3, 7]
    assert numbers(["7", "3"], given=True) == [7, 3]
    assert numbers(["a", None]) is None
    assert class_numbers(None, given=False) is None


# The command


def test_the_command_prints_the_table_and_writes_the_report(
    pairs: str,
    tmp_path: Path,
    asked: QueriesTable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(simulate, "__kwdefaults__", {**(simulate.__kwdefaults__ or {}), "methods": ("ridge",)})
    queries = tmp_path / "queries.parquet"
    pq.write_table(pa.table({"new": list(asked.new)}), queries)
    command = ["simulate", "--pairs", pairs, "--out", str(tmp_path / "out")]
    assert main([*command, "--protocol", "authors", "--seed", "2"]) == 0
    printed = capsys.readouterr()
    data = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert (data["protocol"], data["seed"]) == ("authors", 2)
    assert printed.out.startswith(
        "Arms, and areas under the curves (mean over the backfill, %), best label/cmc@1 first:"
    )
    assert "trained ridge on 280 pairs" in printed.err
    options = ["--queries", str(queries), "--metric", "ip", "--objective", "new_model/ndcg@10", "--json"]
    assert main([*command, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metric"], told["objective"]) == ("ip", "new_model/ndcg@10")
    assert told == json.loads((tmp_path / "out" / "simulation.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--objective", "label/best"], "ConfigError: objective label/best: "),
        (
            ["--protocol", "authors", "--objective", "label/map"],
            "ConfigError: protocol authors: objective has no place",
        ),
    ],
)
def test_a_command_that_asks_for_the_impossible_exits_2_and_writes_nothing(
    pairs: str, tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--pairs", pairs, "--out", str(tmp_path / "out"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err
    assert not (tmp_path / "out").exists()
