"""What receipts say of the embedders' time."""

from __future__ import annotations

import pytest

from fastfill_ray.stages.busy import Busy, Embedding
from fastfill_ray.storage.receipts import Receipt


def receipt(actor: str, began_s: float, ended_s: float, busy_s: float, rows: int = 100) -> Receipt:
    return Receipt(unit="c0", rows=rows, details=Embedding(actor, began_s, ended_s, busy_s).details())


def test_the_time_between_blocks_is_idle_and_the_units_of_a_block_share_its_time() -> None:
    busy = Busy()
    for each in (
        receipt("a", 0, 10, 4), receipt("a", 0, 10, 6), receipt("a", 12, 20, 8),
        receipt("b", 5, 25, 20, rows=60),
    ):  # fmt: skip
        busy.add(each)
    assert busy.share == pytest.approx(38 / 40)
    assert str(busy) == (
        "360 items by 2 embedders, 95.0% busy between first and last batch: 14.4 items/s, 30.86 actor hours for a "
        "million items"
    )


def test_tokens_are_said_where_all_units_know_them_and_the_cost_where_a_price_is_given() -> None:
    busy = Busy(price=2.5)
    busy.add(Receipt(unit="c0", rows=100, details=Embedding("a", 0, 10, 10, 700.0).details()))
    assert str(busy).endswith("10.0 items/s, 70 tokens/s, 27.78 actor hours for a million items: 69.44 at 2.5 an hour")
    busy.add(receipt("a", 10, 20, 10))
    assert "tokens" not in str(busy)


def test_a_unit_has_its_share_of_the_blocks_time_and_tokens() -> None:
    half = Embedding.here(0, 10, 0.5, 30)
    assert (half.busy_s, half.tokens) == (5, 15)
    assert Embedding.here(0, 10, 0.5).tokens is None


def test_receipts_that_do_not_say_it_do_not_count() -> None:
    busy = Busy()
    busy.add(Receipt(unit="c0", rows=5, seconds=3))
    assert (busy.share, str(busy)) == (None, "")
