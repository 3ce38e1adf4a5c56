"""What a unit costs the driver: its CPU seconds per unit of a pool whose readers and embedders do nothing.

python -m benchmarks.driver_cost [--units 20000] [--single 1000]

Units of waves over a gallery of 250,000 rows per file in chunks of 2,048 go through the real pool twice: each alone, as
they did before there were blocks, and in the blocks that a run makes of them. Asserted first: every unit came back once
with its own receipt. Counted is the CPU time of the driver's process, all threads, beyond that of a pool of one unit,
which starts and stops as well; beside it, what cutting the blocks took.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pyarrow as pa
import ray

from benchmarks.texts import hardware
from fastfill_ray.config import ResourcesConfig
from fastfill_ray.engine.interface import Attempt, Blocks, Finish, PoolWork
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.log.records import FileRef
from fastfill_ray.stages.blocks import BlockLimits, in_blocks
from fastfill_ray.stages.embed import Unit
from fastfill_ray.storage.receipts import Receipt

FILE_ROWS, GROUP_ROWS, CHUNK_ROWS, ROW_BYTES = 250_000, 65_536, 2_048, 500
WAVES = 20  # each takes a twentieth of every chunk
ITEM_S = 1 / 1000  # of a GPU
RESOURCES = ResourcesConfig(embed_actors=(2, 2), cpus_per_actor=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.driver_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--single", type=int, default=1_000, help="units that travel alone")
    options = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with RayEngine().session(print):
            single, units = units_of(options.single), units_of(options.units)
            through_pool([[units[:1]]])  # imports
            fixed_s = through_pool([[units[:1]]])
            before = (through_pool([[[unit]] for unit in single]) - fixed_s) / len(single)
            start = time.process_time()
            blocks = in_blocks(units, BlockLimits.of(RESOURCES, ITEM_S))
            cut_s = (time.process_time() - start) / len(units)
            after = (through_pool(blocks) - fixed_s) / len(units)
    finally:
        ray.shutdown()
    print(hardware())
    num_blocks = sum(map(len, blocks))
    print("| units | blocks | driver, CPU ms per unit |\n|---|---|---|")
    print(f"| {len(single):,}, each alone | {len(single):,} | {1e3 * before:.3f} |")
    print(f"| {len(units):,} | {num_blocks:,} | {1e3 * after:.3f} + {1e3 * cut_s:.3f} to cut the blocks |")
    print(f"\n{before / (after + cut_s):.1f} times less")


def units_of(count: int) -> list[Unit]:
    """The first units of the waves, wave after wave."""
    groups = (GROUP_ROWS,) * (FILE_ROWS // GROUP_ROWS) + (FILE_ROWS % GROUP_ROWS,)
    starts = [(start, min(CHUNK_ROWS, FILE_ROWS - start)) for start in range(0, FILE_ROWS, CHUNK_ROWS)]
    num_files = -(-count // (WAVES * len(starts)))
    files = [
        PinnedFile(
            path=f"s3://bucket/gallery/{number:05d}.parquet",
            size=FILE_ROWS * ROW_BYTES,
            tag="0" * 32,
            row_groups=groups,
            read_bytes=FILE_ROWS * ROW_BYTES,
        )
        for number in range(num_files)
    ]
    units = [
        Unit(
            unit=f"{number:08x}{start:08x}",
            folder=f"vectors/0123456789abcdef/wave={wave:02d}",
            file=file,
            start=start,
            length=length,
            rows=length // WAVES,
            role="item",
            model="new",
            wave=wave,
            work=reference("work"),
        )
        for wave in range(1, WAVES + 1)
        for number, file in enumerate(files)
        for start, length in starts
    ]
    return units[:count]


def reference(name: str) -> FileRef:
    return FileRef(path=f"vectors/{name}.parquet", size=1 << 20, sha256="0" * 64)


def read(units: Sequence[Unit]) -> Iterator[pa.Table]:
    yield from (pa.table({"x": [1]}) for _ in units)


class Nothing:
    """Receipts of the size that embedding gives."""

    def __call__(self, units: Sequence[Unit], tables: Sequence[pa.Table], attempt: Attempt) -> Finish:
        outputs = reference("vectors"), reference("items")
        return lambda: [
            Receipt(unit=unit.unit, outputs=outputs, rows=unit.rows, ids_digest="0" * 32, details={"space": "0" * 16})
            for unit in units
        ]


def through_pool(blocks: Blocks[Unit]) -> float:
    """The driver's CPU seconds."""
    units = [unit for group in blocks for block in group for unit in block]
    came: list[str] = []
    start = time.process_time()
    with closing(RayEngine().run_pool(PoolWork(read, Nothing), blocks, RESOURCES)) as pool:
        for unit, receipt in pool:
            assert (receipt.unit, receipt.rows) == (unit.unit, unit.rows)
            came.append(f"{unit.folder}/{unit.unit}")
    seconds = time.process_time() - start
    assert sorted(came) == sorted(f"{unit.folder}/{unit.unit}" for unit in units), "every unit came back once"
    return seconds


if __name__ == "__main__":
    main()
