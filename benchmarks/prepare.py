"""What an accelerator gets where the tokeniser is in its actor, and where it is in processes of its own: items/s, busy.

python -m benchmarks.prepare [--rows 60000] [--speed 1] [--actor-cpus 1] [--folder DIR]

The tokeniser is MiniLM's; the accelerator is a sleep per token, `speed` times as fast as one core tokenises, so that
the figures are those of the pipeline on any machine. Every process uses one thread. In the actor a call is tokenised
and then computed, or tokenised ahead in a thread. Asserted first: all gave the vectors of a plain loop, and the same
digests of what was read. Rates are taken between the first block and the last one, each way runs twice: machines are
noisy.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

# Before anything starts a thread: Ray's workers inherit it.
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.gpu_models import make_texts
from benchmarks.results import markdown
from benchmarks.texts import hardware
from fastfill_ray.config import ResourcesConfig
from fastfill_ray.embedders.ahead import ahead
from fastfill_ray.embedders.protocol import Role
from fastfill_ray.embedders.text import MiniLM
from fastfill_ray.embedders.tokens import IDS, Tokeniser
from fastfill_ray.engine.ray_engine import RayEngine
from fastfill_ray.inputs.locate import InputStore
from fastfill_ray.inputs.table import Column, pin
from fastfill_ray.stages.batches import Space
from fastfill_ray.stages.blocks import BlockLimits, in_blocks
from fastfill_ray.stages.embed import Job, Unit, pool_work, read_items, read_vectors
from fastfill_ray.storage.files import Files, open_files
from fastfill_ray.storage.receipts import Receipt

CHUNK, DIM, AHEAD = 2048, 16, 512
# Name, calls of the tokeniser ahead in the actor, processes of its own.
WAYS: list[tuple[str, int, Any]] = [
    ("in the actor, then computed", 0, 0),
    ("in the actor, ahead in a thread", 2, 0),
    ("in processes of its own", 0, "auto"),
]


class Accelerator:
    """Sleeps `token_s` per token, and returns means of fixed vectors of the tokens, (n, DIM). depth: calls of the
    tokeniser ahead of the accelerator.
    """

    def __init__(self, token_s: float, depth: int) -> None:
        self._token_s, self._depth = token_s, depth
        self._table = np.random.default_rng(0).standard_normal((1 << 15, DIM)).astype(np.float32)
        self._tokeniser = self.preparer()
        self.num_tokens = 0

    @classmethod
    def preparer(cls, token_s: float = 0.0, depth: int = 0) -> Tokeniser:
        tokeniser = MiniLM.preparer()
        assert tokeniser is not None
        return tokeniser

    def __call__(self, batch: dict[str, Sequence[Any]], role: Role) -> np.ndarray:
        parts = [batch["text"][first : first + AHEAD] for first in range(0, len(batch["text"]), AHEAD)]

        def tokenised(texts: Sequence[str]) -> Mapping[str, pa.Array]:
            return self._tokeniser({"text": texts}, role)

        made = ahead(tokenised, parts, depth=self._depth) if self._depth else map(tokenised, parts)
        return np.concatenate([self.embed_prepared(each, role) for each in made])

    def embed_prepared(self, prepared: Mapping[str, pa.Array], role: Role) -> np.ndarray:
        ids = prepared[IDS]
        lengths, tokens = ids.value_lengths().to_numpy(), ids.flatten().to_numpy()
        self.num_tokens += len(tokens)
        time.sleep(self._token_s * len(tokens))
        sums = np.add.reduceat(self._table[tokens], np.cumsum(lengths) - lengths, axis=0)
        return np.asarray(sums / lengths[:, np.newaxis], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--speed", type=float, default=1.0, help="of the accelerator, as one core's tokenising is 1")
    parser.add_argument("--actor-cpus", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="where everything goes; a temporary folder by default")
    options = parser.parse_args()
    texts, _ = make_texts(options.rows)
    tokeniser = Accelerator.preparer()
    tokeniser({"text": texts[:64]}, "item")
    start = time.monotonic()
    ids = [tokeniser({"text": texts[first : first + AHEAD]}, "item")[IDS] for first in range(0, len(texts), AHEAD)]
    alone_s, tokens = time.monotonic() - start, sum(len(each.flatten()) for each in ids)
    token_s = alone_s / tokens / options.speed
    plain = Accelerator(0.0, 0)
    expected = np.concatenate([plain.embed_prepared({IDS: each}, "item") for each in ids])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": np.arange(len(texts)), "text": texts})
        pq.write_table(table, folder / "items.parquet", row_group_size=8 * CHUNK)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
        spans_s: dict[str, list[float]] = {name: [] for name, *_ in WAYS}
        digests = []
        for name, depth, workers in (*WAYS, *reversed(WAYS)):
            out, kwargs = open_files(str(folder / f"out {len(digests)}")), {"token_s": token_s, "depth": depth}
            resources = ResourcesConfig(embed_actors=(1, 1), cpus_per_actor=options.actor_cpus, prepare_workers=workers)
            receipts = wave(out, folder / "items.parquet", len(texts), kwargs, resources)
            digests.append(check(out, receipts, expected))
            times = [each.details["embedding"] for each in receipts]
            spans_s[name].append(max(each["ended_s"] for each in times) - min(each["began_s"] for each in times))
        ray.shutdown()
    assert all(each.equals(digests[0]) for each in digests), "the digests of what was read are the same"
    print(hardware())
    print(
        f"{len(texts):,} texts of {tokens / len(texts):.0f} tokens; one core tokenises {len(texts) / alone_s:,.0f} a "
        f"second, the accelerator takes {1 / token_s * len(texts) / tokens:,.0f} a second\n"
    )
    mean_s = {name: float(np.mean(spans)) for name, spans in spans_s.items()}
    first = next(iter(mean_s.values()))
    lines = [
        [
            name, f"{len(texts) / span_s:,.0f}", f"{tokens / span_s:,.0f}", f"{tokens * token_s / span_s:.1%}",
            f"{first / span_s:.2f}", f"{max(spans_s[name]) / min(spans_s[name]):.2f}",
        ]
        for name, span_s in mean_s.items()
    ]  # fmt: skip
    print(markdown(["tokenised", "items/s", "tokens/s", "accelerator busy", "ratio", "slower / faster run"], lines))


def wave(files: Files, path: Path, rows: int, kwargs: dict[str, Any], resources: ResourcesConfig) -> list[Receipt]:
    """All items through one actor, in their order."""
    store = InputStore()
    (file,) = pin(store, store.find(str(path)), [Column("gallery.id_column", "id", "id")]).files
    space = Space("benchmarks.prepare:Accelerator", kwargs, DIM, "ip", CHUNK)
    job = Job(files, store, "id", "int64", ("text",), (), {"new": space})
    units = [
        Unit(
            unit=f"c{start:08d}", folder="pairs/f", file=file, start=start, length=min(CHUNK, rows - start),
            rows=min(CHUNK, rows - start), role="item", model="new",
        )
        for start in range(0, rows, CHUNK)
    ]  # fmt: skip
    blocks = in_blocks(units, BlockLimits(4 * CHUNK, resources.chunk_bytes, 1, CHUNK))
    engine = RayEngine()
    with engine.session(print), closing(engine.run_pool(pool_work(job), blocks, resources)) as pool:
        made = {unit.unit: receipt for unit, receipt in pool}
    return [made[unit.unit] for unit in units]


def check(files: Files, receipts: Sequence[Receipt], expected: np.ndarray) -> pa.Table:
    """The digests of what was read of the items; asserts that each has its vector."""
    ids, vectors = read_vectors(files, receipts, DIM)
    assert ids == list(range(len(expected))), "every item once, in order"
    worst = float(np.abs(vectors - expected).max())
    assert worst < 1e-5, f"vectors differ by {worst} from the plain loop's"
    return read_items(files, receipts)


if __name__ == "__main__":
    main()
