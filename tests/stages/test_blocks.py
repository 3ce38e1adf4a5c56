"""How units are put together: every one once, in order, no block larger than it may be, small ones at the end."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fastfill_ray.config import ResourcesConfig
from fastfill_ray.inputs.parquet import PinnedFile
from fastfill_ray.stages.blocks import BLOCK_S, LEAST_S, MOST_UNITS, UNMEASURED_ROWS, BlockLimits, in_blocks
from fastfill_ray.stages.embed import Unit, grouped

CHUNK_ROWS = 100


def units_of(rows: list[int], *, chunks_per_group: int = 1, folder: str = "vectors/p/wave=01") -> list[Unit]:
    """A unit per chunk of one file, whose row groups hold so many chunks."""
    group_rows = CHUNK_ROWS * chunks_per_group
    num_rows = CHUNK_ROWS * len(rows)
    groups = [min(group_rows, num_rows - start) for start in range(0, num_rows, group_rows)]
    file = PinnedFile.model_construct(path="a.parquet", row_groups=tuple(groups), read_bytes=num_rows * 10)
    return [
        Unit.model_construct(
            unit=f"c{number}", folder=folder, file=file, start=CHUNK_ROWS * number, length=CHUNK_ROWS, rows=each,
            role="item", model="new",
        )
        for number, each in enumerate(rows)
    ]  # fmt: skip


@given(
    st.lists(st.lists(st.integers(1, CHUNK_ROWS), max_size=40), max_size=3),
    st.integers(1, 5),
    st.integers(1, 400),
    st.integers(1, 3000),
    st.integers(1, 4),
)
def test_every_unit_is_in_one_block_in_order_and_no_block_is_larger_than_its_limits_or_one_unit(
    waves: list[list[int]], chunks_per_group: int, rows: int, size: int, actors: int
) -> None:
    units = [
        unit
        for wave, each in enumerate(waves)
        for unit in units_of(each, chunks_per_group=chunks_per_group, folder=f"vectors/p/wave={wave:02d}")
    ]
    groups = in_blocks(units, BlockLimits(rows, size, actors))
    blocks = [block for group in groups for block in group]
    assert [unit for block in blocks for unit in block] == units
    for block in blocks:
        assert len({unit.folder for unit in block}) == 1, "a wave ends with a block"
        assert len(block) == 1 or sum(unit.rows for unit in block) <= rows
        assert len(block) == 1 or sum(unit.rows * 10 for unit in block) <= size
    tasks = [[unit.unit for block in group for unit in block] for group in groups]
    for together in grouped(units):
        assert sum(together[0].unit in task and together[-1].unit in task for task in tasks) >= 1, "read in one pass"


def test_small_units_travel_together_and_blocks_get_smaller_towards_the_end() -> None:
    blocks = [block for group in in_blocks(units_of([2] * 1000), BlockLimits(100, 1 << 30, 2)) for block in group]
    sizes = [sum(unit.rows for unit in block) for block in blocks]
    assert sizes[0] == 100
    assert all(after <= before for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == 2
    blocks = [block for group in in_blocks(units_of([2] * 1000), BlockLimits(100, 1 << 30, 2, 10)) for block in group]
    assert {len(block) for block in blocks[-3:-1]} == {5}
    small = in_blocks(units_of([1] * 5000), BlockLimits(1 << 20, 1 << 30, 1))
    assert max(len(block) for group in small for block in group) == MOST_UNITS


def test_a_block_takes_a_known_time_where_the_cost_of_an_item_is_known() -> None:
    resources = ResourcesConfig(embed_actors=(1, 3), chunk_bytes=7)
    assert BlockLimits.of(resources, 0.01) == BlockLimits(int(BLOCK_S / 0.01), 7, 3, least_rows=int(LEAST_S / 0.01))
    assert BlockLimits.of(resources, 1000.0).rows == 1
    assert BlockLimits.of(resources, None).rows == UNMEASURED_ROWS
