"""Calls in threads: their results in order, their errors in place, and none lost where the caller gives up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from fastfill_ray.storage.overlap import overlapped, read_ahead


def test_results_come_in_order_while_later_work_is_made_ready() -> None:
    ready, written = list[int](), threading.Event()

    def writes() -> Iterator[Callable[[], int]]:
        for number in range(10):
            ready.append(number)
            if number == 1:
                written.set()  # the first write ends only once the second one is ready
            yield lambda number=number: written.wait(10) and number  # type: ignore[misc]

    assert list(overlapped(writes())) == list(range(10)) == ready


def test_an_error_comes_out_at_its_place_and_what_had_begun_ends() -> None:
    ended = []

    def fails() -> int:
        raise OSError("disk full")

    def write() -> int:
        ended.append(1)
        return 0

    results = overlapped(iter([write, fails, write]))
    assert next(results) == 0
    with pytest.raises(OSError, match="disk full"):
        next(results)
    assert len(ended) == 2


def test_an_error_of_what_makes_the_calls_comes_behind_those_that_had_begun() -> None:
    def writes() -> Iterator[Callable[[], int]]:
        yield lambda: 0
        yield lambda: 1
        raise OSError("unreadable")

    results = overlapped(writes())
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="unreadable"):
        next(results)


def test_nobody_waits_for_reads_behind_one_that_fails() -> None:
    may_end = threading.Event()

    def fails() -> bool:
        raise OSError("gone")

    try:
        with pytest.raises(OSError, match="gone"):
            next(read_ahead(lambda read: read(), [fails, lambda: may_end.wait(60)]))
        assert not may_end.is_set()
    finally:
        may_end.set()


def test_where_the_caller_gives_up_what_had_begun_ends() -> None:
    ended = []
    results = overlapped(iter([lambda: ended.append(1)] * 10))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert 1 <= len(ended) <= 5
