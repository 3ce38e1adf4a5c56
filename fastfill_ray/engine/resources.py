"""Whether the cluster can be reached, and has, or will have, a node for what a stage asks for; Ray waits for ever.

Public so far is only what nodes have (``ray.nodes``). Whether an autoscaler is at work is read from the names of their
types: nodes that were started by hand are called after their own id. What nodes it can start is known where it has
reported its node groups to Ray, as managed clusters do.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping

import ray
from ray._private.state import state
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # protobuf
from ray.experimental.internal_kv import _internal_kv_get

from fastfill_ray.errors import ClusterError
from fastfill_ray.storage.reach import fault_of

logger = logging.getLogger(__name__)

# With Ray's start, an error is there within half a minute. A cluster that has just come up may still get nodes.
CONNECT_S, PATIENCE_S = 20.0, 9.0
_SAY_EVERY_S, _LOOK_EVERY_S = 30.0, 3.0
_ANSWER_S = 10
_STATUS_OF_V1 = "__autoscaling_status"  # the older autoscaler writes its report here, the newer one answers a request
_BY_HAND = re.compile(r"(node_[0-9a-f]{56})?")


def check_reachable(address: str | None) -> None:
    """Refuse an address that nobody listens at; ``ray.init`` tries for minutes and logs C++ lines.

    Args:
        address: as RAY_ADDRESS: "host:port" or "ray://host:port"; others ("auto", "local") are Ray's own business.

    Raises:
        ClusterError: no connection within CONNECT_S.
    """
    match = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:/]+):(\d+)", address or "")
    if match is None:
        return
    if (fault := fault_of(match[1].strip("[]"), int(match[2]), CONNECT_S)) is not None:
        raise ClusterError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({fault}). Start it, mend the address, or unset "
            "RAY_ADDRESS to run on this machine. Then the same command goes on."
        )


def require(demand: Mapping[str, float], remedy: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until some node is large enough for `demand`, whether or not it is busy.

    Where an autoscaler is at work that can start one, or does not say what it can start, for as long as it takes, with
    a line every 30 s; else not for long.

    Args:
        demand: {Ray's name of a resource: amount} of one actor or task; amounts of 0 are left out.
        remedy: what to do where no node has it, such as the keys of the config to lower.

    Raises:
        ClusterError: no node has it, and none will come.
    """
    wanted = {name: amount for name, amount in demand.items() if amount > 0}
    if _fits(wanted):
        return
    request_resources(bundles=[wanted])
    try:
        waited, said = 0.0, 0.0
        while not _fits(wanted):
            scales = is_autoscaled(_node_types()) and _can_start(wanted)
            refused = scales and _is_refused(wanted)
            if waited >= PATIENCE_S and (refused or not scales):
                more = "Its autoscaler says that it can start none. " if refused else ""
                raise ClusterError(f"no node has {_words(wanted)}. {_largest(wanted)} {more}{remedy}")
            if scales and waited >= said:
                logger.warning("waiting for a node with %s; %.0f s so far. %s", _words(wanted), waited, remedy)
                said += _SAY_EVERY_S
            sleep(_LOOK_EVERY_S)
            waited += _LOOK_EVERY_S
    finally:
        request_resources(bundles=[])


def is_autoscaled(node_types: Iterable[str]) -> bool:
    """Whether any node, there or on its way, was made by an autoscaler."""
    return any(_BY_HAND.fullmatch(name) is None for name in node_types)


def _fits(wanted: Mapping[str, float]) -> bool:
    return any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in _nodes())


def num_that_fit(wanted: Mapping[str, float]) -> int:
    """How many of these the nodes there are have room for, if nothing else runs on them."""
    asked = {name: amount for name, amount in wanted.items() if amount > 0}
    if not asked:
        return len(_nodes())
    return sum(min(int(node.get(name, 0) // amount) for name, amount in asked.items()) for node in _nodes())


def at_most_a_node(memory_bytes: int) -> int:
    """`memory_bytes`, or all the memory of the largest node that is there or can be started, if that is less."""
    sizes = [int(node["memory"]) for node in (*_nodes(), *_node_groups()) if node.get("memory", 0) > 0]
    return min(memory_bytes, max(sizes, default=memory_bytes))


def _can_start(wanted: Mapping[str, float]) -> bool:
    """Whether the autoscaler can start a node that is large enough; True where it does not say what it can start."""
    groups = _node_groups()
    return not groups or any(all(group.get(name, 0) >= amount for name, amount in wanted.items()) for group in groups)


def _is_refused(wanted: Mapping[str, float]) -> bool:
    """Whether the autoscaler has answered a ``request_resources`` of `wanted` so: it can start no node that has it."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=_ANSWER_S))
    return any(
        dict(request.request.resources_bundle) == dict(wanted)
        for constraint in reply.autoscaling_state.infeasible_cluster_resource_constraints
        for request in constraint.resource_requests
    )


def _node_groups() -> list[dict[str, float]]:
    """The resources of the nodes that an autoscaler has reported that it can start."""
    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [dict(group.resources) for group in groups if group.max_count != 0]


def nodes_and_growth() -> tuple[list[dict[str, float]], bool]:
    """The resources of the nodes that are there, and whether an autoscaler is at work."""
    return _nodes(), is_autoscaled(_node_types())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _node_types() -> list[str]:
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    groups = status.active_nodes, status.idle_nodes, status.pending_nodes
    types = [node.ray_node_type_name for group in groups for node in group]
    types += [launch.ray_node_type_name for launch in status.pending_launches]
    report = json.loads(_internal_kv_get(_STATUS_OF_V1) or "{}").get("autoscaler_report") or {}
    pending = [entry[1] for entry in report.get("pending_nodes") or []]
    return [*types, *(report.get("active_nodes") or {}), *(report.get("pending_launches") or {}), *pending]


def _words(wanted: Mapping[str, float]) -> str:
    return " and ".join(_amount(name, amount) for name, amount in wanted.items())


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**20:.0f} MiB of memory" if name == "memory" else f"{amount:g} {name}"


def _largest(wanted: Mapping[str, float]) -> str:
    nodes, groups = _nodes(), _node_groups()
    most = " and ".join(
        _amount(name, max((node.get(name, 0) for node in (*nodes, *groups)), default=0)) for name in wanted
    )
    more = ", and those that it can start," if groups else ""
    return f"The cluster's {len(nodes)} nodes{more} have at most {most} each."
