"""A folder of the user's, on a local disk or on S3: what lies below it, and what of that is no data by its name."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from fastfill_ray.errors import InputError

if TYPE_CHECKING:
    from fastfill_ray.storage.s3 import S3FileSystem

# Plain files begin with the first, files with an encrypted footer with the second.
_MAGIC = (b"PAR1", b"PARE")
# Payloads may lie beside the table, a million of them: these are known by their names and not opened.
_MEDIA = ("image/", "audio/", "video/")
_TYPES = mimetypes.MimeTypes()  # only what Python itself knows: the same on every machine
# Of a listing on S3: the most that it gives.
_PAGE_KEYS = 1000


@dataclass(frozen=True)
class InputFile:
    """One file as it was when it was looked up; pinned by size and tag.

    Attributes:
        path: absolute local path or ``s3://`` URL; ``InputStore.open`` takes it.
        size: bytes.
        tag: ETag on S3, modification time in ns on a local disk; changes when the content does.
    """

    path: str
    size: int
    tag: str


@dataclass
class Folder:
    """What lies below a folder, in no order.

    Attributes:
        files: {path below the folder: file} of what may be data.
        skipped: {path below the folder: why it is none}; folders end with a slash, and what is in them is not told.
        places: the folder itself and those outside of it that links lead to.
    """

    files: dict[str, InputFile] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)


class Tree(Protocol):
    """A file system as far as input is looked for in it. Places are its own paths, without a scheme."""

    def file(self, place: str) -> InputFile | None:
        """The file there; None if it is a folder. Raises FileNotFoundError, or what the store raises."""
        ...

    def folder(self, place: str) -> Folder: ...

    def first_bytes(self, file: InputFile) -> bytes: ...

    def names_below(self, place: str, start: str) -> Iterator[list[str]]:
        """Paths below a folder that begin with `start`, by pages; none where looking is forbidden."""
        ...

    def url(self, place: str) -> str: ...


def left_out(name: str) -> str | None:
    """Why a file or folder of that name is no data, None if it may be: the rule by which Spark reads a folder.

    ``_year=2023`` is a partition; ``._COPYING_`` is how Hadoop calls a file while it is being written.
    """
    if name.startswith(".") or (name.startswith("_") and "=" not in name):
        return f'begins with "{name[0]}"'
    return "is being copied" if name.endswith("._COPYING_") else None


def parquet_by_name(file: InputFile) -> bool | None:
    """Whether a file is Parquet, as far as its name and size tell; None if its first bytes must."""
    if file.path.endswith(".parquet"):
        return True
    kind = _TYPES.guess_type(file.path)[0] or ""
    return False if file.size < len(_MAGIC[0]) or kind.startswith(_MEDIA) else None


def begins_as_parquet(data: bytes) -> bool:
    """Whether a file with these first bytes is a Parquet file."""
    return data.startswith(_MAGIC)


class LocalTree:
    """See ``Tree``. Links to folders are followed; each real folder is read once."""

    def file(self, place: str) -> InputFile | None:
        there = os.stat(place)
        if stat.S_ISDIR(there.st_mode):
            return None
        if not stat.S_ISREG(there.st_mode):  # a pipe would be waited for, without end
            raise InputError(f"input {place!r} is a device, pipe or socket. Give a file or a folder.")
        return InputFile(place, there.st_size, str(there.st_mtime_ns))

    def folder(self, place: str) -> Folder:
        folder, seen = Folder(places=[os.path.realpath(place)]), set[tuple[int, int]]()
        waiting, links = [(place, "")], list[tuple[str, str]]()
        while waiting or links:
            # Links come after all that is really there, and in order: the same files whatever the system lists first.
            is_link = not waiting
            path, above = heappop(links) if is_link else waiting.pop()
            there = os.stat(path)
            if (there.st_dev, there.st_ino) in seen:
                folder.skipped[above] = "is a folder that is read already"
                continue
            seen.add((there.st_dev, there.st_ino))
            if is_link:
                folder.places.append(os.path.realpath(path))
            for name, kind in _entries(path):
                inner, below = os.path.join(path, name), f"{above}{name}"
                if (why := left_out(name)) is not None:
                    folder.skipped[f"{below}/" if "folder" in kind else below] = why
                elif kind == "folder":
                    waiting.append((inner, f"{below}/"))
                elif kind == "link to a folder":
                    heappush(links, (inner, f"{below}/"))
                elif kind == "file" and (file := self.file(inner)) is not None:
                    folder.files[below] = file
                else:
                    folder.skipped[below] = kind
        return folder

    def first_bytes(self, file: InputFile) -> bytes:
        with open(file.path, "rb") as handle:
            return handle.read(4)

    def names_below(self, place: str, start: str) -> Iterator[list[str]]:
        inner, _, begin = start.rpartition("/")
        try:
            names = os.listdir(os.path.join(place, inner))
        except OSError:
            return
        yield [f"{inner}/{name}" for name in names if name.startswith(begin)]

    def url(self, place: str) -> str:
        return place


def _entries(path: str) -> Iterator[tuple[str, str]]:
    """(name, kind) of what lies in a local folder. A kind that is neither file nor folder says why it is not read."""
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                mode = os.stat(entry.path).st_mode
            except OSError as error:
                if not entry.is_symlink() or isinstance(error, PermissionError):
                    raise
                yield entry.name, "is a link to nothing"
                continue
            if stat.S_ISDIR(mode):
                yield entry.name, "link to a folder" if entry.is_symlink() else "folder"
            else:
                yield entry.name, "file" if stat.S_ISREG(mode) else "is a device, pipe or socket"


class S3Tree:
    """See ``Tree``. A place is ``bucket/key``."""

    def __init__(self, filesystem: S3FileSystem) -> None:
        self._filesystem = filesystem

    def file(self, place: str) -> InputFile | None:
        info = self._filesystem.info(place)
        return self._file(info) if info["type"] == "file" else None

    def folder(self, place: str) -> Folder:
        folder = Folder(places=[place])
        for info in self._filesystem.find(place, detail=True).values():
            if info["type"] != "file" or info["name"].endswith("/"):
                continue  # stands for an empty folder
            names = info["name"][len(place) :].strip("/").split("/")
            first = next((i for i, name in enumerate(names) if left_out(name) is not None), None)
            if first is None:
                folder.files["/".join(names)] = self._file(info)
            else:
                below = "/".join(names[: first + 1]) + ("" if first == len(names) - 1 else "/")
                folder.skipped[below] = str(left_out(names[first]))
        return folder

    def first_bytes(self, file: InputFile) -> bytes:
        data: bytes = self._filesystem.cat_file(file.path, start=0, end=4)
        return data

    def names_below(self, place: str, start: str) -> Iterator[list[str]]:
        bucket, _, key = place.partition("/")
        top = f"{key}/" if key else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{top}{start}", "MaxKeys": _PAGE_KEYS}
        while True:
            try:
                page = self._filesystem.call_s3("list_objects_v2", **request)
            except PermissionError:  # who may read a folder need not see what is beside it
                return
            yield [entry["Key"].removeprefix(top) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def url(self, place: str) -> str:
        return f"s3://{place}"

    def _file(self, info: dict[str, Any]) -> InputFile:
        return InputFile(self.url(info["name"]), int(info["size"]), info["ETag"].strip('"'))
