"""JSON artefacts that no other file names by digest: each carries its own, over its place and its content."""

from __future__ import annotations

import json
from typing import TypeVar

from fastfill_ray.errors import CorruptFile
from fastfill_ray.storage.refs import sha256_hex
from fastfill_ray.types import Model, canonical

M = TypeVar("M", bound=Model)


def seal_file(path: str, content: Model) -> bytes:
    """The bytes to store at `path`: the fields of `content` and ``sha256``, as canonical JSON."""
    fields = content.model_dump(mode="json")
    return canonical({**fields, "sha256": _digest(path, fields)})


def unseal_file(path: str, data: bytes, kind: type[M]) -> M:
    """What ``seal_file`` stored at this very path; of another place it is as wrong as a damaged one.

    Raises:
        CorruptFile: the bytes are not those that were stored there.
    """
    try:
        fields = json.loads(data)
        written = fields.pop("sha256")
        whole = written == _digest(path, fields) and canonical({**fields, "sha256": written}) == data
        if not whole:
            raise ValueError("its sha256 is not that of its place and content")
        return kind.model_validate(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        name = kind.__name__.lower()
        raise CorruptFile(
            f"{path}: not the {name} that was stored there ({error}). The same command makes it again.", path
        ) from error


def _digest(path: str, fields: dict[str, object]) -> str:
    return sha256_hex(canonical([path, fields]))
