"""A plan over a gallery of which an earlier plan has made much new: what it promises, and what is measured then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.report.prediction import promises
from fastfill_ray.stages import choose
from tests import synthetic
from tests.integration.conftest import in_process

ROWS, PAIRS = 1200, 240
# Beyond the plan's own interval: another processor rounds otherwise, and few items decide what is new.
MARGIN = 0.05


def written(folder: Path) -> Path:
    """A gallery, queries and a query log in a folder."""
    ids, x, classes = synthetic.write_gallery(folder / "gallery", rows=ROWS)
    synthetic.write_queries(folder / "queries", ids, x, classes, rows=120)
    synthetic.write_log(folder / "log", ids, x)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def first_plan(folder: Path) -> Callable[..., Path]:
    """Runs a first plan until a stop, once for all tests; sections: of its config."""
    roots: dict[str, Path] = {}

    def root(until: str | None, **sections: Any) -> Path:
        name = repr((until, sections))
        if name not in roots:
            roots[name] = folder / f"out{len(roots)}"
            in_process(config(folder, output=str(roots[name]), **sections), until=until)
        return roots[name]

    return root


@pytest.fixture
def begun(first_plan: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """A copy of the output of ``first_plan``."""

    def output(until: str | None, **sections: Any) -> str:
        return str(shutil.copytree(first_plan(until, **sections), tmp_path / "out"))

    return output


def config(folder: Path, **sections: Any) -> dict[str, Any]:
    """Labelled queries; `sections` change it."""
    given = synthetic.with_queries(folder)
    return synthetic.config(
        folder,
        old_model=given["old_model"],
        **{
            "queries": {key: value for key, value in given["queries"].items() if key != "qrels_path"},
            "pairs": {"count": PAIRS},
            "waves": [0.3, 0.5, 0.75, 1.0],
            "serving": {"max_regression": 1},
            **sections,
        },
    )


def by_log(folder: Path) -> dict[str, Any]:
    return {"queries": {"log_path": str(folder / "log" / "log.parquet"), "payload_columns": ["x"]}}


def check_kept(result: ff.BackfillResult) -> None:
    """Every version of the last plan is as its plan has promised."""
    plan, versions = result.state.plan, result.state.plan_versions
    assert plan is not None
    made = [promise for promise in promises(result.state) if promise.version is not None]
    assert len(made) == len(versions) == len(plan.version_waves)
    for promise, version in zip(made, versions, strict=True):
        predicted = promise.prediction
        assert predicted.fraction == pytest.approx(version.fraction, abs=0.5 / ROWS)
        measured = promise.measured[predicted.scope].value
        assert predicted.low - MARGIN <= measured <= predicted.high + MARGIN, f"at {predicted.fraction:.0%}"


@pytest.mark.parametrize(
    "change",
    [{"alignment": {"method": "procrustes"}}, {"policy": {"name": "expected_gain"}}, {"seed": 1}],
    ids=["another map", "another order", "another seed"],
)
def test_where_half_is_new_that_is_what_version_0_is_promised_to_have(
    folder: Path, begun: Callable[..., str], change: dict[str, Any]
) -> None:
    result = in_process(config(folder, output=begun("wave:2"), **change))
    plan = result.state.plan
    assert plan is not None
    assert 0.5 <= plan.first_share <= 0.6
    assert [promise.fraction for promise in plan.prediction] == [plan.first_share] * 3 + [0.75, 1.0]
    check_kept(result)


@pytest.mark.parametrize(
    "change",
    [{"alignment": {"method": "procrustes"}}, {"waves": [0.6, 0.8, 1.0]}],
    ids=["another map", "other waves in the same order"],
)
def test_of_the_audit_items_as_many_are_new_as_are_promised(
    folder: Path, begun: Callable[..., str], change: dict[str, Any]
) -> None:
    asked = {"objective": {"relevance": "new_model", "metric": "recall@10"}}
    check_kept(in_process(config(folder, output=begun("wave:2", **asked), **asked, **change)))


@pytest.mark.parametrize("seed", [0, 1])
def test_where_all_is_new_the_whole_new_index_is_promised(folder: Path, begun: Callable[..., str], seed: int) -> None:
    result = in_process(config(folder, output=begun(None), policy={"name": "expected_gain"}, seed=seed))
    assert result.state.plan is not None
    assert result.state.plan.version_waves == (0,)
    assert len({(p.value, p.low, p.high) for p in result.state.plan.prediction}) == 1
    check_kept(result)


@pytest.mark.parametrize(
    "until", [pytest.param("wave:1", id="what is taken most is new"), pytest.param(None, id="all is new")]
)
def test_which_of_the_items_that_users_took_are_new_is_known_of_each(
    folder: Path, begun: Callable[..., str], until: str | None
) -> None:
    output = begun(until, **by_log(folder), policy={"name": "taken"})
    result = in_process(config(folder, output=output, **by_log(folder), policy={"name": "demand"}))
    assert result.state.plan is not None
    first = result.state.plan.prediction[0]
    assert (first.relevance, first.scope) == ("log", "gallery")
    assert first.low > 0.8, "nearly all that users seek is new"
    check_kept(result)


def test_what_a_second_plan_has_chosen_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path)  # its gallery grows
    in_process(config(folder, **by_log(folder), policy={"name": "taken"}), until="wave:1")
    second = config(folder, **by_log(folder), policy={"name": "demand"})
    planned = in_process(second, until="plan").state.plan
    assert planned is not None

    def choose_again(*_: object) -> None:
        raise AssertionError("it has been chosen")

    monkeypatch.setattr(choose, "decide", choose_again)
    assert in_process(second, until="wave:2").state.plan == planned
    # So has a plan that follows the gallery in that order.
    table = pq.read_table(folder / "gallery" / "part-000.parquet").slice(0, 20)
    table = table.set_column(0, "id", pa.array(np.arange(20) + 1_000_000))
    pq.write_table(table, folder / "gallery" / "part-009.parquet")
    grown = in_process(second)
    assert grown.finished
    assert grown.state.plan is not None
    assert grown.state.plan.follows == planned.plan
    assert grown.state.plan.prediction == planned.prediction


def test_a_third_plan_takes_for_new_what_both_before_it_have_made_new(folder: Path, begun: Callable[..., str]) -> None:
    output = begun("wave:1")
    in_process(config(folder, output=output, alignment={"method": "procrustes"}), until="wave:2")
    result = in_process(config(folder, output=output, policy={"name": "random"}))
    assert result.state.plan is not None
    assert result.state.plan.first_share == pytest.approx(0.5)
    check_kept(result)


def test_a_second_plan_over_the_pairs_alone_begins_with_them(folder: Path, begun: Callable[..., str]) -> None:
    output = begun("plan")
    result = in_process(config(folder, output=output, alignment={"method": "procrustes"}), until="version0")
    plan = result.state.plan
    assert plan is not None
    assert plan.prediction[0].fraction == plan.first_share == PAIRS / ROWS
    assert [promise.fraction for promise in plan.prediction[1:]] == list(plan.waves)
