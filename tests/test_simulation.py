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
from fastfill_ray.alignment.maps import Alignment, Method
from fastfill_ray.alignment.pairs import classifier_for
from fastfill_ray.cli import main
from fastfill_ray.errors import AlignmentFailed, ConfigError
from fastfill_ray.experiment.candidate import WEIGHTS, Objective
from fastfill_ray.experiment.experiment import Question, run_experiment
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.experiment.items import PairedItems, Queries
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.pairs import read_pairs
from fastfill_ray.ordering.classifier import Classifier
from fastfill_ray.ordering.policies import Policy
from fastfill_ray.retrieval.calibration import FORMS
from fastfill_ray.retrieval.metrics import METRICS
from fastfill_ray.simulation import Simulation, in_order, simulate, train_maps
from fastfill_ray.types import SPLITS
from tests import synthetic
from tests.experiment.test_experiment import same_findings

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
def items(pairs: str) -> PairedItems:
    return read_pairs(InputStore(), pairs, metric="cosine", seed=0)[0]


def quiet(pairs: str | PairedItems, **options: Any) -> Simulation:
    return simulate(pairs, **{"methods": CHEAP, "policies": TWO, "stream": io.StringIO(), **options})


def users_of(count: int, *, old: bool = False) -> Queries:
    """Users' queries with labels."""
    x, classes = synthetic.latent(count, seed=4)
    theirs, new = vectors(x)
    ids, labels = (
        np.array([f"{kind}-{n}" for n in numbers], object)
        for kind, numbers in (("query", range(count)), ("class", classes))
    )
    return Queries(ids, new, theirs if old else None, labels)


@pytest.fixture(scope="module")
def users() -> Queries:
    """As few queries as may decide, without old vectors: nothing is fused, which makes a simulation short."""
    return users_of(60)


def close(one: Any, other: Any) -> bool:
    """Whether two pieces of JSON are the same but for the last digits of their numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-5)
    return bool(one == other)


@pytest.fixture(scope="module")
def report(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, Path, str]:
    out, stream = tmp_path_factory.mktemp("out") / "new" / "folder", io.StringIO()
    return quiet(pairs, policies=None, methods=["kernel"], out=out, stream=stream), out, stream.getvalue()


# The report


def test_simulation_json_is_valid_and_holds_what_is_returned(report: tuple[Simulation, Path, str]) -> None:
    simulation, out, _ = report

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads((out / "simulation.json").read_text(), parse_constant=no_constant)
    assert read == json.loads(json.dumps(simulation.data))
    assert [path.name for path in out.iterdir()] == ["simulation.json"]


def test_the_report_says_what_was_simulated_on_what(report: tuple[Simulation, Path, str]) -> None:
    data = report[0].data
    assert set(data) == {
        "protocol", "objective", "arms", "curves", "choice", "seed", "metric", "seconds", "preset", "items", "dropped",
        "maps", "rivals", "better_metric", "asked_for", "answers",
    }  # fmt: skip
    assert (data["protocol"], data["objective"], data["metric"], data["preset"]) == (
        None, "label/map", "cosine", "default",
    )  # fmt: skip
    assert (data["items"], data["dropped"], data["seed"]) == (COUNTS, 1, 0)
    assert data["maps"] == "trained here, preset default, seed 0"
    names = {f"{relevance}/{metric}" for relevance in ("label", "new_model") for metric in METRICS}
    assert set(data["arms"]) == {"old/old", "new/new"}
    for arm in data["arms"].values():
        assert set(arm) == names
        assert all(set(interval) == {"value", "low", "high", "queries"} for interval in arm.values())
    assert data["arms"]["new/new"]["new_model/recall@10"]["value"] == 1


def test_every_curve_has_22_points_of_every_relevance_and_metric_overall_and_per_group(
    report: tuple[Simulation, Path, str],
) -> None:
    data = report[0].data
    names = {f"{relevance}/{metric}" for relevance in ("label", "new_model") for metric in METRICS}
    for curve in data["curves"]:
        assert set(curve) == {
            "method", "norms_kept", "stale_mode", "weight", "policy", "calibration", "fractions", "values", "groups",
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


def test_every_order_and_calibration_is_among_the_curves(report: tuple[Simulation, Path, str]) -> None:
    curves = report[0].data["curves"]
    orders = {"random", "uncertainty", "entropy", "expected_gain", "class_margin", "class_loss"}
    assert {c["policy"] for c in curves if (c["stale_mode"], c["calibration"]) == ("aligned", "offset")} == orders
    assert {c["stale_mode"] for c in curves} == {"aligned"}, "no user's query is known to have an old vector"
    assert {c["calibration"] for c in curves} == set(FORMS)
    keys = [tuple(c[k] for k in ("method", "weight", "policy", "calibration")) for c in curves]
    assert len(set(keys)) == len(keys)


def test_the_choice_has_a_runner_up_a_margin_and_all_that_was_tried(report: tuple[Simulation, Path, str]) -> None:
    data = report[0].data
    choice = data["choice"]
    assert set(choice) == {"objective", "winner", "runner_up", "margin", "expected", "trials"}
    assert choice["objective"] == "label/map"
    assert choice["expected"]["low"] <= choice["expected"]["value"] <= choice["expected"]["high"]
    assert choice["runner_up"] != choice["winner"]
    curves = [next(c for c in data["curves"] if choice[who].items() <= c.items()) for who in ("winner", "runner_up")]
    areas = [curve["values"]["label/map"]["area"] for curve in curves]
    margin = choice["margin"]
    assert margin["value"] == pytest.approx(areas[0] - areas[1], abs=1e-5)
    assert margin["low"] <= margin["value"] <= margin["high"]
    assert margin["queries"] == 60
    for last in (True, False):
        tried = [
            (-trial["queries"], -trial["area"]) for trial in choice["trials"] if (trial["stage"] == "final") == last
        ]
        assert tried == sorted(tried)
    assert any(choice["winner"].items() <= trial.items() for trial in choice["trials"])


def test_the_table_shows_arms_the_best_curves_and_the_choice(report: tuple[Simulation, Path, str]) -> None:
    simulation = report[0]
    lines = simulation.table().splitlines()
    assert lines[0].startswith("Arms, and areas under the curves")
    assert lines[1].split() == ["label/map", "label/cmc@1", "new_model/recall@10", "at", "0", "%", "to", "95", "%"]
    assert {lines[2].split()[0], lines[3].split()[0]} == {"new/new", "old/old"}
    best = max(simulation.data["curves"], key=lambda c: c["values"]["label/map"]["area"])
    assert f"{100 * best['values']['label/map']['area']:.1f}" in lines[4]
    assert lines[4].startswith(f"{best['method']}, ")
    assert lines[16].startswith("Chosen on the calibration split: kernel, ")
    assert lines[17].startswith("Runner-up: kernel, ")
    assert max(map(len, lines[:16])) <= 120


def test_cheaper_ways_stand_beside_the_choice_in_figures_and_words(report: tuple[Simulation, Path, str]) -> None:
    rivals, table = report[0].data["rivals"], report[0].table()
    arms, objective = report[0].data["arms"], rivals["objective"]
    ways = {way["name"]: way["values"][objective] for way in rivals["ways"]}
    names = ["the choice", "swap at the end", "query map", "rank merge, mapped queries", "rank merge", "RRF"]
    assert list(ways) == names
    for name, values in ways.items():
        assert len(values["curve"]) == 22
        assert f"\n{name}  " in table
        if name != "query map":
            assert values["curve"][-1] == pytest.approx(arms["new/new"][objective]["value"], abs=1e-6)
    assert ways["the choice"]["area"] == report[0].data["curves"][0]["values"][objective]["area"]
    assert ways["RRF"]["curve"][0] == ways["rank merge"]["curve"][0] == arms["old/old"][objective]["value"]
    ahead = ways["RRF"]["behind"]["value"]
    assert ahead == pytest.approx(ways["the choice"]["area"] - ways["RRF"]["area"], abs=2e-6)
    assert all(words in table.replace("\n", " ") for words in rivals["words"])
    assert report[0].data["better_metric"] is None


def test_another_metric_is_advised_where_the_new_model_retrieves_better_by_it(items: PairedItems) -> None:
    lengths = np.random.default_rng(0).lognormal(sigma=1.5, size=(len(items.ids), 1)).astype(np.float32)
    simulation = quiet(replace(items, new=items.new * lengths), metric="ip")
    assert simulation.data["better_metric"]["metric"] == "cosine"
    assert "retrieves better by cosine than by ip" in simulation.table()


def test_progress_tells_what_is_left_out_trained_and_compared(report: tuple[Simulation, Path, str]) -> None:
    lines = report[2].splitlines()
    assert lines[0] == "1 pairs are left out; the first: row 400, old: non_finite"
    assert lines[1].startswith("trained kernel on 280 pairs in ")
    assert lines[2] == "choosing among 1 maps"


def test_two_runs_with_one_seed_report_the_same_and_another_seed_another(items: PairedItems, users: Queries) -> None:
    first, second, other = (quiet(items, queries=users, seed=seed).data for seed in (3, 3, 4))
    for name in ("arms", "curves", "maps", "items"):
        assert close(first[name], second[name])
    for name in ("winner", "runner_up", "margin", "expected"):
        assert close(first["choice"][name], second["choice"][name])
    assert not close(first["curves"], other["curves"])


def test_the_public_names_are_these() -> None:
    assert (fastfill_ray.simulate, fastfill_ray.Simulation) == (simulate, Simulation)


# Variants of the input


def test_without_labels_the_new_models_own_neighbours_are_the_objective(items: PairedItems, users: Queries) -> None:
    data = quiet(replace(items, labels=None, groups=None), queries=users, policies=None, methods=["ridge"]).data
    assert data["objective"] == "new_model/recall@10"
    assert {curve["policy"] for curve in data["curves"]} == {"random", "uncertainty", "expected_gain"}
    assert all(name.startswith("new_model/") for name in data["arms"]["new/new"])
    assert all("groups" not in curve for curve in data["curves"])


def test_labels_that_name_single_items_leave_entropy_out(items: PairedItems, users: Queries) -> None:
    single = replace(items, labels=items.ids)
    data = quiet(single, queries=users, policies=None, methods=["ridge"], objective="new_model/recall@10").data
    assert "entropy" not in {curve["policy"] for curve in data["curves"]}


@pytest.mark.slow
def test_lists_of_labels_are_an_objective_and_no_classes(
    pairs: str, tmp_path: Path, items: PairedItems, users: Queries
) -> None:
    table = pq.read_table(pairs)
    labels = table.column("label").to_pylist()
    tags = pa.array([[label, "all"] if row % 2 else [label] for row, label in enumerate(labels)])
    table = table.set_column(table.column_names.index("label"), "label", tags)
    pq.write_table(table, tmp_path / "tags.parquet")
    options: dict[str, Any] = {"methods": ["fastfill"], "objective": "label/map", "queries": users}
    data = quiet(str(tmp_path / "tags.parquet"), policies=None, **options).data
    single = quiet(items, policies=["random"], **options).data
    assert {curve["policy"] for curve in data["curves"]} == {"random", "uncertainty", "expected_gain"}
    assert data["arms"]["new/new"]["label/map"] == single["arms"]["new/new"]["label/map"], "no query is tagged `all`"
    with pytest.raises(ConfigError, match="policy class_margin: it needs one class per item, but the labels"):
        quiet(str(tmp_path / "tags.parquet"), policies=["class_margin"], **options)


def test_graded_judgements_of_a_file_are_the_gain_of_ndcg(pairs: str, tmp_path: Path, items: PairedItems) -> None:
    """Every query is an item's own vector, judged with 1, beside an item of the opposite direction, judged with 3."""
    rows = np.flatnonzero(items.split != "train")
    new = items.new[rows] / np.linalg.norm(items.new[rows], axis=1, keepdims=True)
    split = items.split[rows]
    same = split[:, None] == split[None, :]
    last = np.where(same, new @ new.T, np.inf).argmin(axis=1)
    names = [f"q{i}" for i in range(len(rows))]
    users, qrels = tmp_path / "queries.parquet", tmp_path / "qrels.parquet"
    pq.write_table(pa.table({"id": names, "new": list(items.new[rows])}), users)
    judged = {
        "query_id": [*names, *names, *names],
        "item_id": [*items.ids[rows].tolist(), *items.ids[rows[last]].tolist(), *items.ids[rows[::-1]].tolist()],
        "score": [1] * len(rows) + [3] * len(rows) + [0] * len(rows),
    }
    pq.write_table(pa.table(judged), qrels)
    options: dict[str, Any] = {"queries": str(users), "qrels": str(qrels), "methods": ["ridge"], "policies": ["random"]}
    arms = quiet(pairs, objective="qrels/ndcg@10", **options).data["arms"]["new/new"]
    assert arms["qrels/ndcg@10"]["value"] == pytest.approx(1 / (3 + 1 / np.log2(3)), abs=1e-6)
    assert arms["qrels/recall@10"]["value"] == 0.5
    assert arms["qrels/mrr"]["value"] == 1


def test_one_map_and_one_order_without_old_queries_have_no_runner_up(items: PairedItems, users: Queries) -> None:
    simulation = quiet(items, queries=users, methods=["ridge"], policies=["random"])
    choice = simulation.data["choice"]
    assert (choice["runner_up"], choice["margin"]) == (None, None)
    assert set(simulation.data["arms"]) == {"new/new"}
    assert {curve["stale_mode"] for curve in simulation.data["curves"]} == {"aligned"}
    assert simulation.data["arms"]["new/new"]["label/map"]["queries"] == 60
    assert "Chosen on the calibration split: ridge, aligned, random" in simulation.table()


def test_queries_and_judgements_from_files_are_an_objective_too(pairs: str, tmp_path: Path, items: PairedItems) -> None:
    rows = np.concatenate([np.flatnonzero(items.split == split) for split in ("calibration", "audit")])
    old, new = vectors(synthetic.latent(N + 1)[0])
    names = [f"q{i}" for i in range(len(rows))]
    noise = np.random.default_rng(0).normal(size=(len(rows), synthetic.NEW_DIM)).astype("f4") * 0.02
    users, qrels = tmp_path / "queries.parquet", tmp_path / "qrels.parquet"
    pq.write_table(pa.table({"id": names, "new": list(new[rows] + noise), "old": list(old[rows])}), users)
    pq.write_table(pa.table({"query_id": names, "item_id": items.ids[rows].tolist()}), qrels)
    options: dict[str, Any] = {"queries": str(users), "qrels": str(qrels), "methods": ["ridge"], "policies": ["random"]}
    data = quiet(pairs, objective="qrels/mrr", **options).data
    assert data["objective"] == "qrels/mrr"
    assert data["arms"]["new/new"]["qrels/mrr"] == pytest.approx({"value": 1, "low": 1, "high": 1, "queries": 60})
    assert data["choice"]["objective"] == "qrels/mrr"
    assert data["arms"]["old/old"]["qrels/mrr"]["value"] == 1
    assert {curve["stale_mode"] for curve in data["curves"]} == {"aligned", "fused"}, "these queries have old vectors"
    assert not any(name.startswith("label/") for name in data["arms"]["new/new"])

    pq.write_table(pa.table({"query_id": names, "item_id": ["nothing"] * len(rows)}), qrels)
    with pytest.raises(ConfigError, match="objective qrels/mrr: no query has a relevant item in split 'calibration'"):
        quiet(pairs, objective="qrels/mrr", **options)


def test_equal_weights_change_nothing_and_others_the_order(items: PairedItems, users: Queries) -> None:
    curves = [
        quiet(replace(items, weights=weights), queries=users, methods=["ridge"], policies=["uncertainty"]).data[
            "curves"
        ]
        for weights in (None, np.full(N, 2, np.float32), np.arange(N, dtype=np.float32) % 2)
    ]
    assert close(curves[0], curves[1])
    assert not close(curves[0], curves[2])


def test_where_no_map_can_be_fitted_every_reason_is_given(items: PairedItems) -> None:
    flat = replace(items, old=np.repeat(items.old[:1], N, axis=0))
    with pytest.raises(AlignmentFailed, match=r"ridge: .* are the same.*; procrustes: "):
        quiet(flat)


# The run's own choice


@pytest.fixture(scope="module")
def maps(items: PairedItems) -> dict[Method, Alignment]:
    return train_maps(items, CHEAP, "default", None, seed=5, stream=io.StringIO())


@pytest.mark.parametrize(
    ("queries", "objective", "policies"),
    [
        (None, Objective("label", "map"), ("random", "class_margin", "entropy")),
        (users_of(80, old=True), Objective("label", "cmc@1"), ("random", "uncertainty")),
        (users_of(80), Objective("new_model", "recall@10"), None),
        (users_of(59), Objective("label", "map"), TWO),
    ],
    ids=["items", "old", "orders", "few"],
)
def test_on_a_runs_pairs_queries_maps_and_waves_the_choice_is_the_runs(
    items: PairedItems,
    maps: dict[Method, Alignment],
    queries: Queries | None,
    objective: Objective,
    policies: tuple[Policy, ...] | None,
) -> None:
    waves, weights = (0.05, 0.3, 1.0), WEIGHTS if queries is not None and queries.old is not None else (1.0,)
    evidence = Evidence(items, queries, "cosine", in_order(maps), classifier_for(None, items.part("train")), 5)
    of_run = run_experiment(evidence, Question(objective, weights, policies, fractions=waves))
    simulation = quiet(
        items, queries=queries, alignments=maps, waves=waves, objective=str(objective), policies=policies, seed=5
    )
    assert simulation.findings is not None
    same_findings(simulation.findings, of_run)
    assert len(of_run.predicted) == len(waves)
    assert simulation.data["maps"] == "given"


def test_the_order_of_the_rows_of_a_file_changes_nothing(
    items: PairedItems, maps: dict[Method, Alignment], users: Queries
) -> None:
    rng = np.random.default_rng(1)
    moved = items.take(rng.permutation(N)), users.take(rng.permutation(len(users.ids)))
    first, second = (
        quiet(pairs, queries=queries, alignments=maps, waves=(0.1, 1.0)) for pairs, queries in ((items, users), moved)
    )
    assert first.findings is not None
    assert second.findings is not None
    same_findings(first.findings, second.findings)


def test_below_sixty_answered_queries_the_new_model_decides_and_the_report_says_so(
    items: PairedItems, maps: dict[Method, Alignment]
) -> None:
    for count, by in ((59, "new_model/map"), (60, "label/map")):
        simulation = quiet(items, queries=users_of(count), alignments=maps, objective="label/map")
        assert simulation.findings is not None
        assert str(simulation.findings.chosen_by) == simulation.data["choice"]["objective"] == by
        assert simulation.data["objective"] == simulation.data["rivals"]["objective"] == by
        assert simulation.data["asked_for"] == "label/map"
        assert simulation.data["answers"]["audit"] == {"queries": count, "answered": count}
        told = simulation.table().replace("\n", " ")
        assert f"best {by} first" in told
        assert ("which was asked for, only 59 of 59 queries have an answer among the calibration items" in told) == (
            count == 59
        )


@pytest.mark.parametrize("split", ["calibration", "audit"])
def test_an_objective_that_no_query_of_a_split_can_answer_is_refused(
    items: PairedItems, users: Queries, maps: dict[Method, Alignment], split: str
) -> None:
    assert items.labels is not None
    labels = items.labels.copy()
    labels[items.split == split] = "other"
    with pytest.raises(ConfigError, match=f"objective label/map: no query has a relevant item in split '{split}'"):
        quiet(replace(items, labels=labels), queries=users, alignments=maps, objective="label/map")


# Refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "label"}, "objective label: relevance label, qrels or new_model, a slash, and one of"),
        ({"objective": "label/f1"}, "objective label/f1: "),
        ({"objective": "clicks/map"}, "objective clicks/map: "),
        ({"objective": "qrels/map"}, "objective qrels/map: queries with qrels are needed"),
        ({"qrels": "qrels.parquet"}, "qrels are given without queries"),
        ({"methods": ["spline"]}, "method spline is unknown; procrustes, ridge, kernel, fct, fastfill are expected"),
        ({"policies": ["newest"]}, "policy newest is unknown; random, uncertainty"),
        ({"classifier": "nothing.npz"}, "nothing.npz"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_trained(
    items: PairedItems, options: dict[str, Any], message: str
) -> None:
    stream = io.StringIO()
    with pytest.raises(ConfigError, match=message):
        quiet(items, stream=stream, **options)
    assert stream.getvalue() == ""


def test_what_needs_labels_is_refused_without(items: PairedItems) -> None:
    bare = replace(items, labels=None)
    with pytest.raises(ConfigError, match="objective label/map: a column 'label' in pairs and queries are needed"):
        quiet(bare, objective="label/map")
    with pytest.raises(ConfigError, match="policy class_margin: it reads the items' labels; name their column"):
        quiet(bare, policies=["class_margin"])
    with pytest.raises(ConfigError, match="policy entropy: it needs the new model's classifier"):
        quiet(bare, policies=["entropy"])
    with pytest.raises(ConfigError, match="protocol authors: relevance is the class"):
        quiet(bare, policies=None, protocol="authors")


def test_labels_beside_a_classifier_must_be_its_class_numbers(items: PairedItems) -> None:
    weight, bias = np.ones((synthetic.CLASSES, synthetic.NEW_DIM), np.float32), np.zeros(synthetic.CLASSES, np.float32)
    classifier = Classifier.of_class_numbers(weight, bias)
    with pytest.raises(ConfigError, match=r"a label is no class number: .*'class-.'"):
        quiet(items, classifier=classifier, methods=["fastfill"])


@pytest.mark.parametrize("split", SPLITS)
def test_splits_that_are_too_small_are_refused(items: PairedItems, split: str) -> None:
    least = {"train": 32, "calibration": 16, "audit": 16}[split]
    kept = np.flatnonzero(items.split == split)[: least - 1]
    marks = items.split.copy()
    marks[items.split == split] = next(other for other in SPLITS if other != split)
    marks[kept] = split
    with pytest.raises(ConfigError, match=f"{least - 1} items in split '{split}', at least {least} are needed"):
        quiet(replace(items, split=marks))


# The command


def test_the_command_prints_the_table_and_writes_the_report(
    pairs: str,
    tmp_path: Path,
    users: Queries,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(simulate, "__kwdefaults__", {**(simulate.__kwdefaults__ or {}), "methods": ("ridge",)})
    queries = tmp_path / "queries.parquet"
    pq.write_table(pa.table({"new": list(users.new)}), queries)
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
    printed_json = json.loads(capsys.readouterr().out)
    assert (printed_json["metric"], printed_json["objective"]) == ("ip", "new_model/ndcg@10")
    assert printed_json == json.loads((tmp_path / "out" / "simulation.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "label/best"], "ConfigError: objective label/best: "),
        (
            ["--protocol", "authors", "--objective", "label/map"],
            "ConfigError: protocol authors: objective has no place",
        ),
    ],
)
def test_a_command_that_asks_for_the_impossible_exits_2_and_writes_nothing(
    pairs: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--pairs", pairs, "--out", str(tmp_path / "out"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert not (tmp_path / "out").exists()
