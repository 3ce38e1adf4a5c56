"""Ray's fake nodes, which are raylets on this machine, with memory of their own: the original refuses that."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeNodes(FakeMultiNodeProvider):  # type: ignore[misc,unused-ignore]
    """The autoscaler of ``cluster.autoscaling_head`` imports it by its name."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, float], labels: Any
    ) -> None:
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        with_memory = partial(parameter.RayParams, memory=resources["memory"])
        with mock.patch.object(parameter, "RayParams", with_memory):
            super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)
