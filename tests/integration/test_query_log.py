"""A query log in whole runs: orders by it, held-out traffic as the objective, and what PLAN says of it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.log.records import Plan
from fastfill_ray.report.prediction import promises
from fastfill_ray.report.rest import prior_words
from fastfill_ray.stages import draw
from fastfill_ray.storage.arrow import read_table
from tests import synthetic
from tests.integration.conftest import Workshop, in_process

EVENTS = synthetic.EVENTS


def write_log(folder: Path, workshop: Workshop, *, with_items: bool = True) -> Path:
    return synthetic.write_log(folder, workshop.ids, workshop.x, with_items=with_items)


@pytest.fixture(scope="module")
def log(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"), workshop)


def config(workshop: Workshop, root: Path, log: Path, **sections: Any) -> dict[str, Any]:
    return synthetic.config(
        workshop.folder,
        output=str(root),
        queries={"log_path": str(log), "payload_columns": ["x"]},
        old_model={"embedder": "tests.synthetic:OldEmbedder"},
        **{"policy": {"name": "auto"}, **sections},
    )


def planned(values: dict[str, Any], **options: Any) -> Plan:
    plan = in_process(values, until="plan", **options).state.plan
    assert plan is not None
    return plan


def test_a_whole_run_is_measured_by_the_traffic_that_came_later(workshop: Workshop, log: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    values = config(workshop, tmp_path / "root", log, pairs={"count": 240}, waves=[0.5, 0.7, 1.0])
    result = in_process(values, stream=said)
    plan = result.state.plan
    assert plan is not None
    assert plan.objective == "log/mrr"
    assert plan.fitted_by == "log"
    assert plan.policy in ("demand", "taken")
    note = plan.choices["queries.log_path"]
    assert note.startswith("ordered by ")
    for words in (
        "distinct queries (100% of 1,050 asked)",
        "held out by time",
        "as 450 events that name what was taken (100% of that)",
        "items that were taken",
    ):
        assert words in note
    # What was taken there is measured by, and not served as new for that.
    assert plan.wave_rows[0] == 240
    versions = result.state.versions
    assert [version.fraction for version in versions][-1] == 1
    for version in versions:
        [value] = [
            value
            for value in version.metrics
            if (value.scope, value.relevance, value.metric, value.calibrated, value.group)
            == ("gallery", "log", "mrr", True, None)
        ]
        assert value.queries > 300
    made = promises(result.state)
    assert {(p.prediction.scope, p.prediction.relevance) for p in made} == {("gallery", "log")}
    for promise in made:
        measured = promise.measured["gallery"]
        assert promise.prediction.low <= measured.value <= promise.prediction.high
    # The same call finds everything done, and needs no log for that.
    assert in_process(values).state == result.state
    report = (tmp_path / "root" / "reports" / "report.html").read_text()
    assert "An item is right when the user took it" in report
    assert "distinct queries" in report
    assert {"old/old + prior", "new/new + prior"} <= set(plan.baselines)
    # A prior that brings nothing here is not spoken of.
    assert ("Ranking higher what users took often" in report) == bool(prior_words(result.state))


def test_a_log_of_three_events_is_run_as_if_it_were_none_and_the_plan_says_so(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(log).sort_by("time").slice(0, 3), few)
    values = config(workshop, tmp_path / "root", few, alignment={"method": "procrustes"})
    result = in_process(values, until="version0")
    plan = result.state.plan
    assert plan is not None
    assert (plan.fitted_by, {p.queries for p in plan.prediction}) == ("new_model", {1})
    assert plan.choice is not None
    assert plan.choice.expected is not None
    assert plan.choice.expected.queries > 16, "the calibration items ask"
    assert "only 1 query is held out that has an answer" in " ".join(result.plan_text().split())
    assert [version.version for version in result.state.versions] == [0]


def test_an_interrupted_run_goes_on_and_comes_to_the_same(
    workshop: Workshop, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config(workshop, tmp_path / "root", log, policy={"name": "taken"}, waves=[0.5, 1.0])
    whole = in_process({**values, "output": str(tmp_path / "other")})
    in_process(values, until="plan")

    def read_again(*_: object) -> None:
        raise AssertionError("what was taken is looked for in the ledger once")

    monkeypatch.setattr(draw, "_find", read_again)
    in_process(values, until="version0")
    parts = in_process(values)
    assert parts.state.plan is not None
    assert whole.state.plan is not None
    assert parts.state.plan.plan == whole.state.plan.plan
    for one, other in zip(parts.state.versions, whole.state.versions, strict=True):
        assert one.ids_digest == other.ids_digest
        for value, same in zip(one.metrics, other.metrics, strict=True):
            assert value.value == pytest.approx(same.value, abs=1e-6)


def test_what_was_taken_comes_first_and_the_most_traffic_of_it_foremost(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    plan = planned(config(workshop, root, log, policy={"name": "taken"}))
    table = pq.read_table(log)
    fit = table.slice(0, int(0.7 * EVENTS)).column("item_id").to_pylist()
    traffic = {value: fit.count(value) for value in set(fit)}
    scored = _scores(root, plan)
    assert [traffic.get(value, 0) for value in scored] == sorted((traffic.get(v, 0) for v in scored), reverse=True)


def _scores(root: Path, plan: Plan) -> list[int]:
    """The ids of all items that have an old vector, by descending priority."""
    files = sorted((root / "scores" / plan.scores).glob("*/*.parquet")) + sorted(
        (root / "scores" / plan.scores).glob("*.parquet")
    )
    found: dict[int, float] = {}
    for path in files:
        table = read_table(path.read_bytes(), name=path.name)
        if "priority" in table.column_names:
            for row in table.to_pylist():
                if row["usable"]:
                    found[row["id"]] = row["priority"]
    assert len(found) > 590
    return sorted(found, key=lambda value: -found[value])


@pytest.mark.parametrize("with_items", [False, True])
def test_a_log_without_items_in_its_later_part_asks_what_the_new_model_alone_returns(
    workshop: Workshop, tmp_path: Path, with_items: bool
) -> None:
    log = write_log(tmp_path / "log", workshop, with_items=with_items)
    if with_items:  # of those that come first alone
        table = pq.read_table(log)
        taken = table.column("item_id").to_pylist()[: EVENTS // 2] + [None] * (EVENTS - EVENTS // 2)
        pq.write_table(table.set_column(2, "item_id", pa.array(taken, pa.int64())), log)
    said = io.StringIO()
    plan = planned(config(workshop, tmp_path / "root", log), stream=said)
    assert plan.objective == "new_model/recall@10"
    assert "objective: recall@10 by new_model (no item_id in the held-out part" in said.getvalue()
    assert with_items or plan.policy != "taken"
    assert "no item was taken there" in plan.choices["queries.log_path"]
    assert {p.scope for p in plan.prediction} == {"audit"}


def test_beside_held_out_queries_all_of_a_log_orders(workshop: Workshop, log: Path, tmp_path: Path) -> None:
    queries = {**synthetic.with_queries(workshop.folder)["queries"], "log_path": str(log)}
    values = config(workshop, tmp_path / "root", log, policy={"name": "demand"})
    plan = planned({**values, "queries": queries})
    assert plan.objective == "label/map"
    assert plan.policy == "demand"
    assert "(100% of 1,500 asked)" in plan.choices["queries.log_path"]
    assert "held out" not in plan.choices["queries.log_path"]


def test_a_priority_column_of_the_users_is_the_order(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    wanted: dict[int, float] = {}
    for number, path in enumerate(sorted((workshop.folder / "gallery").iterdir())):
        table = pq.read_table(path)
        views = [None if row % 50 == 7 else float((row * 37) % 101) for row in range(table.num_rows)]
        wanted |= {v: -1.0 if w is None else w for v, w in zip(table.column("id").to_pylist(), views, strict=True)}
        pq.write_table(table.append_column("views", pa.array(views)), folder / f"{number}.parquet")
    values = synthetic.config(workshop.folder, output=str(tmp_path / "root"), gallery={"path": str(folder)})
    plan = planned({**values, "policy": {"column": "views"}})
    assert plan.policy == "column"
    assert plan.settings["gallery"]["priority_column"] == "views"
    order = [wanted[value] for value in _scores(tmp_path / "root", plan)]
    assert order == sorted(order, reverse=True)


def with_views(workshop: Workshop, folder: Path) -> dict[str, Any]:
    """The section of a gallery that has a column `views` beside: id modulo 101."""
    folder.mkdir()
    for number, path in enumerate(sorted((workshop.folder / "gallery").iterdir())):
        table = pq.read_table(path)
        views = pa.array(table.column("id").to_numpy() % 101)
        pq.write_table(table.append_column("views", views), folder / f"{number}.parquet")
    return {"path": str(folder)}


@pytest.mark.parametrize("column_first", [True, False])
def test_a_priority_column_comes_or_goes_as_a_log_does_the_opposite(
    workshop: Workshop, log: Path, tmp_path: Path, column_first: bool
) -> None:
    gallery = with_views(workshop, tmp_path / "gallery")
    both = config(workshop, tmp_path / "root", log, gallery=gallery, alignment={"method": "ridge"})
    by_column = {**both, "queries": None, "policy": {"column": "views"}}
    first, then = (by_column, both) if column_first else (both, by_column)
    plans = [planned(first), planned(then)]
    assert plans[0 if column_first else 1].policy == "column"
    assert plans[1 if column_first else 0].policy != "column"
    embedded = {path.parent for path in (tmp_path / "root" / "pairs").glob("*/c*.receipt.json")}
    assert len(embedded) == 1, "the pairs are the same items: none is embedded again"
    assert planned({**by_column, "queries": both["queries"]}).policy == "column"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": {"payload_columns": ["x"]}}, ConfigError, "queries has neither path nor log_path"),
        ({"policy": {"name": "column"}}, ConfigError, "gallery.priority_column is not set; name the column"),
        ({"policy": {"column": "nowhere"}}, ConfigError, "nowhere"),
        ({"policy": {"column": "label"}}, InputError, "numbers are expected"),
        ({"queries": {"log_path": "{log}", "payload_columns": ["y"]}}, ConfigError, "'y'"),
        ({"queries": {"log_path": "/nowhere", "payload_columns": ["x"]}}, ConfigError, "queries.log_path"),
        (
            {"queries": {"log_path": "{log}", "payload_columns": ["x"], "qrels_path": "{log}"}},
            ConfigError,
            "queries.qrels_path judges the queries of queries.path, which is not set",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(
    workshop: Workshop, log: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    filled = json.loads(json.dumps(change).replace("{log}", str(log)))
    values = {**config(workshop, tmp_path / "root", log), **filled}
    if "queries" in change:
        values["old_model"] = {}
    with pytest.raises(error, match=message):
        in_process(values)
    assert not (tmp_path / "root").exists()


def test_orders_by_a_log_need_one(workshop: Workshop, tmp_path: Path) -> None:
    values = workshop.config(tmp_path / "root", policy={"name": "demand"})
    with pytest.raises(ConfigError, match=r"policy.name is 'demand' but queries.log_path is not set"):
        in_process(values)
    with pytest.raises(ConfigError, match=r"objective.relevance is 'log' but the held-out queries are not from a log"):
        in_process(workshop.config(tmp_path / "root", objective={"relevance": "log"}))


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (None, "taken; add a column item_id, or choose another policy"),
        ("none", "taken; fill in its column item_id, or choose another policy"),
        ("late", "taken in the part that orders, only in the held-out one; fill in its column item_id"),
    ],
)
def test_a_policy_for_taken_items_needs_some_and_says_so_before_anything_starts(
    workshop: Workshop, tmp_path: Path, kept: str | None, told: str
) -> None:
    log = write_log(tmp_path / "log", workshop, with_items=kept is not None)
    if kept is not None:
        table = pq.read_table(log).sort_by("time")
        taken = table.column("item_id").to_pylist()
        late = [value if kept == "late" and row > 0.8 * EVENTS else None for row, value in enumerate(taken)]
        pq.write_table(table.set_column(2, "item_id", pa.array(late, pa.int64())), log)
    with pytest.raises(ConfigError, match=rf"{log}: the query log names no items that were {told}"):
        in_process(config(workshop, tmp_path / "root", log, policy={"name": "taken"}))
    assert not (tmp_path / "root").exists()


def test_a_log_of_one_moment_cannot_be_cut(workshop: Workshop, log: Path, tmp_path: Path) -> None:
    table = pq.read_table(log).slice(0, 1)
    path = tmp_path / "one.parquet"
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"1 distinct queries, and cut by (time|hash) one part has none"):
        in_process(config(workshop, tmp_path / "root", path))


def test_a_gallery_that_grows_keeps_the_order_and_another_log_asks_for_another(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    shutil.copytree(workshop.folder / "gallery", tmp_path / "gallery")
    mine = Path(shutil.copy(log, tmp_path / "mine.parquet"))
    values = config(workshop, tmp_path / "root", mine, gallery={"path": str(tmp_path / "gallery")}, waves=[0.5, 1.0])
    values |= {"policy": {"name": "taken"}, "serving": {"stale_mode": "aligned", "max_regression": 1}}
    first = in_process(values, until="version0").state.plan
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet").slice(0, 20)
    ids = pa.array(np.arange(20) + 1_000_000)
    pq.write_table(table.set_column(0, "id", ids), tmp_path / "gallery" / "part-003.parquet")
    grown = in_process(values)
    assert first is not None
    assert grown.state.plan is not None
    assert grown.finished
    assert grown.state.plan.follows == first.plan
    assert grown.state.versions[-1].new_rows == 620
    assert grown.state.plan.choices["queries.log_path"] == first.choices["queries.log_path"]
    pq.write_table(pq.read_table(mine).slice(100), mine)
    again = in_process(values, until="plan").state.plan
    assert again is not None
    assert again.follows is None
    assert again.settings == grown.state.plan.settings


def test_few_clicks_leave_choice_and_calibration_to_what_the_new_model_finds(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    table = pq.read_table(log)
    few = [value if row % 12 == 0 else None for row, value in enumerate(table.column("item_id").to_pylist())]
    path = tmp_path / "few.parquet"
    pq.write_table(table.set_column(2, "item_id", pa.array(few)), path)
    values = config(workshop, tmp_path / "root", path, policy={"name": "taken"}, waves=[0.5, 1.0])
    state = in_process(values).state
    assert state.plan is not None
    assert state.plan.fitted_by == "new_model"
    assert "events that name what was taken (8% of that)" in state.plan.choices["queries.log_path"]
    [served, raw] = [
        next(
            value.value
            for value in state.versions[1].metrics
            if (value.scope, value.relevance, value.metric, value.calibrated) == ("gallery", "log", "mrr", calibrated)
        )
        for calibrated in (True, False)
    ]
    assert served > raw - 0.15, "stale items are not pushed out"


def test_a_log_of_items_that_the_gallery_lacks_is_refused_before_anything_is_embedded(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    table = pq.read_table(log)
    path = tmp_path / "other.parquet"
    pq.write_table(table.set_column(2, "item_id", pa.array(np.arange(len(table)) + 10_000_000)), path)
    with pytest.raises(
        InputError, match=r"none of the 450 items that were taken .* is in the gallery, such as 1000\d+"
    ):
        in_process(config(workshop, tmp_path / "root", path))
    assert not list((tmp_path / "root" / "evaluation").glob("*/*.parquet"))


def test_taken_items_of_the_part_that_orders_are_looked_for_in_the_gallery(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    """The part that measures is later, and its items are there; of the part that orders none is, or some are not."""
    table = pq.read_table(log).sort_by("time")
    items, late = table.column("item_id").to_numpy(), np.arange(len(table)) >= 0.7 * len(table)
    for lacking, name in ((~late, "all"), (~late & (np.arange(len(table)) % 5 == 0), "some")):
        changed = table.set_column(2, "item_id", pa.array(np.where(lacking, items + 10_000_000, items)))
        pq.write_table(changed, tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"none of the [\d,]+ items taken most in the part that orders is in the gall"):
        in_process(config(workshop, tmp_path / "root", tmp_path / "all.parquet"))
    plan = planned(config(workshop, tmp_path / "root", tmp_path / "some.parquet"))
    assert re.search(
        r"; \d+ of the [\d,]+ items taken most there are not in the gallery", plan.choices["queries.log_path"]
    )


def test_it_is_said_how_many_events_cannot_be_measured_since_the_gallery_lacks_what_was_taken(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    table = pq.read_table(log).sort_by("time")
    items, place = table.column("item_id").to_numpy(), np.arange(len(table))
    lacking = (place >= 0.7 * len(table)) & (place % 5 == 0)
    path = tmp_path / "some.parquet"
    pq.write_table(table.set_column(2, "item_id", pa.array(np.where(lacking, items + 10_000_000, items))), path)
    note = planned(config(workshop, tmp_path / "root", path)).choices["queries.log_path"]
    said = re.search(
        r"([\d,]+) of these are not in the gallery, so that ([\d,]+) of the 450 events cannot be measured", note
    )
    assert said is not None, note
    assert int(said[2]) == lacking.sum() >= int(said[1]) > 0


@pytest.mark.parametrize(("count", "weight"), [(1e308, 1.0), (1e200, 1e200), (1e25, 1.0)])
def test_traffic_beyond_measure_is_refused_by_row(
    workshop: Workshop, log: Path, tmp_path: Path, count: float, weight: float
) -> None:
    table = pq.read_table(log)
    counts = [count if row == 7 else 1.0 for row in range(len(table))]
    path = tmp_path / "huge.parquet"
    table = table.append_column("count", pa.array(counts)).append_column("weight", pa.array([weight] * len(table)))
    pq.write_table(table, path)
    with pytest.raises(
        InputError, match=r"huge.parquet row \d: count and weight come to .*, at most 1e\+24 is expected"
    ):
        in_process(config(workshop, tmp_path / "root", path))


def test_a_choice_that_is_lost_is_made_again_for_a_gallery_that_has_grown(
    workshop: Workshop, log: Path, tmp_path: Path
) -> None:
    shutil.copytree(workshop.folder / "gallery", tmp_path / "gallery")
    values = config(workshop, tmp_path / "root", log, gallery={"path": str(tmp_path / "gallery")}, waves=[0.5, 1.0])
    values |= {"pairs": {"count": 240}, "policy": {"name": "taken"}, "serving": {"stale_mode": "aligned"}}
    first = in_process(values, until="version0").state.plan
    assert first is not None
    table = pq.read_table(tmp_path / "gallery" / "part-000.parquet").slice(0, 20)
    ids = pa.array(np.arange(20) + 1_000_000)
    pq.write_table(table.set_column(0, "id", ids), tmp_path / "gallery" / "part-003.parquet")
    shutil.rmtree(tmp_path / "root" / "choice")
    grown = in_process(values, until="plan").state.plan
    assert grown is not None
    assert grown.follows == first.plan
    assert [p.value for p in grown.prediction] == pytest.approx([p.value for p in first.prediction])
