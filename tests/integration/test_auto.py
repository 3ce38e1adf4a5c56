"""`auto` decided by measurement, and the orders that need more than a chunk to know."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.alignment.maps import METHODS, Alignment
from fastfill_ray.config import load_config
from fastfill_ray.errors import InputError
from fastfill_ray.experiment.candidate import WEIGHTS, MapView
from fastfill_ray.experiment.experiment import Findings, Question, run_experiment
from fastfill_ray.experiment.heldout import Evidence
from fastfill_ray.experiment.search import Watcher
from fastfill_ray.experiment.summary import choice_result
from fastfill_ray.ordering.policies import expected_gain
from fastfill_ray.ordering.proxies import with_thresholds
from fastfill_ray.report.prediction import promises
from fastfill_ray.simulation import simulate
from fastfill_ray.stages import choose
from fastfill_ray.stages.pairs import _from_table
from fastfill_ray.storage.arrow import read_table
from fastfill_ray.storage.files import open_files
from fastfill_ray.storage.paths import stage_receipt
from fastfill_ray.storage.receipts import read_receipt
from fastfill_ray.storage.refs import get_verified
from tests import synthetic
from tests.integration.conftest import Workshop, in_process

AUTO = {"alignment": {"method": "auto"}, "policy": {"name": "auto"}, "serving": {"stale_mode": "auto"}}


@pytest.fixture(scope="module")
def decided(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("auto") / "root"
    in_process(workshop.config(root, **AUTO), until="plan")
    return root


def test_plan_says_what_was_chosen_why_by_how_much_and_what_it_promises(decided: Path, workshop: Workshop) -> None:
    plan = in_process(workshop.config(decided, **AUTO), until="plan").state.plan
    assert plan is not None
    assert plan.method in METHODS
    assert plan.choice is not None
    winner, margin = plan.choice.winner, plan.choice.margin
    assert winner.method == plan.method
    assert winner.policy == plan.policy
    assert winner.stale_mode == plan.stale_mode
    assert winner.weight in WEIGHTS
    assert plan.choice.runner_up != winner
    assert margin is not None
    assert margin.low <= margin.value <= margin.high
    assert {trial.method for trial in plan.choice.trials} == set(METHODS)
    assert set(plan.choices) == {"alignment.method", "policy.name", "serving.stale_mode", "runner-up"}
    assert [round(p.fraction, 3) for p in plan.prediction] == [0.198, 0.3, 0.6, 1.0]
    assert all(p.low <= p.value <= p.high for p in plan.prediction)
    assert {(p.scope, p.relevance, p.metric) for p in plan.prediction} == {("gallery", "label", "map")}


@pytest.mark.parametrize("objective", ["label/map", "new_model/recall@10"])
def test_what_is_measured_of_a_version_lies_inside_what_was_predicted(
    workshop: Workshop, tmp_path: Path, objective: str
) -> None:
    relevance, metric = objective.split("/")
    config = workshop.config(tmp_path / "root", objective={"relevance": relevance, "metric": metric})
    made = promises(in_process(config).state)
    assert [p.version for p in made] == [0, 1, 2, 3]
    for promise in made:
        measured = promise.measured[promise.prediction.scope]
        assert promise.prediction.low <= measured.value <= promise.prediction.high


def test_simulate_on_the_pairs_queries_maps_and_waves_of_a_run_makes_the_runs_choice(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Evidence, Question]] = []

    def spy(evidence: Evidence, question: Question, watcher: Watcher) -> Findings:
        seen.append((evidence, question))
        return run_experiment(evidence, question, watcher)

    monkeypatch.setattr(choose, "run_experiment", spy)
    plan = in_process(workshop.config(tmp_path / "root", **AUTO), until="plan").state.plan
    assert plan is not None
    assert plan.choice is not None
    [(evidence, question)] = seen
    simulation = simulate(
        evidence.pairs,
        queries=evidence.queries,
        objective=str(question.objective),
        metric=evidence.metric,
        alignments=evidence.maps,  # type: ignore[arg-type]
        waves=question.fractions,
        seed=evidence.seed,
        stream=io.StringIO(),
    )
    assert simulation.data["maps"] == "given"
    assert simulation.findings is not None
    choice = choice_result(simulation.findings)
    assert (choice.winner, choice.runner_up) == (plan.choice.winner, plan.choice.runner_up)
    assert [t.model_dump(exclude={"area"}) for t in choice.trials] == [
        t.model_dump(exclude={"area"}) for t in plan.choice.trials
    ]
    assert [t.area for t in choice.trials] == pytest.approx([t.area for t in plan.choice.trials], abs=1e-6)
    promised = [p.value for p in plan.prediction]
    assert [p.value for p in simulation.findings.predicted] == pytest.approx(promised, abs=1e-6)


def test_a_decision_is_made_once(decided: Path, workshop: Workshop) -> None:
    log = io.StringIO()
    result = in_process(workshop.config(decided, **AUTO), until="version0", stream=log)
    assert "choose" in result.seconds or "train" not in log.getvalue()
    assert len(list((decided / "choice").iterdir())) == 1
    assert len(list((decided / "alignment").rglob("receipt.json"))) == len(METHODS)
    assert "train" not in result.seconds


def test_expected_gain_sees_the_whole_gallery_though_chunks_are_scored_one_by_one(
    workshop: Workshop, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    config = workshop.config(root, policy={"name": "expected_gain"})
    plan = in_process(config, until="plan").state.plan
    assert plan is not None
    assert plan.policy == "expected_gain"
    files = open_files(str(root))
    receipt = read_receipt(files, stage_receipt("scores", plan.scores))
    assert receipt is not None
    chunks = read_table(get_verified(files, receipt.outputs[0]), name="chunks").to_pylist()
    scored = pa.concat_tables([pq.read_table(root / chunk["path"]) for chunk in chunks])
    priority = dict(zip(scored.column("id").to_pylist(), scored.column("priority").to_pylist(), strict=True))

    # The same in one process: the thresholds over all items but the pairs, and then every item.
    [info] = (root / "alignment").rglob("alignment.*.json")
    [weights] = (root / "alignment").rglob("model.*.safetensors")
    alignment = Alignment.load(weights.read_bytes(), json.loads(info.read_text()))
    [pairs_file] = (root / "pairs").rglob("pairs.*.parquet")
    pairs = _from_table("", pq.read_table(pairs_file))
    loaded = load_config(config)
    evidence = Evidence(pairs, None, loaded.new_model.metric, {"ridge": alignment}, None, loaded.seed)
    proxies = evidence.reference(MapView("ridge"), ["expected_gain"]).proxies
    assert proxies is not None
    pair_ids = set(pairs.ids.tolist())
    finite = np.array([np.isfinite(priority[item]) for item in workshop.ids.tolist()])
    old = synthetic.old_vectors(workshop.x)
    others = finite & ~np.array([item in pair_ids for item in workshop.ids.tolist()])
    aligned = alignment(old)[0]
    proxies = with_thresholds(proxies, old[others], aligned[others])
    expected = expected_gain(old, aligned, proxies)
    found = np.array([priority[item] for item in workshop.ids.tolist()])
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-3, atol=1e-4)


def test_traffic_comes_first_and_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    synthetic.write_gallery(tmp_path / "gallery")
    for path in sorted((tmp_path / "gallery").iterdir()):
        table = pq.read_table(path)
        weights = np.where(np.arange(table.num_rows) % 10 == 0, 1000.0, 1.0)
        pq.write_table(table.append_column("asked", pa.array(weights)), path)
    config = synthetic.config(tmp_path, gallery={"weight_column": "asked"}, objective={"relevance": "new_model"})
    plan = in_process(config, until="plan").state.plan
    assert plan is not None
    files = open_files(str(tmp_path / "out"))
    receipt = read_receipt(files, stage_receipt("scores", plan.scores))
    assert receipt is not None
    chunks = read_table(get_verified(files, receipt.outputs[0]), name="chunks").to_pylist()
    scored = pa.concat_tables([pq.read_table(tmp_path / "out" / chunk["path"]) for chunk in chunks])
    asked = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "gallery").iterdir())])
    weight = dict(zip(asked.column("id").to_pylist(), asked.column("asked").to_pylist(), strict=True))
    first = scored.sort_by([("priority", "descending")]).column("id").to_pylist()[:60]
    assert {weight[item] for item in first} == {1000.0}

    path = sorted((tmp_path / "gallery").iterdir())[1]
    table = pq.read_table(path)
    bad = table.column("asked").to_pylist()
    bad[3] = -1.0
    pq.write_table(table.set_column(table.schema.get_field_index("asked"), "asked", pa.array(bad)), path)
    config["output"] = str(tmp_path / "other")
    with pytest.raises(InputError, match=rf"{path.name}.*weight_column 'asked' is -1.0"):
        in_process(config, until="plan")
