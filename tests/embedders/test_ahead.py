"""What is done ahead comes in order, is not far ahead, and fails in its place."""

from __future__ import annotations

import threading

import pytest

from fastfill_ray.embedders.ahead import ahead


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ahead(lambda x: x * x, range(20), threads=4)) == [x * x for x in range(20)]
    assert list(ahead(str, [])) == []


def test_no_more_than_the_depth_is_begun_before_it_is_asked_for() -> None:
    begun: list[int] = []
    results = ahead(lambda x: begun.append(x) or x, range(100), depth=3)  # type: ignore[func-returns-value]
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 4


def test_an_error_comes_out_in_its_place_and_no_thread_is_left() -> None:
    def fail(x: int) -> int:
        if x == 2:
            raise ValueError("two")
        return x

    results = ahead(fail, range(10))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
