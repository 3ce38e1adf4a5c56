"""cluster.yaml is valid for the Ray that constraints.txt pins, and safe as it stands."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
CLUSTER: dict[str, Any] = yaml.safe_load(TEXT)
TYPES: dict[str, dict[str, Any]] = CLUSTER["available_node_types"]
WORKERS = {name: t for name, t in TYPES.items() if name != CLUSTER["head_node_type"]}
GPU_WORKERS = {name: t for name, t in WORKERS.items() if "gpu" in name}
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line and line[0] != "#"
)


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def test_it_is_valid_for_the_schema_of_the_installed_ray() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    schema = json.loads((Path(spec.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)


def test_every_image_pins_the_ray_of_constraints_and_a_python_that_the_package_allows() -> None:
    images = {text for text in strings(CLUSTER) if text.startswith("rayproject/")}
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    python = "py" + lowest.replace(".", "")
    assert images == {f"rayproject/ray:{PINS['ray']}-{python}-{kind}" for kind in ("cpu", "gpu")}


def test_every_installation_is_constrained_and_from_mounted_files() -> None:
    lists = [CLUSTER["setup_commands"], CLUSTER["head_setup_commands"]]
    lists += [t["worker_setup_commands"] for t in GPU_WORKERS.values()]
    for command in (c for commands in lists for c in commands):
        assert "-c /home/ray/src/constraints.txt" in command
    for remote, local in CLUSTER["file_mounts"].items():
        if remote.startswith("/home/ray/src/"):
            assert (ROOT / local).exists(), local


def test_the_mounted_files_are_all_that_the_build_reads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert needed <= set(CLUSTER["file_mounts"].values())


def test_gpu_workers_are_spot_and_start_from_none_while_the_head_is_on_demand() -> None:
    assert GPU_WORKERS
    for name, worker in GPU_WORKERS.items():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}, name
        assert worker["docker"]["worker_image"].endswith("-gpu")
    assert all(worker["min_workers"] == 0 for worker in WORKERS.values())
    assert "InstanceMarketOptions" not in TYPES[CLUSTER["head_node_type"]]["node_config"]


def test_no_task_can_run_beside_the_driver() -> None:
    """Every task asks for a CPU or for memory: see ``engine.tasks``."""
    assert TYPES[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0, "memory": 0}


def test_every_node_asks_for_the_token_and_gets_it_from_the_users_machine() -> None:
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert CLUSTER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_listens_on_the_head_alone() -> None:
    starts = [c for c in CLUSTER["head_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 1
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert not any("0.0.0.0" in text for text in strings(CLUSTER))


@pytest.mark.parametrize("name", TYPES)
def test_every_node_refuses_the_old_metadata_service_and_encrypts_its_disk(name: str) -> None:
    config = TYPES[name]["node_config"]
    assert config["MetadataOptions"]["HttpTokens"] == "required"
    assert all(
        disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"] for disk in config["BlockDeviceMappings"]
    )


def test_workers_do_not_get_the_heads_rights() -> None:
    head = TYPES[CLUSTER["head_node_type"]]["node_config"]["IamInstanceProfile"]
    assert all(worker["node_config"]["IamInstanceProfile"] != head for worker in WORKERS.values())


def test_idle_nodes_are_given_back_and_not_kept_stopped() -> None:
    assert 0 < CLUSTER["idle_timeout_minutes"] <= 15
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False


def test_nothing_in_it_looks_like_a_secret_or_an_account() -> None:
    for what, pattern in {
        "access key": r"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
        "account number": r"(?<!\d)\d{12}(?!\d)",
        "ARN": r"arn:aws",
        "long random string": r"\b[A-Fa-f0-9]{32,}\b|\b[A-Za-z0-9+]{40,}\b",
        "key block": r"BEGIN [A-Z ]*PRIVATE KEY",
        "assigned secret": r"(?i)(secret|password|aws_access_key_id|auth_token)\s*[=:]\s*[\"']?[A-Za-z0-9+/]{8,}",
    }.items():
        assert not re.search(pattern, TEXT), what
