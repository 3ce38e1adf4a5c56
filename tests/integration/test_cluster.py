"""Clusters of several raylets on this machine: one that Ray's autoscaler grows and shrinks, one that loses a node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import ENVIRONMENT, REPOSITORY, autoscaling_head, end_session

pytestmark = pytest.mark.slow

WORKER = {
    "resources": {"CPU": 1, "memory": 2 << 30, "object_store_memory": 100 << 20},
    "node_config": {}, "min_workers": 0, "max_workers": 3,
}  # fmt: skip
UNITS = 24


def drive(scenario: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The scenario of ``cluster_driver`` in a process of its own: one process has one Ray."""
    # The gap between two requests of Ray Data's is 10 s.
    environment = {**ENVIRONMENT, "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "2"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.cluster_driver", scenario, str(folder), *arguments],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = driver.communicate(timeout=400)
    finally:
        end_session(driver)
    assert driver.returncode == 0, errors[-4000:]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with autoscaling_head(tmp_path_factory.mktemp("head"), {"worker": WORKER}, idle_minutes=0.1) as address:
        yield address


def test_a_gpu_that_no_node_type_has_is_said_within_30_seconds(address: str, tmp_path: Path) -> None:
    result = drive("gpu", tmp_path, address)
    assert "no node has 1 CPU and 1 GPU" in result["error"]
    assert "Its autoscaler says that it can start none" in result["error"]


def test_a_cluster_grows_with_the_work_and_gives_its_nodes_back(address: str, tmp_path: Path) -> None:
    result = drive("grows", tmp_path, address, str(UNITS))
    assert result["numbers"] == list(range(UNITS))
    assert result["most"] > 1
    assert len(result["nodes"]) > 1, "a node that came did none of the pool's work"
    assert result["left"] == 0
    assert result["spilled"] == []
    everywhere = {*result["nodes"], *result["alone"], *result["beside"]}
    assert result["head"] not in everywhere
    assert len(set(result["alone"])) > 1
    assert len(result["beside"]) == 4


def test_a_node_that_comes_takes_part_and_one_that_is_lost_costs_its_units_only(tmp_path: Path) -> None:
    result = drive("changes", tmp_path)
    assert result["finished"]
    assert result["waves"] == [0, 1, 2, 3]
    assert result["found"] == result["begun"] == result["new_rows"] == result["items"]
    assert result["nodes"][result["added"]] > 0
    assert result["again"], "nothing was in flight on the lost node"
    for first, then in result["again"]:
        assert first == result["lost"]
        assert then != result["lost"]
    assert result["durable"] > 0
    assert result["durable_again"] == []
    assert result["spilled"] == []
