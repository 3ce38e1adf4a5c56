"""A root as it would be: what is read is the root's, what is written or deleted stays beside it."""

from __future__ import annotations

from fastfill_ray.errors import FileMissing
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.stat import Stat


class Overlay:
    """See ``storage.files.Files``. Nothing is ever written to the root, nor deleted from it. For one process.

    Args:
        below: the root.
        above: an empty place for what is written.
    """

    def __init__(self, below: Files, above: Files) -> None:
        self._below, self._above = below, above
        self._deleted: set[str] = set()  # hidden of the root

    @property
    def root(self) -> str:
        return self._below.root

    def get(self, path: str) -> bytes:
        if self._above.stat(path) is not None:
            return self._above.get(path)
        if path in self._deleted:
            raise FileMissing(f"{self.root}/{path} does not exist.")
        return self._below.get(path)

    def stat(self, path: str) -> Stat | None:
        found = self._above.stat(path)
        return self._below.stat(path) if found is None and path not in self._deleted else found

    def list(self, prefix: str) -> list[str]:
        return sorted({*self._above.list(prefix), *self._below.list(prefix)} - self._hidden())

    def put_new(self, path: str, data: bytes) -> bool:
        if data and path not in self._deleted and self._below.stat(path) is not None:
            return self.get(path) == data
        return self._above.put_new(path, data)

    def put_data(self, path: str, data: bytes) -> None:
        self._above.put_data(path, data)

    def delete(self, path: str) -> None:
        self._above.delete(path)
        self._deleted.add(path)

    def _hidden(self) -> set[str]:
        return {path for path in self._deleted if self._above.stat(path) is None}
