"""A cluster that is not there, and one that has not what is asked for."""

from __future__ import annotations

import logging
import socket
from functools import partial

import pytest

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine import resources
from fastfill_ray.engine.interface import PoolWork
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.engine.resources import check_reachable, is_autoscaled, require
from fastfill_ray.engine.session import connected
from fastfill_ray.errors import ClusterError
from tests.engine.workers import pairs_of

BY_HAND = "node_" + "0a" * 28
GPU = {"CPU": 1.0, "GPU": 1.0}


def no_work(*_: object) -> None:
    raise AssertionError("nothing may begin")


@pytest.mark.parametrize(
    ("types", "scales"),
    [([], False), ([BY_HAND, ""], False), ([BY_HAND, "ray.worker.default"], True), (["gpu-group"], True)],
)
def test_an_autoscaler_names_its_nodes_types(types: list[str], *, scales: bool) -> None:
    assert is_autoscaled(types) == scales


def test_actors_that_no_node_can_hold_end_the_run(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PATIENCE_S", 0.0)
    wants = ResourcesConfig(embed_actors=(1, 1), cpus_per_actor=1, gpus_per_actor=3)
    with pytest.raises(ClusterError, match=r"no node has 1 CPU and 3 GPU\. .* at most \d+ CPU and 0 GPU each\. Lower"):
        RayEngine().run_pool(PoolWork(no_work, no_work), [pairs_of(2)], wants)  # type: ignore[arg-type]


def test_what_some_node_has_is_not_waited_for(ray_session: None) -> None:
    require({"CPU": 1.0, "GPU": 0.0}, "", sleep=no_work)


def test_without_an_autoscaler_the_wait_is_short_and_with_one_it_is_told(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    with pytest.raises(ClusterError):
        require(GPU, "Lower gpus.", sleep=slept.append)
    assert 5 < sum(slept) < 15

    def until_a_node_comes(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) >= 95:
            monkeypatch.setattr(resources, "_nodes", lambda: [{"CPU": 8.0, "GPU": 1.0}])

    slept.clear()
    monkeypatch.setattr(resources, "_node_types", lambda: ["ray.head.default"])
    with caplog.at_level(logging.WARNING):
        require(GPU, "Lower gpus.", sleep=until_a_node_comes)
    said = [record.getMessage() for record in caplog.records if "waiting for a node" in record.getMessage()]
    assert len(said) == 4
    assert said[-1] == "waiting for a node with 1 CPU and 1 GPU; 90 s so far. Lower gpus."


def sleep_for_a_minute(slept: list[float], seconds: float) -> None:
    """Kept in `slept`. Raises TimeoutError once that is a minute in all."""
    slept.append(seconds)
    if sum(slept) > 60:
        raise TimeoutError


def test_what_an_autoscaler_cannot_start_is_refused_and_what_it_can_is_waited_for(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    for_a_minute = partial(sleep_for_a_minute, slept)
    monkeypatch.setattr(resources, "_node_types", lambda: ["cpu"])
    monkeypatch.setattr(resources, "_node_groups", lambda: [{"CPU": 96.0}, {"CPU": 1.0, "GPU": 8.0}])
    with pytest.raises(TimeoutError):
        require(GPU, "", sleep=for_a_minute)
    slept.clear()
    message = r"no node has 2 CPU and 1 GPU\. .* nodes, and those that it can start, have at most 96 CPU and 8 GPU each"
    with pytest.raises(ClusterError, match=message):
        require({"CPU": 2.0, "GPU": 1.0}, "", sleep=for_a_minute)
    assert sum(slept) < 20


def test_an_address_that_nobody_listens_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "CONNECT_S", 1.5)
    with socket.socket() as bound:  # bound, but it does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            with pytest.raises(ClusterError, match=f"RAY_ADDRESS={form}: no Ray cluster answers there"):
                check_reachable(form)
        bound.listen()
        check_reachable(address)
    for form in (None, "", "auto", "local"):
        check_reachable(form)


def test_a_session_does_not_try_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(resources, "CONNECT_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError), connected(print):
        pass


def test_as_many_actors_as_the_nodes_there_are_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_nodes", lambda: [{"CPU": 5.0, "GPU": 1.0}, {"CPU": 3.0}, {}])
    assert resources.num_that_fit({"CPU": 2.0, "GPU": 0.0}) == 2 + 1
    assert resources.num_that_fit({"CPU": 1.0, "GPU": 0.5}) == 2
    assert resources.num_that_fit({"CPU": 0.0, "GPU": 0.0}) == 3


def test_a_task_asks_for_no_more_memory_than_a_node_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets a task wait for ever whose memory no node has."""
    monkeypatch.setattr(resources, "_nodes", lambda: [{"CPU": 0.0}, {"CPU": 4.0, "memory": 2e9}])
    monkeypatch.setattr(resources, "_node_groups", lambda: [{"CPU": 8.0, "memory": 3e9}])
    assert resources.at_most_a_node(1_000_000_000) == 1_000_000_000
    assert resources.at_most_a_node(8_000_000_000) == 3_000_000_000
    monkeypatch.setattr(resources, "_nodes", list)
    monkeypatch.setattr(resources, "_node_groups", list)
    assert resources.at_most_a_node(8_000_000_000) == 8_000_000_000, "a head that offers nothing says nothing of others"


def test_what_the_autoscaler_refuses_ends_the_run_and_what_it_works_on_is_waited_for(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    for_a_minute = partial(sleep_for_a_minute, slept)
    monkeypatch.setattr(resources, "_node_types", lambda: ["cpu"])
    with pytest.raises(TimeoutError):
        require(GPU, "", sleep=for_a_minute)
    slept.clear()
    monkeypatch.setattr(resources, "_is_refused", lambda wanted: wanted == GPU)
    with pytest.raises(ClusterError, match=r"Its autoscaler says that it can start none\. Lower gpus"):
        require(GPU, "Lower gpus.", sleep=for_a_minute)
    assert sum(slept) < 20


def test_memory_is_said_in_mebibytes(ray_session: None) -> None:
    with pytest.raises(
        ClusterError, match=r"no node has 1 CPU and 1073741824 MiB of memory\. .* at most \d+ CPU and \d+ MiB"
    ):
        require({"CPU": 1.0, "memory": 2.0**50}, "", sleep=lambda seconds: None)
