"""Blocks of units: what travels together costs the driver once, fills the model's batches, and takes a known time.

Chunks are cut before anybody knows what an item costs, and a wave takes a share of each: its units may be a row or
thousands. Blocks are cut when the cost is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.stages.embed import Unit, grouped

# What one actor works on together: long beside what a block costs, short beside what a lost node costs.
BLOCK_S = 30.0
# The last ones, which are small so that all actors end at about the same time: long beside a batch and a call.
LEAST_S = 1.0
# Where nothing was measured yet: most rows, and those of the last ones.
UNMEASURED_ROWS = 512
UNMEASURED_LEAST_ROWS = 32
# Receipts, and what is known of a block's units, must stay small beside its rows.
MOST_UNITS = 512
# A block has at most this share of the rows that are left per actor.
_LEFT_SHARE = 0.5


@dataclass(frozen=True)
class BlockLimits:
    """rows, bytes: most of a block; a single unit may exceed them. least_rows: of the last blocks. actors: at most, of
    the pool.
    """

    rows: int
    bytes: int
    actors: int
    least_rows: int = 1

    @classmethod
    def of(cls, resources: ResourcesConfig, item_s: float | None) -> BlockLimits:
        """Blocks of ``BLOCK_S`` seconds. item_s: seconds of one actor per item; None where nothing was measured."""
        rows, least_rows = UNMEASURED_ROWS, UNMEASURED_LEAST_ROWS
        if item_s is not None:
            rows, least_rows = (max(1, int(seconds / max(item_s, 1e-9))) for seconds in (BLOCK_S, LEAST_S))
        return cls(rows, resources.chunk_bytes, resources.embed_actors[1], least_rows)


def in_blocks(units: Sequence[Unit], limits: BlockLimits) -> list[list[list[Unit]]]:
    """Units in their order, in blocks of one folder, role and model, in groups that a task reads in one pass.

    A block is part of a group, or a few whole ones that are small. Towards the end blocks get smaller.
    """
    left = sum(unit.rows for unit in units)
    groups: list[list[list[Unit]]] = []
    last: _Block | None = None
    for group in grouped(units):
        blocks = []
        for block in _cut(group, left, limits):
            blocks.append(block)
            left -= block.rows
        if len(blocks) == 1 and last is not None and last.takes(blocks[0], left, limits):
            last.add(blocks[0])
            continue
        groups.append([block.units for block in blocks])
        last = blocks[0] if len(blocks) == 1 else None
    return groups


class _Block:
    """Units that travel together."""

    def __init__(self, units: Iterable[Unit]) -> None:
        self.units = list(units)
        self.rows = sum(unit.rows for unit in self.units)
        self.bytes = sum(_bytes_of(unit) for unit in self.units)

    def takes(self, other: _Block, left: int, limits: BlockLimits) -> bool:
        """Whether another one fits in, while so many rows are left after it."""
        rows = self.rows + other.rows
        return (
            _kind(self.units[0]) == _kind(other.units[0])
            and rows <= _most_rows(left + rows, limits)
            and self.bytes + other.bytes <= limits.bytes
            and len(self.units) + len(other.units) <= MOST_UNITS
        )

    def add(self, other: _Block) -> None:
        self.units += other.units
        self.rows += other.rows
        self.bytes += other.bytes


def _cut(group: Sequence[Unit], left: int, limits: BlockLimits) -> Iterator[_Block]:
    """A group, in blocks; so many rows are left before it."""
    for _, units in itertools.groupby(group, key=_kind):
        block: _Block | None = None
        for unit in (_Block([unit]) for unit in units):
            left -= unit.rows
            if block is not None and not block.takes(unit, left, limits):
                yield block
                block = None
            if block is None:
                block = unit
            else:
                block.add(unit)
        if block is not None:
            yield block


def _kind(unit: Unit) -> tuple[str, str, str]:
    return unit.folder, unit.role, unit.model


def _most_rows(left: int, limits: BlockLimits) -> int:
    return min(limits.rows, max(limits.least_rows, int(_LEFT_SHARE * left / limits.actors)))


def _bytes_of(unit: Unit) -> int:
    """About what its payload takes."""
    return unit.rows * unit.file.read_bytes // max(1, unit.file.rows)
