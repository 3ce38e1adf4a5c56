"""What a test lets run on a cluster: a pool whose units sleep, watched from the driver. Prints JSON as its last line.

``python -m tests.integration.cluster_driver SCENARIO ADDRESS [NUMBER ...]``
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import Attempt, PoolWork
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.errors import ClusterError
from fastfill_ray.storage.receipts import Receipt
from fastfill_ray.types import Model

PAYLOAD_BYTES = 4 << 20


class Nap(Model):
    """A unit of work."""

    number: int
    seconds: float


def payloads(units: Sequence[Nap]) -> Iterator[pa.Table]:
    for _ in units:
        yield pa.table({"x": np.zeros(PAYLOAD_BYTES // 8)})


def here() -> str:
    return str(ray.get_runtime_context().get_node_id())


class Napper:
    """Leaves a line (number, node) for each unit that it begins; its receipt says the node that did it."""

    def __init__(self, journal: str) -> None:
        self._journal = journal

    def __call__(self, unit: Nap, table: pa.Table, attempt: Attempt) -> Receipt:
        with Path(self._journal).open("a") as file:
            file.write(f"{unit.number} {here()}\n")
        time.sleep(unit.seconds)
        return Receipt(unit=f"c{unit.number:08d}", rows=table.num_rows, details={"node": here()})


def nap(seconds: float, _: int) -> str:
    time.sleep(seconds)
    return here()


def naps(count: int, seconds: float) -> list[list[Nap]]:
    return [[Nap(number=number, seconds=seconds)] for number in range(count)]


def num_workers() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


class Watch:
    """The most workers that were there at a time, looked at twice a second."""

    def __init__(self) -> None:
        self.most, self._ends = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(0.5):
            self.most = max(self.most, num_workers())


def spilled(address: str) -> list[str]:
    return [line for line in memory_summary(address, stats_only=True).splitlines() if "Spilled" in line]


def embed(
    groups: list[list[Nap]],
    resources: ResourcesConfig,
    journal: Path,
    then: Mapping[int, Callable[[RayEngine], object]],
) -> dict[str, Any]:
    """Embed `groups`. then: {units that are back: what is done at that moment}."""
    engine, nodes, numbers, began = RayEngine(), Counter[str](), [], time.monotonic()
    with closing(engine.run_pool(PoolWork(payloads, partial(Napper, str(journal))), groups, resources)) as pool:
        for unit, receipt in pool:
            numbers.append(unit.number)
            nodes[receipt.details["node"]] += 1
            if len(numbers) in then:
                then[len(numbers)](engine)
    return {"numbers": sorted(numbers), "nodes": nodes, "seconds": time.monotonic() - began}


def grows(address: str, journal: Path, count: int) -> dict[str, Any]:
    """Tasks alone on a head without CPUs, then a pool of one to three actors, then nothing."""
    ray.init(address=address, log_to_driver=False)
    head = here()
    alone = [node for _, node in RayEngine().run_tasks(partial(nap, 3.0), range(6), name="nap")]
    beside: list[str] = []

    def tasks_beside(engine: RayEngine) -> None:
        beside.extend(node for _, node in engine.run_tasks(partial(nap, 0.2), range(4), name="nap"))

    with Watch() as watch:
        result = embed(naps(count, 1.0), ResourcesConfig(embed_actors=(1, 3)), journal, {count // 2: tasks_beside})
    ended = time.monotonic()
    while num_workers() and time.monotonic() < ended + 120:
        time.sleep(0.5)
    return {
        **result, "head": head, "alone": alone, "beside": beside, "most": watch.most, "spilled": spilled(address),
        "left": num_workers(), "given_back_s": time.monotonic() - ended,
    }  # fmt: skip


def lacks_a_gpu(address: str) -> dict[str, Any]:
    ray.init(address=address, log_to_driver=False)
    began = time.monotonic()
    try:
        RayEngine().run_once(lambda attempt: None, ResourcesConfig(gpus_per_actor=1))
    except ClusterError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    return {"error": None}


def changes(journal: Path, count: int) -> dict[str, Any]:
    """A pool of two actors on two nodes; a third node comes and one of the first two is lost while it works."""
    from ray.cluster_utils import Cluster

    # Other programs on this machine would take the cluster that this writes down for theirs.
    ray._private.utils.write_ray_address = lambda *_, **__: None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    doomed, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    result = embed(
        naps(count, 1.0),
        ResourcesConfig(embed_actors=(1, 3)),
        journal,
        {
            count // 4: lambda engine: cluster.add_node(num_cpus=1),
            count // 2: lambda engine: cluster.remove_node(doomed, allow_graceful=False),
        },
    )
    begun = Counter(int(line.split()[0]) for line in journal.read_text().splitlines())
    result["spilled"] = spilled(cluster.address)
    ray.shutdown()
    cluster.shutdown()
    return {
        **result, "lost": doomed.node_id, "twice": sum(begun.values()) - len(begun), "begun": len(begun),
    }  # fmt: skip


def main(scenario: str, folder: str, address: str = "", count: str = "40") -> None:
    journal = Path(folder) / "journal"
    if scenario == "grows":
        result = grows(address, journal, int(count))
    elif scenario == "gpu":
        result = lacks_a_gpu(address)
    else:
        result = changes(journal, int(count))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
