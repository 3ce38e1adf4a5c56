"""How full a node is, by the files of a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastfill_ray.embedders.memory import Memory


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    250 kB\n")
    return tmp_path


def test_a_machine_is_as_full_as_what_is_not_available(kernel: Path) -> None:
    memory = Memory(kernel, kernel)
    assert memory.total_bytes == 1000 << 10
    assert memory.used_share() == 0.75


def test_a_container_with_a_limit_is_as_full_as_what_it_cannot_give_back(kernel: Path) -> None:
    (kernel / "memory.max").write_text("max\n")
    assert Memory(kernel, kernel).used_share() == 0.75
    (kernel / "memory.max").write_text(f"{500 << 10}\n")
    (kernel / "memory.current").write_text(f"{400 << 10}\n")
    (kernel / "memory.stat").write_text(f"anon 7\ninactive_file {300 << 10}\n")
    memory = Memory(kernel, kernel)
    assert (memory.total_bytes, memory.used_share()) == (500 << 10, 0.2)


def test_where_no_kernel_tells_nothing_is_full(tmp_path: Path) -> None:
    memory = Memory(tmp_path, tmp_path)
    assert (memory.used_share(), memory.resident_bytes(os.getpid())) == (0, 0)


def test_a_process_holds_what_it_has_touched() -> None:
    memory = Memory()
    assert 1 << 20 < memory.resident_bytes(os.getpid()) < memory.total_bytes
    assert 0 < memory.used_share() < 1
