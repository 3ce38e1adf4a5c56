"""Faults on purpose: short wrappers on real stores, and the in-memory twin of the store for tests that need no disk."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from fastfill_ray.errors import FileMissing, StorageError
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.stat import Stat
from fastfill_ray.types import check_path

T = TypeVar("T")
Fault = Literal["before", "lost_answer", "torn", "slow", "late"]


class MemoryFiles:
    """`storage.files.Files` in a dict; passes the same behaviour suite as the real stores."""

    def __init__(self) -> None:
        self.root = "memory://"
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> bytes:
        try:
            return self.objects[check_path(path)]
        except KeyError:
            raise FileMissing(f"{self.root}{path} does not exist.") from None

    def stat(self, path: str) -> Stat | None:
        data = self.objects.get(check_path(path))
        return None if data is None else Stat(len(data), hashlib.md5(data).hexdigest())

    def list(self, prefix: str) -> list[str]:
        folder = f"{check_path(prefix)}/" if prefix else ""
        return sorted(path for path in self.objects if path.startswith(folder))

    def put_new(self, path: str, data: bytes) -> bool:
        if not data:
            raise ValueError(f"put_new({path!r}): empty data")
        with self._lock:
            return self.objects.setdefault(check_path(path), data) == data

    def put_data(self, path: str, data: bytes) -> None:
        self.objects[check_path(path)] = data

    def delete(self, path: str) -> None:
        self.objects.pop(check_path(path), None)


class Injected(StorageError):
    """A fault that a test asked for."""


@dataclass
class FaultyFiles:
    """A real store whose next writes to paths that contain `part` fail as asked, one fault per write.

    before: nothing happens, the call raises. lost_answer: the write lands, the call raises. torn: half of the bytes
    land (as on a store without atomic writes), the call raises. slow: `meanwhile` runs first, then the write. late:
    the call raises, and the write is on its way until ``land``.
    """

    files: Files
    part: str = ""
    faults: list[Fault] = field(default_factory=list)
    meanwhile: Callable[[], object] = lambda: None
    deleted: list[str] = field(default_factory=list)
    on_their_way: list[Callable[[], object]] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.files.root

    def get(self, path: str) -> bytes:
        return self.files.get(path)

    def stat(self, path: str) -> Stat | None:
        return self.files.stat(path)

    def list(self, prefix: str) -> list[str]:
        return self.files.list(prefix)

    def put_new(self, path: str, data: bytes) -> bool:
        return self._write(path, data, self.files.put_new)

    def put_data(self, path: str, data: bytes) -> None:
        self._write(path, data, self.files.put_data)

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        self.files.delete(path)

    def land(self) -> None:
        """Writes that are late arrive now."""
        while self.on_their_way:
            self.on_their_way.pop(0)()

    def _write(self, path: str, data: bytes, write: Callable[[str, bytes], T]) -> T:
        fault = self.faults.pop(0) if self.faults and self.part in path else None
        if fault == "before":
            raise Injected(f"{path}: injected before the write")
        if fault == "torn":
            self.files.put_data(path, data[: len(data) // 2])
            raise Injected(f"{path}: injected in the middle of the write")
        if fault == "late":
            self.on_their_way.append(lambda: write(path, data))
            raise Injected(f"{path}: injected before the answer; the write lands later")
        if fault == "slow":
            self.meanwhile()
        answer = write(path, data)
        if fault == "lost_answer":
            raise Injected(f"{path}: injected after the write")
        return answer


def flip_bit(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
