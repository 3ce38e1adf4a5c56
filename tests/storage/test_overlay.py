"""A store that reads a root and writes beside it: the stores' own suite runs on it, too (conftest)."""

from __future__ import annotations

import pytest

from fastfill_ray.errors import FileMissing
from fastfill_ray.storage.overlay import Overlay
from tests.faults import MemoryFiles


@pytest.fixture
def below() -> MemoryFiles:
    root = MemoryFiles()
    root.objects = {"log/0.json": b"first", "index/a": b"segment"}
    return root


def test_nothing_that_is_written_or_deleted_reaches_the_root(below: MemoryFiles) -> None:
    before = dict(below.objects)
    files = Overlay(below, MemoryFiles())
    files.put_data("index/a", b"other")
    files.put_data("index/b", b"new")
    assert files.put_new("log/1.json", b"second")
    files.delete("log/0.json")
    assert below.objects == before
    assert (files.get("index/a"), files.get("index/b"), files.root) == (b"other", b"new", below.root)
    assert files.list("") == ["index/a", "index/b", "log/1.json"]


def test_what_is_in_the_root_is_seen_until_it_is_written_or_deleted(below: MemoryFiles) -> None:
    files = Overlay(below, MemoryFiles())
    assert (files.get("log/0.json"), files.stat("log/0.json")) == (b"first", below.stat("log/0.json"))
    assert not files.put_new("log/0.json", b"second")
    assert files.put_new("log/0.json", b"first")
    files.delete("log/0.json")
    assert files.stat("log/0.json") is None
    with pytest.raises(FileMissing, match=r"log/0\.json"):
        files.get("log/0.json")
    assert files.put_new("log/0.json", b"second")
    assert files.get("log/0.json") == b"second"
