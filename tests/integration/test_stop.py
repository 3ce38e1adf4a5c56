"""A run that stops by itself: what it leaves, how it goes on, and what its figures per group and its flips are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import fastfill_ray as ff
from fastfill_ray.index.verify import verify
from fastfill_ray.log.records import Version
from fastfill_ray.log.state import State
from fastfill_ray.storage.files import open_files
from tests.integration.conftest import Workshop, in_process
from tests.integration.test_kill import _markers

# With Ray, so that the pool is at work when the rule ends the run; tests/log/test_stop.py has the rules themselves.
pytestmark = pytest.mark.slow

WAVES = [0.25, 0.5, 0.7, 1.0]
TARGET = 0.88


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stop") / "root"


def config(workshop: Workshop, root: Path, **stop: float) -> dict[str, Any]:
    values = workshop.config(root, waves=WAVES, gallery={"group_column": "group"}, stop=stop)
    values["queries"]["group_column"] = "group"
    return values


@pytest.fixture(scope="module")
def stopped(workshop: Workshop, root: Path, journal: Path, ray_session: None) -> ff.BackfillResult:
    """Version 3 reaches the gain; each batch takes a while, so that the pool is in the middle of wave 4 then."""
    workshop.control(journal=str(journal), sleep_s=0.2)
    result = ff.run_backfill(config(workshop, root, target_gain=TARGET))
    workshop.control()
    return result


def share(state: State, version: Version) -> float:
    """The share of the gain on the audit items."""
    assert state.plan is not None
    arms = state.plan.baselines

    def value(metrics: Any) -> float:
        key = ("audit", "label", "map", True, None)
        return next(m.value for m in metrics if (m.scope, m.relevance, m.metric, m.calibrated, m.group) == key)

    old, new = value(arms["old/old"]), value(arms["new/new"])
    return (value(version.metrics) - old) / (new - old)


def test_the_run_ends_at_the_first_version_that_reaches_the_gain(stopped: ff.BackfillResult) -> None:
    versions = stopped.state.versions
    assert 1 < len(versions) < len(WAVES) + 1
    reached = [share(stopped.state, v) for v in versions]
    assert reached[-1] >= TARGET
    assert max(reached[:-1]) < TARGET
    assert (stopped.exit_code, stopped.finished, stopped.serving) == (0, False, versions[-1].version)
    assert [v.stopped for v in versions[:-1]] == [None] * (len(versions) - 1)
    assert versions[-1].stopped == stopped.stopped
    assert stopped.stopped is not None
    assert f"stop.target_gain is {TARGET:.1%}" in stopped.stopped
    assert stopped.stopped in stopped.closing_words()


def test_no_item_that_was_embedded_is_lost_when_the_run_stops(
    stopped: ff.BackfillResult, workshop: Workshop, root: Path, journal: Path
) -> None:
    # The journal lists an item when its embedding begins to be written: each is vouched for by a receipt.
    receipts = {*(root / "vectors").rglob("*.receipt.json"), *(root / "pairs").rglob("c*.receipt.json")}
    embedded = Counter(workshop.journal(journal))
    assert set(embedded) == _markers(receipts, workshop)
    assert set(embedded.values()) == {1}
    newest = stopped.state.versions[-1]
    assert stopped.overrun_rows == len(embedded) - newest.new_rows - newest.quarantined
    assert len(embedded) < 600, "the rest was not embedded"


def test_the_same_call_does_nothing_and_says_the_same(
    stopped: ff.BackfillResult, workshop: Workshop, root: Path
) -> None:
    before = sorted(root.rglob("*"))
    again = ff.run_backfill(config(workshop, root, target_gain=TARGET))
    assert (again.stopped, again.overrun_rows, again.seconds) == (stopped.stopped, stopped.overrun_rows, {})
    assert again.state == stopped.state
    assert again.exit_code == 0
    assert sorted(root.rglob("*")) == before


def test_flips_are_against_old_old_and_the_version_before(stopped: ff.BackfillResult, root: Path) -> None:
    versions = stopped.state.versions
    assert {f.against for f in versions[0].flips} == {"old/old"}
    assert {f.against for f in versions[1].flips} == {"old/old", "version before"}
    assert {(f.scope, f.relevance) for f in versions[1].flips} >= {("gallery", "label"), ("audit", "new_model")}
    plain = [per_query(root, v) for v in versions[:2]]
    flip = next(
        f
        for f in versions[1].flips
        if (f.scope, f.relevance, f.metric, f.against) == ("gallery", "label", "map", "version before")
    )
    difference = plain[1] - plain[0]
    assert flip.nfr == pytest.approx((difference < 0).mean())
    assert flip.pfr == pytest.approx((difference > 0).mean())


def per_query(root: Path, version: Version) -> np.ndarray:
    """Average precision of each query on the index, as stored."""
    assert version.query_metrics is not None
    table = pq.read_table(root / version.query_metrics.path)
    keep = [
        (row["scope"], row["relevance"], row["calibrated"]) == ("gallery", "label", True) for row in table.to_pylist()
    ]
    return table.column("map").to_numpy()[keep]


def test_groups_are_those_of_the_queries(stopped: ff.BackfillResult, workshop: Workshop, root: Path) -> None:
    version = stopped.state.versions[-1]
    values, groups = per_query(root, version), workshop.classes[workshop.asked] % 3
    for number in range(3):
        found = next(
            m
            for m in version.metrics
            if (m.scope, m.relevance, m.metric, m.group) == ("gallery", "label", "map", f"group-{number}")
        )
        assert found.value == pytest.approx(values[groups == number].mean())
        assert found.queries == (groups == number).sum()
    assert stopped.state.plan is not None
    for arm in ("old/old", "new/new"):
        assert {m.group for m in stopped.state.plan.baselines[arm]} == {None, "group-0", "group-1", "group-2"}


def test_a_loosened_rule_goes_on_to_the_end_and_embeds_nothing_twice(
    stopped: ff.BackfillResult, workshop: Workshop, root: Path, journal: Path
) -> None:
    workshop.control(journal=str(journal))
    result = ff.run_backfill(config(workshop, root, budget_hours=9))
    workshop.control()
    assert (result.finished, result.stopped, result.overrun_rows) == (True, None, 0)
    assert [v.wave for v in result.state.versions] == [0, 1, 2, 3, 4]
    assert result.state.versions[: len(stopped.state.versions)] == stopped.state.versions
    embedded = Counter(workshop.journal(journal))
    assert len(embedded) == 600
    assert set(embedded.values()) == {1}
    assert len(verify(open_files(str(root)))) == 5


def test_audit_items_that_ask_have_the_groups_of_the_items(workshop: Workshop, tmp_path: Path) -> None:
    values = config(workshop, tmp_path / "root", budget_hours=1e-6)
    del values["queries"], values["old_model"]
    result = in_process(values)
    [version] = result.state.versions
    assert version.stopped is not None
    assert "stop.budget_hours is 1e-06" in version.stopped
    assert (result.exit_code, result.overrun_rows) == (0, 0)
    for scope in ("audit", "gallery"):
        sizes = {
            m.group: m.queries
            for m in version.metrics
            if (m.scope, m.relevance, m.metric, m.calibrated) == (scope, "label", "cmc@1", True)
        }
        assert set(sizes) == {None, "group-0", "group-1", "group-2"}
        assert sum(size for group, size in sizes.items() if group is not None) == sizes[None]
