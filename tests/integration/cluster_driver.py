"""What a test lets run on a cluster, watched from the driver: units and embedders sleep, so that a machine of two cores
can be many nodes. Prints JSON as its last line.

``python -m tests.integration.cluster_driver SCENARIO FOLDER [ADDRESS [UNITS]]``
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary
from ray.cluster_utils import Cluster

import fastfill_ray as ff
from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import Attempt, Finish, PoolWork
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.errors import ClusterError
from fastfill_ray.stages.embed import read_vectors
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.paths import wave_folder
from fastfill_ray.storage.receipts import Receipt, find_receipts
from fastfill_ray.types import Model
from tests import synthetic

PAYLOAD_BYTES = 4 << 20
ROW_S = 0.05
# Units that one actor does before the others wait for a second node: a rate is what Ray asks for nodes by.
UNITS_ALONE, PATIENCE_S = 8, 120


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
    """Leaves a line (number, node) for each unit that it begins; its receipt says the node that did it.

    However slow the machine is, a second node comes in time: most units wait for it, but not for ever.
    """

    def __init__(self, journal: str) -> None:
        self._journal = journal
        self._deadline = time.monotonic() + PATIENCE_S

    def __call__(self, units: Sequence[Nap], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        with Path(self._journal).open("a") as file:
            file.writelines(f"{unit.number} {here()}\n" for unit in units)
        time.sleep(sum(unit.seconds for unit in units))
        while units[0].number >= UNITS_ALONE and self._num_nodes() < 2 and time.monotonic() < self._deadline:
            time.sleep(0.2)
        receipts = [
            Receipt(unit=f"c{unit.number:08d}", rows=table.num_rows, details={"node": here()})
            for unit, table in zip(units, tables, strict=True)
        ]
        return lambda: receipts

    def _num_nodes(self) -> int:
        return len({line.split()[1] for line in Path(self._journal).read_text().splitlines()})


def nap(seconds: float, _: int) -> str:
    time.sleep(seconds)
    return here()


def naps(count: int, seconds: float) -> list[list[list[Nap]]]:
    return [[[Nap(number=number, seconds=seconds)]] for number in range(count)]


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
    groups: list[list[list[Nap]]],
    resources: ResourcesConfig,
    journal: Path,
    then: Mapping[int, Callable[[RayEngine], object]],
) -> dict[str, Any]:
    """Embed `groups`. then: {units that are back: what is done at that moment}."""
    engine, nodes, numbers, began = RayEngine(), Counter[str](), [], time.monotonic()
    with (
        engine.session(print),
        closing(engine.run_pool(PoolWork(payloads, partial(Napper, str(journal))), groups, resources)) as pool,
    ):
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


class SlowEmbedder:
    """The new model of ``synthetic``, which sleeps. Leaves a line (marker, node) for each item that it begins, and does
    not end a call while there is a file `hold`.
    """

    def __init__(self, journal: str, hold: str) -> None:
        self._journal, self._hold = Path(journal), Path(hold)

    def __call__(self, batch: dict[str, Sequence[Any]], role: str) -> np.ndarray:
        x = np.array(batch["x"], dtype=np.float32)
        if role == "item" and not synthetic.is_trial():
            with self._journal.open("a") as file:
                file.write("".join(f"{synthetic.marker(value)} {here()}\n" for value in x[:, 0]))
            time.sleep(ROW_S * len(x))
            while self._hold.exists():
                time.sleep(0.05)
        return synthetic.new_vectors(x)


class Run:
    """``run_backfill`` in a thread, beside what is done to its cluster."""

    def __init__(self, folder: Path) -> None:
        self._journal, self.hold = folder / "journal", folder / "hold"
        self.ids, self.x, _ = synthetic.write_gallery(folder / "gallery")
        self._journal.touch()
        model = {
            "embedder": "tests.integration.cluster_driver:SlowEmbedder",
            "kwargs": {"journal": str(self._journal), "hold": str(self.hold)},
        }
        self._config = synthetic.config(folder, new_model=model, resources={"embed_actors": [2, 3]})
        self.pairs = int(self._config["pairs"]["count"])
        self._result = ThreadPoolExecutor(1).submit(ff.run_backfill, self._config)

    @property
    def files(self) -> Files:
        return open_files(self._config["output"])

    def begun(self) -> list[tuple[str, str]]:
        """(marker, node) of each time that an item was begun, in their order."""
        marker, _, node = zip(*(line.partition(" ") for line in self._journal.read_text().splitlines()), strict=True)
        return list(zip(marker, node, strict=True))

    def wait_until(self, holds: Callable[[list[tuple[str, str]]], bool]) -> None:
        """holds: asked about what has begun."""
        while not (self._journal.stat().st_size and holds(self.begun())):
            if self._result.done():
                self._result.result()
                raise AssertionError("the run was through before its cluster had changed")
            time.sleep(0.05)

    def durable(self) -> set[str]:
        """Markers of the items of the waves that have receipts."""
        plan = read_state(self.files).plan
        assert plan is not None
        folders = [wave_folder(plan.plan, wave) for wave in range(1, len(plan.waves) + 1)]
        receipts = [receipt for folder in folders for receipt in find_receipts(self.files, folder).values()]
        ids, _ = read_vectors(self.files, receipts, synthetic.NEW_DIM)
        return {synthetic.marker(self.x[row, 0]) for row in np.flatnonzero(np.isin(self.ids, ids))}

    def result(self) -> ff.BackfillResult:
        return self._result.result()


def changes(folder: Path) -> dict[str, Any]:
    """A run on two nodes; a third one comes, and one of the first two is lost, while its waves are embedded."""
    # Other programs on this machine would take the cluster that this writes down for theirs.
    ray._private.utils.write_ray_address = lambda *_, **__: None
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": 0})
    add_node = partial(cluster.add_node, num_cpus=1, memory=2 << 30)
    doomed, _ = add_node(), add_node()
    ray.init(address=cluster.address, log_to_driver=False)
    run = Run(folder)
    run.wait_until(lambda begun: len(begun) > run.pairs and len(run.durable()) > 0)
    run.hold.touch()  # however slow the machine is, there is work left for the third node
    added = add_node()
    run.wait_until(lambda begun: added.node_id in {on for _, on in begun})
    durable = run.durable()
    cluster.remove_node(doomed, allow_graceful=False)  # in the middle of a call
    run.hold.unlink()
    result = run.result()
    index = ff.open_index(result.output)
    _, found = index.search(synthetic.new_vectors(run.x), k=1)
    nodes: dict[str, list[str]] = {}
    for marker, node_id in run.begun():
        nodes.setdefault(marker, []).append(node_id)
    again = {marker: on for marker, on in nodes.items() if len(on) > 1}
    values = {
        "finished": result.finished,
        "waves": [version.wave for version in result.state.versions],
        "new_rows": result.state.versions[-1].new_rows,
        "found": int((np.asarray(found)[:, 0] == run.ids).sum()),
        "items": len(run.ids),
        "begun": len(nodes),
        "nodes": Counter(on[-1] for on in nodes.values()),
        "again": list(again.values()),
        "durable": len(durable),
        "durable_again": sorted(again.keys() & durable),
        "added": added.node_id,
        "lost": doomed.node_id,
        "spilled": spilled(cluster.address),
    }
    ray.shutdown()
    cluster.shutdown()
    return values


def main(scenario: str, folder: str, address: str = "", count: str = "40") -> None:
    journal = Path(folder) / "journal"
    if scenario == "grows":
        result = grows(address, journal, int(count))
    elif scenario == "gpu":
        result = lacks_a_gpu(address)
    else:
        result = changes(Path(folder))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
